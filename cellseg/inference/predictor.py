"""A trained model for Python users: image arrays or files in, cells out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cellseg.checkpoint import Checkpoint, open_checkpoint
from cellseg.data.channels import PlaneChoice
from cellseg.data.detections import Detections
from cellseg.data.images import read_image, to_rgb
from cellseg.data.packed import open_packed
from cellseg.device import pick_device
from cellseg.errors import UserError
from cellseg.evaluate import evaluate
from cellseg.inference.image import load_model, predict_image


class Predictor:
    """The model of a checkpoint, ready to predict on its device."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device):
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.model = load_model(checkpoint, device)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; label 1 is the first."""
        return self.checkpoint.info.class_names

    def predict(self, image: np.ndarray | Path | str) -> Detections:
        """The cells of one image, in its own pixels, best first.

        Args:
            image: the path of an image file, or its pixels as (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or as
                the config's ``data.channels`` and ``data.projection`` take them. Pixels may be
                bool, integers or floats: an array gives the same cells as a file that holds it
                (:func:`cellseg.data.images.to_rgb`).

        Raises:
            UserError: an array of another form, pixels that are not finite, or a file that cannot be read.
        """
        choice = PlaneChoice.of(self.config.data)
        image_HWC = read_image(Path(image), choice) if isinstance(image, (str, Path)) else to_rgb(image, choice=choice)
        return predict_image(self.model, image_HWC, self.config)

    def evaluate(self, data: Path | str) -> dict[str, float]:
        """Compute the COCO metrics of the model on all labelled images of a data set.

        Args:
            data: folder of the data set, read with the settings of training (layout, instances). Classes are matched by
                their names.

        Raises:
            UserError: data that cannot be read, or with a class that the model does not know.
        """
        own = self.config.data
        same_place = own.root is not None and Path(own.root).resolve() == Path(data).resolve()
        reading = {"data__root": str(data), "data__groups": None}
        if not same_place:  # another data set may be laid out otherwise
            reading |= {"data__layout": "auto", "data__annotations": None}
        packed = open_packed(self.config.replace(**reading).data)
        if unknown := [name for name in packed.class_names if name not in self.class_names]:
            raise UserError(
                f"{data}: its classes must be among the model's ({', '.join(self.class_names)}), but got "
                f"{', '.join(unknown)}. Rename them."
            )
        # Class 0 is none; class i of the data is class own_label[i] of the model.
        own_label = np.array([0, *(self.class_names.index(name) + 1 for name in packed.class_names)])
        samples = [packed[index] for index in range(len(packed))]
        truths = [Detections.from_sample(sample) for sample in samples]
        truths = [replace(truth, labels_N=own_label[truth.labels_N]) for truth in truths]
        found = [predict_image(self.model, sample.image_HWC, self.config) for sample in samples]
        return evaluate(found, truths, self.class_names)


def load(checkpoint: Path | str, device: str | None = None) -> Predictor:
    """The trained model in a checkpoint folder.

    Args:
        checkpoint: a folder that training or a search wrote, such as ``results/STUDY/checkpoints/t0003/best``.
        device: ``cuda``, ``cuda:1`` or ``cpu``. None: a GPU where there is one.

    Raises:
        UserError: no checkpoint there, damaged weights, or a device that this machine lacks.
    """
    return Predictor(open_checkpoint(Path(checkpoint)), pick_device(device))
