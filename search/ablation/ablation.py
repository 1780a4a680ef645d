"""An ablation study: rows of settings, each trained with the same seeds, beside the figures that were reported."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Strict

from cellseg.config import FIELDS, Count, Metric, TrialConfig
from cellseg.names import counted
from search.space import Choices, DataSource, Domain, Limits, Params, Resources
from search.space.settings import DEFAULT_TRACKERS, AshaSettings, Direction, StallSettings, Tracker

ROW, REPEAT = "row", "repeat"
"""The params of a run: the row's name, and which of its repeats it is, from 0."""


class Row(BaseModel):
    """A row of the ablation."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    config: dict[str, Any] = {}
    """Config fields over the table's ``common`` ones, by dotted key."""
    reported: dict[str, int | float | str] = {}
    """The reported result, by column: a figure, or words where there is none."""
    note: str | None = None
    """A note for readers of its figures."""
    without_effect: str | None = None
    """Why a setting of the row could not have had an effect in the code that the figure comes from."""
    same_as: str | None = None
    """Name of the row that is the same run: this one has no config, is not trained and shows that one's figures."""


class Ablation(BaseModel):
    """Given configs to be measured. :func:`search.ablation.load_ablation` makes checked ones.

    Its runs are the repeats of its rows. None is stopped early, and one that fails is a result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    title: str
    source: str
    """Source of the reported figures, in a sentence."""
    metric: Metric
    """Picks the best epoch of a run, which is the one that is measured."""
    direction: Direction
    """The metric's."""
    repeats: Count = 3
    """Runs of each row. They differ in their seed; equal repeats of two rows share it, and may be compared in pairs."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Every repeat's seed derives from this one."""
    keep: Count = 3
    """Checkpoints of this many best runs stay on disk."""
    max_slots: Count | None = None
    """The most runs side by side. None: as many as the cluster holds."""
    priority: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Its part of a cluster that several studies share, in proportion to theirs."""
    stall: StallSettings = StallSettings()
    """When a run that reports nothing is started again elsewhere."""
    track: Annotated[tuple[Tracker, ...], Strict(False)] = DEFAULT_TRACKERS
    """Tools that get a copy of the runs."""
    resources: Resources | None = None
    """The CPUs and GPUs that one run occupies. None: a GPU where there is one, else a CPU."""
    data: DataSource | None = None
    """Location of the data, unless the command gives one."""
    limits: Limits | None = None
    """The limits that end the study early: on time alone, for every run is wanted whatever its value."""
    common: dict[str, Any] = {}
    """Config fields of all rows, by dotted key."""
    measured: Annotated[tuple[str, ...], Strict(False)]
    """Names of the validation metrics that its report shows, at least one."""
    rows: dict[str, Row]
    """By name, in the file's order; at least one."""
    notes: Annotated[tuple[str, ...], Strict(False)] = ()
    """Notes for readers of the whole ablation."""
    overridden: dict[str, Any] = {}
    """Config fields that the command line set in all rows, over everything else."""
    selected: Annotated[tuple[str, ...], Strict(False), Field(exclude=True)] = ()
    """The rows that are to be trained now. Empty: all."""

    @property
    def runs(self) -> list[Params]:
        """The params of every run, the first repeat of all rows first: if cut short, the ablation has all its rows."""
        return [{ROW: name, REPEAT: repeat} for repeat in range(self.repeats) for name in self.trained_rows]

    @property
    def trained_rows(self) -> list[str]:
        """Names of the rows that are trained now: the selected ones, or those that stand for them."""
        wanted = {self.origin(name) for name in self.selected or self.rows}
        return [name for name in self.rows if name in wanted]

    def origin(self, name: str) -> str:
        """Return the row whose runs measure this one: itself, or the one that it is the same as."""
        return self.rows[name].same_as or name

    def settings(self, name: str) -> dict[str, Any]:
        """Return every config field that the ablation sets for a row, by dotted key."""
        return {**self.common, **self.rows[self.origin(name)].config, **self.overridden}

    def config(self, params: Mapping[str, Any], *, seed: int) -> TrialConfig:
        """Return the config of a run; ``data.root`` is left to the caller.

        Raises:
            UserError: its values do not go together.
        """
        return self.row_config(params[ROW], seed=seed)

    def row_config(self, name: str, *, seed: int = 0) -> TrialConfig:
        """Return the config of a row with some seed; see :meth:`config`."""
        return TrialConfig.from_flat(self.flat_config(name, seed=seed), where=f"rows.{name}")

    def flat_config(self, name: str, *, seed: int = 0) -> dict[str, Any]:
        """Return the values of :meth:`row_config` that differ from the defaults, by dotted key, unchecked."""
        return self.settings(name) | {"train.metric": self.metric, "train.seed": seed}

    # The questions of a study, beside the fields above

    @property
    def trials(self) -> int:
        """Runs to end, those of earlier commands included."""
        return len(self.runs)

    @property
    def objective(self) -> None:
        """Nothing ranks beside the metric."""

    @property
    def asha(self) -> AshaSettings | None:
        """Nothing is stopped early."""
        return None

    @property
    def epochs(self) -> int:
        """Epochs of the longest run."""
        return max(self._epochs_by_row)

    @property
    def total_epochs(self) -> int:
        """Epochs of all runs together."""
        return self.repeats * sum(self._epochs_by_row)

    @property
    def _epochs_by_row(self) -> list[int]:
        default = FIELDS["train.epochs"].default
        return [self.settings(name).get("train.epochs", default) for name in self.trained_rows]

    @property
    def domains(self) -> dict[str, Domain]:
        """The params of a run, with what they can be."""
        return {ROW: Choices(choices=tuple(self.trained_rows)), REPEAT: Choices(choices=tuple(range(self.repeats)))}

    @property
    def fixed(self) -> dict[str, Any]:
        """Config fields of all rows. Those that decide how data are read and split cannot be in a row alone."""
        return {**self.common, **self.overridden}

    @property
    def fingerprint(self) -> str:
        """16 hex digits that two ablations share exactly if their runs may stand in one study.

        It covers what the runs' results depend on: metric, seed, and every row's name and settings. It leaves out the
        number of repeats, what was reported and what is shown.
        """
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def identity(self) -> dict[str, Any]:
        """What :attr:`fingerprint` covers, as JSON values."""
        rows = {name: self.settings(name) for name in self.rows}
        return {"metric": self.metric, "direction": self.direction, "seed": self.seed, "rows": rows}

    @property
    def is_search(self) -> bool:
        """Whether trials compete: no, every run is a result."""
        return False

    @property
    def more_trials(self) -> str:
        """The option that asks for more runs."""
        return "--set repeats=N"

    @property
    def failures_count(self) -> bool:
        """A run that fails is a result: it is not tried anew, and the other rows go on."""
        return True

    def includes(self, params: Mapping[str, Any]) -> bool:
        """Say whether a run of the study is wanted now."""
        return params[ROW] in self.trained_rows and params[REPEAT] < self.repeats

    def seed_index(self, params: Mapping[str, Any], number: int) -> int:
        """Return the repeat: in each, all rows start from the same random numbers."""
        return params[REPEAT]

    def describe(self) -> list[str]:
        """Describe the ablation in lines for people: what all rows share, and what sets each apart."""
        names = self.trained_rows
        width = max(map(len, self.rows))
        lines = [
            f"{self.direction} {self.metric}: {counted(len(names), 'row')} x {counted(self.repeats, 'repeat')}, "
            f"{counted(self.trials, 'trial')}, {counted(self.total_epochs, 'epoch')} in all, seed {self.seed}",
            "ASHA: off, every trial is trained to the end",
            *([f"limits: {self.limits.describe(self.metric)}"] if self.limits else []),
            self.title,
            "common: " + _assignments(self.fixed),
        ]
        for name in names:
            own = {key: value for key, value in self.rows[name].config.items() if key not in self.overridden}
            lines.append(f"{name:<{width}}  {_assignments(own) or 'nothing else'}")
        lines += [
            f"{name:<{width}}  the same run as {row.same_as}"
            for name, row in self.rows.items()
            if row.same_as in names and (not self.selected or name in self.selected)
        ]
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the ablation as JSON values; :meth:`from_json` reads it back."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Ablation":
        """Make the ablation that :meth:`to_json` wrote. It is taken as it is, unlike a user's file."""
        return cls.model_validate(content)


def _assignments(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())
