"""Images into a folder of outputs: one after the other, each finished before the next begins."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cellseg.checkpoint import Checkpoint
from cellseg.data.channels import PlaneChoice
from cellseg.data.images import read_values, to_rgb
from cellseg.device import Room, exhausted_memory
from cellseg.errors import Notice, UserError, first_line
from cellseg.files import StorageError
from cellseg.inference.image import load_model, predict_images
from cellseg.inference.outputs.cells import ImageCells
from cellseg.inference.outputs.inputs import Input
from cellseg.inference.outputs.large import Tiling, tiled_config
from cellseg.inference.outputs.record import Finished, Record
from cellseg.inference.outputs.writers import FORMATS, check_packages, file_of, join_outputs

if TYPE_CHECKING:
    import torch

LIKELY = 0.5
"""Cells below this score are counted, so that a user who sees too many knows what to raise."""


@dataclass(frozen=True)
class Options:
    """What is written, and how it is predicted."""

    kinds: tuple[str, ...]
    """Names in :data:`cellseg.inference.outputs.writers.FORMATS`."""
    score: float
    """Detections below this score, in [0, 1], are left out."""
    tiling: Tiling


@dataclass
class Summary:
    """What became of the images."""

    finished: list[Finished] = field(default_factory=list)
    num_skipped: int = 0
    """Those of the finished ones that an earlier run had finished."""
    failures: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    """Files that hold all images."""


OnImage = Callable[[int, Input, "Finished | None", bool], None]
"""(images done, image, what is known of it or None if it failed, whether an earlier run had finished it)."""


def predict_to_folder(
    checkpoint: Checkpoint,
    inputs: Sequence[Input],
    out: Path,
    options: Options,
    *,
    device: "torch.device",
    on_image: OnImage | None = None,
    on_tiles: Callable[[int, int], None] | None = None,
) -> Summary:
    """Predict images and write what ``options`` name for each; an image that fails does not stop the others.

    A folder that was begun with the same model and options is continued: finished images are skipped. Every file is
    replaced as a whole.

    Besides the model and the work on one tile, memory holds one image, its label image, and run lengths.

    Args:
        on_tiles: called with (tiles done, all tiles) of the present image.

    Raises:
        UserError: a package is missing, or the folder cannot be written.
        StorageError: storage failed; the same call goes on once it works again.
    """
    check_packages(options.kinds)
    info = checkpoint.info
    settings = {
        "weights": info.weights_blake2b,
        "config": info.config,
        "classes": [*info.class_names, *info.category_ids],
        "kinds": sorted(options.kinds),
        "score": options.score,
        "tile": options.tiling.tile,
        "scale": options.tiling.scale,
    }
    record = Record(out, settings)
    record.start()
    predict = _Prediction(checkpoint, out, options, device, on_tiles)
    summary = Summary()
    for done, image in enumerate(inputs, start=1):
        files = [file_of(out, kind, image.name) for kind in options.kinds]
        known = record.find(image.path, image.name, files)
        skipped = known is not None
        if known is None:
            try:
                known = record.add(image.path, image.name, **predict(image))
            except StorageError:
                raise
            except UserError as error:
                summary.failures.extend(error.problems)
        if known is not None:
            summary.finished.append(known)
            summary.num_skipped += skipped
        if on_image is not None:
            on_image(done, image, known, skipped)
    ids = {image.name: image.image_id for image in inputs}
    names = [line.name for line in summary.finished]
    if names:
        summary.files = join_outputs(
            out, options.kinds, names, [ids[name] for name in names], info.class_names, info.category_ids
        )
    return summary


class _Prediction:
    """Predicts images with one model, which is loaded with the first."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        out: Path,
        options: Options,
        device: "torch.device",
        on_tiles: Callable[[int, int], None] | None,
    ):
        self._checkpoint, self._out, self._options, self._device = checkpoint, out, options, device
        self._on_tiles = on_tiles
        self._config = checkpoint.config.replace(inference__score_threshold=options.score)
        self._room = Room.of(device)
        self._warned = False
        self._model: torch.nn.Module | None = None

    def __call__(self, image: Input) -> dict[str, int]:
        """Predict an image and write its files; the facts that are recorded of it.

        Raises:
            UserError: it cannot be read or written, or does not fit into memory.
        """
        if self._model is None:
            self._model = load_model(self._checkpoint, self._device, self._config.inference)
        try:
            return self._predict(image)
        except Exception as error:
            if exhausted_memory(error) is None:
                raise
            raise UserError(
                f"{image.path}: must fit into memory, but got '{first_line(error)}'. Predict it in smaller tiles "
                "(--tile 512), or with --device cpu."
            ) from error

    def _warn_of_scale(self) -> None:
        """Say once that tiles keep the image's own scale, if training did not."""
        side = self._config.data.shorter_side
        if side is None or self._warned:
            return
        self._warned = True
        warnings.warn(
            f"The model was trained on images scaled to a shorter side of {side} px, but tiles keep the scale of the "
            "image. If training images had another size, give the factor: --scale F.",
            Notice,
            stacklevel=2,
        )

    def _predict(self, image: Input) -> dict[str, int]:
        assert self._model is not None
        choice = PlaneChoice.of(self._config.data)
        values_HWS = read_values(image.path, choice)
        image_HWC = to_rgb(values_HWS, str(image.path), choice)
        if "csv" not in self._options.kinds:
            values_HWS = image_HWC  # only the table needs them
        size = image_HWC.shape[:2]
        config = tiled_config(self._config, size, self._options.tiling)
        if config.inference.tile is not None and self._options.tiling.scale == 1:
            self._warn_of_scale()
        (found,) = predict_images(self._model, [image_HWC], config, room=self._room, on_tiles=self._on_tiles)
        info = self._checkpoint.info
        cells = ImageCells.of(
            image.name, image.path, image_HWC, found.above(self._options.score), info.class_names, info.category_ids
        )
        for kind in self._options.kinds:
            FORMATS[kind].write(cells, values_HWS, file_of(self._out, kind, image.name))
        return {
            "height": size[0],
            "width": size[1],
            "cells": len(cells.cells),
            "covered": cells.num_covered,
            "below": int((cells.cells.scores_N < LIKELY).sum()),
        }
