"""Data sets on disk: detects the layout of a folder and lists its samples with the right reader."""

from pathlib import Path

from cellseg.config import DataConfig
from cellseg.data.annotations import find_annotations, open_coco
from cellseg.data.release import has_release_layout, open_release
from cellseg.data.source import Dataset
from cellseg.errors import UserError


def open_dataset(data: DataConfig) -> Dataset:
    """List the annotated images under ``data.root``. Reads no pixels.

    With ``layout: auto`` an annotation file that is named decides for COCO; else folders ``train/<id>/image.*`` decide
    for the release layout, and a COCO JSON in the folder for COCO.

    Raises:
        UserError: no root, nothing found there, or settings that contradict each other or the files.
    """
    if data.root is None:
        raise UserError("data.root: a data folder must be given, but got none. Pass --data DIR.")
    root = Path(data.root).expanduser().resolve()
    if not root.is_dir():
        raise UserError(f"{root}: the data folder must exist, but got no folder at that path. Check --data.")
    if data.layout == "release" and data.annotations is not None:
        raise UserError(
            f"data.annotations: belongs to the COCO layout, but got '{data.annotations}' with layout 'release'. "
            "Remove one of the two."
        )
    if data.layout == "release" or (data.layout == "auto" and data.annotations is None and has_release_layout(root)):
        return open_release(root, data.instances)
    if data.layout == "auto" and data.annotations is None and not find_annotations(root):
        raise UserError(
            f"{root}: must hold train/<id>/image.tif with class1.tif ... beside it, or a COCO annotation JSON, "
            "but got neither. Check --data."
        )
    if data.instances != "ids":
        raise UserError(
            f"data.instances: belongs to the release layout, but got '{data.instances}' with a COCO file. Remove it."
        )
    return open_coco(root, data.annotations)
