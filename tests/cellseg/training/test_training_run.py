"""What a run's settings do to its steps; how a run begins, goes on and ends is in test_train.py."""

from dataclasses import asdict

import pytest
import torch
from torch import Tensor, nn

from cellseg.checkpoint import open_checkpoint
from cellseg.config import METRICS, TrialConfig
from cellseg.data.loader import plain_item
from cellseg.data.packed import PackedDataset
from cellseg.inference.image import load_model
from cellseg.training import run as training
from cellseg.training import stepper
from cellseg.training.epoch_report import TrainingError
from cellseg.training.fit import fit
from cellseg.training.run import TrainingRun, watched_gain
from cellseg.training.schedule import learning_rate
from cellseg.training.stepper import Stepper
from cellseg.training.validation import validation_loss

CPU = torch.device("cpu")
PLAIN_SGD = {
    "optim__optimizer": "sgd",
    "optim__momentum": 0.0,
    "optim__weight_decay": 0.0,
    "optim__clip_norm": None,
    "optim__schedule": "constant",
    "optim__lr": 1.0,
    "augment__preset": "none",
}


class Brightness(nn.Module):
    """Stands in for a detector. The gradient of its only weight is the mean brightness of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[float] = []

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        brightness = torch.stack([image.mean() for image in images]).mean()
        self.seen.append(float(brightness))
        return {"loss_mask": self.weight * brightness}


def one_epoch(config: TrialConfig, packed, folder, model: nn.Module | None = None) -> TrainingRun:
    """A run after its first epoch of training, of ``model`` where it is given."""
    run = TrainingRun(config, packed, folder, CPU)
    if model is not None:
        run.stepper = Stepper(model, config, CPU)
    run.epoch = 1
    list(run.train_epoch())
    return run


def test_gradients_are_averaged_over_the_batches_of_a_step(packed, tiny_config, tmp_path):
    config = tiny_config(**PLAIN_SGD, optim__accumulate_batches=4, train__batch_size=1)
    model = Brightness()
    run = one_epoch(config, packed, tmp_path, model)
    four, two = model.seen[:4], model.seen[4:]  # six images: the epoch's last step has two batches
    assert model.weight.item() == pytest.approx(-sum(four) / 4 - sum(two) / 4, rel=1e-5), "an image weighs the same"
    assert list(run.train_epoch()) == [(number, 6) for number in range(1, 7)], "progress is told by the batch"


def test_every_image_weighs_the_same_in_a_batch_that_is_not_full(packed, tiny_config, tmp_path):
    model = Brightness()
    run = one_epoch(tiny_config(**PLAIN_SGD, train__batch_size=4), packed, tmp_path, model)
    four, two = model.seen  # mean brightness of four images and of the last two
    assert model.weight.item() == pytest.approx(-four - two / 2, rel=1e-5)
    assert run.losses["loss_mask"] == pytest.approx((4 * 0 * four + 2 * -four * two) / 6, rel=1e-5)


class SometimesBroken(Brightness):
    """Its loss is no number in the batches given, counted from 0."""

    def __init__(self, broken: set[int]) -> None:
        super().__init__()
        self.broken = broken

    def forward(self, images, targets):
        losses = super().forward(images, targets)
        return {
            name: loss * float("nan") if len(self.seen) - 1 in self.broken else loss for name, loss in losses.items()
        }


def test_steps_without_finite_gradients_are_skipped_and_told(packed, tiny_config, tmp_path):
    model = SometimesBroken({1, 4})
    run = one_epoch(tiny_config(**PLAIN_SGD, train__batch_size=1), packed, tmp_path, model)
    used = [seen for batch, seen in enumerate(model.seen) if batch not in {1, 4}]
    assert model.weight.item() == pytest.approx(-sum(used), rel=1e-5)
    weights = [-sum(used[:batch]) for batch in range(4)]
    assert run.losses["loss_mask"] == pytest.approx(
        sum(w * b for w, b in zip(weights, used, strict=True)) / 4, rel=1e-5
    )
    assert run.skipped_steps == 2


def test_reports_tell_of_skipped_steps(packed, tiny_config, tmp_path, monkeypatch, scripted):
    scripted(0.5, 0.5)
    monkeypatch.setattr(training, "build_model", lambda *_: SometimesBroken({1, 2, 9}))
    reports = list(fit(tiny_config(train__batch_size=1, train__epochs=2), packed, tmp_path, device=CPU))
    assert [report.skipped_steps for report in reports] == [2, 1]


@pytest.mark.parametrize("interrupted", [False, True])
def test_many_skipped_steps_in_a_row_end_the_run(packed, tiny_config, tmp_path, monkeypatch, scripted, interrupted):
    """Six steps an epoch: the last five of the first and the first five of the second."""
    scripted(0.5, 0.5, 0.5)
    config = tiny_config(train__batch_size=1, train__epochs=3)

    def train(limit: int, folder) -> list:
        models = iter([SometimesBroken(set(range(1, 11))), SometimesBroken(set(range(5)))])
        monkeypatch.setattr(training, "MOST_SKIPPED_IN_A_ROW", limit)
        monkeypatch.setattr(training, "build_model", lambda *_: next(models))
        reports = []
        if interrupted:
            run = fit(config, packed, folder, device=CPU)
            reports.append(next(run))
            run.close()
        return reports + list(fit(config, packed, folder, device=CPU))

    assert [report.skipped_steps for report in train(11, tmp_path / "goes-on")] == [5, 5, 0]
    with pytest.raises(
        TrainingError, match="non-finite: gradients of 10 optimiser steps in a row, by the end of epoch 2"
    ):
        train(10, tmp_path / "ends")


def test_losses_are_means_over_batches_and_the_rate_follows_the_optimisers_steps(
    packed, tiny_config, tmp_path, monkeypatch
):
    used = []
    original = stepper.set_learning_rate
    monkeypatch.setattr(stepper, "set_learning_rate", lambda o, rate: (used.append(rate), original(o, rate)))
    config = tiny_config(**PLAIN_SGD | {"optim__schedule": "cosine"}, optim__accumulate_batches=4, train__batch_size=1)
    run = one_epoch(config, packed, tmp_path, Brightness())
    run.epoch = 2
    list(run.train_epoch())
    assert used == [learning_rate(config.optim, step, 2, 2) for step in range(4)]
    assert run.learning_rate == used[-1]


def test_batches_of_a_step_are_as_many_as_there_are_where_the_epoch_has_fewer(packed, tiny_config, tmp_path):
    config = tiny_config(**PLAIN_SGD, optim__accumulate_batches=100, train__batch_size=2)
    model = Brightness()
    one_epoch(config, packed, tmp_path, model)
    assert model.weight.item() == pytest.approx(-sum(model.seen) / 3, rel=1e-5)


CHANGES = [
    {},
    {"optim__accumulate_batches": 2},
    {"optim__decay_on": "weights"},
    {"optim__backbone_lr_factor": 0.5},
    {"optim__clip_norm": 0.1},
    {"optim__schedule": "constant"},
    {"optim__schedule": "warm-restarts"},
    {"optim__schedule": "plateau", "optim__warmup_epochs": 1},
    {"optim__warmup_fraction": 0.9},
    {"loss__mask": 2.0},
    {"loss__dice": 1.0},
    {"data__train_on": "all"},
]


def test_no_two_settings_train_to_the_same_weights(packed, tiny_config, tmp_path):
    changes_by_weights: dict[bytes, list[dict]] = {}
    for change in CHANGES:
        run = one_epoch(tiny_config(augment__preset="none", train__epochs=1, **change), packed, tmp_path)
        weights = torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()])
        changes_by_weights.setdefault(weights.numpy().tobytes(), []).append(change)
    assert [changes for changes in changes_by_weights.values() if len(changes) > 1] == []


def test_a_loss_of_weight_0_trains_nothing_and_is_still_told(packed, tiny_config, tmp_path):
    config = tiny_config(loss__objectness=0, loss__rpn_box_reg=0, optim__weight_decay=0.0, train__epochs=1)
    run = TrainingRun(config, packed, tmp_path, CPU)
    before = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    run.epoch = 1
    list(run.train_epoch())
    losses = run.losses
    moved = {name for name, weight in run.model.state_dict().items() if not torch.equal(weight, before[name])}
    assert not any(name.startswith("rpn.") for name in moved)
    assert any(name.startswith("roi_heads.mask_head") for name in moved)
    assert losses["loss_objectness"] > 0
    assert losses["loss"] == losses["loss_classifier"] + losses["loss_box_reg"] + losses["loss_mask"]


@pytest.mark.parametrize("ema_decay", [None, 0.8])
def test_validation_is_of_the_weights_that_the_checkpoints_hold(packed, tiny_config, tmp_path, ema_decay):
    config = tiny_config(train__epochs=1, optim__ema_decay=ema_decay)
    (report,) = fit(config, packed, tmp_path, device=CPU)
    validated = TrainingRun(config, packed, tmp_path, CPU).split.validation
    items = [plain_item(packed[index], config.data) for index in validated]
    for folder in ("best", "last"):
        model = load_model(open_checkpoint(tmp_path / folder))
        assert report.metrics["loss/validation"] == validation_loss(model, items, config.loss)


def test_an_average_of_the_weights_is_judged_while_others_train(packed, tiny_config, tmp_path):
    plain = one_epoch(tiny_config(train__epochs=1), packed, tmp_path)
    averaged = one_epoch(tiny_config(train__epochs=1, optim__ema_decay=0.8), packed, tmp_path)
    assert plain.judged_model is plain.model
    assert averaged.judged_model is not averaged.model
    trained, judged = averaged.model.state_dict(), averaged.judged_model.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in plain.model.state_dict().items())
    moved = [name for name, _ in averaged.model.named_parameters() if not torch.equal(trained[name], judged[name])]
    assert len(moved) > 10


def test_counts_are_of_all_validation_images(packed, tiny_config, tmp_path):
    run = one_epoch(tiny_config(inference__score_threshold=0.0, train__epochs=1), packed, tmp_path)
    metrics = run.validate().result()
    cells = sum(len(packed.labels(index)) for index in run.split.validation)
    assert metrics["count/cells"] == cells > 0
    assert 0 < metrics["count/detections"] <= 20 * len(run.split.validation)


@pytest.mark.parametrize(
    ("settings", "watched"),
    [
        ({}, 0.3),
        ({"train__metric": "loss/validation"}, -4.0),
        ({"optim__plateau_watch": "validation-loss"}, -4.0),
        ({"optim__plateau_watch": "training-loss"}, -2.0),
    ],
)
def test_a_plateau_watches_a_number_of_which_larger_is_better(tiny_config, settings, watched):
    metrics = dict.fromkeys(METRICS, 0.3) | {"loss/validation": 4.0}
    assert watched_gain(tiny_config(**settings), {"loss_mask": 1.0, "loss": 2.0}, metrics) == watched


def test_the_rate_warms_up_and_falls_when_what_is_watched_does_not_gain(
    packed, tiny_config, tmp_path, monkeypatch, scripted
):
    scripted(0.5, 0.1, 0.2, 0.2, 0.2, 0.2)  # the warm-up's 0.5 is no best
    monkeypatch.setattr(training, "build_model", lambda *_: Brightness())
    plateau = {"optim__schedule": "plateau", "optim__plateau_patience": 1, "optim__plateau_factor": 0.5}
    config = tiny_config(**plateau, optim__warmup_epochs=1, optim__warmup_factor=0.2, optim__lr=1e-3, train__epochs=6)
    course = [report.learning_rate for report in fit(config, packed, tmp_path, device=CPU)]
    assert course == pytest.approx([2e-4, 1e-3, 1e-3, 1e-3, 5e-4, 2.5e-4])


def test_a_checkpoint_knows_the_names_and_category_ids_of_the_annotations(
    packed, tiny_config, tmp_path, without_training, scripted
):
    scripted(0.5)
    metadata = packed.table.schema.metadata | {b"category_ids": b"[0, 7, 9, 90]"}
    data = PackedDataset(packed.table.replace_schema_metadata(metadata))
    list(fit(tiny_config(train__epochs=1), data, tmp_path, device=torch.device("cpu")))
    for name in ("best", "last"):
        info = open_checkpoint(tmp_path / name).info
        assert info.category_ids == (0, 7, 9, 90)
        assert info.class_names == packed.class_names


def test_a_resumable_checkpoint_tells_of_all_epochs_so_far(packed, tiny_config, tmp_path, without_training, scripted):
    """Whoever was killed before it heard of some finds them there."""
    scripted(0.5, 0.4, 0.6)
    first = fit(tiny_config(train__epochs=3), packed, tmp_path, device=CPU)
    reports = [next(first), next(first)]
    first.close()
    reports += fit(tiny_config(train__epochs=3), packed, tmp_path, device=CPU)
    training = open_checkpoint(tmp_path / "last").load_training()
    assert training is not None
    assert [told | {"seconds": 0.0} for told in training["reports"]] == [
        asdict(report) | {"seconds": 0.0} for report in reports
    ]
