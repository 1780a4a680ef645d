"""Epochs of training and validation: ours against torchvision fed with stacks of masks.

- ``ours``: an epoch of :func:`cellseg.training.fit.fit`, checkpoints included.
- ``reference``: torchvision's unmodified Mask R-CNN; a loader with as many processes that augments a mask per cell by
  albumentations; predictions pasted to full size, encoded and judged by pycocotools.

Both see the same generated images with about 250 cells at 512 pixels, in the same order of magnitude of augmentation,
batch and precision. Without a GPU the sizes are small: the figures then say little about training on one.

Ratios: ``time``: how many times as fast ours is; ``reported``: our images per second, training and validation together,
over the 1.2 that reports of this kind of training state. Figures: ``images_per_second`` of an epoch and of its training
alone, ``gpu_utilisation`` (share of time in which the GPU computed, while ours ran) and ``peak_gpu_gb``.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from benchmarks import evaluate
from benchmarks.gpu import Utilisation
from benchmarks.input_pipeline import albumentations_pipeline, boxes_of_masks, masks_of
from benchmarks.measure import Report, add_sizes, alternate, make_parser, run
from benchmarks.train_step import torchvision_model, torchvision_update
from cellseg.config import TrialConfig
from cellseg.data.detections import Detections

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.utils.data import Dataset

    from cellseg.data.packed import PackedDataset
    from cellseg.training.epoch_report import EpochReport

REPORTED = 1.2
"""Images per second: 50 epochs of 168 images in 1.7 to 2.1 hours."""
FOLDS = 5
SIZES = {
    "cuda": {"images": 168, "side": 512, "epochs": 50, "batch": 4},
    "cpu": {"images": 8, "side": 192, "epochs": 2, "batch": 4},
}
"""By kind of device: training images (a quarter more validates), their sides, epochs of ours, images in a step."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = make_parser("epoch", "Epochs of training and validation: ours against stacks of masks.", rounds=2)
    add_sizes(parser, {"workers": (0, "loader processes of either side")})
    for name in SIZES["cuda"]:
        text = " or ".join(f"{sizes[name]} ({device})" for device, sizes in SIZES.items())
        parser.add_argument(f"--{name}", metavar="N", type=int, help=f"default: {text}")
    parser.add_argument("--backbone", choices=("resnet18", "resnet50"), help="default: resnet50, on a CPU resnet18")
    parser.add_argument("--device", help="cuda, cuda:1 or cpu; default: a GPU if there is one")
    return run(parser, measure, {"images": 4, "side": 64, "epochs": 1, "batch": 2, "rounds": 1}, argv)


