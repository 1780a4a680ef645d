"""What the best trial finds in its validation images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cellseg.errors import UserError
from search.storage.kept import kept_checkpoint
from search.storage.store import StudyStore
from search.storage.tables import TrialRow

if TYPE_CHECKING:
    from cellseg.data.detections import Detections
    from cellseg.data.packed import PackedDataset

MOST_IMAGES = 200
"""Of a larger validation fold, images are chosen evenly: prediction on a CPU takes seconds for each."""


@dataclass(frozen=True)
class Validation:
    """Validation images with true and found cells."""

    trial: int
    data: "PackedDataset"
    indices: tuple[int, ...]
    """Of the images in the data set."""
    num_images: int
    """Of the whole fold."""
    truths: Sequence["Detections"]
    predictions: Sequence["Detections"]
    num_training: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of class 1, 2, ..."""
        return tuple(self.data.class_names)


def validate(store: StudyStore, row: TrialRow) -> Validation:
    """Predict the validation images with the kept best checkpoint of a trial, or read what an earlier call found.

    Raises:
        UserError: the checkpoint was not kept, or the data are not where they were.
    """
    if not store.checkpoint_folder(row.number).is_dir():  # before torch is loaded, which takes seconds
        raise UserError(f"{store.folder}: trial {row.number}: its checkpoint must have been kept, but got none.")
    from cellseg.checkpoint import open_checkpoint
    from cellseg.data.detections import Detections
    from cellseg.device import pick_device
    from search.storage.validation import open_training_data, validation_predictions

    checkpoint = open_checkpoint(kept_checkpoint(store, row.number))
    config = checkpoint.config
    data = open_training_data(checkpoint, "Restore them.")
    folds = data.split(config.data)
    step = max(1.0, len(folds.validation) / MOST_IMAGES)
    chosen = tuple(folds.validation[int(place * step)] for place in range(min(MOST_IMAGES, len(folds.validation))))
    found = validation_predictions(store, row.number, checkpoint, config, data, chosen, pick_device())
    samples = [data[index] for index in chosen]
    truths = [Detections.from_sample(sample) for sample in samples]
    return Validation(row.number, data, chosen, len(folds.validation), truths, found, len(folds.training))
