"""What kept models find in their validation images: predicted once, and stored in the study's folder.

    results/<study>/validation/t0003-0a1b2c3d4e5f.npz     what the model of trial 3 finds with one set of settings

The files can be deleted at any time.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from cellseg.checkpoint import Checkpoint
from cellseg.config import TrialConfig
from cellseg.data.detections import Detections
from cellseg.data.packed import PackedDataset, open_packed
from cellseg.errors import Notice, UserError
from cellseg.inference.ensemble import Ensemble, Member
from cellseg.inference.stored import load_predictions, save_predictions
from search.storage.store import StudyStore

if TYPE_CHECKING:
    import torch

FOLDER = "validation"

Track = Callable[[Sequence[int], str], Iterable[int]]
"""Shows the progress of going through a sequence."""


def open_training_data(checkpoint: Checkpoint, remedy: str) -> PackedDataset:
    """Open the data that a model was trained on.

    Raises:
        UserError: they are not there, or not the same; ends with ``remedy``.
    """
    data = open_packed(checkpoint.config.data)
    if data.fingerprint != checkpoint.info.data_fingerprint:
        raise UserError(
            f"{checkpoint.config.data.root}: must hold the data that the study was trained on, but got other images, "
            f"masks or reading settings. {remedy}"
        )
    return data


def validation_predictions(
    store: StudyStore,
    number: int,
    checkpoint: Checkpoint,
    config: TrialConfig,
    data: PackedDataset,
    indices: Sequence[int],
    device: "torch.device",
    track: Track = lambda items, text: items,
) -> list[Detections]:
    """Return what the model of a trial finds in images of ``data``, with soft masks: stored, or predicted and stored.

    Args:
        number: of the trial.
        config: settings to predict with.
        indices: of the images.
    """
    described = json.dumps([checkpoint.info.weights_blake2b, data.fingerprint, list(indices), config.to_flat()])
    digest = hashlib.blake2b(described.encode(), digest_size=6).hexdigest()
    path = store.folder / FOLDER / f"t{number:04d}-{digest}.npz"
    if path.is_file():
        try:
            return load_predictions(path, config.inference.mask_threshold)
        except UserError as error:
            warnings.warn(str(error), Notice, stacklevel=2)
    ensemble = Ensemble([Member.load(checkpoint, device, config)])
    found = [
        ensemble.predict([data[index].image_HWC], soft=True)[0]
        for index in track(indices, f"validation of t{number:04d}")
    ]
    try:
        save_predictions(path, found)
    except OSError as error:  # somebody else's study, perhaps: what is stored only saves time
        warnings.warn(f"{path}: could not be stored ({error}).", Notice, stacklevel=2)
    return found