def measure(arguments: argparse.Namespace) -> Report:
    """Run the contenders at the sizes in ``arguments``."""
    from cellseg.device import pick_device

    device = pick_device(arguments.device)
    sizes = {name: getattr(arguments, name) or value for name, value in SIZES[device.type].items()}
    backbone = arguments.backbone or ("resnet50" if device.type == "cuda" else "resnet18")
    per_round = -(-sizes["epochs"] // arguments.rounds)
    with tempfile.TemporaryDirectory() as scratch:
        data = generated(Path(scratch), sizes["images"], sizes["side"])
        trial = config(backbone, sizes["batch"], epochs=per_round * arguments.rounds + 1, workers=arguments.workers)
        reports: list[EpochReport] = []
        ours = our_epoch(data, trial, Path(scratch) / "run", device, reports)
        reference = reference_epoch(data, trial, sizes["side"], device)
        ours()  # first use
        utilisation = Utilisation(device)
        contenders = {"ours": utilisation.during(ours), "reference": reference}
        measured = alternate(contenders, arguments.rounds, per_round={"ours": per_round})
    seconds = median(measured.seconds["ours"])
    figures = {
        "images_per_second": sizes["images"] / seconds,
        "images_per_second_training": median(report.images_per_second for report in reports[1:]),
    }
    if device.type == "cuda":
        figures |= {
            "gpu_utilisation": utilisation.mean(),
            "peak_gpu_gb": max(report.peak_memory_bytes for report in reports) / 1e9,
        }
    return Report(
        benchmark="epoch",
        description=f"An epoch of {sizes['images']} images of {sizes['side']} pixels, {backbone}-FPN, with validation",
        parameters=sizes | {"backbone": backbone, "workers": arguments.workers, "device": str(device)},
        seconds=measured.seconds,
        ratios={
            "time": measured.ratio("reference", "ours"),
            "reported": figures["images_per_second"] / REPORTED,
        },
        figures=figures,
    )


def generated(folder: Path, images: int, side: int) -> "PackedDataset":
    """Generated cells, of which the first fold leaves ``images`` for training."""
    from cellseg.config import DataConfig
    from cellseg.data.packed import open_packed
    from cellseg.data.synthetic import generate_dataset

    count = -(-images * FOLDS // (FOLDS - 1))
    generate_dataset(folder / "data", train=count, test=0, seed=0, size=side)
    return open_packed(DataConfig(root=str(folder / "data")), folder / "cache")


def config(backbone: str, batch: int, epochs: int, workers: int) -> TrialConfig:
    """Ours with what the reference is."""
    return TrialConfig.from_flat(
        {
            "data.num_folds": FOLDS,
            "augment.preset": "full",
            "augment.strength": 0.5,
            "model.backbone": backbone,
            "model.weights": "none",
            "model.norm": "frozen",
            "model.frozen_stages": 2,
            "model.anchors": "8-128",
            "optim.schedule": "constant",
            "train.epochs": epochs,
            "train.batch_size": batch,
            "train.workers": workers,
        }
    )


def our_epoch(
    data: "PackedDataset", trial: TrialConfig, folder: Path, device: "torch.device", reports: "list[EpochReport]"
) -> Callable[[], None]:
    """Epochs of ours, one a call; what they report is added to ``reports``."""
    from cellseg.training.fit import fit

    epochs = fit(trial, data, folder, device=device)
    return lambda: reports.append(next(epochs))


def reference_epoch(data: "PackedDataset", trial: TrialConfig, side: int, device: "torch.device") -> Callable[[], dict]:
    """Epochs of the reference, one a call; returns the figures."""
    from torch.utils.data import DataLoader

    from cellseg.config import parse_anchor_range
    from cellseg.data.auto import resolve_auto

    trial, workers = resolve_auto(trial, data), trial.train.workers
    assert isinstance(workers, int), "both sides get the same"
    parts = data.split(trial.data)
    model = torchvision_model(
        trial.model.backbone,
        parse_anchor_range(trial.model.anchors),
        min_size=side,
        max_size=2 * side,
        box_detections_per_img=trial.model.detections_per_image,
    ).to(device)
    update = torchvision_update(model, trial.optim.lr, device)
    loader: DataLoader = DataLoader(
        cast("Dataset", StackedImages(data, parts.training)),
        batch_size=trial.train.batch_size,
        shuffle=True,
        collate_fn=list,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )

    def epoch() -> dict:
        model.train()
        for batch in loader:
            update(batch)
        model.eval()
        samples = [data[index] for index in parts.validation]
        found = [_predict(model, sample.image_HWC, device) for sample in samples]
        truths = [Detections.from_sample(sample) for sample in samples]
        # pycocotools cannot read an empty list of results.
        return evaluate.reference(*evaluate.coco_objects(found, truths)) if any(map(len, found)) else {}

    return epoch


class StackedImages:
    """Images with a mask for each cell, augmented as stacks: a map-style dataset of torch."""

    def __init__(self, data: "PackedDataset", indices: tuple[int, ...]):
        self.data = data
        self.indices = indices
        self.compose = albumentations_pipeline()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> "tuple[Tensor, dict[str, Tensor]]":
        """The image (3, H, W) uint8 and torchvision's target."""
        import torch

        sample = self.data[self.indices[position]]
        changed = self.compose(image=sample.image_HWC, masks=masks_of(sample))
        masks_NHW = np.asarray(changed["masks"])
        large_N = np.count_nonzero(masks_NHW, axis=(1, 2)) >= 4
        boxes_K4, labels_K = boxes_of_masks(masks_NHW[large_N], sample.labels_N[large_N])
        target = {"boxes": boxes_K4, "labels": labels_K, "masks": masks_NHW[large_N]}
        image_CHW = np.ascontiguousarray(changed["image"].transpose(2, 0, 1))
        return torch.from_numpy(image_CHW), {name: torch.from_numpy(value) for name, value in target.items()}


def _predict(model: Any, image_HWC: np.ndarray, device: "torch.device") -> Detections:
    """Predict an image, with masks pasted and encoded by torchvision and pycocotools."""
    import torch
    from pycocotools import mask as coco_mask

    image = torch.from_numpy(image_HWC.copy()).permute(2, 0, 1).to(device).float() / 255
    with torch.inference_mode():
        (found,) = model([image])
    masks_NHW = (found["masks"][:, 0] >= 0.5).cpu().numpy()
    return Detections(
        size=image_HWC.shape[:2],
        boxes_N4=found["boxes"].cpu().numpy(),
        scores_N=found["scores"].cpu().numpy(),
        labels_N=found["labels"].cpu().numpy(),
        rles=tuple(coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8)) for mask_HW in masks_NHW),
    )


if __name__ == "__main__":
    sys.exit(main())
