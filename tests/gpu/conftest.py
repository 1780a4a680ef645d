"""What the tests on a GPU share: one rule that skips them, the device, and data to train on.

``CELLSEG_GPU_DRY_RUN=1`` runs the same tests on a CPU, smaller and without what only CUDA can tell: it shows that they
are no broken code, before a GPU is at hand.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_suite import DRY_RUN

from cellseg.config import DataConfig, TrialConfig
from cellseg.data.packed import PackedDataset, open_packed
from cellseg.data.synthetic import generate_dataset

HERE = Path(__file__).parent
SMALL = {
    "data.num_folds": 4,
    "model.backbone": "resnet10t" if DRY_RUN else "resnet18",
    "model.weights": "none",
    "model.fpn_channels": 16 if DRY_RUN else 64,
    "model.box_head_width": 32 if DRY_RUN else 128,
    "model.mask_head_layers": 1,
    "model.mask_head_width": 16 if DRY_RUN else 32,
    "model.rpn_candidates": 100,
    "model.rpn_proposals": 100,
    "model.roi_samples": 32,
    "model.anchors": "4-64",
    "model.detections_per_image": 40,
    "optim.lr": 1e-3,
    "optim.schedule": "constant",
    "augment.preset": "none",
    "train.epochs": 2,
    "train.batch_size": 4,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not (DRY_RUN or torch.cuda.is_available()):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device; CELLSEG_GPU_DRY_RUN=1 tries it on a CPU"))


@pytest.fixture
def device() -> torch.device:
    """The GPU, or the CPU that acts as one."""
    return torch.device("cpu" if DRY_RUN else "cuda")


@pytest.fixture(autouse=True)
def _acting_as_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a dry run a CPU overlaps, rehearses, predicts several images at a time and trains in mixed precision."""
    if not DRY_RUN:
        return
    from cellseg import device as module
    from cellseg.training import stepper
    from cellseg.training.run import TrainingRun

    types = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    monkeypatch.setattr(TrainingRun, "on_gpu", True)
    monkeypatch.setattr(module.Room, "of", classmethod(lambda cls, _: cls(module.PIXELS_AT_ONCE)))
    for place in (module, stepper):
        monkeypatch.setattr(place, "autocast_dtype", lambda amp, _: types[amp])


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    """Images with cells; three in four train."""
    root = tmp_path_factory.mktemp("data")
    count, size = (8, 64) if DRY_RUN else (16, 256)
    generate_dataset(root / "data", train=count, test=0, seed=0, size=size)
    return open_packed(DataConfig(root=str(root / "data")), root / "cache")


@pytest.fixture
def config() -> Callable[..., TrialConfig]:
    """Makes the config of a small run; keywords as in ``TrialConfig.replace``."""

    def make(**flat: Any) -> TrialConfig:
        return TrialConfig.from_flat(SMALL).replace(**flat)

    return make
