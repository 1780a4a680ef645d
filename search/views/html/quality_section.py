"""The sections on what the best trial finds: per class and size, by score, counts, and pictures."""

import base64
import html
import io
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from cellseg.data.rle import decode_window
from search.views.html.blocks import Block, Figure, Picture, Pictures, Section, Table, Text
from search.views.html.predictions import Validation
from search.views.html.quality import IOU, Quality, f1
from search.views.html.source import thin

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
MOST_PICTURES = 48
PICTURE_SIDE = 640
"""Longer sides are scaled down to this."""
PICTURE_BYTES = 6 * 2**20
"""All pictures together; those that come after it are left out."""
MOST_CURVE_POINTS = 300


def quality_sections(validation: Validation, quality: Quality) -> list[Section]:
    """Show accuracy in figures, then in pictures."""
    return [accuracy_section(validation, quality), _gallery(validation, quality)]


def accuracy_section(validation: Validation, quality: Quality) -> Section:
    """Show accuracy in figures: by class and size, by score, confusion and counts."""
    low, high = quality.size_limits()
    rows = [
        [name, int((quality.labels_G == label).sum()), f"{quality.ap50_of(label):.4f}", *_at_best(quality, label)]
        for label, name in enumerate(quality.class_names, start=1)
    ]
    rows.append(["all", len(quality.labels_G), f"{quality.ap50():.4f}", *_at_best(quality, None)])
    score = f"{quality.best_score:.2f}"
    sizes = [
        [f"{name} ({words})", cells, f"{ap:.4f}"]
        for name, words, (ap, cells) in (
            ("small", f"< {low:.0f} px", quality.ap50_of_size(0, low)),
            ("medium", f"{low:.0f} to {high:.0f} px", quality.ap50_of_size(low, high)),
            ("large", f"> {high:.0f} px", quality.ap50_of_size(high, np.inf)),
        )
    ]
    blocks: list[Block] = [
        Text(
            f"Trial t{validation.trial:04d} on {len(validation.indices)} of {validation.num_images} validation images, "
            f"at IoU {IOU}. The score that maximises F1 is {score}; counts below are at that score."
        ),
        Table(["class", "cells", "AP50", f"precision at {score}", f"recall at {score}", "F1"], rows),
        Table(["size (thirds of the true cells by area)", "cells", "AP50"], sizes),
        _curves(quality, "recall", "precision"),
        _curves(quality, "score", "F1"),
        _confusion(quality),
        _counts(quality),
    ]
    return Section("accuracy", "Accuracy in detail", blocks)


def _at_best(quality: Quality, label: int | None) -> list[str]:
    scores, precision, recall, f1_ = quality.curve(label)
    count = int((scores >= quality.best_score).sum())
    return [f"{values[count - 1]:.3f}" if count else "0" for values in (precision, recall, f1_)]


def _curves(quality: Quality, x: str, y: str) -> Figure:
    traces = []
    labels = [None, *quality.present] if len(quality.present) > 1 else [None]
    for place, label in enumerate(labels):
        values = dict(zip(("score", "precision", "recall", "F1"), quality.curve(label), strict=True))
        shown = thin(range(len(values["score"])), MOST_CURVE_POINTS)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "all" if label is None else quality.class_names[label - 1],
                "x": [round(float(values[x][index]), 4) for index in shown],
                "y": [round(float(values[y][index]), 4) for index in shown],
                "line": {"color": COLORS[place % len(COLORS)], "width": 3 if label is None else 1.5},
            }
        )
    layout: dict = {"xaxis": {"title": x, "range": [0, 1.02]}, "yaxis": {"title": y, "range": [0, 1.02]}}
    if x == "score":
        best = quality.best_score
        layout["shapes"] = [
            {"type": "line", "x0": best, "x1": best, "y0": 0, "y1": 1, "line": {"dash": "dot", "color": "#888"}}
        ]
    return Figure(traces, layout, small=True)


def _confusion(quality: Quality) -> Figure:
    counts = quality.confusion()
    names = list(quality.class_names)
    trace = {
        "type": "heatmap",
        "z": counts.tolist(),
        "x": [*names, "missed"],
        "y": [*names, "false alarm"],
        "colorscale": "Viridis",
        "text": counts.tolist(),
        "texttemplate": "%{text}",
        "showscale": False,
        "hovertemplate": "true %{y}, found %{x}: %{z}<extra></extra>",
    }
    layout = {
        "xaxis": {"title": "found", "type": "category"},
        "yaxis": {"title": "true", "autorange": "reversed", "type": "category", "automargin": True},
    }
    return Figure([trace], layout, "Confusion between classes, in cells.", small=True)


