import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from cellseg.config import DataConfig, LossConfig
from cellseg.data.loader import plain_item
from cellseg.data.packed import PackedDataset
from cellseg.data.resize import scaled_size
from cellseg.data.sample import Sample
from cellseg.device import Room
from cellseg.model.build import build_model
from cellseg.training import validation_images
from cellseg.training.validation import Validation, computing_losses, validation_loss
from cellseg.training.validation_images import ValidationImages

EMPTY = {"fingerprint": "0" * 32, "class_names": '["class1"]', "settings": "{}"}


@pytest.fixture
def model(tiny_config) -> nn.Module:
    """A detector with batch norms in backbone and heads, as it was born."""
    torch.manual_seed(0)
    config = tiny_config(model__detector="v2", model__norm="batch")
    return build_model(config.model, config.inference, 4)


@pytest.fixture
def items(packed) -> list:
    return [plain_item(packed[index], DataConfig()) for index in range(3)]


def test_a_validation_loss_is_a_finite_number_the_mean_over_the_images(model, items):
    of_each = [validation_loss(model, [item], LossConfig()) for item in items]
    assert all(math.isfinite(loss) and loss > 0 for loss in of_each) and len(set(of_each)) == 3
    assert validation_loss(model, items, LossConfig()) == pytest.approx(np.mean(of_each), rel=1e-6)


def test_it_changes_neither_weights_nor_statistics_nor_the_generator_nor_the_mode(model, items):
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    validation_loss(model, items, LossConfig())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    model.eval()
    validation_loss(model, items, LossConfig())
    assert not any(module.training for module in model.modules())


def test_it_samples_the_same_whatever_was_drawn_before(model, items):
    before = validation_loss(model, items, LossConfig())
    torch.rand(7)
    assert validation_loss(model, items, LossConfig()) == before
    assert validation_loss(model, items[::-1], LossConfig()) == pytest.approx(before, rel=1e-6)


def test_it_is_the_weighted_sum(model, items):
    only_mask = {field: float(field == "mask") for field in LossConfig.model_fields}
    mask = validation_loss(model, items, LossConfig(**only_mask))
    everything = validation_loss(model, items, LossConfig())
    assert 0 < mask < everything
    assert validation_loss(model, items, LossConfig(mask=3)) == pytest.approx(everything + 2 * mask, rel=1e-5)


def test_norms_and_dropout_behave_as_in_prediction_while_the_detector_computes_losses(model):
    model.train()
    model.roi_heads.box_head.append(nn.Dropout(0.5))
    with computing_losses(model):
        choosing = {name for name, module in model.named_modules() if module.training}
    assert choosing == {"", "rpn", "roi_heads"}


def test_an_image_without_cells_has_a_loss(model):
    empty = Sample("empty", np.zeros((64, 64, 3), np.uint8), np.zeros((1, 64, 64), np.uint16), np.zeros(0, np.int64))
    assert math.isfinite(validation_loss(model, [plain_item(empty, DataConfig())], LossConfig()))


def test_weights_that_are_not_finite_give_a_loss_that_is_not(model, items):
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias.fill_(math.nan)
    assert not math.isfinite(validation_loss(model, items, LossConfig()))


def test_an_item_is_scaled_and_coloured_as_for_prediction_and_neither_cropped_nor_turned(packed):
    sample = packed[0]
    image_CHW, target = plain_item(sample, DataConfig(crop=32, train_scale_min=0.5))
    assert np.array_equal(image_CHW.numpy(), sample.image_HWC.transpose(2, 0, 1))
    assert np.array_equal(target["planes"].numpy(), sample.planes_PHW)
    half = DataConfig(shorter_side=32, color="grey")
    image_CHW, target = plain_item(sample, half)
    assert min(image_CHW.shape[1:]) == 32 and image_CHW.dtype == torch.uint8
    assert target["planes"].shape[1:] == image_CHW.shape[1:]
    assert torch.equal(image_CHW[0], image_CHW[1]) and torch.equal(image_CHW[0], image_CHW[2])


def test_images_that_share_a_pass_have_the_loss_they_have_alone(model, items):
    twins = [items[0], items[0], items[1], items[2], items[2]]
    passes = []
    model.backbone.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    alone = validation_loss(model, twins, LossConfig())
    assert passes == [1] * 5
    passes.clear()
    assert validation_loss(model, twins, LossConfig(), None, Room(1 << 20)) == pytest.approx(alone, rel=1e-4)
    assert passes == [2, 1, 2]


def test_images_are_scaled_once_for_all_runs_on_the_same_data(packed, tiny_config, monkeypatch):
    made = []
    original = validation_images.plain_item
    monkeypatch.setattr(validation_images, "plain_item", lambda *given: (made.append(given), original(*given))[1])
    data = PackedDataset(packed.table)
    config = tiny_config(data__shorter_side=40)
    torch.manual_seed(0)
    detector = build_model(config.model, config.inference, 4)
    figures = []
    for _ in range(2):
        validation = Validation(data, (2, 5), config, torch.device("cpu"))
        figures += [validation.start(detector, None, epoch).result() for epoch in (1, 2)]
        validation.close()
    assert len(made) == 2
    assert figures == [figures[0]] * 4
    Validation(data, (2, 5), tiny_config(data__shorter_side=48), torch.device("cpu")).images.item(2)
    assert len(made) == 3, "other settings, other images"


def test_kept_images_are_what_would_be_made_and_take_no_more_than_their_memory(packed):
    settings = DataConfig(shorter_side=40, color="grey")
    plain = ValidationImages(packed, settings, limit=0)
    size = scaled_size(*packed[1].size, settings)
    image_CHW, target = plain.item(1)
    needed = image_CHW.nbytes + sum(value.nbytes for value in target.values())
    kept = ValidationImages(packed, settings, limit=needed)
    before = kept.scaled(1, size)
    assert kept.item(1) is kept.item(1) and plain.item(1) is not plain.item(1)
    assert np.array_equal(kept.scaled(1, size), before)
    assert np.array_equal(before, image_CHW.permute(1, 2, 0).numpy())
    assert kept.item(2) is not kept.item(2), "there is no room for another"
    other = kept.scaled(1, (30, 30))
    assert other.shape == (30, 30, 3)


def test_kept_images_end_with_the_data():
    import gc

    from cellseg.training.validation_images import _KEPT

    gc.collect()
    before = len(_KEPT)
    data = PackedDataset(pa.schema([("name", pa.string())]).with_metadata(EMPTY).empty_table())
    ValidationImages.of(data, DataConfig())
    assert len(_KEPT) == before + 1
    del data
    gc.collect()
    assert len(_KEPT) == before
