import gc
import multiprocessing
import os
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch

from cellseg.data.augment import build_augmentation
from cellseg.data.batch import JoinedBatch
from cellseg.data.loader import EpochBatches, TrainingImages, epoch_batches, plain_item, training_loader
from cellseg.data.packed import PackedDataset
from cellseg.data.resize import scaled_size
from cellseg.data.sample import Sample

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


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_that_stay_give_the_items_of_each_epoch_and_leave_torchs_generator_as_none_would(
    packed, tiny_config, workers
):
    config = tiny_config(augment__preset="full", train__batch_size=2)
    seen = []
    for count in (0, workers):
        torch.manual_seed(0)
        loader, batches = training_loader(packed, INDICES, config.replace(train__workers=count))
        epochs = []
        for epoch in (1, 2, 3):
            batches.epoch = epoch
            epochs.append(([item for batch in loader for item in batch], torch.rand(1)))
        seen.append(epochs)
    for (items, drawn), (others, drawn_too) in zip(*seen, strict=True):
        assert all_equal(items, others)
        assert drawn == drawn_too
    assert not all_equal(seen[0][0][0], seen[0][1][0])


def test_an_epoch_that_was_left_early_leaves_nothing_to_the_next(packed, tiny_config):
    config = tiny_config(augment__preset="flips", train__batch_size=1, train__workers=2)
    loader, batches = training_loader(packed, INDICES, config)
    next(iter(loader))
    batches.epoch = 2
    assert all_equal(
        [item for batch in loader for item in batch], items_of(packed, config.replace(train__workers=0), 2)
    )


def test_workers_stay_from_epoch_to_epoch_use_one_thread_and_end_with_the_loader(packed, tiny_config, monkeypatch):
    def describe_process(self, visit) -> tuple[torch.Tensor, dict]:
        cv2.blur(large_HWC, (9, 9))  # crashes where the worker believes in the pool of its parent
        return torch.tensor([os.getpid(), cv2.getNumThreads(), torch.get_num_threads()]), {}

    monkeypatch.setattr(TrainingImages, "__getitem__", describe_process)
    large_HWC = np.zeros((1500, 1500, 3), np.uint8)
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        cv2.blur(large_HWC, (9, 9))  # now OpenCV has a pool of threads
        loader, _ = training_loader(packed, INDICES, tiny_config(train__workers=2, train__batch_size=1))
        epochs = [{tuple(item.tolist()) for batch in loader for item, _ in batch} for _ in range(2)]
    finally:
        cv2.setNumThreads(before)
    workers = {process.pid for process in multiprocessing.active_children()}
    assert epochs[0] == epochs[1]
    assert {pid for pid, *_ in epochs[0]} <= workers and os.getpid() not in workers
    assert {threads for _, *threads_of_both in epochs[0] for threads in threads_of_both} == {1}
    del loader
    gc.collect()
    assert not workers & {process.pid for process in multiprocessing.active_children()}


def test_memory_is_pinned_for_a_gpu_only(packed, tiny_config):
    for device in ("cpu", "cuda"):
        loader, _ = training_loader(packed, INDICES, tiny_config(), torch.device(device))
        assert loader.pin_memory == (device == "cuda")


def test_a_joined_batch_gives_back_its_items(packed, tiny_config):
    images = TrainingImages(packed, INDICES, tiny_config())
    bare = Sample("bare", np.zeros((1, 3, 3), np.uint8), np.zeros((2, 1, 3), np.uint16), np.zeros(0, np.int64))
    single = Sample("one", np.ones((7, 5, 3), np.uint8), np.ones((1, 7, 5), np.uint16), np.ones(1, np.int64))
    items = [images[1, 0], *(plain_item(sample, tiny_config().data) for sample in (bare, single)), images[1, 3]]
    joined = JoinedBatch.of(items)
    assert joined.bytes_B.dtype == torch.uint8
    assert all_equal(joined.items(), items)
    for (image, target), (image_too, target_too) in zip(joined.items(), items, strict=True):
        assert target.keys() == target_too.keys()
        named = [(image, image_too), *((target[name], target_too[name]) for name in target)]
        assert all(one.dtype == other.dtype and one.is_contiguous() for one, other in named)
        assert all(one.untyped_storage().data_ptr() == joined.bytes_B.data_ptr() for one, _ in named if one.numel())


