"""Pictures of the best trial: its detections beside the truth, on validation images."""

import re
from pathlib import Path

from cellseg.data.packed import PackedDataset
from cellseg.files import atomic_path, leads_outside
from cellseg.overlay import write_overlay
from search.study.study import Study
from search.views.html.predictions import validate
from search.views.html.quality import Quality

NUM_PICTURES = 6
MAX_PIXELS = 2_000_000
"""Larger images make slow, unwieldy pictures; they are left out while there are smaller ones."""


def write_overlays(study: Study, data: PackedDataset) -> Path:
    """Write ``overlays/<image>.png`` for up to six validation images of the best trial, with what it finds at the
    score that maximises F1; the folder.

    The folder is replaced as a whole: it never shows two trials.
    """
    found = validate(study.store, study.leaderboard[0])
    # At 0.5 a weak model would show no cell.
    score = Quality(found.predictions, found.truths, found.class_names).best_score
    place = {index: place for place, index in enumerate(found.indices)}
    folder = study.store.folder / "overlays"
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for index in _choose(data, found.indices):
            sample = data[index]
            write_overlay(
                temporary / f"{_plain(sample.name)}.png",
                sample.image_HWC,
                found.truths[place[index]],
                found.predictions[place[index]],
                data.class_names,
                score,
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
