"""What a run does where memory is short. A GPU's is played by a model that counts the images it is given."""

import math
import os
import signal

import pytest
import torch

from cellseg.checkpoint import has_checkpoint, open_checkpoint
from cellseg.data.loader import TrainingImages, training_loader
from cellseg.data.split import split
from cellseg.training import memory, validation
from cellseg.training import run as training
from cellseg.training.epoch_report import TrainingError
from cellseg.training.fit import fit
from cellseg.training.memory import (
    describe_hardest,
    hardest_batches,
    moments_per_weight,
    peak_memory,
    rehearse,
)
from cellseg.training.optim import build_optimizer
from cellseg.training.run import TrainingRun
from cellseg.training.stepper import Stepper

CPU = torch.device("cpu")
FULL = "CUDA out of memory. Tried to allocate 2 GiB."
CUBLAS_FULL = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
BROKEN_CPU = (
    "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
)


@pytest.fixture
def room_for(monkeypatch):
    """``room_for(n)``: n images at a time fit into memory, from the epoch ``since`` on; returns the batches' sizes."""
    original = Stepper._losses

    def limit(count: int, since: int = 1) -> list[int]:
        sizes: list[int] = []

        def losses(self, items):
            sizes.append(len(items))
            if len(items) > count and len(sizes) > 2 * (since - 1):  # two batches an epoch
                raise torch.OutOfMemoryError(f"{FULL}\nmore")
            return original(self, items)

        monkeypatch.setattr(Stepper, "_losses", losses)
        return sizes

    return limit


def test_where_memory_runs_out_fewer_images_at_a_time_train(packed, tiny_config, tmp_path, room_for):
    sizes = room_for(1)
    (report,) = fit(tiny_config(train__epochs=1), packed, tmp_path, device=CPU)
    assert sizes == [3, 2] + [1] * 6
    assert report.micro_batch == 1


def test_a_later_epoch_that_does_not_fit_goes_on_from_the_checkpoint(packed, tiny_config, tmp_path, room_for):
    sizes = room_for(2, since=2)
    reports = list(fit(tiny_config(train__epochs=2), packed, tmp_path, device=CPU))
    assert sizes == [3, 3, 3, 2, 1, 2, 1]
    assert [report.epoch for report in reports] == [1, 2]
    assert [report.micro_batch for report in reports] == [3, 2]
    assert open_checkpoint(tmp_path / "last").info.epoch == 2


def test_what_does_not_fit_one_at_a_time_ends_with_the_sizes(packed, tiny_config, tmp_path, room_for):
    room_for(0)
    with pytest.raises(TrainingError) as raised:
        list(fit(tiny_config(), packed, tmp_path, device=CPU))
    assert raised.value.reason == "out-of-memory"
    training = split(packed.label_counts, tiny_config().data).training
    height, width = max(packed.sizes[list(training)].tolist(), key=math.prod)
    cells = max(len(packed.labels(index)) for index in training)
    assert raised.value.detail == (
        f"images of up to {height} x {width} px and {cells} cells do not fit, even one at a time, from a "
        f"batch of 3 ({FULL})"
    )
    assert not has_checkpoint(tmp_path / "last")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(FULL), RuntimeError(CUBLAS_FULL), MemoryError()])
