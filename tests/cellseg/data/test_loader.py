import numpy as np
import pytest
import torch

from cellseg.data.loader import EpochBatches, TrainingImages, training_loader

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


def test_the_same_seed_gives_the_same_items_in_any_number_of_processes(packed, tiny_config):
    config = tiny_config(augment__preset="full", data__crop=48)
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
