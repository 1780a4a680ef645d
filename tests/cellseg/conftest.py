"""A small generated data set and a model small enough to train within a test."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from cellseg.config import METRICS, DataConfig, TrialConfig
from cellseg.data.packed import PackedDataset, open_packed
from cellseg.data.synthetic import generate_dataset

TINY = {
    "data.num_folds": 4,
    "model.backbone": "resnet10t",
    "model.weights": "none",
    "model.fpn_channels": 16,
    "model.box_head_width": 32,
    "model.mask_head_layers": 1,
    "model.mask_head_width": 16,
    "model.rpn_candidates": 50,
    "model.rpn_proposals": 50,
    "model.roi_samples": 16,
    "model.anchors": "4-64",
    "model.detections_per_image": 20,
    "optim.lr": 1e-3,
    "train.epochs": 2,
    "train.batch_size": 3,
}


@pytest.fixture(scope="session")
def synthetic_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training and two test images of about 64 px, in the release layout."""
    root = tmp_path_factory.mktemp("synthetic") / "data"
    generate_dataset(root, train=8, test=2, seed=0, size=64)
    return root


@pytest.fixture(scope="session")
def packed(synthetic_root: Path, tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    """The training images of ``synthetic_root``."""
    return open_packed(DataConfig(root=str(synthetic_root)), tmp_path_factory.mktemp("cache"))


@pytest.fixture
def tiny_config() -> Callable[..., TrialConfig]:
    """Makes the config of a tiny run; keywords as in ``TrialConfig.replace``."""

    def make(**flat: Any) -> TrialConfig:
        return TrialConfig.from_flat(TINY).replace(**flat)

    return make


@pytest.fixture
def save_untrained() -> Callable[..., Path]:
    """``save_untrained(model, folder, config)``: a checkpoint of a model of four classes as it is; its folder."""
    from cellseg.checkpoint import save_checkpoint

    def save(model: Any, folder: Path, config: TrialConfig) -> Path:
        save_checkpoint(
            folder,
            model.state_dict(),
            config=config.to_flat(),
            class_names=("a", "b", "c", "d"),
            metric="segm/AP50",
            value=0.5,
            epoch=1,
            metrics={},
            parameters=1,
            data_fingerprint="0",
        )
        return folder

    return save


@pytest.fixture
def scripted(monkeypatch):
    """Lets validation return the given values of the metric, one an epoch, without looking at an image."""
    from cellseg.training.run import TrainingRun

    def script(*values: float) -> None:
        def validate(self) -> Future:
            return settled(dict.fromkeys(METRICS, values[self.epoch - 1]))

        monkeypatch.setattr(TrainingRun, "validate", validate)

    return script


@pytest.fixture
def without_training(monkeypatch):
    """Epochs that take no time and change nothing."""
    from cellseg.training.run import TrainingRun

    def train_epoch(self) -> Iterator[tuple[int, int]]:
        self.losses = {"loss": 1.0}
        yield 1, 1

    monkeypatch.setattr(TrainingRun, "train_epoch", train_epoch)


def settled(value: Any) -> Future:
    """A future that has its result."""
    future: Future = Future()
    future.set_result(value)
    return future
