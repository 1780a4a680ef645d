"""The report of a study: an ablation's figures beside the published ones, or a search's leaderboard and front.

Only the study's tables are read: it may be running, and neither Ray nor torch is loaded.
"""

from rich.table import Table
from rich.text import Text

from cellseg.names import counted
from search.ablation import Ablation
from search.ablation.results import measure
from search.storage.store import StudyStore
from search.views.failures import describe_failures
from search.views.leaderboard import leaderboard_table, pareto_heading, pareto_table, state_counts
from search.views.report import Report
from search.views.standings import StudyTables

MAX_FAILURES = 20
"""Reasons of failures in a report, the most frequent ones."""


def study_report(store: StudyStore, width: int | None = None) -> Report:
    """Make the report of a study, as its tables are now.

    Args:
        width: of a leaderboard in characters: as many parameters are shown as fit. None: all.

    Raises:
        UserError: a study of a space that this version does not know.
    """
    tables = StudyTables.of(store)
    if isinstance(tables.experiment, Ablation):
        return ablation_report(tables.experiment, store)
    return search_report(tables, width)


def ablation_report(ablation: Ablation, store: StudyStore) -> Report:
    """Report published figures beside measured ones, row by row; how runs failed; what a reader must know."""
    measurements = measure(ablation, store.trials(), store.epochs_by_trial())
    columns = list(dict.fromkeys(column for row in ablation.rows.values() for column in row.reported))
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("row", *(f"reported {column}" for column in columns), *ablation.measured, "runs"):
        shown.add_column(Text(name), no_wrap=True)
    for name, row in ablation.rows.items():
        measured = measurements[name]
        ended = measured.num_complete + len(measured.failures)
        running = f", {measured.num_open} running" if measured.num_open else ""
        shown.add_row(
            Text(name),
            *(Text(_figure(row.reported.get(column))) for column in columns),
            *(Text(measured.describe(metric)) for metric in ablation.measured),
            Text(f"those of {row.same_as}" if row.same_as else f"{ended} of {ablation.repeats}{running}"),
        )
    changed = ", ".join(f"{key}={value}" for key, value in ablation.overridden.items())
    failed = {name: measurements[name].failures for name in ablation.rows if not ablation.rows[name].same_as}
    return Report(
        title=f"{store.name}: {ablation.title}",
        introduction=(
            ablation.source,
            f"Measured on the validation images of {store.study['data_root']}: mean ± standard deviation (runs) at "
            f"each run's best epoch by {ablation.metric}.",
            *([f"Not as reported: all rows have {changed}."] if changed else []),
        ),
        table=shown,
        footnotes={
            "Failed runs": tuple(f"{name}, {failure}" for name, failures in failed.items() for failure in failures),
            "Notes": (*ablation.notes, *(f"{name}: {row.note}" for name, row in ablation.rows.items() if row.note)),
            "Reported settings that could not have had an effect in the original code": tuple(
                f"{name}: {row.without_effect}" for name, row in ablation.rows.items() if row.without_effect
            ),
        },
    )


def search_report(standings: StudyTables, width: int | None = None) -> Report:
    """Report a search: its leaderboard, why trials failed, and its front of metric and cost."""
    store, experiment = standings.store, standings.experiment
    best = standings.leaderboard[:1]
    machines = sorted({row.node for row in standings.rows if row.node})
    return Report(
        title=f"study {store.name}",
        introduction=(
            f"{experiment.direction} {experiment.metric}: {counted(len(standings.rows), 'trial')} of up to "
            f"{counted(experiment.epochs, 'epoch')} ({state_counts(standings.rows) or 'none yet'})",
            f"Data: {store.study['data_root']}. Started {store.study['created']}.",
            *([f"Ranked by {experiment.metric} per {experiment.objective}."] if experiment.objective else []),
            *(
                f"Best: trial t{row.number:04d}, {experiment.metric} {row.metric:.4f} in epoch {row.best_epoch}"
                for row in best
            ),
        ),
        table=leaderboard_table(standings, width=width),
        further={pareto_heading(experiment.metric): pareto_table(standings)},
        footnotes={
            "Failed trials": tuple(describe_failures(standings.rows, store.folder, MAX_FAILURES)),
            "Notes": tuple(
                [f"Compare seconds only between machines of one kind; trials ran on {', '.join(machines)}."]
                if len(machines) > 1
                else []
            ),
        },
    )


def _figure(value: float | str | None) -> str:
    """A reported figure with the four decimals that reports give; counts and words as they are."""
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
