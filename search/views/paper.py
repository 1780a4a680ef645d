"""The main figures of a report for papers: those of the HTML page, drawn by matplotlib as PDF or PNG.

The page's figures (:class:`search.views.html.blocks.Figure`) are drawn as they are: the same numbers and
colours. Only what they use of plotly's language is understood here.
"""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cellseg.errors import Problem, UserError
from cellseg.files import atomic_path
from search.space.settings import COST_UNITS
from search.storage.store import StudyStore
from search.views.html.blocks import Figure, Section
from search.views.html.page import validation_of
from search.views.html.parameter_figures import parameter_sections
from search.views.html.progress_figures import cost_section, curves_section, history_section, rungs_section
from search.views.html.quality import Quality
from search.views.html.quality_section import accuracy_section
from search.views.html.source import Source
from search.views.standings import StudyTables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

Kind = Literal["pdf", "png"]
WIDTH, HEIGHT = 3.5, 2.6
"""Inches: a column of a page."""
BAR_INCHES = 0.14
TITLE_SIGNS = 40
"""Longer titles of axes take several lines."""
DPI = 300
STYLE = {
    "pdf.fonttype": 42,  # letters that editors and printers know as letters; many journals refuse Type 3
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.4,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
DASHES = {"dot": ":", "dash": "--"}
THIN = 0.45
"""Lines and markers of a screen, in pixels, as points of a column."""


def require_matplotlib() -> None:
    """Report, as a UserError, that figures cannot be drawn here."""
    if find_spec("matplotlib") is None:
        remedy = "Run pip install 'cellseg-search[figures]'."
        raise UserError(Problem("--pdf, --png", "need the package matplotlib", "none", remedy))


def write_figures(store: StudyStore, folder: Path, kind: Kind) -> list[Path]:
    """Draw the main figures of a study into a folder, a file for each; return the files.

    Raises:
        UserError: matplotlib is not installed, a study that this version cannot read, or a folder that cannot be
            written.
    """
    require_matplotlib()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(Problem(str(folder), "must be a folder for figures", f"'{error.strerror}'")) from error
    written = []
    for name, figure in main_figures(Source(StudyTables.of(store))):
        written.append(folder / f"{name}.{kind}")
        _save(draw(figure), written[-1], kind)
    return written


def main_figures(source: Source) -> Iterator[tuple[str, Figure]]:
    """Yield the figures that a paper would show, by the names of their files; none that has nothing to show."""
    importance = [section for section in parameter_sections(source) if section.id == "importance"]
    for section in (history_section(source), curves_section(source), rungs_section(source), *importance):
        for figure in _figures(section):
            if not figure.small and any(trace.get("x") for trace in figure.data):
                yield section.id, figure
    costs = {unit: cost for cost, unit in COST_UNITS.items()}
    for figure in _figures(cost_section(source)):
        yield f"cost-{costs[_title(figure.layout, 'xaxis')]}", figure
    validation, _ = validation_of(source)
    if validation is not None:
        quality = Quality(validation.predictions, validation.truths, validation.class_names)
        for figure in _figures(accuracy_section(validation, quality)):
            match [_title(figure.layout, name) for name in ("xaxis", "yaxis")]:
                case ["recall", "precision"]:
                    yield "precision-recall", figure
                case ["score", "F1"]:
                    yield "f1-score", figure


def _figures(section: Section) -> list[Figure]:
    return [block for block in section.blocks if isinstance(block, Figure)]


def draw(figure: Figure) -> "Drawing":
    """Draw a figure with scatter and bar traces.

    Raises:
        ValueError: a trace of another kind.
    """
    import matplotlib
    from matplotlib.figure import Figure as Drawing

    bars = max((len(trace["y"]) for trace in figure.data if trace["type"] == "bar"), default=0)
    with matplotlib.rc_context(STYLE):
        drawing = Drawing(figsize=(WIDTH, max(HEIGHT, 0.6 + BAR_INCHES * bars)), layout="constrained")
        axes = drawing.add_subplot()
        for trace in figure.data:
            _TRACES.get(trace["type"], _unknown)(axes, trace)
        for shape in figure.layout.get("shapes", ()):
            axes.plot([shape["x0"], shape["x1"]], [shape["y0"], shape["y1"]], **_line(shape["line"]))
        for name in ("xaxis", "yaxis"):
            _set_axis(axes, name, figure.layout.get(name) or {})
        named = axes.get_legend_handles_labels()[1]
        if len(named) > 1:
            drawing.legend(loc="outside lower center", ncols=2 if max(map(len, named)) > 16 else 3)
    return drawing


def _scatter(axes: "Axes", trace: Mapping[str, Any]) -> None:
    mode, marker = trace.get("mode", "lines"), trace.get("marker", {})
    style: dict[str, Any] = {"linestyle": "none"}
    if "lines" in mode:
        style = _line(trace.get("line", {}))
    if "markers" in mode:
        style |= {
            "marker": "x" if marker.get("symbol") == "x" else "o",
            "markersize": THIN * marker.get("size", 6),
            "markeredgewidth": 0.6 if marker.get("symbol") == "x" else 0.0,
        }
    color = marker.get("color") or trace.get("line", {}).get("color")
    x, y = (_gaps(trace[name]) for name in ("x", "y"))
    label = {} if trace.get("showlegend") is False or "name" not in trace else {"label": trace["name"]}
    alpha = trace.get("opacity", marker.get("opacity", 1.0))
    axes.plot(x, y, **(style | {"color": color, "alpha": alpha} | label))


def _bar(axes: "Axes", trace: Mapping[str, Any]) -> None:
    assert trace.get("orientation") == "h"
    axes.barh(trace["y"], trace["x"], color=trace["marker"]["color"])
    axes.grid(visible=False, axis="y")
    axes.margins(y=0.01)


def _unknown(axes: "Axes", trace: Mapping[str, Any]) -> None:
    raise ValueError(f"a trace of type {trace['type']} has no form in a paper yet")


_TRACES = {"scatter": _scatter, "bar": _bar}


def _line(line: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "color": line.get("color"),
        "linewidth": THIN * line.get("width", 2),
        "linestyle": DASHES.get(line.get("dash", ""), "-"),
        "drawstyle": "steps-post" if line.get("shape") == "hv" else "default",
    }


def _gaps(values: Sequence[Any]) -> list[Any]:
    return [math.nan if value is None else value for value in values]


def _title(layout: Mapping[str, Any], name: str) -> str:
    title = (layout.get(name) or {}).get("title", "")
    return title if isinstance(title, str) else title.get("text", "")


def _set_axis(axes: "Axes", name: str, axis: Mapping[str, Any]) -> None:
    """Give an axis its title, ticks, range and scale."""
    which = name[0]
    setter: dict[str, Any] = {f"{which}label": textwrap.fill(_title({name: axis}, name), TITLE_SIGNS)}
    if axis.get("type") == "log":
        setter[f"{which}scale"] = "log"
    if "range" in axis:
        setter[f"{which}lim"] = axis["range"]
    axes.set(**setter)
    if "tickvals" in axis:
        getattr(axes, f"set_{which}ticks")(axis["tickvals"], axis["ticktext"])


def _save(drawing: "Drawing", path: Path, kind: Kind) -> None:
    import matplotlib

    # Without the time of its making, the same study makes the same file.
    metadata = {"CreationDate": None} if kind == "pdf" else {}
    with matplotlib.rc_context(STYLE), atomic_path(path) as temporary:
        drawing.savefig(temporary, format=kind, dpi=DPI, metadata=metadata)