@pytest.fixture
def large_table(packed, tmp_path) -> PackedDataset:
    """A memory-mapped table of 200 MB."""
    height, width, rows = 1000, 1000, 40
    plane_HW = np.zeros((height, width), np.uint16)
    plane_HW[200:700, 200:700] = 1
    row = {
        "height": height,
        "width": width,
        "image": np.full(height * width * 3, 7, np.uint8),
        "planes": plane_HW.ravel(),
        "labels": np.ones(1, np.int64),
        "boxes": np.array([200, 200, 700, 700], np.float32),
    }
    schema = packed.table.schema
    with pa.OSFile(str(tmp_path / "large.arrow"), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for index in range(rows):
            values = row | {"name": str(index)}
            columns = [pa.array([values[field.name]], field.type) for field in schema]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    return PackedDataset(pa.ipc.open_file(pa.memory_map(str(tmp_path / "large.arrow"))).read_all())


def copied_bytes(process: int) -> int:
    """Memory that a process has for itself and has written to; pages of a mapped file are not."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty:"))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is measured on Linux")
def test_workers_share_the_bytes_of_the_table(large_table, tiny_config):
    config = tiny_config(data__shorter_side=64, augment__preset="none", train__workers=2, train__batch_size=1)
    loader, batches = training_loader(large_table, tuple(range(len(large_table))), config)
    for epoch in (1, 2):
        batches.epoch = epoch
        assert all(image.float().mean() == 7 for batch in loader for image, _ in batch)
    workers = [process.pid for process in multiprocessing.active_children()]
    assert len(workers) >= 2
    assert max(copied_bytes(process) for process in workers) < large_table.table.nbytes / 2


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


@pytest.mark.parametrize(
    "flat", [{"data__shorter_side": 100}, {"data__train_scale_min": 0.4}, {"data__crop": 40}], ids=str
)
def test_the_shapes_of_an_epochs_items_are_known_before_they_are_made(packed, tiny_config, flat):
    images = TrainingImages(packed, INDICES, tiny_config(augment__preset="full", **flat))
    shapes = [[tuple(images[epoch, position][0].shape[1:]) for position in range(5)] for epoch in (1, 2, 3)]
    assert shapes == [[tuple(shape) for shape in images.shapes(epoch).tolist()] for epoch in (1, 2, 3)]
    assert len({shape for epoch in shapes for shape in epoch}) > (1 if "data__crop" not in flat else 0)


def test_images_that_lie_alike_after_they_were_turned_come_together(packed, tiny_config):
    upright, lying = np.zeros((90, 40, 3), np.uint8), np.zeros((40, 90, 3), np.uint8)
    samples = [
        Sample(
            str(index),
            (upright, lying)[index % 2],
            np.ones((1, *(upright, lying)[index % 2].shape[:2]), np.uint16),
            np.ones(1, np.int64),
        )
        for index in range(24)
    ]

    class Images(list):
        sizes = np.array([sample.size for sample in samples])

    images = TrainingImages(Images(samples), tuple(range(24)), tiny_config(train__batch_size=4))
    batches, orders = epoch_batches(images), set()
    for batches.epoch in range(1, 11):
        mixed = 0
        for batch in batches:
            shapes = {tuple(images[visit][0].shape) for visit in batch}
            mixed += len(shapes) > 1
            orders.add(tuple(position for _, position in batch))
        assert mixed <= 1, "what is left over of both"
    assert len(orders) > 50


def visible_shares(images, sample, visits) -> list[float]:
    """How much each cell of the items shows of what it would show whole, at no change of scale."""
    areas = np.bincount(sample.planes_PHW.ravel())
    targets = [images[epoch, 0][1] for epoch in range(visits)]
    return [
        float((target["planes"][plane] == number).sum() / areas[number])
        for target in targets
        for plane, number in zip(target["plane"].tolist(), target["number"].tolist(), strict=True)
    ]


def test_slivers_that_a_crop_leaves_are_ignored_and_no_cells(packed, tiny_config):
    sample = packed[4]
    taught = {}
    for min_visible in (0.0, 0.25, 0.6):
        images = TrainingImages(packed, (4,), tiny_config(data__crop=32, augment__min_visible=min_visible))
        shares = visible_shares(images, sample, 60)
        assert min(shares) >= min_visible
        taught[min_visible] = len(shares), sum(len(images[epoch, 0][1]["ignored"]) for epoch in range(60))
    assert taught[0.0][1] == 0
    assert taught[0.0][0] > taught[0.25][0] > taught[0.6][0]
    assert taught[0.0][1] < taught[0.25][1] < taught[0.6][1]


def test_a_cell_is_not_ignored_because_the_image_is_scaled_or_warped_smaller(tiny_config):
    planes_PHW = np.zeros((1, 200, 200), np.uint16)
    planes_PHW[0, 80:120, 80:120] = 1
    sample = Sample("middle", np.zeros((200, 200, 3), np.uint8), planes_PHW, np.ones(1, np.int64))
    for flat in ({"augment__preset": "geometric", "augment__strength": 1.0}, {"data__train_scale_min": 0.3}):
        config = tiny_config(augment__min_visible=0.8, data__shorter_side=80, **flat)
        images = TrainingImages([sample], (0,), config)
        for epoch in range(30):
            _, target = images[epoch, 0]
            assert (len(target["boxes"]), len(target["ignored"])) == (1, 0)


def test_validation_ignores_nothing(packed, tiny_config):
    config = tiny_config(data__crop=32, augment__min_visible=1.0)
    assert all(len(plain_item(packed[index], config.data)[1]["ignored"]) == 0 for index in range(len(packed)))
