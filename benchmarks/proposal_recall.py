"""Recall of the RPN's proposals against the limits on candidates and proposals, with a simulated RPN head.

An image holds many cells. The head's answers are made up: the box deltas of every anchor point at the cell that it
overlaps most, and its objectness rises with that overlap; both carry noise. What follows is the real thing: candidates
per level, decoding, suppression, the best proposals. A cell is found if a proposal has an IoU of at least 0.5 with it.

- ``ours``: the limits of ``auto`` for that many cells.
- ``reference``: torchvision's 1000 candidates per level and 1000 proposals.

Ratio: ``time``, ours over the reference. Figures: the recall of both, mean over images, for each range of anchors.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from functools import partial
from statistics import fmean

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from benchmarks.measure import Report, add_sizes, alternate, make_parser, run
from cellseg.config import TrialConfig
from cellseg.data.auto import CANDIDATES_PER_CELL, FEWEST_PROPOSALS, PROPOSALS_PER_CELL
from cellseg.model.anchors import AnchorGrid
from cellseg.model.build import build_model
from cellseg.model.rpn import CellRPN

ANCHORS = ("8-128", "16-256", "8-512")
FOUND = 0.5
"""Smallest IoU of a proposal that stands for a cell in the heads."""
SHARPNESS, OBJECTNESS_NOISE = 8.0, 1.0
"""Rise of the objectness (a logit) from IoU 0 to 1, and the standard deviation of its noise."""
MODEL = {
    "backbone": "resnet10t",
    "weights": "none",
    "fpn_channels": 8,
    "box_head_width": 8,
    "mask_head_layers": 1,
    "mask_head_width": 8,
    "detections_per_image": 100,
}


class SimulatedHead(nn.Module):
    """The answers of an RPN head that knows the cells ``boxes_N4`` but for noise.

    Drawn once, for one image; with the same ``seed`` they are the same. ``noise`` is the standard deviation of the box
    deltas' noise, as a share of an anchor's side.
    """

    def __init__(self, rpn: CellRPN, grid: AnchorGrid, boxes_N4: Tensor, noise: float, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        best_A, nearest_A = _nearest_cells(grid.boxes_A4, boxes_N4)
        deltas_A4 = rpn.box_coder.encode_single(boxes_N4[nearest_A], grid.boxes_A4)
        # An anchor far from its cell would have to predict a move that no trained head predicts.
        deltas_A4 = deltas_A4.clamp(-2, 2) + noise * torch.randn(deltas_A4.shape, generator=generator)
        scores_A = SHARPNESS * (best_A - 0.5) + OBJECTNESS_NOISE * torch.randn(best_A.shape, generator=generator)
        self._answers = self._maps(scores_A[:, None], grid), self._maps(deltas_A4, grid)

    def forward(self, _: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return self._answers

    @staticmethod
    def _maps(values_AC: Tensor, grid: AnchorGrid) -> list[Tensor]:
        """Level by level (1, S * C, H, W) of values by row, column and shape."""
        maps = []
        for level in grid.levels:
            shapes, height, width = level.shape
            values = values_AC[level.first : level.first + shapes * height * width]
            maps.append(values.reshape(height, width, -1).permute(2, 0, 1)[None])
        return maps


def cells_on(generator: torch.Generator, cells: int, side: int, smallest: float, largest: float) -> Tensor:
    """Boxes (cells, 4) with sides drawn between ``smallest`` and ``largest`` px, each near a field of a grid."""
    columns = math.ceil(math.sqrt(cells))
    field = torch.randperm(columns**2, generator=generator)[:cells]
    place_N2 = torch.stack([field % columns, field // columns], dim=1) + 0.5
    shift_N2 = (torch.rand(cells, 2, generator=generator) - 0.5) / 2
    size_N2 = smallest + (largest - smallest) * torch.rand(cells, 2, generator=generator)
    centre_N2 = (place_N2 + shift_N2) * side / columns
    return torch.cat([centre_N2 - size_N2 / 2, centre_N2 + size_N2 / 2], dim=1).clamp(0, side)


def recall(proposals_K4: Tensor, boxes_N4: Tensor) -> float:
    """Share of the cells that a proposal overlaps by at least ``FOUND``."""
    return float((box_iou(boxes_N4, proposals_K4).amax(dim=1) >= FOUND).float().mean()) if len(proposals_K4) else 0.0


def limits(name: str, cells: int) -> tuple[int, int]:
    """Candidates per level and proposals of a contender."""
    if name == "reference":
        return FEWEST_PROPOSALS, FEWEST_PROPOSALS
    return max(FEWEST_PROPOSALS, CANDIDATES_PER_CELL * cells), max(FEWEST_PROPOSALS, PROPOSALS_PER_CELL * cells)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = make_parser("proposal_recall", "Recall of proposals: limits that grow with the cells against 1000.", 3)
    sizes = {"side": (1024, "pixels of the square images' side"), "cells": (1000, "in each image")}
    sizes |= {"smallest": (12, "px, a cell's shortest side"), "largest": (40, "px, its longest")}
    add_sizes(parser, sizes | {"noise": (5, "noise of box deltas, hundredths of an anchor's side")})
    return run(parser, measure, {"side": 128, "cells": 20, "rounds": 1}, argv)


def measure(arguments: argparse.Namespace) -> Report:
    """Run the contenders at the sizes in ``arguments``; a round is an image."""
    seconds: dict[str, list[float]] = {"ours": [], "reference": []}
    figures: dict[str, float] = {}
    for anchors in ANCHORS:
        found: dict[str, list[float]] = {"ours": [], "reference": []}
        for seed in range(arguments.rounds):
            measured = _one_image(arguments, anchors, seed)
            for name, (recalled, spent) in measured.items():
                found[name].append(recalled)
                seconds[name].append(spent)
        figures |= {f"recall_{anchors}_{name}": fmean(values) for name, values in found.items()}
    return Report(
        benchmark="proposal_recall",
        description="Recall of proposals: limits that grow with the number of cells against torchvision's 1000.",
        parameters={
            name: getattr(arguments, name) for name in ("side", "cells", "smallest", "largest", "noise", "rounds")
        },
        seconds=seconds,
        ratios={"time": sum(seconds["ours"]) / sum(seconds["reference"])},
        figures=figures,
    )


@torch.no_grad()
def _one_image(arguments: argparse.Namespace, anchors: str, seed: int) -> dict[str, tuple[float, float]]:
    """Recall and seconds of each contender."""
    boxes_N4 = cells_on(
        torch.Generator().manual_seed(seed), arguments.cells, arguments.side, arguments.smallest, arguments.largest
    )
    images = ImageList(torch.zeros(1, 3, arguments.side, arguments.side), [(arguments.side,) * 2])
    maps = {str(level): torch.zeros(1, 8, *[-(-arguments.side // (4 << level))] * 2) for level in range(5)}
    rpns = {name: _rpn(anchors, *limits(name, arguments.cells)) for name in ("ours", "reference")}
    ours = rpns["ours"]
    grid = ours.anchor_generator.grid(images, list(maps.values()))
    head = SimulatedHead(ours, grid, boxes_N4, arguments.noise / 100, seed)
    for rpn in rpns.values():
        rpn.head = head
    measurement = alternate({name: partial(_propose, rpn, images, maps) for name, rpn in rpns.items()}, 1)
    return {
        name: (recall(measurement.results[name], boxes_N4), measurement.seconds[name][0])
        for name in ("ours", "reference")
    }


def _rpn(anchors: str, candidates: int, proposals: int) -> CellRPN:
    """The RPN of a small network, for prediction."""
    settings = MODEL | {"anchors": anchors, "rpn_candidates": candidates, "rpn_proposals": proposals}
    config = TrialConfig.from_flat({f"model.{key}": value for key, value in settings.items()})
    rpn = build_model(config.model, config.inference, num_classes=1).rpn
    assert isinstance(rpn, CellRPN)
    return rpn.eval()


def _propose(rpn: CellRPN, images: ImageList, maps: dict[str, Tensor]) -> Tensor:
    """The proposals (K, 4) of the only image."""
    return rpn(images, maps)[0][0]


def _nearest_cells(anchors_A4: Tensor, boxes_N4: Tensor) -> tuple[Tensor, Tensor]:
    """The largest IoU of each anchor with a cell, and that cell. In chunks: the table of all would take a gigabyte."""
    found = [box_iou(chunk, boxes_N4).max(dim=1) for chunk in anchors_A4.split(1 << 14)]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])


if __name__ == "__main__":
    sys.exit(main())
