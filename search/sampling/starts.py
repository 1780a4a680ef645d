"""Start configs: what a study tries before it asks its sampler."""

from collections.abc import Iterable, Mapping
from typing import Any

from search.space import Params


class Starts:
    """The start configs that no trial began with yet, in their order."""

    def __init__(self, configs: Iterable[Params]):
        self._open = [dict(config) for config in configs]

    def __len__(self) -> int:
        """Number of configs that are left."""
        return len(self._open)

    def take(self) -> Params | None:
        """Return the next one, values of some sampled keys, or None if none is left."""
        return self._open.pop(0) if self._open else None

    def discard(self, params: Mapping[str, Any]) -> None:
        """Take in that a trial began with these params: the first start config that agrees with them is done."""
        tried = next((start for start in self._open if start.items() <= params.items()), None)
        if tried is not None:
            self._open.remove(tried)
