"""What the runs of a table measured, row by row."""

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from search.ablation.table import REPEAT, ROW, Ablation
from search.storage.tables import EpochRow, TrialRow


@dataclass
class Measurement:
    """The runs of one row."""

    values: dict[str, list[float]] = field(default_factory=dict)
    """By metric, its value at the best epoch of each complete run."""
    num_complete: int = 0
    failures: list[tuple[int, str]] = field(default_factory=list)
    """(repeat, reason) of the runs that ended otherwise: the ending, and the last line of what there is to say."""
    num_open: int = 0
    """Runs that have begun and not ended."""

    def describe(self, metric: str) -> str:
        """Mean, standard deviation (of a sample, n - 1) and number of values of ``metric``; ``-`` for what is not
        defined. Where all runs failed, how."""
        values = self.values.get(metric, [])
        if values:
            digits = 1 if metric.startswith("count/") else 4
            deviation = f"{statistics.stdev(values):.{digits}f}" if len(values) > 1 else "-"
            return f"{statistics.fmean(values):.{digits}f} ± {deviation} ({len(values)})"
        endings = dict.fromkeys(reason.split(":")[0] for _, reason in self.failures)
        return ", ".join(endings) if endings and not self.num_open else "-"


def measure(
    table: Ablation, trials: Iterable[TrialRow], epochs: Mapping[int, Iterable[EpochRow]]
) -> dict[str, Measurement]:
    """What was measured for every row of the table, those that are the same as another included.

    Args:
        trials: the study's trials.
        epochs: the epochs of each, by trial number.
    """
    trained = {name: Measurement() for name in table.rows if table.origin(name) == name}
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
            row.failures.append((params[REPEAT], _short(trial.reason)))
    return {name: trained[table.origin(name)] for name in table.rows}


def _short(reason: str) -> str:
    """The ending, and of what follows (it can be a traceback) the last line."""
    ending, _, detail = reason.strip().partition(":")
    lines = detail.strip().splitlines()
    return f"{ending}: {lines[-1]}" if lines else ending
