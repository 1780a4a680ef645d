"""What a run does where the GPU's memory is short, and that it takes no more as it goes on."""

import gc

import pytest
import torch
from gpu_suite import DRY_RUN

from cellseg.inference.image import predict_images
from cellseg.model.build import build_model
from cellseg.training.epoch_report import TrainingError
from cellseg.training.fit import fit
from cellseg.training.stepper import Stepper


@pytest.fixture
def cap(monkeypatch, device):
    """``cap(share)``: no more than this share of what one step of a full batch needs is left. A dry run counts
    images."""
    original = Stepper._losses

    def limit(images: int, bytes_left: int) -> None:
        if DRY_RUN:

            def losses(self, items):
                if len(items) > images:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
                return original(self, items)

            monkeypatch.setattr(Stepper, "_losses", losses)
            return
        gc.collect()
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + bytes_left) / total, device)

    yield limit
    if not DRY_RUN:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def peak_of(config, data, folder, device) -> int:
    """Bytes that a run takes at most, on an otherwise empty GPU."""
    if DRY_RUN:
        return 1 << 30
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    list(fit(config, data, folder, device=device))
    return torch.cuda.max_memory_reserved(device)


def test_fewer_images_at_a_time_train_where_a_batch_does_not_fit(data, config, tmp_path, device, cap):
    one = peak_of(config(train__epochs=1, train__batch_size=1), data, tmp_path / "one", device)
    cap(images=2, bytes_left=int(1.6 * one))
    batch = 4 if DRY_RUN else 12
    (report,) = fit(config(train__epochs=1, train__batch_size=batch), data, tmp_path / "short", device=device)
    assert 1 <= report.micro_batch < batch


def test_what_does_not_fit_by_itself_is_a_result(data, config, tmp_path, device, cap):
    cap(images=0, bytes_left=48 << 20)
    with pytest.raises(TrainingError) as raised:
        list(fit(config(train__epochs=1), data, tmp_path, device=device))
    assert raised.value.reason == "out-of-memory"


@pytest.mark.skipif(DRY_RUN, reason="only a GPU's memory can be capped")
def test_the_process_can_go_on_after_its_memory_ran_out(data, config, tmp_path, device, cap):
    cap(images=0, bytes_left=48 << 20)
    with pytest.raises(TrainingError, match="out-of-memory"):
        list(fit(config(train__epochs=1), data, tmp_path / "capped", device=device))
    torch.cuda.set_per_process_memory_fraction(1.0, device)
    (report,) = fit(config(train__epochs=1), data, tmp_path / "free", device=device)
    assert report.micro_batch == 4


@pytest.mark.skipif(DRY_RUN, reason="only a GPU's memory can be capped")
def test_prediction_takes_fewer_images_at_a_time_where_memory_is_short(data, config, device, cap):
    settings = config(inference__score_threshold=0.0)
    model = build_model(settings.model, settings.inference, data.num_classes).eval().to(device)
    images = [data[index % len(data)].image_HWC for index in range(64)]
    whole = predict_images(model, images, settings)
    cap(images=0, bytes_left=96 << 20)
    short = predict_images(model, images, settings)
    assert [len(found) for found in short] == pytest.approx([len(found) for found in whole], abs=3)


def test_a_run_takes_no_more_memory_as_it_goes_on(data, config, tmp_path, device):
    epochs, peaks = (4 if DRY_RUN else 50), []
    settings = config(train__epochs=epochs, optim__ema_decay=0.9)
    for report in fit(settings, data, tmp_path, device=device):
        assert report.epoch == len(peaks) + 1
        gc.collect()
        peaks.append(0 if DRY_RUN else torch.cuda.memory_reserved(device))
    assert len(peaks) == epochs
    assert max(peaks) <= 1.1 * max(peaks[: epochs // 4])


def test_nothing_of_a_run_stays_on_the_gpu(data, config, tmp_path, device):
    def held() -> int:
        gc.collect()
        return 0 if DRY_RUN else torch.cuda.memory_allocated(device)

    list(fit(config(train__epochs=1), data, tmp_path / "warm", device=device))
    before = held()
    list(fit(config(train__epochs=1), data, tmp_path / "again", device=device))
    assert held() <= before + (1 << 20)
