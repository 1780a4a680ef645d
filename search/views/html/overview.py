"""The sections in words and tables: the answer, all trials, failures, the data, and how it was made."""

import itertools
import json
import shlex
from typing import Any

import yaml

from search.ablation import Ablation
from search.cost import trial_cost
from search.views.failures import failure_groups
from search.views.html.blocks import Block, Code, Facts, Figure, Section, Table, Text
from search.views.html.predictions import Validation
from search.views.html.progress_figures import effort
from search.views.html.quality import Quality
from search.views.html.source import Source
from search.views.leaderboard import format_value, state_counts
from search.views.summary import duration

MOST_ROWS = 300
"""Trials in the table, the best ones."""


def answer_section(source: Source, quality: Quality | None, command: str) -> Section:
    """Say which trial is the best, how sure that is, its config, and the next command."""
    if not source.ranked:
        return Section("answer", "The answer", [Text("No trial has reported a value yet.")])
    best = source.ranked[0]
    params = json.loads(best.params)
    facts = [("best trial", f"t{best.number:04d}"), (f"validation {source.metric}", f"{best.metric:.4f}")]
    blocks: list[Block] = []
    note = "The interval needs the best checkpoint and the data, which are not here."
    if quality is not None and len(quality.images):
        low, high = _interval(quality)
        facts.append(("95 % interval of AP50", f"{low:.3f} to {high:.3f}"))
        note = (
            f"The interval is a bootstrap over {len(quality.images)} validation images. The trial was chosen among "
            f"{len(source.ranked)} by these very images, so expect slightly less on new ones."
        )
    facts += [("epoch", f"{best.best_epoch} of {source.experiment.epochs}"), ("state", best.state.lower())]
    if best.parameters:
        facts.append(("parameters", f"{best.parameters / 1e6:.1f} M"))
    if best.seconds_per_epoch:
        facts.append(("time of an epoch", duration(best.seconds_per_epoch)))
    if source.experiment.objective:
        facts.append(("ranked by", f"{source.metric} per {source.experiment.objective}"))
    blocks += [
        Facts(facts),
        Text(note),
        Code(_yaml(params), "What was searched, as YAML"),
        Code(_yaml(json.loads(best.config)), "The whole config", open=False),
        Code(command, "Next: predict the test images"),
    ]
    return Section("answer", "The answer", blocks)


def _interval(quality: Quality) -> tuple[float, float]:
    import numpy as np

    low, high = np.quantile(quality.bootstrap(), [0.025, 0.975])
    return float(low), float(high)


def _yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=False, allow_unicode=True).rstrip()


def trials_section(source: Source) -> Section:
    """List the trials with their parameters."""
    ranked = source.ranked + [row for row in source.rows if row.metric is None]
    keys = list(source.experiment.domains)
    rows = []
    for rank, row in enumerate(ranked[:MOST_ROWS], start=1):
        params = json.loads(row.params)
        seconds = trial_cost(row, "seconds")
        rows.append(
            [
                rank if row.metric is not None else "",
                f"t{row.number:04d}",
                row.state.lower(),
                row.epochs,
                "" if row.metric is None else f"{row.metric:.4f}",
                "" if seconds is None else f"{seconds:.3g}",
                *(format_value(params[key]) if key in params else "" for key in keys),
            ]
        )
    note = f"The best {MOST_ROWS} of {len(ranked)}." if len(ranked) > MOST_ROWS else ""
    headers = ["rank", "trial", "state", "epochs", source.metric, "s/epoch", *keys]
    return Section("trials", "Trials", [Text(state_counts(source.rows) or "none yet"), Table(headers, rows, note)])


def failures_section(source: Source) -> Section:
    """List why trials failed, and what to try."""
    rows = [
        [group.ending, len(group.trials), group.text, group.remedy, f"t{group.trials[-1]:04d}", str(group.log or "-")]
        for group in failure_groups(source.rows, source.store.folder)
    ]
    headers = ["reason", "trials", "what the latest said", "what to try", "latest", "its log"]
    blocks: list[Block] = [Table(headers, rows)] if rows else [Text("No trial failed.")]
    return Section("failures", "Failures", blocks)


def ablation_section(source: Source) -> Section | None:
    """Show the table of an ablation; None for a search."""
    if not isinstance(source.experiment, Ablation):
        return None
    from search.views.study_report import ablation_report

    report = ablation_report(source.experiment, source.store)
    columns = [[str(cell) for cell in column.cells] for column in report.table.columns]
    blocks: list[Block] = [Text(line) for line in report.introduction if line]
    blocks.append(Table([str(column.header) for column in report.table.columns], list(zip(*columns, strict=True))))
    blocks += [Text(f"{heading}: {'; '.join(notes)}") for heading, notes in report.footnotes.items() if notes]
    return Section("ablation", f"Ablation: {report.title}", blocks)


