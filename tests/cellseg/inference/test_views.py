"""Turned images, and the exact way back."""

import numpy as np
import pytest
import torch
from torch import nn

from cellseg.data.rle import decode
from cellseg.errors import UserError
from cellseg.inference.image import predict_image, predict_images
from cellseg.inference.views import TURNS, Turn, turns_of, with_tta

EIGHT = turns_of("flips,rot90")


class Bright(nn.Module):
    """Finds the bounding box of the bright pixels, with a mask that is full."""

    def __init__(self):
        super().__init__()
        self.anywhere = nn.Parameter(torch.zeros(1))
        self.seen: list[torch.Tensor] = []

    def forward(self, images):
        self.seen += images
        found = []
        for image_CHW in images:
            rows, columns = torch.nonzero(image_CHW[0] > 0.5, as_tuple=True)
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else []
            count = len(box) // 4
            found.append(
                {
                    "boxes": torch.tensor(box, dtype=torch.float32).reshape(-1, 4),
                    "labels": torch.ones(count, dtype=torch.int64),
                    "scores": torch.full((count,), 0.75),
                    "masks": torch.ones(count, 1, 28, 28),
                }
            )
        return found


def picture(height: int = 37, width: int = 52) -> np.ndarray:
    """An image whose cell lies at no symmetric place: rows 5 to 16, columns 30 to 44."""
    image_HWC = np.zeros((height, width, 3), np.uint8)
    image_HWC[5:17, 30:45] = 255
    return image_HWC


@pytest.mark.parametrize("turn", EIGHT, ids=str)
def test_every_turn_comes_back_exactly(tiny_config, turn):
    image_HWC = picture()
    turned_HWC = np.ascontiguousarray(turn.apply(image_HWC))
    assert turned_HWC.shape[:2] == turn.size(image_HWC.shape[:2])
    (found,) = predict_images(Bright(), [turned_HWC], tiny_config(), soft=True)
    back = turn.undo(found, 0.5)
    assert back.size == (37, 52)
    np.testing.assert_array_equal(back.boxes_N4, [[30, 5, 45, 17]])
    assert back.boxes_N4.dtype == np.float32
    mask_HW, turned_mask_HW = decode(back.rles[0]), decode(found.rles[0])
    np.testing.assert_array_equal(turn.apply(mask_HW), turned_mask_HW)
    assert mask_HW[5:17, 30:45].mean() > 0.8 and mask_HW.sum() < 1.2 * 12 * 15


def test_the_eight_turns_are_all_different():
    number_HW = np.arange(6).reshape(2, 3)
    assert len({(turn.apply(number_HW).shape, turn.apply(number_HW).tobytes()) for turn in EIGHT}) == 8
    assert all(turns_of(name)[0].is_none for name in TURNS)
    assert {len(set(turns_of(name))) for name in TURNS} == {1, 4, 8}


@pytest.mark.parametrize(("turns", "views"), [("none", 1), ("flips", 4), ("rot90", 4), ("flips,rot90", 8)])
def test_turned_views_find_each_cell_once_where_it_is(tiny_config, turns, views):
    model = Bright()
    found = predict_image(model, picture(), tiny_config(inference__turns=turns))
    assert len(model.seen) == views
    assert {tuple(image.shape) for image in model.seen} == {(3, 37, 52)} | ({(3, 52, 37)} if "rot" in turns else set())
    np.testing.assert_allclose(found.boxes_N4, [[30, 5, 45, 17]], atol=1e-4)
    np.testing.assert_allclose(found.scores_N, [0.75])
    assert found.soft is None
    truth_HW = picture()[:, :, 0] > 0
    mask_HW = decode(found.rles[0])
    assert (mask_HW & truth_HW).sum() / (mask_HW | truth_HW).sum() > 0.85


def test_an_empty_image_has_no_cells_in_any_view(tiny_config):
    config = tiny_config(inference__turns="flips,rot90", inference__scales="0.5,1")
    assert len(predict_image(Bright(), np.zeros((20, 30, 3), np.uint8), config)) == 0


@pytest.mark.parametrize("tile", [None, 40])
def test_turns_scales_and_tiles_together(tiny_config, tile):
    config = tiny_config(
        inference__turns="flips,rot90", inference__scales="0.5,1", inference__tile=tile, inference__tile_overlap=32
    )
    found = predict_image(Bright(), picture(), config)
    assert found.scores_N[0] > 0.5
    np.testing.assert_allclose(found.boxes_N4[0], [30, 5, 45, 17], atol=1)


def test_parts_of_test_time_augmentation(tiny_config):
    config = tiny_config()
    assert with_tta(config, None) is config
    assert with_tta(config, "rot90, flips").inference.turns == "flips,rot90"
    assert with_tta(config, "scales").inference.scales == "0.8,1,1.25"
    assert with_tta(config, "scales").inference.turns == "none"
    assert with_tta(tiny_config(inference__scales="1,2"), "scales,flips").inference.scales == "1,2"
    with pytest.raises(UserError, match=r"--tta: must be some of flips, rot90, scales.* but got 'flip, '"):
        with_tta(config, "flip,,scales")


def test_a_turn_says_what_it_is():
    assert Turn().is_none and not Turn(1).is_none and not Turn(0, True).is_none