@pytest.mark.parametrize(
    ("module", "name", "images"),
    [
        (training, "build_model", "images of up to .* do not fit"),
        (validation, "predict_images", "validation images of up to .* do not fit, even one at a time"),
        (validation, "validation_loss", "validation images of up to .* do not fit, even one at a time"),
    ],
)
def test_memory_may_run_out_anywhere(packed, tiny_config, tmp_path, monkeypatch, module, name, images, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(module, name, full)
    with pytest.raises(TrainingError, match=f"out-of-memory: {images}") as raised:
        list(fit(tiny_config(), packed, tmp_path, device=CPU))
    assert raised.value.detail.endswith(f"({str(error) or 'MemoryError'})")


def test_validation_that_does_not_fit_is_not_tried_with_smaller_training_batches(
    packed, tiny_config, tmp_path, monkeypatch, room_for
):
    sizes = room_for(3)
    monkeypatch.setattr(validation, "predict_images", lambda *_, **__: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(TrainingError, match="validation images"):
        list(fit(tiny_config(), packed, tmp_path, device=CPU))
    assert sizes == [3, 3]


def test_a_loader_process_that_the_system_kills_ends_no_run(packed, tiny_config, tmp_path, monkeypatch):
    config = tiny_config(train__epochs=1)
    alone = list(fit(config, packed, tmp_path / "alone", device=CPU))
    original, parent = TrainingImages.__getitem__, os.getpid()

    def item(self, visit):
        if os.getpid() != parent and visit[1] == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, visit)

    monkeypatch.setattr(TrainingImages, "__getitem__", item)
    (report,) = fit(config.replace(train__workers=2), packed, tmp_path / "killed", device=CPU)
    assert report.losses == alone[0].losses, "it went on without loader processes"
    assert report.micro_batch == 3


def test_the_memory_of_this_machine_is_named_where_it_is_too_small(packed, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(Stepper, "_losses", lambda *_: (_ for _ in ()).throw(RuntimeError(BROKEN_CPU)))
    with pytest.raises(TrainingError, match="do not fit into the memory of this machine, even one at a time"):
        list(fit(tiny_config(), packed, tmp_path, device=CPU))


def test_other_errors_are_not_taken_for_a_lack_of_memory(packed, tiny_config, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Stepper, "_losses", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(fit(tiny_config(), packed, tmp_path, device=CPU))


@pytest.mark.parametrize(("norm", "optimizer"), [("batch", "adamw"), ("group", "sgd")])
def test_a_rehearsal_changes_nothing(packed, tiny_config, tmp_path, norm, optimizer):
    run = TrainingRun(tiny_config(model__norm=norm, optim__optimizer=optimizer), packed, tmp_path, CPU)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    generator = torch.get_rng_state()
    run.model.eval()
    run.rehearse()
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    assert all(parameter.grad is None for parameter in run.model.parameters())
    assert not run.model.training
    assert not run.stepper.optimizer.state


def test_a_gpu_rehearses_before_the_first_epoch_and_not_after_the_last(packed, tiny_config, tmp_path, monkeypatch):
    rehearsed = []
    monkeypatch.setattr(TrainingRun, "rehearse", lambda self: rehearsed.append(self.epoch))
    config = tiny_config(train__epochs=1)
    list(fit(config, packed, tmp_path, device=CPU))
    assert rehearsed == [], "a CPU's memory cannot be tried"
    monkeypatch.setattr(TrainingRun, "on_gpu", True)
    list(fit(config, packed, tmp_path / "gpu", device=CPU))
    list(fit(config, packed, tmp_path / "gpu", device=CPU))
    assert rehearsed == [0]


def test_a_rehearsal_is_of_training_and_of_prediction(packed, tiny_config, tmp_path, monkeypatch, room_for):
    run = TrainingRun(tiny_config(), packed, tmp_path, CPU, micro_batch=2)
    predicted = []
    monkeypatch.setattr(validation, "predict_images", lambda model, images, *_, **__: predicted.extend(images))
    sizes = room_for(2)
    run.rehearse()
    assert set(sizes) == {2}
    areas = {packed[index].image_HWC.size for index in run.split.validation}
    assert [image.size for image in predicted] == [max(areas)]
    room_for(1)
    with pytest.raises(torch.OutOfMemoryError):
        run.rehearse()
    assert all(parameter.grad is None for parameter in run.model.parameters())


def test_a_rehearsal_leaves_room_for_the_optimisers_state(packed, tiny_config, tmp_path, monkeypatch):
    run = TrainingRun(tiny_config(), packed, tmp_path, CPU)
    weights = sum(weight.numel() for weight in run.model.parameters() if weight.requires_grad)
    held = []
    original = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda tensor: (held.append(tensor.numel()), original(tensor))[1])
    with memory._state_to_come(run.stepper):
        assert sum(held) == 2 * weights
    run.epoch = 1
    list(run.train_epoch())
    held.clear()
    with memory._state_to_come(run.stepper):
        assert held == [], "it is there by then"


@pytest.mark.parametrize(
    ("settings", "moments"),
    [
        ({"optim__optimizer": "adamw"}, 2),
        ({"optim__optimizer": "sgd", "optim__momentum": 0.9}, 1),
        ({"optim__optimizer": "sgd", "optim__momentum": 0.0}, 0),
    ],
)
def test_an_optimiser_remembers_so_many_values_for_each_weight(tiny_config, settings, moments):
    weight = torch.nn.Parameter(torch.ones(7, 3))
    optimizer = build_optimizer(torch.nn.ParameterDict({"weight": weight}), tiny_config(**settings).optim)
    weight.grad = torch.ones(7, 3)
    optimizer.step()
    state = optimizer.state[weight]
    assert moments_per_weight(optimizer) == moments
    values = [value for value in state.values() if value is not None and value.shape == weight.shape]
    assert len(values) == moments


def sides(items) -> list[int]:
    """Height and width that images are padded to together."""
    return [math.ceil(max(image.shape[axis] for image, _ in items) / 32) * 32 for axis in (1, 2)]


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
@pytest.mark.parametrize("flat", [{}, {"data__train_scale_min": 0.3, "augment__preset": "full"}], ids=str)
def test_no_batch_of_training_has_more_pixels_or_cells_than_those_rehearsed(packed, tiny_config, flat, micro_batch):
    config = tiny_config(augment__preset="flips", augment__min_visible=0.0, train__epochs=4).replace(**flat)
    indices = split(packed.label_counts, config.data).training
    rehearsed = hardest_batches(packed, indices, config, size=micro_batch)
    assert 1 <= len(rehearsed) <= 2
    loader, batches = training_loader(packed, indices, config)
    met = []
    for epoch in range(1, 5):
        batches.epoch = epoch
        for batch in loader:
            met += [batch[start : start + micro_batch] for start in range(0, len(batch), micro_batch)]
    pixels = [len(items) * math.prod(sides(items)) for items in met]
    assert max(pixels) == max(len(items) * math.prod(sides(items)) for items in rehearsed)
    if not flat:  # a warp moves cells out of an image
        cells = [sum(len(target["boxes"]) for _, target in items) for items in met]
        assert max(cells) == max(sum(len(target["boxes"]) for _, target in items) for items in rehearsed)
    for items in rehearsed:
        assert any(
            len(part) == len(items)
            and all(torch.equal(one, other) for (one, _), (other, _) in zip(items, part, strict=True))
            for part in met
        )
    assert describe_hardest(packed, indices, config).endswith(" cells")


def test_a_batch_larger_than_the_data_is_all_of_them(packed, tiny_config):
    config = tiny_config(train__batch_size=100)
    indices = split(packed.label_counts, config.data).training
    (batch,) = hardest_batches(packed, indices, config, size=100)
    assert len(batch) == len(indices)


def test_cropped_images_are_as_large_as_the_crop(packed, tiny_config):
    config = tiny_config(data__crop=48)
    indices = split(packed.label_counts, config.data).training
    for batch in hardest_batches(packed, indices, config, size=2):
        assert all(image.shape == (3, 48, 48) for image, _ in batch)
    assert describe_hardest(packed, indices, config).startswith("up to 48 x 48 px")


def test_this_process_has_taken_memory():
    assert peak_memory(CPU) > 50_000_000


def test_rehearse_gives_back_gradients_after_an_error(packed, tiny_config, tmp_path, monkeypatch):
    run = TrainingRun(tiny_config(), packed, tmp_path, CPU)
    (batch, *_) = hardest_batches(packed, run.split.training, run.config, 2)
    monkeypatch.setattr(Stepper, "add_gradients", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError(FULL)))
    for parameter in run.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(torch.OutOfMemoryError):
        rehearse(run.stepper, batch)
    assert all(parameter.grad is None for parameter in run.model.parameters())
