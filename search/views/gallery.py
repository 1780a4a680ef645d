"""Pictures of the best trial: its detections beside the truth, on validation images."""

import re
from pathlib import Path

from cellseg.checkpoint import BEST, open_checkpoint
from cellseg.data.detections import Detections
from cellseg.data.packed import PackedDataset
from cellseg.data.split import split
from cellseg.device import pick_device
from cellseg.files import atomic_path, leads_outside
from cellseg.inference.image import load_model, predict_image
from cellseg.overlay import write_overlay
from search.study.study import Study

NUM_PICTURES = 6
MAX_PIXELS = 2_000_000
"""Larger images make slow, unwieldy pictures; they are left out while there are smaller ones."""


def write_overlays(study: Study, data: PackedDataset) -> Path:
    """Write ``overlays/<image>.png`` for up to six validation images of the best trial; the folder.

    The folder is replaced as a whole: it never shows two trials.
    """
    best = study.leaderboard[0]
    checkpoint = open_checkpoint(study.store.fetch_checkpoint(best.number, BEST))
    config = checkpoint.config
    model = load_model(checkpoint, pick_device())
    folder = study.store.folder / "overlays"
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for index in _choose(data, split(data.label_counts, config.data, data.groups, data.validation).validation):
            sample = data[index]
            write_overlay(
                temporary / f"{_plain(sample.name)}.png",
                sample.image_HWC,
                Detections.from_sample(sample),
                predict_image(model, sample.image_HWC, config),
                data.class_names,
            )
    return folder


def _plain(name: str) -> str:
    """Return an image's name as a path that stays in its folder, whatever the data call the image."""
    return re.sub(r"\.\.|[/\\:\0]", "_", name) if leads_outside(name) else name


def _choose(data: PackedDataset, validation: tuple[int, ...]) -> list[int]:
    """Images spread evenly over the validation fold, ordered by how many cells they show."""
    small = [index for index in validation if data.sizes[index].prod() <= MAX_PIXELS] or list(validation)
    by_cells = sorted(small, key=lambda index: len(data.labels(index)))
    step = max(1, len(by_cells) / NUM_PICTURES)
    return [by_cells[int((position + 0.5) * step)] for position in range(min(NUM_PICTURES, len(by_cells)))]
