"""Weights & Biases: a run for each trial, grouped by study.

Without an account on this machine, or with ``WANDB_MODE=offline``, runs are files in ``results/<study>/wandb/``, which
``wandb sync`` sends later. The run of a trial that goes on is written anew there; of one that was sent already, W&B
itself knows the last epoch.
"""

import netrc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast
from urllib.parse import urlsplit

from search.storage.store import StudyStore
from search.storage.tables import EpochRow, TrialRow
from search.views.trackers.tracker import EndedList, flat_params, remove_folder, run_name, scalars

if TYPE_CHECKING:
    from wandb import Run

Mode = Literal["online", "offline", "disabled", "shared"]
PROJECT = "cellseg-search"
DEFAULTS = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
"""Environment of W&B, where the user has not set it otherwise: no reports of errors to its makers, and no line of its
own over the board."""
HOST = "https://api.wandb.ai"


class WeightsAndBiases:
    """Writes runs through W&B's client."""

    def __init__(self, store: StudyStore):
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        self._folder, self._metric, self._study = store.folder, store.metric, store.name
        self._id = "".join(sign if sign.isalnum() else "-" for sign in f"{store.name}-{store.study.get('created', '')}")
        self._mode = mode()
        self._list = EndedList(store.folder / "wandb")
        self._runs: dict[int, Run] = {}

    def ended(self) -> set[int]:
        return self._list.read()

    def begin(self, row: TrialRow) -> int:
        import wandb

        number, run_id = row.number, f"{self._id}-{run_name(row.number)}"
        if self._mode == "offline":
            for former in (self._folder / "wandb").glob(f"offline-run-*-{run_id}"):
                remove_folder(former)
        # What W&B would gather by itself: output, code, git, the machine's load. The study has it, or nobody asked.
        quiet = wandb.Settings(
            console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True, x_disable_meta=True
        )
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=self._study,
            id=run_id,
            name=f"{self._study}/{run_name(number)}",
            config=flat_params(row) | {"seed": row.seed},
            dir=str(self._folder),
            mode=self._mode,
            resume="allow",
            reinit="create_new",
            settings=quiet,
        )
        self._runs[number] = run
        return max(0, run.starting_step - 1)

    def epoch(self, row: EpochRow, when: float) -> None:
        self._runs[row.trial].log(dict(scalars(row)), step=row.epoch)

    def end(self, row: TrialRow) -> None:
        run = self._runs.pop(row.number)
        run.summary.update({"state": row.state.lower(), "reason": row.reason, f"best/{self._metric}": row.metric})
        run.finish(exit_code=int(row.state in ("FAILED", "INFEASIBLE")))
        self._list.add(row.number)

    def close(self) -> None:
        for run in self._runs.values():
            run.finish()
        self._runs.clear()


def mode() -> Mode:
    """Return ``WANDB_MODE``; without it ``online`` for a user who is logged in, else ``offline``."""
    if given := os.environ.get("WANDB_MODE"):
        return cast(Mode, given)  # W&B itself refuses others
    return "online" if os.environ.get("WANDB_API_KEY") or _has_login() else "offline"


def _has_login() -> bool:
    """Whether ``wandb login`` left a key for the server where it leaves it."""
    host = urlsplit(os.environ.get("WANDB_BASE_URL", HOST)).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC", Path.home() / ".netrc")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def describe(store: StudyStore) -> str:
    """Say where the runs are, and how to look at them."""
    if mode() == "online":
        return f"Weights & Biases: group '{store.name}'; `wandb status` shows the account"
    return f"Weights & Biases, offline: wandb sync {store.folder / 'wandb'}/offline-run-*"
