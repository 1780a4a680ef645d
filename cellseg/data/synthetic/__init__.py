"""Synthetic data: generated images of cells, without a download, in the layout of the real data.

``dataset`` writes the files, ``scene`` composes an image, ``section`` places the cells, ``kinds`` draws a cell, and
``texture`` generates noise.
"""

from pathlib import Path

from cellseg.errors import UserError, raise_all
from cellseg.files import atomic_path


def generate_dataset(folder: Path, *, train: int, test: int, seed: int, size: int = 128) -> None:
    """Write ``train`` training and ``test`` test images to ``folder``, in the release layout::

        train/<id>/image.tif, class1.tif ... class4.tif   RGBA uint8; float64 ids with gaps; no file for an absent class
        test_release/<id>.tif
        test_image_name_to_ids.json                       [{"file_name", "id", "height", "width"}, ...], ids from 1
        test_truth.json                                   the test images' cells: COCO ground truth, same image ids

    The same arguments give the same bytes, and an image depends on ``seed`` and its own number only: a larger data set
    begins with the images of a smaller one. The folder appears when it is complete, or not at all.

    Args:
        folder: does not exist yet, or is empty.
        train: at least 1.
        test: at least 0.
        seed: at least 0.
        size: images are about ``size`` x ``size`` pixels, each side 0.8 to 1.2 times that; 64 to 2048.

    Raises:
        UserError: a number out of range, or a folder that holds something or cannot be written.
    """
    from cellseg.data.synthetic.dataset import write_dataset  # here, because the command's --help needs none of it

    raise_all(_problems(folder, train, test, seed, size))
    with atomic_path(folder.resolve()) as root:
        write_dataset(root, train, test, seed, size)


def _problems(folder: Path, train: int, test: int, seed: int, size: int) -> list[str]:
    found = []
    if train < 1:
        found.append(f"train: must be at least 1 image, but got {train}.")
    if test < 0:
        found.append(f"test: must be 0 or more images, but got {test}. Use 0 for none.")
    if seed < 0:
        found.append(f"seed: must be 0 or more, but got {seed}.")
    if not 64 <= size <= 2048:
        found.append(f"size: 64 <= size <= 2048 (pixels) must hold, but got {size}. Cells are 10 to 40 pixels wide.")
    try:
        if folder.is_dir() and any(folder.iterdir()):
            found.append(f"{folder}: the folder must be new or empty, but got one with content. Choose another name.")
        elif folder.exists() and not folder.is_dir():
            found.append(f"{folder}: must be a folder, but got a file of that name. Choose another name.")
    except OSError as error:
        raise UserError(f"{folder}: the folder must be readable, but got '{error.strerror}'.") from error
    return found
