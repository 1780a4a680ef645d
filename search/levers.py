"""What an export adds to the best trial: calibration, test-time augmentation, an ensemble; each with its gain.

Every gain is measured on the validation images, with predictions that are stored (:mod:`search.storage.validation`), so
a second export does not predict them again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cellseg.checkpoint import Checkpoint
from cellseg.cli import say
from cellseg.config import TrialConfig
from cellseg.data.detections import Detections
from cellseg.data.packed import PackedDataset
from cellseg.errors import UserError
from cellseg.inference.calibration import Scorer, calibrate, choose_weights, operating_point, repeated
from cellseg.inference.ensemble import Ensemble, Member, fuse_members
from cellseg.inference.instance_scores import instance_scores
from cellseg.inference.postprocess import loosened
from cellseg.inference.views import with_tta
from search.storage.store import StudyStore
from search.storage.validation import Track, open_training_data, validation_predictions

if TYPE_CHECKING:
    import torch

AUTO_TTA = "flips,rot90"
"""Test-time augmentation that ``--auto`` tries."""
AUTO_TOP = 5
"""Trials that ``--auto`` tries as an ensemble, if as many checkpoints were kept."""


@dataclass(frozen=True)
class Levers:
    """What an export was asked to add."""

    calibrate: bool = False
    tta: str | None = None
    """``--tta``; None: no augmentation."""
    top: int = 1
    """Number of trials, best first."""
    auto: bool = False
    """Leave out what gains nothing."""

    @property
    def is_none(self) -> bool:
        """Whether the best model predicts as it was trained."""
        return not (self.calibrate or self.tta or self.top > 1)


@dataclass(frozen=True)
class Candidate:
    """A trial whose model may predict."""

    number: int
    checkpoint: Checkpoint


def parameters_of(candidate: Candidate) -> int:
    """Return the number of a model's parameters, frozen ones included."""
    return candidate.checkpoint.info.parameters


def assemble(
    store: StudyStore,
    candidates: Sequence[Candidate],
    levers: Levers,
    device: "torch.device",
    track: Track = lambda items, text: items,
) -> Ensemble:
    """Build what predicts: the first candidate, with what ``levers`` ask for and validation images approve.

    Prints the gain of each lever. Without validation images there is none; augmentation and an ensemble of equal
    weights are used as asked.

    Args:
        candidates: best first, at least one; as many as ``levers.top`` asks for.

    Raises:
        UserError: settings are to be chosen, but the validation images are not there.
    """
    config = candidates[0].checkpoint.config
    if levers.is_none:
        return Ensemble([Member.load(candidates[0].checkpoint, device)])
    try:
        data = open_training_data(
            candidates[0].checkpoint, "Export without --calibrate and --auto, or restore the data."
        )
    except UserError as error:
        if levers.calibrate or levers.auto:
            raise
        say(f"no validation figures: {error}")
        return Ensemble([Member.load(c.checkpoint, device, _member_config(c, config, levers.tta)) for c in candidates])
    bench = _Bench(store, data, candidates, device, track)
    return bench.assemble(levers)


def _member_config(candidate: Candidate, first: TrialConfig, tta: str | None) -> TrialConfig:
    """Let a member predict as the first one does; scales are its own, since its network was trained at them."""
    config = candidate.checkpoint.config
    inference = first.inference.model_copy(update={"scales": config.inference.scales})
    return with_tta(config.replace(**{f"inference__{k}": v for k, v in inference.model_dump().items()}), tta)


