"""The results of an ablation, row by row."""

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from search.ablation.ablation import REPEAT, ROW, Ablation
from search.storage.tables import EpochRow, TrialRow


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that did not complete."""

    repeat: int
    ending: str
    """Its kind, as in :data:`search.study.study.OUTCOMES`."""
    detail: str
    """The last line of what there is to say; empty for nothing."""

    def __str__(self) -> str:
        reason = f"{self.ending}: {self.detail}" if self.detail else self.ending
        return f"repeat {self.repeat}: {reason}"


@dataclass
class Measurement:
    """The results of one row's runs."""

    values: dict[str, list[float]] = field(default_factory=dict)
    """By metric, its value at the best epoch of each complete run."""
    num_complete: int = 0
    failures: list[Failure] = field(default_factory=list)
    """The runs that ended otherwise."""
    num_open: int = 0
    """Runs that have begun and not ended."""

    def describe(self, metric: str) -> str:
        """Describe mean, standard deviation (of a sample, n - 1) and number of values of ``metric``; ``-`` for what is
        not defined. Where all runs failed, how."""
        values = self.values.get(metric, [])
        if values:
            digits = 1 if metric.startswith("count/") else 4
            deviation = f"{statistics.stdev(values):.{digits}f}" if len(values) > 1 else "-"
            return f"{statistics.fmean(values):.{digits}f} ± {deviation} ({len(values)})"
        endings = dict.fromkeys(failure.ending for failure in self.failures)
        return ", ".join(endings) if endings and not self.num_open else "-"


def measure(
    ablation: Ablation, trials: Iterable[TrialRow], epochs: Mapping[int, Iterable[EpochRow]]
) -> dict[str, Measurement]:
    """Measure every row of the ablation, those that are the same as another included.

    Args:
        trials: the study's trials.
        epochs: the epochs of each, by trial number.
    """
    trained = {name: Measurement() for name in ablation.rows if ablation.origin(name) == name}
    for trial in trials:
        params = json.loads(trial.params)
        row = trained[params[ROW]]
        if trial.state in {"RUNNING", "INTERRUPTED"}:
            row.num_open += 1
        elif trial.state == "COMPLETE":
            row.num_complete += 1
            best = next((epoch for epoch in epochs.get(trial.number, ()) if epoch.epoch == trial.best_epoch), None)
            for name, value in best.metrics.items() if best else ():
                if value is not None:
                    row.values.setdefault(name, []).append(value)
        else:
            row.failures.append(Failure(params[REPEAT], trial.ending, _last_line(trial.detail)))
    return {name: trained[ablation.origin(name)] for name in ablation.rows}


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""
