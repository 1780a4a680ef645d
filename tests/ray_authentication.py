"""The authentication mode of Ray in the process that runs the tests."""

import os

from search.cluster.token import MODE, reread_environment


def set_mode(mode: str | None) -> None:
    """Set the mode; None: as in a process that was told nothing. Ray keeps a value whose variable is gone."""
    os.environ[MODE] = mode or "disabled"
    reread_environment()
    if mode is None:
        del os.environ[MODE]
