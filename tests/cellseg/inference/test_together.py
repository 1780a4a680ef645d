"""Several images or tiles at a time give what each gives alone."""

import numpy as np
import pytest
import torch

from cellseg.data.rle import decode
from cellseg.device import Room
from cellseg.inference import image as module
from cellseg.inference.image import detect, predict_images
from cellseg.model.build import build_model

SIZES = [(48, 64), (64, 48), (48, 64), (40, 40), (48, 64), (48, 64)]


@pytest.fixture
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def model_of(config) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(config.model, config.inference, 3).eval()


@pytest.fixture
def shown(monkeypatch) -> list[int]:
    """How many views went through the network together."""
    counts = []
    original = module.detect

    def counted(model, views, amp_dtype=None):
        counts.append(len(views))
        return original(model, views, amp_dtype)

    monkeypatch.setattr(module, "detect", counted)
    return counts


def assert_alike(one, other) -> None:
    assert one.size == other.size
    np.testing.assert_allclose(one.scores_N, other.scores_N, atol=1e-5)
    np.testing.assert_array_equal(one.labels_N, other.labels_N)
    np.testing.assert_allclose(one.boxes_N4, other.boxes_N4, atol=1e-2)
    for mine, yours in zip(one.rles, other.rles, strict=True):
        assert np.count_nonzero(decode(mine) != decode(yours)) <= 2


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({}, [4, 1, 1]),
        ({"inference__scales": "0.5,1"}, [4, 4, 1, 1, 1, 1]),
        ({"inference__tile": 40, "inference__tile_overlap": 32}, [7, 7, 7, 7, 4, 7, 1, 1]),
        ({"data__resize": "square", "data__shorter_side": 40}, [4, 1, 1]),
    ],
)
def test_images_together_are_predicted_as_alone_and_come_back_in_their_order(
    tiny_config, images, shown, settings, counts
):
    config = tiny_config(inference__score_threshold=0.3, **settings)
    model = model_of(config)
    alone = [predict_images(model, [image], config)[0] for image in images]
    assert set(shown) == {1} and sum(map(len, alone)) >= 10
    shown.clear()
    together = predict_images(model, images, config, room=Room(pixels=4 * 48 * 64))
    assert shown == counts
    for one, other in zip(alone, together, strict=True):
        assert_alike(one, other)


def test_tiles_that_do_not_fit_together_are_predicted_fewer_at_a_time(tiny_config, images, monkeypatch):
    config = tiny_config(inference__score_threshold=0.3, inference__tile=40, inference__tile_overlap=32)
    model, sizes = model_of(config), []
    alone = predict_images(model, images, config)
    original = module.detect

    def little_memory(model, views, amp_dtype=None):
        sizes.append(len(views))
        if len(views) > 3:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
        return original(model, views, amp_dtype)

    monkeypatch.setattr(module, "detect", little_memory)
    for one, other in zip(alone, predict_images(model, images, config, room=Room(4 * 48 * 64)), strict=True):
        assert_alike(one, other)
    assert sizes[:3] == [7, 3, 3] and max(sizes[1:]) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_the_backbones_and_boxes_are_float32(tiny_config, images, dtype):
    config = tiny_config(inference__score_threshold=0.0)
    model = model_of(config)
    seen = {}
    model.backbone.body.register_forward_hook(lambda _, __, out: seen.update(body=next(iter(out.values())).dtype))
    model.rpn.register_forward_pre_hook(lambda _, given: seen.update(rpn=given[1]["0"].dtype))
    (exact,), (mixed,) = detect(model, images[:1]), detect(model, images[:1], dtype)
    assert seen == {"body": dtype, "rpn": torch.float32}
    assert {name: value.dtype for name, value in mixed.items()} == {n: value.dtype for n, value in exact.items()}
    assert mixed["boxes"].dtype == np.float32
    assert abs(np.sort(mixed["scores"])[-5:] - np.sort(exact["scores"])[-5:]).max() < 0.02