def data_section(source: Source, validation: Validation | None, problem: str) -> Section:
    """Describe the data: counts, sizes, coverage by anchors, and the split."""
    study = source.store.study
    facts = [
        ("folder", str(study.get("data_root", "?"))),
        ("fingerprint", str(study.get("data_fingerprint", "?"))[:12]),
    ]
    if validation is None:
        classes = Text(f"Classes: {', '.join(study.get('class_names', [])) or 'not known'}.")
        return Section("data", "Data", [Facts(facts), classes, Text(f"Not shown: {problem}")])
    data = validation.data
    statistics = data.statistics()
    facts += [
        ("images", str(statistics.images)),
        ("cells", f"{statistics.cells:,}"),
        ("training / validation", f"{validation.num_training} / {validation.num_images}"),
    ]
    import numpy as np

    counts_IK = data.label_counts
    held = np.zeros(len(data), bool)
    held[list(validation.indices)] = True
    rows = [
        [name, int(cells), int(images), int(counts_IK[held, k].sum())]
        for k, (name, cells, images) in enumerate(
            zip(statistics.class_names, statistics.cells_per_class, statistics.images_per_class, strict=True)
        )
    ]
    sides = np.concatenate([np.zeros(0), *(np.sqrt(_areas(data.boxes(index))) for index in range(len(data)))])
    histogram, edges = np.histogram(sides, bins=40)
    cells, cell_edges = np.histogram(counts_IK.sum(axis=1), bins=min(30, len(data)))
    coverage = [[name, *(f"{share:.1%}" for share in shares)] for name, shares in statistics.coverage.items()]
    blocks: list[Block] = [
        Facts(facts),
        Table(["class", "cells", "images", "cells in validation images"], rows),
        _histogram(histogram.tolist(), edges.tolist(), "side of a cell's box, px", "cells"),
        _histogram(cells.tolist(), cell_edges.tolist(), "cells of an image", "images"),
    ]
    if coverage:
        from cellseg.data.statistics import COVERAGE_IOUS

        headers = ["anchors", *(f"cells with an anchor of IoU >= {iou}" for iou in COVERAGE_IOUS)]
        blocks.append(Table(headers, coverage, "At the default scale; the first range is the one that 'auto' takes."))
    blocks.append(Code("\n".join(statistics.describe()), "All counts", open=False))
    return Section("data", "Data", blocks)


def _areas(boxes_N4: Any) -> Any:
    return (boxes_N4[:, 2] - boxes_N4[:, 0]) * (boxes_N4[:, 3] - boxes_N4[:, 1])


def _histogram(counts: list, edges: list, x: str, y: str) -> Figure:
    centers = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
    width = edges[1] - edges[0] if len(edges) > 1 else 1
    trace = {"type": "bar", "x": centers, "y": counts, "width": width, "marker": {"color": "#0072B2"}}
    return Figure([trace], {"xaxis": {"title": x}, "yaxis": {"title": y}, "height": 280}, small=True)


def origin_section(source: Source) -> Section:
    """Say with what, on what and at which cost the study was made."""
    study, rows = source.store.study, source.rows
    hardware = study.get("hardware", {})
    gpus_known = any(row.gpu_seconds for row in rows)
    facts = [
        ["created", study.get("created", "?")],
        ["command", shlex.join(map(str, study.get("command", []))) or "?"],
        ["wall-clock time", duration(source.store.wall_seconds)],
        ["machines", ", ".join(sorted({row.node for row in rows if row.node})) or "?"],
        ["GPUs of the driver", ", ".join(hardware.get("gpus", [])) or "none"],
        ["CPUs of the driver", hardware.get("cpus", "?")],
        ["system", hardware.get("system", "?")],
        ["space", study.get("space_fingerprint", "?")],
        *([name, version] for name, version in study.get("versions", {}).items()),
    ]
    space = _yaml(study.get("space", {}))
    blocks: list[Block] = [
        effort(rows, gpus_known),
        Table(["what", "value"], facts),
        Code(space, "The space", open=False),
    ]
    text = "Energy is not measured. Multiply the GPU-hours by the power of the GPU and by what an hour costs you."
    return Section("origin", "Versions, hardware and cost", [*blocks, Text(text)])
