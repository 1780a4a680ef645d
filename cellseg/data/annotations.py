"""The COCO layout: one annotation JSON beside a folder of images.

Reads polygons, compressed and uncompressed run-length encodings; instances may overlap. Crowd annotations are skipped
(they name no single cell). Category ids become classes 1..K in ascending order of the ids;
the ids themselves travel along, and results are written with them.

Shape suffixes: H height and W width of an image, h and w of a window in it, N cells, 4 = x1, y1, x2, y2.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellseg.data.images import read_image
from cellseg.data.planes import stack_masks
from cellseg.data.sample import MAX_INSTANCES, Sample
from cellseg.data.segmentation import decode_segmentation
from cellseg.data.source import Dataset, relative_name
from cellseg.errors import UserError, raise_all
from cellseg.files import leads_outside, read_json

IMAGE_FOLDERS = ("images", "train", "")
"""Folders below the root where an image's ``file_name`` is looked up, in this order; the JSON's own folder is last."""


@dataclass(frozen=True)
class CocoSource:
    """An image of the annotation file."""

    name: str
    """``file_name`` without its suffix."""
    image: Path
    json_path: Path
    size: tuple[int | None, int | None]
    """(height, width) in pixels, as far as the annotation file states them."""
    annotations: tuple[tuple[int, dict[str, Any]], ...]
    """(class, annotation) without crowds, in the order of the file."""

    @property
    def files(self) -> tuple[Path, ...]:
        return self.image, self.json_path

    def load(self) -> Sample:
        """See :meth:`cellseg.data.source.Source.load`."""
        image_HWC = read_image(self.image)
        height, width = image_HWC.shape[:2]
        if self.size[0] not in (None, height) or self.size[1] not in (None, width):
            raise UserError(
                f"{self.image}: must have the size that {self.json_path.name} states, "
                f"{self.size[0]} x {self.size[1]}, but got {height} x {width}."
            )
        if len(self.annotations) > MAX_INSTANCES:
            raise UserError(f"{self.image}: must have at most {MAX_INSTANCES} cells, but got {len(self.annotations)}.")
        masks, problems = [], []
        for label, annotation in self.annotations:
            try:
                mask_hw, corner = decode_segmentation(annotation.get("segmentation"), height, width)
            except ValueError as error:
                problems.append(f"{self.json_path}: annotation {annotation.get('id')}: {error}")
            else:
                masks.append((mask_hw, corner, label))
        raise_all(problems)
        planes_PHW, labels_N = stack_masks(masks, height, width)
        return Sample(self.name, image_HWC, planes_PHW, labels_N)


def find_annotations(root: Path) -> list[Path]:
    """Find the COCO annotation files directly in ``root``, sorted."""
    found = []
    for path in sorted(root.glob("*.json")):
        try:
            content = read_json(path)
        except UserError:
            continue  # some other file; the chosen one is read again, and its problems are reported
        if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
            found.append(path)
    return found


def open_coco(root: Path, annotations: str | None) -> Dataset:
    """List the images of a COCO annotation file.

    Args:
        annotations: the file, relative to ``root``. None: the only COCO JSON in ``root``.

    Raises:
        UserError: no such file or several, a file of another form, or none of its images found.
    """
    json_path = _choose_annotations(root, annotations)
    content = read_json(json_path)
    raise_all(_content_problems(json_path, content))
    categories = sorted(content["categories"], key=lambda category: category["id"])
    label_of = {category["id"]: label for label, category in enumerate(categories, start=1)}
    annotations_of: dict[int, list[tuple[int, dict]]] = defaultdict(list)
    crowds = 0
    for annotation in content["annotations"]:
        if annotation.get("iscrowd"):
            crowds += 1
        else:
            annotations_of[annotation["image_id"]].append((label_of[annotation["category_id"]], annotation))
    sources = tuple(
        CocoSource(
            name=str(Path(image["file_name"]).with_suffix("")),
            image=_find_image(root, json_path, image["file_name"]),
            json_path=json_path,
            size=(image.get("height"), image.get("width")),
            annotations=tuple(annotations_of[image["id"]]),
        )
        for image in sorted(content["images"], key=lambda image: image["file_name"])
    )
    if not any(source.image.is_file() for source in sources):
        raise UserError(
            f"{json_path}: its images must lie in {root}, its folder images or train, or beside the file, "
            f"but none of {len(sources)} was found, as {content['images'][0]['file_name']}. Check --data."
        )
    return Dataset(
        root=root,
        layout="coco",
        class_names=tuple(category["name"] for category in categories),
        category_ids=tuple(category["id"] for category in categories),
        sources=sources,
        settings={"layout": "coco", "annotations": relative_name(json_path, root)},
        notes=(f"{json_path}: {crowds} crowd annotations were skipped.",) if crowds else (),
    )


def _choose_annotations(root: Path, annotations: str | None) -> Path:
    if annotations is not None:
        return root / annotations
    found = find_annotations(root)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(
            f"{root}: must hold one COCO annotation JSON (a mapping with images, annotations and categories), "
            f"but got {names}. Name it with data.annotations."
        )
    return found[0]


def _find_image(root: Path, json_path: Path, file_name: str) -> Path:
    places = [*(root / folder / file_name for folder in IMAGE_FOLDERS), json_path.parent / file_name]
    return next((path for path in places if path.is_file()), places[0])


def _content_problems(path: Path, content: Any) -> Iterator[str]:
    """Check the file as a whole; segmentations are checked when their image is loaded."""
    needed: dict[str, dict[str, Callable[[Any], bool]]] = {
        "images": {"id": _is_id, "file_name": _is_name},
        "annotations": {"image_id": _is_id, "category_id": _is_id},
        "categories": {"id": _is_id, "name": _is_name},
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


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)
