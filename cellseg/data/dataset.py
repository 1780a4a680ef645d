"""Data sets on disk: detects the layout of a folder and lists its samples with the right reader."""

from pathlib import Path

from cellseg.config import DataConfig
from cellseg.data.annotations import open_coco
from cellseg.data.channels import PlaneChoice
from cellseg.data.coco_files import find_annotations
from cellseg.data.files_below import FilesBelow
from cellseg.data.importing.formats import WITH_MASK_FILES, open_foreign
from cellseg.data.importing.options import ImportOptions
from cellseg.data.release import has_release_layout, open_release
from cellseg.data.source import Dataset
from cellseg.errors import UserError


def open_dataset(data: DataConfig, options: ImportOptions | None = None) -> Dataset:
    """List the annotated images under ``data.root``. Reads no pixels.

    With ``layout: auto`` an annotation file that is named decides for COCO; else folders ``train/<id>/image.*`` decide
    for the release layout, a COCO JSON in the folder or below for COCO, and then the files of the only other tool that
    is recognised there.

    Args:
        options: choices for the files of other tools; None: there is nothing to choose.

    Raises:
        UserError: no root, nothing found there, or settings that contradict each other or the files.
    """
    if data.root is None:
        raise UserError("data.root: a data folder must be given, but got none. Pass --data DIR.")
    root = Path(data.root).expanduser().resolve()
    if root.suffix.lower() == ".zip" and root.is_file():
        raise UserError(
            f"{root}: the data folder must be a folder, but got an archive. Unpack it, then name the folder."
        )
    if not root.is_dir():
        raise UserError(f"{root}: the data folder must exist, but got no folder at that path. Check --data.")
    if data.annotations is not None and data.layout not in ("auto", "coco"):
        raise UserError(
            f"data.annotations: belongs to the COCO layout, but got '{data.annotations}' with layout '{data.layout}'. "
            "Remove one of the two."
        )
    choice = PlaneChoice.of(data)
    auto = data.layout == "auto" and data.annotations is None and options is None
    if data.layout == "release" or (auto and has_release_layout(root)):
        return open_release(root, data.instances, choice)
    files = FilesBelow(root)
    found = [] if data.annotations is not None else find_annotations(files)
    if data.layout == "coco" or data.annotations is not None or (auto and found):
        _require_ids(data, "a COCO file")
        return open_coco(root, data.annotations, choice, found)
    dataset = open_foreign(files, None if data.layout == "auto" else data.layout, choice, data.instances, options)
    if dataset.layout not in WITH_MASK_FILES:
        _require_ids(data, f"layout '{dataset.layout}'")
    return dataset


def _require_ids(data: DataConfig, what: str) -> None:
    if data.instances != "ids":
        raise UserError(
            f"data.instances: belongs to layouts with mask images, as the release layout, but got '{data.instances}' "
            f"with {what}. Remove it."
        )
