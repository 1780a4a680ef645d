"""What a study carries out: a search space, or a table of given configs. Both answer the same questions.

:class:`search.space.Space` and :class:`search.ablation.Ablation` are the two; Ray, tables, board and resuming know
only what stands here.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from cellseg.config import TrialConfig
from search.space.domain import Domain
from search.space.settings import DataSource, Limits, ObjectiveSettings, Resources
from search.space.space import Params
from search.study.asha import Asha

if TYPE_CHECKING:
    from search.sampling.sampler import Outcome  # it imports optuna


class Sampler(Protocol):
    """Decides which trial is next. See :class:`search.sampling.sampler.StudySampler` for what each call promises."""

    def ask(self, number: int) -> Params: ...

    def prepare(self, count: int) -> bool: ...

    def report(self, number: int, epoch: int, value: float) -> None: ...

    def tell(self, number: int, outcome: "Outcome", value: float | None = None, reason: str | None = None) -> None: ...

    def replay(
        self,
        number: int,
        params: Mapping[str, Any],
        outcome: "Outcome | None",
        *,
        value: float | None = None,
        epochs: Iterable[tuple[int, float]] = (),
        reason: str | None = None,
    ) -> None: ...


class Experiment(Protocol):
    """What a study carries out."""

    @property
    def metric(self) -> str:
        """Name of the validation metric that ranks."""

    @property
    def direction(self) -> str:
        """``maximize`` or ``minimize``."""

    @property
    def trials(self) -> int:
        """How many trials are to end, those of former runs included."""

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
    def resources(self) -> Resources | None:
        """What one trial occupies. None: a GPU where there is one, else a CPU."""

    @property
    def data(self) -> DataSource | None:
        """Where the data is, unless the command says so."""

    @property
    def limits(self) -> Limits | None:
        """What ends the study before its trials are done."""

    @property
    def objective(self) -> ObjectiveSettings | None:
        """The cost that ranks beside the metric. None: the metric alone ranks."""

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
    def failures_count(self) -> bool:
        """Whether a failed trial counts as one of ``trials``. If not, another takes its place, and a search whose
        trials all fail gives up."""

    def includes(self, params: Mapping[str, Any]) -> bool:
        """Whether a trial of the study is one of those that are to be run now."""

    def seed_index(self, params: Mapping[str, Any], number: int) -> int:
        """Trials with equal indices share their seed."""

    def config(self, params: Mapping[str, Any], *, seed: int) -> TrialConfig:
        """The config of a trial; raises UserError if its values do not go together."""

    def make_asha(self) -> Asha:
        """The scheduler of a new study."""

    def make_sampler(self) -> Sampler:
        """The sampler of a new study."""

    def describe(self) -> list[str]:
        """The experiment in lines for people."""

    def to_json(self) -> dict[str, Any]:
        """What it is, as JSON values."""
