"""Small crops of the images of a data set: training on them costs seconds."""

from pathlib import Path

import numpy as np
import tifffile

from cellseg.errors import UserError

LEAST_CELLS = 3
"""A crop with fewer is drawn again."""
NUM_TRIES = 20


def write_crops(source: Path, target: Path, count: int, size: int, seed: int = 0) -> None:
    """Write ``count`` crops of ``size`` pixels a side, each of another training image of ``source``, to ``target``.

    Both are in the release layout. Images smaller than the crop, and those in which no crop holds enough cells, are
    left out.

    Raises:
        UserError: too few images.
    """
    rng = np.random.default_rng(seed)
    folders = sorted(path for path in (source / "train").iterdir() if path.is_dir())
    written = 0
    for index in rng.permutation(len(folders)):
        if written == count:
            break
        files = {path.name: tifffile.imread(path) for path in sorted(folders[index].glob("*.tif"))}
        if (crop := _crop(rng, files, size)) is None:
            continue
        folder = target / "train" / f"crop-{written:04d}"
        folder.mkdir(parents=True)
        for name, pixels in crop.items():
            tifffile.imwrite(folder / name, np.ascontiguousarray(pixels), compression="lzw", metadata=None)
        written += 1
    if written < count:
        raise UserError(f"--crops: must be at most {written} in {source}, but got {count}. Ask for fewer.")


def _crop(rng: np.random.Generator, files: dict[str, np.ndarray], size: int) -> dict[str, np.ndarray] | None:
    """Return a window of all files that holds enough cells; None if there is none. Classes without a cell in it are
    left out."""
    height, width = files["image.tif"].shape[:2]
    if min(height, width) < size:
        return None
    for _ in range(NUM_TRIES):
        top, left = int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))
        crop = {name: pixels[top : top + size, left : left + size] for name, pixels in files.items()}
        cells = [len(np.setdiff1d(np.unique(pixels), 0)) for name, pixels in crop.items() if name != "image.tif"]
        if sum(cells) >= LEAST_CELLS:
            return {name: pixels for name, pixels in crop.items() if name == "image.tif" or pixels.any()}
    return None
