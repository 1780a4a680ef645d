"""The page: sections set into one HTML file with everything it needs."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cellseg import __version__
from cellseg.errors import UserError
from cellseg.files import atomic_path
from cellseg.names import counted
from search.storage.store import StudyStore
from search.views.html.blocks import Figure, Section
from search.views.html.overview import (
    ablation_section,
    answer_section,
    data_section,
    failures_section,
    origin_section,
    trials_section,
)
from search.views.html.parameter_figures import parameter_sections
from search.views.html.predictions import Validation, validate
from search.views.html.progress_figures import cost_section, curves_section, history_section, rungs_section
from search.views.html.quality import Quality
from search.views.html.quality_section import quality_sections
from search.views.html.source import Source
from search.views.leaderboard import state_counts
from search.views.standings import StudyTables

HERE = Path(__file__).parent
NAME = "report.html"


def write_report(store: StudyStore, path: Path | None = None, *, next_command: str = "") -> Path:
    """Write the report of a study, as its tables are now; return where it is.

    Args:
        path: of the file. None: ``report.html`` in the study's folder.
        next_command: what the page recommends to do with the best trial.

    Raises:
        UserError: a study that this version cannot read, or a file that cannot be written.
    """
    source = Source(StudyTables.of(store))
    sections = study_sections(source, next_command or f"cellseg-search export --best --study {store.name!r}")
    path = path or store.folder / NAME
    subtitle = (
        f"{source.experiment.direction} {source.metric}: {counted(len(source.rows), 'trial')} of up to "
        f"{counted(source.experiment.epochs, 'epoch')} ({state_counts(source.rows) or 'none yet'})"
    )
    write_page(path, f"Study {store.name}", subtitle, sections)
    return path


def study_sections(source: Source, next_command: str) -> list[Section]:
    """Make all sections of a study's report."""
    validation, problem = validation_of(source)
    quality = None
    if validation is not None:
        quality = Quality(validation.predictions, validation.truths, validation.class_names)
    sections = [
        answer_section(source, quality, next_command),
        ablation_section(source),
        history_section(source),
        curves_section(source),
        rungs_section(source),
        *parameter_sections(source),
        cost_section(source),
        failures_section(source),
    ]
    if validation is not None and quality is not None:
        sections += quality_sections(validation, quality)
    sections += [data_section(source, validation, problem), trials_section(source), origin_section(source)]
    return [section for section in sections if section is not None]


def validation_of(source: Source) -> tuple[Validation | None, str]:
    """What the best trial finds, or why that is not known."""
    if not source.ranked:
        return None, "no trial has a value yet."
    try:
        return validate(source.store, source.ranked[0]), ""
    except UserError as error:
        return None, str(error)


def write_page(path: Path, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Set sections into a page and write it, atomically."""
    from jinja2 import Environment, FileSystemLoader, select_autoescape
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=select_autoescape(default=True), trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["figure_json"] = _figure_json
    written = datetime.now(UTC).isoformat(timespec="seconds")
    text = environment.get_template("page.html.j2").render(
        title=title,
        subtitle=subtitle,
        sections=sections,
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=(HERE / "page.js").read_text(encoding="utf-8"),
        plotly=get_plotlyjs(),
        footer=f"Written {written} by cellseg-search {__version__}.",
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _figure_json(figure: Figure) -> Any:
    """A figure as JSON that may stand inside a script element."""
    from markupsafe import Markup

    text = json.dumps({"data": figure.data, "layout": figure.layout}, separators=(",", ":"), default=float)
    return Markup(text.replace("<", "\\u003c").replace("NaN", "null").replace("Infinity", "null"))
