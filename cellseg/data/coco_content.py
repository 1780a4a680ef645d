"""The content of a COCO annotation file: what must be true of it as a whole."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cellseg.files import leads_outside


def content_problems(path: Path, content: Any) -> Iterator[str]:
    """Check the file as a whole; segmentations are checked when their image is loaded."""
    needed: dict[str, dict[str, Callable[[Any], bool]]] = {
        "images": {"id": is_id, "file_name": _is_name},
        "annotations": {"image_id": is_id, "category_id": is_id},
        "categories": {"id": is_id, "name": _is_name},
    }
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in needed):
        yield f"{path}: must be a mapping with lists of images, annotations and categories. Is it a COCO file?"
        return
    broken = [
        f"{path}: {kind}[{index}]: {key} must be a {'string' if valid is _is_name else 'whole number'}, "
        f"but got {entry.get(key)!r}."
        if isinstance(entry, dict)
        else f"{path}: {kind}[{index}]: must be a mapping, but got {entry!r}."
        for kind, keys in needed.items()
        for index, entry in enumerate(content[kind])
        for key, valid in keys.items()
        if not (isinstance(entry, dict) and valid(entry.get(key)))
    ]
    broken += _outside_problems(path, content["images"])
    yield from dict.fromkeys(broken)
    for key in ("images", "categories"):
        if not content[key]:
            yield f"{path}: {key} must not be empty. Is it the right file?"
    if broken:
        return
    entries = content["annotations"]
    if any("bbox" in entry for entry in entries) and not any(entry.get("segmentation") for entry in entries):
        yield f"{path}: annotations must have outlines in 'segmentation', but got boxes only. Export polygons or masks."
    uniques: dict[str, list] = {
        "an image's id": [image["id"] for image in content["images"]],
        "an image's file_name without suffix": [str(Path(i["file_name"]).with_suffix("")) for i in content["images"]],
        "a category's id": [category["id"] for category in content["categories"]],
    }
    for what, values in uniques.items():
        for value, count in Counter(values).items():
            if count > 1:
                yield f"{path}: {what} must be unique, but got {value!r} {count} times."
    for key, kind in (("image_id", "images"), ("category_id", "categories")):
        known = {entry["id"] for entry in content[kind]}
        unknown = Counter(a[key] for a in content["annotations"] if a[key] not in known)
        for value, count in unknown.items():
            yield f"{path}: {key} of an annotation must be in {kind}, but got {value} in {count} annotations."


def _outside_problems(path: Path, images: list[Any]) -> Iterator[str]:
    """Report names that are read, and that pictures are later written under, outside of the data set."""
    for index, image in enumerate(images):
        name = image.get("file_name") if isinstance(image, dict) else None
        if isinstance(name, str) and name and (leads_outside(name) or not Path(name).name):
            yield (
                f"{path}: images[{index}]: file_name must name a file below the data folder, but got {name!r}. Remove "
                "'..' and leading slashes; a symbolic link inside the folder may point elsewhere."
            )


def is_id(value: Any) -> bool:
    """Whether a value is a whole number, as COCO's ids are."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)
