"""A driver that is killed at many random moments, with trials that take turns in the driver itself."""

import pytest

from tests.faults.harness import Commands
from tests.faults.kills import run_kills


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", [6, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_kills_without_ray_lose_nothing_but_running_epochs(tmp_path, kills):
    """The same driver, store and checkpoints, with trials in the driver itself: many kills in little time."""
    commands = Commands(None)
    try:
        tally = run_kills(kills, 0, tmp_path, None, commands)
    finally:
        commands.close()
    assert tally.kills == kills
    assert tally.is_clean, tally.describe()