class _Bench:
    """The validation images, and what the candidates find there."""

    def __init__(
        self,
        store: StudyStore,
        data: PackedDataset,
        candidates: Sequence[Candidate],
        device: "torch.device",
        track: Track,
    ):
        self.store, self.data, self.device, self.track = store, data, device, track
        self.indices = self._validation(candidates[0])
        self.candidates = [c for c in candidates if self._validation(c) == self.indices]
        for left_out in candidates:
            if left_out not in self.candidates:
                say(f"trial t{left_out.number:04d} is left out: it was validated on other images")
        metric = store.metric if store.metric.startswith("segm/") else "segm/AP50"
        truths = [Detections.from_sample(data[index]) for index in self.indices]
        self.scorer = Scorer(truths, data.class_names, metric)

    def assemble(self, levers: Levers) -> Ensemble:
        first = self.candidates[0]
        config = first.checkpoint.config
        scorer = self.scorer
        if config.data.train_on == "all":
            say("note: the model has seen the validation images in training, so the gains below are not reliable")
        loose = self.predictions(first, loosened(config)) if levers.calibrate else None
        plain: Sequence[Detections] = self.predictions(first, config) if loose is None else repeated(loose, config)
        value = scorer.value(scorer.compare(plain))
        self._say(f"search winner, trial t{first.number:04d}", value)

        if loose is not None:
            if config.model.mask_alignment == "torchvision" and config.inference.mask_pasting == "model":
                exact = config.replace(inference__mask_pasting="exact")
                loose_exact = self.predictions(first, loosened(exact))
                gain = scorer.value(scorer.compare(repeated(loose_exact, exact))) - value
                if gain > 0:
                    config, loose, value = exact, loose_exact, value + gain
                    plain = repeated(loose, config)
                self._say("+ exact masks", value, gain, "" if gain > 0 else "left out")
            choice = calibrate(loose, config, scorer)
            changed = _changes(config, choice.option)
            if changed:
                value += choice.gain
                config, plain = choice.option, repeated(loose, choice.option)
            self._say("+ calibration", value, choice.gain, ", ".join(changed) or "nothing changed")

        current = scorer.value(scorer.compare(plain))
        if levers.tta is not None:
            augmented = with_tta(config, levers.tta)
            found = self.predictions(first, augmented)
            gain = scorer.value(scorer.compare(found)) - current
            left_out = levers.auto and gain <= 0
            if not left_out:
                config, plain, value = augmented, found, value + gain
            note = "left out" if left_out else "" if gain > 0 else "--auto would leave it out"
            self._say(f"+ TTA {levers.tta}", value, gain, note)

        members: list[Candidate] = [first]
        weights: tuple[float, ...] = (1.0,)
        if len(self.candidates) > 1:
            members, weights, plain = self._choose_members(config, plain, value)
        if levers.calibrate:
            self._say_operating_point(plain)
        configs = [self._config(member, config) for member in members]
        return Ensemble(
            [
                Member.load(member.checkpoint, self.device, of_member, weight)
                for member, of_member, weight in zip(members, configs, weights, strict=True)
            ]
        )

    def _choose_members(
        self, config: TrialConfig, plain: Sequence[Detections], value: float
    ) -> tuple[list[Candidate], tuple[float, ...], Sequence[Detections]]:
        """Choose who predicts together, with which weights, and what they find."""
        others = [self.predictions(c, self._config(c, config)) for c in self.candidates[1:]]
        predictions = [list(plain), *others]
        if plain[0].soft is None:
            predictions[0] = self.predictions(self.candidates[0], config)

        def fuse(weights: Sequence[float]) -> list[Detections]:
            used = [position for position, weight in enumerate(weights) if weight]
            votes_of_images = zip(*(predictions[position] for position in used), strict=True)
            return [fuse_members(votes, config, [weights[p] for p in used]) for votes in votes_of_images]

        choice = choose_weights(predictions, fuse, self.scorer)
        chosen = [(c, weight) for c, weight in zip(self.candidates, choice.option, strict=True) if weight]
        if len(chosen) > 1:
            value += choice.gain
        note = ", ".join(f"t{c.number:04d} x {weight:g}" for c, weight in chosen) if len(chosen) > 1 else "left out"
        self._say(f"+ ensemble of {len(self.candidates)}", value, choice.gain, note)
        found = fuse(choice.option) if len(chosen) > 1 else plain
        return [c for c, _ in chosen], tuple(weight for _, weight in chosen), found

    def _say_operating_point(self, found: Sequence[Detections]) -> None:
        names = self.scorer.class_names
        point = operating_point(self.scorer.compare(found), len(names))
        scores = ", ".join(f"{name} {score:.2f}" for name, score in zip(names, point.thresholds, strict=True))
        taken = [of_image.select(_taken(of_image, point.thresholds)) for of_image in found]
        figures = instance_scores(taken, self.scorer.truths, len(names))
        say(f"to count or outline cells, take scores of at least: {scores}")
        say(
            f"  which gives F1 {point.f1:.3f} (cross-validated), PQ {figures.pq:.3f}, AJI {figures.aji:.3f} and counts "
            f"that are wrong by {figures.count_error:.1f} cells an image"
        )

    def _config(self, candidate: Candidate, config: TrialConfig) -> TrialConfig:
        """Let a member predict with the chosen settings."""
        return config if candidate is self.candidates[0] else _member_config(candidate, config, None)

    def _say(self, step: str, value: float, gain: float | None = None, note: str = "") -> None:
        gained = "" if gain is None else f"  ({gain:+.4f})"
        say(f"{step:32} {self.scorer.metric} {value:.4f}{gained}{f'  {note}' if note else ''}")

    def _validation(self, candidate: Candidate) -> tuple[int, ...]:
        return self.data.split(candidate.checkpoint.config.data).validation

    def predictions(self, candidate: Candidate, config: TrialConfig) -> list[Detections]:
        """Return what a candidate finds in the validation images with ``config``, with soft masks."""
        checkpoint, number = candidate.checkpoint, candidate.number
        return validation_predictions(
            self.store, number, checkpoint, config, self.data, self.indices, self.device, self.track
        )


def _taken(found: Detections, thresholds: Sequence[float]) -> np.ndarray:
    """Return the indices of the detections that reach the threshold of their class."""
    return np.flatnonzero(found.scores_N >= np.array(thresholds)[found.labels_N - 1])


def _changes(before: TrialConfig, after: TrialConfig) -> list[str]:
    """List the settings that differ, as ``key=value``."""
    was, is_now = before.to_flat(), after.to_flat()
    return [f"{key}={value}" for key, value in is_now.items() if was[key] != value]
