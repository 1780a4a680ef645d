"""Fixtures that several test files share."""

import os
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
TESTS = Path(__file__).parent

# As in an active environment: commands that are printed then name programs, not their paths.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """``-m gpu`` looks for tests in tests/gpu only: elsewhere there are none, but imports that take their time, and
    that a machine which only trains (no Ray, no Optuna) lacks."""
    if config.option.markexpr != "gpu" or TESTS not in collection_path.parents:
        return None
    return collection_path.relative_to(TESTS).parts[0] != "gpu" or None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data beside the checkout; tests that need it are skipped where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data is not here ({folder})")
    return folder


@pytest.fixture(autouse=True, scope="session")
def _quiet_optuna() -> None:
    # As search.run does. Optuna's handler keeps the stderr of the test that came first.
    try:
        import optuna
    except ModuleNotFoundError:  # a machine that only trains
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)
