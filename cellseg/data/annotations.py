"""The COCO layout: one annotation JSON beside a folder of images, or one for each split.

Reads polygons, compressed and uncompressed run-length encodings; instances may overlap. Crowd annotations are skipped
(they name no single cell), but for CVAT's, which are none. Category ids become classes 1..K in ascending order of the
ids; the ids themselves travel along, and results are written with them.

Shape suffixes: H height and W width of an image, h and w of a window in it, N cells, 4 = x1, y1, x2, y2.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cellseg.data.channels import PlaneChoice
from cellseg.data.coco_content import content_problems, is_id
from cellseg.data.coco_files import choose_annotations
from cellseg.data.files_below import FilesBelow
from cellseg.data.images import read_image, read_size
from cellseg.data.planes import stack_masks
from cellseg.data.sample import MAX_INSTANCES, Sample
from cellseg.data.segmentation import decode_segmentation
from cellseg.data.source import Dataset, TestImage, relative_name
from cellseg.errors import UserError, raise_all
from cellseg.files import read_json
from cellseg.names import counted

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
    choice: PlaneChoice

    @property
    def files(self) -> tuple[Path, ...]:
        return self.image, self.json_path

    def load(self) -> Sample:
        """See :meth:`cellseg.data.source.Source.load`."""
        image_HWC = read_image(self.image, self.choice)
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


def open_coco(root: Path, annotations: str | None, choice: PlaneChoice, found: list[Path] | None = None) -> Dataset:
    """List the images of a COCO annotation file, or of those of the splits for training and validation.

    Args:
        annotations: the file, relative to ``root``. None: see :func:`cellseg.data.coco_files.choose_annotations`.
        found: the annotation files in ``root``; None: look for them.

    Raises:
        UserError: no such file or several, a file of another form, or none of its images found.
    """
    chosen = choose_annotations(root, annotations, found)
    paths = [*chosen.training, *([chosen.test] if chosen.test else [])]
    contents = {path: read_json(path) for path in paths}
    raise_all(problem for path, content in contents.items() for problem in content_problems(path, content))
    training = {path: contents[path] for path in chosen.training}
    categories, placeholders = _categories(training)
    label_of = {category["id"]: label for label, category in enumerate(categories, start=1)}
    lookup = _ImageLookup(root)
    names = _unique_names(training, root)
    listed: list[tuple[str, CocoSource]] = []
    notes: list[str] = []
    settings = {"layout": "coco", "annotations": ", ".join(relative_name(path, root) for path in training)}
    if placeholders:
        settings["placeholder"] = "skipped"
    for path, content in training.items():
        annotations_of, crowds, brushed = _annotations_by_image(content, label_of)
        if crowds:
            notes.append(f"{path}: {crowds} crowd annotations were skipped.")
        if brushed:
            notes.append(f"{path}: {brushed} masks drawn with a brush are cells, although CVAT writes them as crowds.")
            settings["crowds"] = "those of CVAT are cells"
        for image in content["images"]:
            source = CocoSource(
                name=names[path, image["id"]],
                image=lookup.find(path, image["file_name"]),
                json_path=path,
                size=(image.get("height"), image.get("width")),
                annotations=tuple(annotations_of[image["id"]]),
                choice=choice,
            )
            listed.append((image["file_name"], source))
    sources = [source for _, source in sorted(listed, key=lambda pair: pair[0])]
    if not any(source.image.is_file() for source in sources):
        first = next(iter(training.values()))["images"][0]["file_name"]
        raise UserError(
            f"{chosen.training[0]}: its images must lie in {root}, its folder images or train, or beside the file, "
            f"but none of {len(sources)} was found, as {first}. Check --data."
        )
    tests = _test_images(chosen.test, contents[chosen.test], lookup) if chosen.test else ()
    if len(training) > 1 or tests:
        notes += _split_notes(training, chosen.test, len(tests), root)
    notes += [
        f"{root}: category '{name}' has no cells and only names the others: it was skipped." for name in placeholders
    ]
    return Dataset(
        root=root,
        layout="coco",
        class_names=tuple(category["name"] for category in categories),
        category_ids=tuple(category["id"] for category in categories),
        sources=tuple(sources),
        settings=settings | choice.settings,
        notes=tuple(notes),
        validation=frozenset(source.name for source in sources if source.json_path in chosen.training[1:]),
        tests=tests,
    )


class _ImageLookup:
    """Finds the images of an annotation file."""

    def __init__(self, root: Path):
        self.root = root

    def find(self, json_path: Path, file_name: str) -> Path:
        """The image file; where it is absent, the first place it could have been."""
        name = file_name.replace("\\", "/")
        usual = [self.root / folder for folder in IMAGE_FOLDERS]
        # A file further down has its images nearby: CVAT writes annotations/ and images/<subset>/ side by side,
        # Roboflow a folder for each split, with files whose names may repeat.
        above, subset = json_path.parent.parent, json_path.stem.removeprefix("instances_")
        near = [json_path.parent, above / "images" / subset, above / "images", json_path.parent / "images", above]
        places = [*usual, json_path.parent] if json_path.parent == self.root else [*near, *usual]
        first = usual[0] / name
        found = next((place / name for place in places if (place / name).is_file()), None)
        return found or self.files.find_named(name, json_path.parent) or first

    @cached_property
    def files(self) -> FilesBelow:
        return FilesBelow(self.root)


def _annotations_by_image(
    content: dict, label_of: dict[int, int]
) -> tuple[dict[int, list[tuple[int, dict]]], int, int]:
    """Sort the cells of a file by image, each with its class; and count crowds, and cells that CVAT writes as such."""
    annotations_of: dict[int, list[tuple[int, dict]]] = defaultdict(list)
    crowds = brushed = 0
    for annotation in content["annotations"]:
        if annotation.get("iscrowd"):
            if not _is_brushed(annotation):
                crowds += 1
                continue
            brushed += 1
        annotations_of[annotation["image_id"]].append((label_of[annotation["category_id"]], annotation))
    return annotations_of, crowds, brushed


def _is_brushed(annotation: dict) -> bool:
    """Whether CVAT wrote this crowd: it exports every mask of a single object as one, with its own attributes."""
    attributes = annotation.get("attributes")
    return isinstance(attributes, dict) and "occluded" in attributes and not attributes.get("is_crowd")


def _categories(contents: dict[Path, dict]) -> tuple[list[dict], list[str]]:
    """The categories of all files by their ids, without a placeholder; and the names of those.

    Roboflow's first category has the id 0 and no annotations, and names the group that the others belong to.
    """
    of_id: dict[int, dict] = {}
    problems = []
    for path, content in contents.items():
        for category in content["categories"]:
            known = of_id.setdefault(category["id"], category)
            if known["name"] != category["name"]:
                problems.append(
                    f"{path}: category {category['id']} must be the same in all splits, but got '{category['name']}' "
                    f"here and '{known['name']}' before. Name one file with --annotations."
                )
    raise_all(problems)
    used = {annotation["category_id"] for content in contents.values() for annotation in content["annotations"]}
    first, *others = sorted(of_id.values(), key=lambda category: category["id"])
    is_placeholder = (
        first["id"] == 0
        and first["id"] not in used
        and bool(others)
        and all(other.get("supercategory") == first["name"] for other in others)
    )
    return (others, [first["name"]]) if is_placeholder else ([first, *others], [])


def _unique_names(contents: dict[Path, dict], root: Path) -> dict[tuple[Path, int], str]:
    """The name of each image, by file and id: ``file_name`` without suffix, behind the split where names repeat."""
    names = {
        (path, image["id"]): str(Path(image["file_name"].replace("\\", "/")).with_suffix(""))
        for path, content in contents.items()
        for image in content["images"]
    }
    if len(set(names.values())) == len(names):
        return names
    return {key: f"{_split_name(key[0], root)}/{name}" for key, name in names.items()}


def _split_name(path: Path, root: Path) -> str:
    return relative_name(path.parent, root) if path.parent != root else path.stem


def _test_images(path: Path, content: dict, lookup: _ImageLookup) -> tuple[TestImage, ...]:
    """The images of a test split; their annotations are not used."""
    found = []
    for image in content["images"]:
        place = lookup.find(path, image["file_name"])
        present = place if place.is_file() else None
        height, width = image.get("height"), image.get("width")
        if not (is_id(height) and is_id(width)):
            if present is None:
                continue
            height, width = read_size(present)
        found.append(TestImage(image["file_name"], image["id"], height, width, present))
    return tuple(found)


def _split_notes(training: dict[Path, dict], test: Path | None, num_tests: int, root: Path) -> list[str]:
    named = [relative_name(path, root) for path in training]
    notes = []
    if len(named) > 1:
        notes.append(
            f"{root}: {' and '.join(named)} are joined and split anew; data.validation: given keeps them apart."
        )
    if test is not None:
        notes.append(f"{test}: holds {counted(num_tests, 'test image')}, whose annotations are not used.")
    return notes
