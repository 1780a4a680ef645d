"""The experiment that a study carries out: a search space, or an ablation. Both answer the same questions.

:class:`search.space.Space` and :class:`search.ablation.Ablation` are the two; Ray, study tables, board and resuming
know only what stands here.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from cellseg.config import TrialConfig
from search.space.domain import Domain
from search.space.settings import (
    AshaSettings,
    DataSource,
    Direction,
    Limits,
    ObjectiveSettings,
    Resources,
    StallSettings,
    Tracker,
)


class Experiment(Protocol):
    """A space or an ablation, as a study sees it."""

    @property
    def metric(self) -> str:
        """Name of the validation metric that ranks."""

    @property
    def direction(self) -> Direction:
        """``maximize`` or ``minimize``."""

    @property
    def trials(self) -> int:
        """Number of trials to finish, including those of earlier runs."""

    @property
    def epochs(self) -> int:
        """Full length of the longest trial."""

    @property
    def seed(self) -> int:
        """Everything random derives from it."""

    @property
    def keep(self) -> int:
        """Checkpoints of this many best trials stay on disk."""

    @property
    def max_slots(self) -> int | None:
        """The most trials side by side. None: as many as the cluster holds."""

    @property
    def priority(self) -> float:
        """Its part of a cluster that several studies share, in proportion to theirs."""

    @property
    def stall(self) -> StallSettings:
        """When a trial that reports nothing is started again elsewhere."""

    @property
    def track(self) -> tuple[Tracker, ...]:
        """Tools that get a copy of the trials."""

    @property
    def resources(self) -> Resources | None:
        """The CPUs and GPUs that one trial occupies. None: a GPU where there is one, else a CPU."""

    @property
    def data(self) -> DataSource | None:
        """Location of the data, unless the command gives one."""

    @property
    def limits(self) -> Limits | None:
        """The limits that end the study early."""

    @property
    def objective(self) -> ObjectiveSettings | None:
        """The cost that ranks beside the metric. None: the metric alone ranks."""

    @property
    def asha(self) -> AshaSettings | None:
        """When trials are stopped. None: never."""

    @property
    def domains(self) -> Mapping[str, Domain]:
        """The keys of a trial's params, with what they can be."""

    @property
    def fixed(self) -> Mapping[str, Any]:
        """Config fields that have one value in all trials; those that decide how data are read are among them."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits; two experiments that share them may stand in one study."""

    @property
    def identity(self) -> dict[str, Any]:
        """What the fingerprint covers, as JSON values; :mod:`search.study.changes` names what differs."""

    @property
    def is_search(self) -> bool:
        """Whether trials compete and the best one is wanted. If not, every trial is a result, shown beside others."""

    @property
    def more_trials(self) -> str:
        """The option of ``search.run`` that asks for more trials."""

    @property
    def failures_count(self) -> bool:
        """Whether a failed trial counts as one of ``trials``. If not, another takes its place, and a search whose
        trials all fail gives up."""

    def includes(self, params: Mapping[str, Any]) -> bool:
        """Whether a trial of the study is one of those that are to be run now."""

    def seed_index(self, params: Mapping[str, Any], number: int) -> int:
        """Trials with equal indices share their seed."""

    def config(self, params: Mapping[str, Any], *, seed: int) -> TrialConfig:
        """Return the config of a trial; raise UserError if its values do not go together."""

    def describe(self) -> list[str]:
        """Describe the experiment in lines for people."""

    def to_json(self) -> dict[str, Any]:
        """Return the experiment as JSON values; :func:`search.study.load.experiment_from_json` reads them back."""
