"""Training on all images: no metric, and the last epoch's weights."""

import pytest
import torch

from cellseg.checkpoint import open_checkpoint
from cellseg.config import DataConfig
from cellseg.data.split import split
from cellseg.errors import UserError
from cellseg.training.fit import fit

CPU = torch.device("cpu")


def test_all_images_train_however_few_they_are(packed):
    data = DataConfig(train_on="unvalidated", num_folds=5)
    assert split(packed.label_counts[:3], data) == split(packed.label_counts[:3], data)
    assert split(packed.label_counts[:3], data).training == (0, 1, 2)
    assert split(packed.label_counts[:3], data).validation == ()


def test_there_is_no_metric_and_the_best_weights_are_the_last(packed, tiny_config, tmp_path):
    config = tiny_config(data__train_on="unvalidated", train__patience=1, train__epochs=2)
    first, second = fit(config, packed, tmp_path, device=CPU)
    assert (first.value, first.best_value, first.metrics) == (None, None, {})
    assert (first.best_epoch, second.best_epoch, second.ending) == (1, 2, "epochs")
    best, last = open_checkpoint(tmp_path / "best"), open_checkpoint(tmp_path / "last")
    assert (best.info.epoch, best.info.value, best.info.metrics) == (2, None, {})
    assert best.info.weights_blake2b == last.info.weights_blake2b


def test_a_stopped_run_goes_on(packed, tiny_config, tmp_path):
    config = tiny_config(data__train_on="unvalidated", train__epochs=2)
    whole = [report.losses for report in fit(config, packed, tmp_path / "whole", device=CPU)]
    run = fit(config, packed, tmp_path / "stopped", device=CPU)
    parts = [next(run).losses]
    run.close()
    parts += [report.losses for report in fit(config, packed, tmp_path / "stopped", device=CPU)]
    assert parts == whole


def test_a_schedule_that_watches_validation_is_refused(packed, tiny_config, tmp_path):
    plateau = tiny_config(data__train_on="unvalidated", optim__schedule="plateau", optim__warmup_epochs=1)
    with pytest.raises(UserError, match="must be training-loss where no image validates"):
        next(fit(plateau, packed, tmp_path / "a", device=CPU))
    watching = plateau.replace(optim__plateau_watch="training-loss", train__epochs=1)
    assert len(list(fit(watching, packed, tmp_path / "b", device=CPU))) == 1
