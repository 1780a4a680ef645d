import numpy as np
import pytest
import torch

from cellseg.data.augment import build_augmentation
from cellseg.data.loader import EpochBatches, TrainingImages, plain_item, training_loader
from cellseg.data.resize import scaled_size

INDICES = (1, 2, 4, 5, 7)


def items_of(packed, config, epoch=1) -> list:
    loader, batches = training_loader(packed, INDICES, config)
    batches.epoch = epoch
    return [item for batch in loader for item in batch]


def equal(one, other) -> bool:
    (image, target), (other_image, other_target) = one, other
    return torch.equal(image, other_image) and all(torch.equal(target[name], other_target[name]) for name in target)


def all_equal(items, others) -> bool:
    return len(items) == len(others) and all(equal(a, b) for a, b in zip(items, others, strict=True))


@pytest.mark.parametrize(
    "flat",
    [
        {"augment__preset": "full", "data__crop": 48, "data__train_scale_min": 0.5},
        {"augment__preset": "stain"},
        {"augment__preset": "grid"},
        {"augment__preset": "reported-elastic"},
    ],
)
def test_the_same_seed_gives_the_same_items_in_any_number_of_processes(packed, tiny_config, flat):
    config = tiny_config(**flat)
    alone = items_of(packed, config)
    assert all_equal(alone, items_of(packed, config))
    assert all_equal(alone, items_of(packed, config.replace(train__workers=2)))


def test_an_item_does_not_depend_on_those_made_before_it(packed, tiny_config):
    config = tiny_config(augment__preset="full", data__crop=48)
    forwards, backwards = TrainingImages(packed, INDICES, config), TrainingImages(packed, INDICES, config)
    visits = [(epoch, position) for epoch in (1, 2) for position in range(len(INDICES))]
    made = {visit: forwards[visit] for visit in visits}
    assert all(equal(backwards[visit], made[visit]) for visit in reversed(visits))


def test_an_item_belongs_to_its_image_and_not_to_its_place_in_the_split(packed, tiny_config):
    config = tiny_config(augment__preset="full")
    assert equal(TrainingImages(packed, (1, 4), config)[1, 1], TrainingImages(packed, (4, 7), config)[1, 0])


@pytest.mark.parametrize("change", [{}, {"train__seed": 1}])
def test_another_epoch_or_seed_gives_other_items_in_another_order(packed, tiny_config, change):
    config = tiny_config(augment__preset="flips", train__batch_size=5)
    epoch = 1 if change else 2
    assert not all_equal(items_of(packed, config), items_of(packed, config.replace(**change), epoch))


def test_an_image_is_changed_anew_in_every_epoch(packed, tiny_config):
    images = TrainingImages(packed, INDICES, tiny_config(augment__preset="color", augment__strength=1.0))
    assert len({images[epoch, 0][0].numpy().tobytes() for epoch in range(1, 6)}) == 5


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8])
def test_batches_visit_every_image_once(batch_size):
    batches = EpochBatches(5, batch_size, seed=0)
    batches.epoch = 3
    visits = list(batches)
    assert len(visits) == len(batches) == -(-5 // batch_size)
    assert all(len(batch) == batch_size for batch in visits[:-1])
    assert sorted(visit for batch in visits for visit in batch) == [(3, position) for position in range(5)]


def test_without_augmentation_an_item_is_the_image_and_its_cells(packed, tiny_config):
    image, target = TrainingImages(packed, INDICES, tiny_config(augment__preset="none"))[1, 2]
    sample = packed[INDICES[2]]
    np.testing.assert_array_equal(image.numpy(), sample.image_HWC.transpose(2, 0, 1))
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(target["planes"].numpy(), sample.planes_PHW)
    np.testing.assert_array_equal(target["boxes"].numpy(), packed.boxes(INDICES[2]))
    assert target["labels"].tolist() == sample.labels_N.tolist()


def test_the_image_and_its_cells_are_scaled_together(packed, tiny_config):
    config = tiny_config(augment__preset="none", data__shorter_side=128)
    image, target = TrainingImages(packed, INDICES, config)[1, 0]
    assert min(image.shape[1:]) == 128
    assert target["planes"].shape[1:] == image.shape[1:]
    scale = image.shape[1] / packed.sizes[INDICES[0]][0]
    np.testing.assert_allclose(target["boxes"].numpy(), packed.boxes(INDICES[0]) * scale, atol=2)


def test_grey_images_have_three_equal_channels(packed, tiny_config):
    config = tiny_config(data__color="grey", augment__preset="none")
    for position in range(len(INDICES)):
        image, _ = TrainingImages(packed, INDICES, config)[1, position]
        assert torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])
    colored = [TrainingImages(packed, INDICES, tiny_config(augment__preset="none"))[1, p][0] for p in range(5)]
    assert any(not torch.equal(image[0], image[1]) for image in colored)


