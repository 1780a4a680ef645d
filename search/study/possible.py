"""Values that the trials of an experiment can have together, and rules that hold before any of them starts.

A space's values are followed through its conditions. Start configs add none: their values lie in the same domains.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cellseg.errors import Problem
from search.ablation import Ablation
from search.space import Choices, Space
from search.space.conditions import DEFAULTS, is_among
from search.study.experiment import Experiment

WEIGHTS, BACKBONE, DETECTOR, FROZEN = "model.weights", "model.backbone", "model.detector", "model.frozen_stages"

WITHOUT_FILE = ("none", "imagenet", "coco")
"""Values of ``model.weights`` that are no path."""


def possible_values(experiment: Experiment, keys: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    """Yield the values that ``keys`` can have together, beside those of all fields, once each.

    Of a sampled range its ends stand for all numbers, with those that a condition names.
    """
    keys = tuple(keys)
    seen = set()
    for values in _value_sets(experiment, keys):
        identity = tuple(repr(values[key]) for key in keys)
        if identity not in seen:
            seen.add(identity)
            yield values


def starts_from_weights(experiment: Experiment) -> bool:
    """Say whether some trial starts from weights of any kind."""
    return any(values[WEIGHTS] != "none" for values in possible_values(experiment, (WEIGHTS,)))


def named_paths(experiment: Experiment) -> list[str]:
    """List the files and checkpoint folders of weights that the experiment names, once each."""
    named = [values[WEIGHTS] for values in possible_values(experiment, (WEIGHTS,))]
    return [path for path in dict.fromkeys(named) if path not in WITHOUT_FILE]


def untrained_stages(experiment: Experiment) -> list[Problem]:
    """Report stages that an experiment freezes as they were drawn at random, which no training can make up for."""
    frozen = [v[FROZEN] for v in possible_values(experiment, (WEIGHTS, FROZEN)) if v[WEIGHTS] == "none" and v[FROZEN]]
    if not frozen:
        return []
    remedy = "Fix model.frozen_stages: 0, name the weights, or"
    if FROZEN in experiment.domains and WEIGHTS in experiment.domains:
        remedy = "Add when: {model.weights: [...]} with the pretrained ones, or"
    got = f"frozen_stages={max(frozen)} with weights=none, whose stages are random"
    return [Problem(FROZEN, "frozen stages need pretrained weights", got, f"{remedy} leave the key out.")]


def _value_sets(experiment: Experiment, keys: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    if isinstance(experiment, Ablation):
        for row in experiment.trained_rows:
            yield {**DEFAULTS, **experiment.settings(row)}
        return
    assert isinstance(experiment, Space), experiment
    needed = _with_conditions(experiment, keys)
    partial: list[dict[str, Any]] = [{}]
    for key in (key for key in experiment.domains if key in needed):  # each after the keys that its condition names
        partial = [
            extended
            for params in partial
            for extended in (
                [params | {key: value} for value in _representatives(experiment, key)]
                if experiment.is_active(key, params)
                else [params]
            )
        ]
    for params in partial:
        yield experiment.values(params)


def _with_conditions(space: Space, keys: Iterable[str]) -> set[str]:
    """Return those of ``keys`` that are sampled, and all keys that their conditions depend on."""
    needed: set[str] = set()
    pending = [key for key in keys if key in space.domains]
    while pending:
        key = pending.pop()
        if key not in needed:
            needed.add(key)
            pending += [other for other in space.domains[key].when if other in space.domains]
    return needed


def _representatives(space: Space, key: str) -> tuple[Any, ...]:
    domain = space.domains[key]
    if isinstance(domain, Choices):
        return domain.choices
    values: list[Any] = [domain.low, domain.high]
    for other in space.domains.values():
        for value in other.when.get(key, ()):
            if domain.contains(value) and not is_among(value, values):
                values.append(value)
    return tuple(values)
