"""The authentication mode of Ray in the process that runs the tests."""

import os

from ray._raylet import Config  # type: ignore[attr-defined]

from search.cluster.token import MODE


def set_mode(mode: str | None) -> None:
    """Set the mode; None: as in a process that was told nothing. Ray keeps a value whose variable is gone."""
    os.environ[MODE] = mode or "disabled"
    Config.initialize("")
    if mode is None:
        del os.environ[MODE]
