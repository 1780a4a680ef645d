"""COCO figures of masks.

- ``ours``: :func:`cellseg.evaluate.evaluate`, which gives figures without a limit of detections as well.
- ``reference``: pycocotools' ``COCOeval``, from prepared ``COCO`` objects to its figures.

The figures that both give must agree to 1e-12. Ratio: ``time``: how many times as fast ours is.
"""

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.cells import NUM_CLASSES, grid_sample
from benchmarks.measure import Report, add_sizes, alternate, make_parser, run
from cellseg.data.detections import Detections
from cellseg.data.rle import encode_window
from cellseg.evaluate import evaluate

SIZE = 400, 480
CLASSES = tuple(f"class{k}" for k in range(1, NUM_CLASSES + 1))
TOLERANCE = 1e-12


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = make_parser("evaluate", "COCO figures of masks: ours against pycocotools.", rounds=3)
    add_sizes(parser, {"images": (42, "images"), "cells": (160, "cells in each image")})
    return run(parser, measure, {"images": 3, "cells": 20, "rounds": 1}, argv)


def measure(arguments: argparse.Namespace) -> Report:
    """Run both at the sizes in ``arguments``."""
    rng = np.random.default_rng(0)
    truths = [Detections.from_sample(grid_sample(rng, arguments.cells, *SIZE)) for _ in range(arguments.images)]
    predictions = [imperfect(rng, truth) for truth in truths]
    coco = coco_objects(predictions, truths)
    measured = alternate(
        {"ours": lambda: evaluate(predictions, truths, CLASSES), "reference": lambda: reference(*coco)},
        arguments.rounds,
    )
    ours, theirs = measured.results["ours"], measured.results["reference"]
    wrong = {name: (ours[name], value) for name, value in theirs.items() if abs(ours[name] - value) > TOLERANCE}
    assert not wrong, f"the figures must be the same, but got {wrong}"
    return Report(
        benchmark="evaluate",
        description=f"COCO figures of {arguments.images} images with {arguments.cells} cells each",
        parameters={name: getattr(arguments, name) for name in ("images", "cells")},
        seconds=measured.seconds,
        ratios={"time": measured.ratio("reference", "ours")},
    )


def imperfect(rng: np.random.Generator, truth: Detections) -> Detections:
    """Detections as a network makes them: cells missed, moved by up to two pixels, found twice or misnamed."""
    found = np.arange(len(truth)).repeat(rng.choice(3, len(truth), p=(0.1, 0.7, 0.2)))
    height, width = truth.size
    rles, boxes = [], []
    for left, top, right, bottom in truth.boxes_N4[found].astype(int):
        shift_y, shift_x = rng.integers(-2, 3, 2)
        y_hw, x_hw = np.mgrid[: bottom - top, : right - left] + 0.5
        disc_hw = np.hypot(2 * y_hw / (bottom - top) - 1, 2 * x_hw / (right - left) - 1) <= 1
        rles.append(encode_window(disc_hw, int(top + shift_y), int(left + shift_x), height, width))
        boxes.append((left + shift_x, top + shift_y, right + shift_x, bottom + shift_y))
    labels_N = truth.labels_N[found]
    misnamed = rng.random(len(found)) < 0.1
    return Detections(
        size=truth.size,
        boxes_N4=np.asarray(boxes, dtype=np.float32).reshape(-1, 4),
        scores_N=rng.random(len(found)).astype(np.float32),
        labels_N=np.where(misnamed, labels_N % NUM_CLASSES + 1, labels_N),
        rles=tuple(rles),
    )


def coco_objects(predictions: Sequence[Detections], truths: Sequence[Detections]) -> tuple[Any, Any]:
    """Truth and detections as pycocotools' ``COCO`` objects."""
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO

    records = [record for index, truth in enumerate(truths) for record in truth.to_coco_results(index)]
    for number, record in enumerate(records, start=1):
        record |= {"id": number, "iscrowd": 0, "area": float(coco_mask.area(record["segmentation"]))}
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i, "height": truth.size[0], "width": truth.size[1]} for i, truth in enumerate(truths)],
            "categories": [{"id": k, "name": name} for k, name in enumerate(CLASSES, start=1)],
            "annotations": records,
        }
        coco.createIndex()
        found = coco.loadRes([record for i, found in enumerate(predictions) for record in found.to_coco_results(i)])
    return coco, found


def reference(truth: Any, found: Any) -> dict[str, float]:
    """pycocotools' figures at 100 detections per image and class, under our names."""
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOeval(truth, found, "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    figures = {f"segm/{name}": float(evaluator.stats[i]) for i, name in enumerate(("AP", "AP50", "AP75"))}
    for k, name in enumerate(CLASSES):
        precision_TR = evaluator.eval["precision"][:, :, k, 0, -1]
        if precision_TR.min() > -1:  # a class without a true cell has no figures
            figures[f"segm/AP/{name}"] = float(precision_TR.mean())
            figures[f"segm/AP50/{name}"] = float(precision_TR[0].mean())
    return figures


if __name__ == "__main__":
    sys.exit(main())
