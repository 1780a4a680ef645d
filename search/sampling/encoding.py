"""Params as numbers: a cube to draw from, and features in which near configs are alike.

Every sampled key, active or not, is a coordinate of a cube of side 1. A row of the cube decodes to params; keys that
are inactive there are passed over. Features are what a model compares: one number for a range, one for each choice of a
list.

Shape suffixes: N rows, K keys, D features.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from search.space import Choices, Domain, Params, Range
from search.space.conditions import DEFAULTS, is_among
from search.space.space import fill, sample

RESAMPLED = 0.2
"""Probability that a neighbour redraws a choice; numbers move by a Gaussian step every other time."""


class Cube:
    """The cube of a space.

    Args:
        domains: the sampled keys, each after the keys that its condition names.
        fixed: keys that have one value in all trials; conditions may look at them.
    """

    def __init__(self, domains: Mapping[str, Domain], fixed: Mapping[str, Any] = MappingProxyType({})):
        self.domains = dict(domains)
        self._unsampled = {**DEFAULTS, **fixed}  # what a key has where it is not sampled
        self._column = {key: index for index, key in enumerate(self.domains)}
        widths = [len(domain.choices) if isinstance(domain, Choices) else 1 for domain in self.domains.values()]
        self.key_of_feature = np.repeat(np.arange(len(widths)), widths)
        """(D,) index of the key that each feature belongs to."""

    def random(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw ``count`` rows uniformly, (count, K)."""
        return rng.random((count, len(self.domains)))

    def neighbours(self, rng: np.random.Generator, row_K: np.ndarray, count: int, step: float) -> np.ndarray:
        """Draw (count, K) rows near ``row_K``: half of the numbers moved by about ``step``, some choices redrawn."""
        shape = count, len(self.domains)
        moved_NK = np.clip(row_K + step * rng.standard_normal(shape) * (rng.random(shape) < 0.5), 0, 1)
        drawn_NK = np.where(rng.random(shape) < RESAMPLED, rng.random(shape), row_K)
        is_list_K = np.array([isinstance(domain, Choices) for domain in self.domains.values()])
        return np.where(is_list_K, drawn_NK, moved_NK)

    def decode(self, row_K: np.ndarray) -> Params:
        """Return the params of a row."""
        return fill(
            self.domains, self._unsampled, lambda key: _value(self.domains[key], float(row_K[self._column[key]]))
        )

    def sample(self, rng: np.random.Generator, start: Mapping[str, Any] = MappingProxyType({})) -> Params:
        """Draw values of all active keys; those in ``start`` are taken from there."""
        return sample(self.domains, self._unsampled, rng, start)

    def encode(self, params: Mapping[str, Any], rng: np.random.Generator) -> np.ndarray:
        """Return a row (K,) that decodes to ``params``; what is inactive there is drawn."""
        row_K = rng.random(len(self.domains))
        for key, value in params.items():
            row_K[self._column[key]] = _place(self.domains[key], value)
        return row_K

    def features(self, rows_NK: np.ndarray) -> np.ndarray:
        """Return the (N, D) features of rows, in [0, 1]. An inactive number is 0.5, an inactive list 0 for each choice;
        two different choices are as far from each other as the ends of a range."""
        active = self._active(rows_NK)
        parts = []
        for key, domain in self.domains.items():
            column_N = rows_NK[:, self._column[key]]
            if isinstance(domain, Choices):
                index_N = np.minimum((column_N * len(domain.choices)).astype(int), len(domain.choices) - 1)
                one_hot_NC = np.eye(len(domain.choices))[index_N] / math.sqrt(2)
                parts.append(one_hot_NC * active[key][:, None])
            else:
                parts.append(np.where(active[key], _snap(domain, column_N), 0.5)[:, None])
        return np.concatenate(parts, axis=1)

    def _active(self, rows_NK: np.ndarray) -> dict[str, np.ndarray]:
        """For each key whether it is active in each row, (N,) bool: as :meth:`decode` decides, all at once."""
        active: dict[str, np.ndarray] = {}
        for key, domain in self.domains.items():
            active_N = np.ones(len(rows_NK), dtype=bool)
            for other, allowed in domain.when.items():
                fulfilled = other in self._unsampled and is_among(self._unsampled[other], allowed)
                if other in self.domains:
                    match_N = self._match(other, allowed, rows_NK[:, self._column[other]])
                    active_N &= np.where(active[other], match_N, fulfilled)
                else:
                    active_N &= fulfilled
            active[key] = active_N
        return active

    def _match(self, key: str, allowed: tuple, column_N: np.ndarray) -> np.ndarray:
        """Whether each value of the key's coordinate decodes to one of ``allowed``."""
        domain = self.domains[key]
        if isinstance(domain, Choices):
            among = np.array([is_among(choice, allowed) for choice in domain.choices])
            return among[np.minimum((column_N * len(among)).astype(int), len(among) - 1)]
        return np.array([is_among(_value(domain, float(place)), allowed) for place in column_N])


def _value(domain: Domain, place: float) -> int | float | str | bool | None:
    """The value at a place in [0, 1]."""
    if isinstance(domain, Choices):
        return domain.choices[min(int(place * len(domain.choices)), len(domain.choices) - 1)]
    number = float(_numbers(domain, np.array([place]))[0])
    return int(number) if domain.integer else number


def _place(domain: Domain, value: int | float | str | bool | None) -> float:
    """A place in [0, 1] with that value."""
    if isinstance(domain, Choices):
        index = next(index for index, choice in enumerate(domain.choices) if is_among(value, (choice,)))
        return (index + 0.5) / len(domain.choices)
    assert isinstance(value, int | float)
    return float(_places(domain, np.array([float(value)]))[0])


def _numbers(domain: Range, places_N: np.ndarray) -> np.ndarray:
    """Values of a range at places in [0, 1], on its steps. Integers have equal shares of the way between the ends."""
    low, high = _ends(domain)
    numbers_N = low + places_N * (high - low)
    if domain.log:
        numbers_N = np.exp(numbers_N)
    step = domain.step or (1 if domain.integer else None)
    if step:
        numbers_N = domain.low + step * np.round((numbers_N - domain.low) / step)
    return np.clip(numbers_N, domain.low, domain.high)


def _places(domain: Range, numbers_N: np.ndarray) -> np.ndarray:
    low, high = _ends(domain)
    return np.clip(((np.log(numbers_N) if domain.log else numbers_N) - low) / (high - low), 0, 1)


def _snap(domain: Range, places_N: np.ndarray) -> np.ndarray:
    """The place of the value that each place decodes to."""
    return _places(domain, _numbers(domain, places_N)) if domain.integer or domain.step else places_N


def _ends(domain: Range) -> tuple[float, float]:
    """Ends of the axis: half a step beyond the range, so that its ends are as likely as their neighbours."""
    half = (domain.step or (1 if domain.integer else 0)) / 2
    low, high = domain.low - half, domain.high + half
    return (math.log(low), math.log(high)) if domain.log else (low, high)