def test_crops_have_the_size_that_was_asked_for(packed, tiny_config):
    images = TrainingImages(packed, INDICES, tiny_config(data__crop=40, augment__preset="none"))
    for epoch in (1, 2):
        for position in range(len(INDICES)):
            image, target = images[epoch, position]
            assert image.shape == (3, 40, 40)
            assert target["planes"].shape[1:] == (40, 40)
            assert ((target["boxes"] >= 0) & (target["boxes"] <= 40)).all()


def test_multi_scale_training_draws_a_factor_at_each_visit(packed, tiny_config):
    config = tiny_config(augment__preset="none", data__shorter_side=200, data__train_scale_min=0.5)
    images = TrainingImages(packed, INDICES, config)
    heights = []
    for epoch in range(1, 9):
        for position, index in enumerate(INDICES):
            image, target = images[epoch, position]
            full = scaled_size(*packed[index].size, config.data)
            factor = image.shape[1] / full[0]
            assert 0.495 < factor < 1.005
            assert image.shape[2] / full[1] == pytest.approx(factor, abs=0.01)
            assert target["planes"].shape[1:] == image.shape[1:]
            heights.append(factor)
    assert np.histogram(heights, bins=[0.49, 0.65, 0.8, 1.01])[0].min() > 5


def test_without_multi_scale_training_no_random_number_is_drawn_for_it(packed, tiny_config):
    config = tiny_config(augment__preset="color", train__seed=3)
    sample, rng = packed[4], np.random.default_rng([3, 2, 4])
    expected_HWC, _ = build_augmentation(config.augment)(sample.image_HWC, sample.planes_PHW, int(rng.integers(2**31)))
    image, _ = TrainingImages(packed, (4,), config)[2, 0]
    np.testing.assert_array_equal(image.numpy(), expected_HWC.transpose(2, 0, 1))


def test_square_images_are_distorted_together_with_their_cells(packed, tiny_config):
    config = tiny_config(augment__preset="none", data__resize="square", data__shorter_side=96)
    for position, index in enumerate(INDICES):
        image, target = TrainingImages(packed, INDICES, config)[1, position]
        assert image.shape == (3, 96, 96)
        scale = 96 / packed.sizes[index][[1, 0, 1, 0]]
        expected_N4 = packed.boxes(index) * scale
        assert np.abs(target["boxes"].numpy() - expected_N4).max() <= 2


def test_a_plain_item_is_neither_cropped_nor_scaled_at_random_nor_augmented(packed, tiny_config):
    config = tiny_config(
        data__shorter_side=80, data__color="grey", augment__preset="full", data__crop=32, data__train_scale_min=0.5
    )
    plain = tiny_config(data__shorter_side=80, data__color="grey", augment__preset="none")
    expected = TrainingImages(packed, (4,), plain)[1, 0]
    assert min(expected[0].shape[1:]) == 80
    assert equal(plain_item(packed[4], config.data), expected)