def _counts(quality: Quality) -> Figure:
    true = [hits + missed for hits, missed, _ in quality.per_image()]
    found = [hits + false for hits, _, false in quality.per_image()]
    most = max([1, *true, *found])
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "image",
            "x": true,
            "y": found,
            "text": [f"{hits} hits, {missed} missed, {false} false" for hits, missed, false in quality.per_image()],
            "marker": {"color": "#0072B2", "size": 7, "opacity": 0.7},
            "showlegend": False,
        },
        {
            "type": "scatter",
            "mode": "lines",
            "x": [0, most],
            "y": [0, most],
            "line": {"dash": "dot", "color": "#888"},
            "showlegend": False,
            "hoverinfo": "skip",
        },
    ]
    layout = {"xaxis": {"title": "true cells of an image"}, "yaxis": {"title": "cells found"}, "hovermode": "closest"}
    return Figure(traces, layout, small=True)


def _gallery(validation: Validation, quality: Quality) -> Section:
    counts = quality.per_image()
    worst = sorted(range(len(counts)), key=lambda index: f1(*counts[index]))
    pictures: list[Picture] = []
    size = 0
    for index in worst[:MOST_PICTURES]:
        hits, missed, false = counts[index]
        svg = _draw(validation, quality, index, f"p{len(pictures)}")
        size += len(svg)
        if size > PICTURE_BYTES and pictures:
            break
        name = validation.data.names[validation.indices[index]]
        title = f"{name}: F1 {f1(hits, missed, false):.2f}, {hits} found, {missed} missed, {false} false alarms"
        pictures.append(Picture(title, svg))
    note = f"{len(pictures)} of {len(counts)} images, found cells at score {quality.best_score:.2f} or more."
    return Section("gallery", "Validation images, worst first", [Pictures(pictures, note)])


def _draw(validation: Validation, quality: Quality, index: int, name: str) -> str:
    """Truth on the left, found cells on the right, over the same image."""
    image, truth, found = quality.images[index], validation.truths[index], validation.predictions[index]
    picture_HWC = validation.data[validation.indices[index]].image_HWC
    height, width = picture_HWC.shape[:2]
    shown = np.flatnonzero(image.scores_D >= quality.best_score)
    hit_cells = set(image.found_D[shown].tolist())
    left = [
        _cell(rle, "hit" if cell in hit_cells else "miss", _class_name(quality, label), None)
        for cell, (rle, label) in enumerate(zip(truth.rles, truth.labels_N.tolist(), strict=True))
    ]
    right = [
        _cell(
            found.rles[image.order_D[place]],
            "hit" if image.found_D[place] >= 0 else "false",
            _class_name(quality, int(image.labels_D[place])),
            float(image.scores_D[place]),
        )
        for place in shown
    ]
    box = f'viewBox="0 0 {width} {height}" role="img"'
    return (
        f'<svg {box} aria-label="truth"><image id="{name}" width="{width}" height="{height}" '
        f'href="{_jpeg(picture_HWC)}"/><g>{"".join(left)}</g></svg>'
        f'<svg {box} aria-label="found"><use href="#{name}"/><g>{"".join(right)}</g></svg>'
    )


def _class_name(quality: Quality, label: int) -> str:
    return html.escape(quality.class_names[label - 1])


def _cell(rle: dict, kind: str, name: str, score: float | None) -> str:
    """A cell's outline; its class and score are shown when the mouse is over it, and the score as text."""
    top, left, window_hw = decode_window(rle)
    height, width = window_hw.shape
    if not width or not height:
        return ""
    mask_hw = np.pad(window_hw, 1)
    rings, _ = cv2.findContours(
        mask_hw.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(left - 1, top - 1)
    )
    path = "".join(_path(cv2.approxPolyDP(ring, 0.6, True)) for ring in rings)
    text = f"{name} {score:.2f}" if score is not None else name
    label = ""
    if score is not None:
        label = f'<text x="{left + width / 2:.0f}" y="{top + height / 2:.0f}">{score:.2f}</text>'
    return f'<path class="{kind}" d="{path}"><title>{text}</title></path>{label}'


def _path(ring: np.ndarray) -> str:
    points: Sequence[Sequence[int]] = ring.reshape(-1, 2).tolist()
    return "M" + "L".join(f"{x + 0.5:g} {y + 0.5:g}" for x, y in points) + "Z"


def _jpeg(image_HWC: np.ndarray) -> str:
    picture = Image.fromarray(image_HWC)
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
