"""From 28 x 28 mask probabilities to RLEs of the image's size.

- ``ours``: :func:`cellseg.inference.paste.paste_masks`, each mask inside its own box.
- ``reference``: torchvision's ``paste_masks_in_image``, a threshold, and pycocotools' ``encode``, each mask as large as
  the image.

Both must give the same RLEs, bit for bit. Ratios: ``time``: how many times as fast ours is; ``memory``: how many times
our peak of extra memory the reference needs.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from benchmarks.measure import (
    Report,
    add_sizes,
    alternate,
    available_bytes,
    format_bytes,
    make_parser,
    run,
)
from cellseg.errors import UserError
from cellseg.inference.paste import paste_masks

THRESHOLD = 0.5
MASK_SIDE = 28
BOX_SIDES = 10.0, 40.0
OURS_PER_ROUND = 5
BYTES_PER_PIXEL = 9
"""Memory of the reference per pixel and mask: two float32 copies, as it stacks them, and a bool."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = make_parser("postprocess", "Mask probabilities to RLEs: ours against torchvision and pycocotools.", 1)
    add_sizes(
        parser,
        {
            "detections": (400, "masks in the image"),
            "height": (1771, "pixels"),
            "width": (1760, "pixels"),
        },
    )
    return run(parser, measure, {"detections": 20, "height": 200, "width": 190, "rounds": 1}, argv)


def measure(arguments: argparse.Namespace) -> Report:
    """Run both at the sizes in ``arguments``.

    Raises:
        UserError: the reference would not fit into memory.
    """
    count, size = arguments.detections, (arguments.height, arguments.width)
    _check_memory(count * size[0] * size[1] * BYTES_PER_PIXEL)
    probabilities_NMM, boxes_N4 = detections(np.random.default_rng(0), count, *size)
    # First use, on inputs too small to leave memory behind.
    paste_masks(probabilities_NMM[:1], boxes_N4[:1], *size, THRESHOLD)
    reference(probabilities_NMM[:1], boxes_N4[:1], *size)
    measured = alternate(
        {
            "ours": lambda: paste_masks(probabilities_NMM, boxes_N4, *size, THRESHOLD),
            "reference": lambda: reference(probabilities_NMM, boxes_N4, *size),
        },
        arguments.rounds,
        per_round={"ours": OURS_PER_ROUND},
        memory="cpu",
    )
    assert measured.results["ours"] == measured.results["reference"], "the RLEs must be the same"
    return Report(
        benchmark="postprocess",
        description=f"Encode {count} masks of an image of {size[0]} x {size[1]}",
        parameters={name: getattr(arguments, name) for name in ("detections", "height", "width")},
        seconds=measured.seconds,
        peak_extra_bytes=measured.peak_extra_bytes,
        ratios={
            "time": measured.ratio("reference", "ours"),
            "memory": measured.memory_ratio("reference", "ours"),
        },
    )


def detections(rng: np.random.Generator, count: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw outputs of a mask head: probabilities (N, M, M) of uneven blobs, and boxes (N, 4); both float32."""
    y_MM, x_MM = (np.mgrid[:MASK_SIDE, :MASK_SIDE] + 0.5) / MASK_SIDE - 0.5
    angle_MM = np.arctan2(y_MM, x_MM)
    waves_N11, phase_N11 = rng.integers(2, 6, (count, 1, 1)), rng.uniform(0, 2 * np.pi, (count, 1, 1))
    radius_NMM = 0.42 * (1 + 0.2 * np.cos(waves_N11 * angle_MM + phase_N11))
    probabilities_NMM = 1 / (1 + np.exp(-30 * (radius_NMM - np.hypot(y_MM, x_MM))))
    sides_N2 = rng.uniform(*BOX_SIDES, (count, 2))
    corners_N2 = rng.random((count, 2)) * ((width, height) - sides_N2)
    boxes_N4 = np.concatenate([corners_N2, corners_N2 + sides_N2], axis=1)
    return probabilities_NMM.astype(np.float32), boxes_N4.astype(np.float32)


def reference(probabilities_NMM: np.ndarray, boxes_N4: np.ndarray, height: int, width: int) -> list[dict]:
    """RLEs by torchvision's pasting and pycocotools' encoding."""
    import torch
    from pycocotools import mask as coco_mask
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    masks_N1HW = paste_masks_in_image(
        torch.from_numpy(probabilities_NMM)[:, None], torch.from_numpy(boxes_N4), (height, width)
    )
    binary_N1HW = masks_N1HW >= THRESHOLD
    del masks_N1HW
    return [coco_mask.encode(np.asfortranarray(mask_HW.numpy(), dtype=np.uint8)) for mask_HW in binary_N1HW[:, 0]]


def _check_memory(needed: int) -> None:
    available = available_bytes()
    if available is not None and needed > available:
        raise UserError(
            f"detections: the reference needs {format_bytes(needed)}, but got {format_bytes(available)} of free "
            "memory. Lower --detections."
        )


if __name__ == "__main__":
    sys.exit(main())
