"""Files for other tools, one writer per format. Each writes the files of one image atomically.

labels/NAME.tif         label image: napari, Fiji, CellProfiler
geojson/NAME.geojson    detections for QuPath
roi/NAME.zip            regions of interest for ImageJ and Fiji
csv/NAME.csv            a row per cell; joined into cells.csv
coco/NAME.json          COCO annotations; joined into coco.json and coco_results.json
overlay/NAME.png        the image with its cells outlined
"""

import json
import uuid
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from pycocotools import mask as coco_mask

from cellseg.data.rle import to_json_rle
from cellseg.errors import UserError, raise_all
from cellseg.files import atomic_path
from cellseg.inference.outputs.cells import ImageCells
from cellseg.inference.outputs.measure import columns, join_tables, measurements, write_table
from cellseg.inference.outputs.outlines import Polygon, Ring
from cellseg.overlay import class_color, write_prediction

MOST_SHORT_LABELS = 2**16 - 1
"""The most cells whose numbers fit into a label image of 16 bits."""
LARGEST_ROI_PLACE = 2**15 - 1
"""ImageJ stores coordinates with 16 bits and a sign."""
_IDS = uuid.UUID("9c6c1f0e-0d0f-4d0c-9a4e-6f3f2f2a7c11")
"""Namespace of the ids of GeoJSON features: the same cell of the same image always has the same id."""
_MOVE_TO, _LINE_TO, _CLOSE = 0.0, 1.0, 4.0
"""Segments of a java.awt.geom path, as ImageJ stores composite regions."""

Write = Callable[[ImageCells, np.ndarray, Path], None]
"""(cells, pixels as the file holds them, file to write)."""


@dataclass(frozen=True)
class Format:
    """One kind of output."""

    write: Write
    suffix: str
    package: str | None = None
    """A package that only this format needs."""
    install: str = ""
    """Its name for pip."""


def write_labels(cells: ImageCells, _: np.ndarray, path: Path) -> None:
    """Write the image's label image."""
    write_label_image(cells.labels_HW, len(cells.cells), path)


def write_label_image(labels_HW: np.ndarray, count: int, path: Path) -> None:
    """Write the numbers 1 to ``count`` of cells as TIFF: uint16 or, where those are too many for it, uint32."""
    if count <= MOST_SHORT_LABELS:
        labels_HW = labels_HW.astype(np.uint16)
    with atomic_path(path) as temporary:
        tifffile.imwrite(temporary, labels_HW, photometric="minisblack", compression="zlib")


def write_geojson(cells: ImageCells, _: np.ndarray, path: Path) -> None:
    """Write a GeoJSON FeatureCollection of QuPath detections, with class, score and area."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for index, polygons in enumerate(cells.outlines):
            file.write(",\n" if index else "\n")
            file.write(json.dumps(_feature(cells, index, polygons), ensure_ascii=False))
        file.write("\n]}\n")


def _feature(cells: ImageCells, index: int, polygons: list[Polygon]) -> dict[str, Any]:
    parts = [[_closed(ring) for ring in polygon.rings] for polygon in polygons]
    geometry = (
        {"type": "Polygon", "coordinates": parts[0]}
        if len(parts) == 1
        else {"type": "MultiPolygon", "coordinates": parts}
    )
    label = int(cells.cells.labels_N[index])
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(_IDS, f"{cells.name}/{index + 1}")),
        "geometry": geometry,
        "properties": {
            "objectType": "detection",
            "name": str(index + 1),
            "classification": {"name": cells.class_name(index), "color": list(class_color(label))},
            "measurements": {
                "Score": round(float(cells.cells.scores_N[index]), 6),
                "Area px^2": int(coco_mask.area(cells.cells.rles[index])),
            },
        },
    }


def _closed(ring: Ring) -> list[list[int]]:
    """A ring as GeoJSON has it, the first corner repeated."""
    return [list(corner) for corner in (*ring, ring[0])]


def write_rois(cells: ImageCells, _: np.ndarray, path: Path) -> None:
    """Write a zip archive of ImageJ regions: traced polygons, and composites where cells have holes or parts.

    Raises:
        UserError: an image that is larger than ImageJ's coordinates reach.
    """
    height, width = cells.cells.size
    if max(height, width) > LARGEST_ROI_PLACE:
        raise UserError(
            f"{path}: an image of ImageJ regions must have sides of at most {LARGEST_ROI_PLACE} px, but got "
            f"{height} x {width}. Leave roi out of --to; geojson has no such limit."
        )
    digits = len(str(len(cells.cells)))
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for index, polygons in enumerate(cells.outlines):
            name = f"{index + 1:0{digits}}"
            archive.writestr(f"{name}.roi", _roi(cells, index, polygons, name))


def _roi(cells: ImageCells, index: int, polygons: list[Polygon], name: str) -> bytes:
    import roifile

    label = int(cells.cells.labels_N[index])
    corners_K2 = np.concatenate([polygon.outer for polygon in polygons])
    (left, top), (right, bottom) = corners_K2.min(axis=0).tolist(), corners_K2.max(axis=0).tolist()
    roi = roifile.ImagejRoi(
        name=name,
        left=left,
        top=top,
        right=right,
        bottom=bottom,
        group=min(label, 255),
        stroke_color=bytes((255, *class_color(label))),
    )
    class_name = " ".join(cells.class_name(index).split())  # a line of its own
    roi.props = f"class: {class_name}\nscore: {float(cells.cells.scores_N[index]):.6f}\n"
    rings = [ring for polygon in polygons for ring in polygon.rings]
    if len(rings) == 1:
        roi.roitype = roifile.ROI_TYPE.TRACED
        roi.integer_coordinates = (np.array(rings[0]) - (left, top)).astype(np.int32)
        roi.n_coordinates = len(rings[0])
    else:
        roi.roitype = roifile.ROI_TYPE.RECT
        path = [value for ring in rings for value in _path(ring)]
        roi.multi_coordinates = np.array(path, dtype=np.float32)
        roi.shape_roi_size = len(path)
    return roi.tobytes()


def _path(ring: Ring) -> Iterator[float]:
    for position, (x, y) in enumerate(ring):
        yield from (_LINE_TO if position else _MOVE_TO, float(x), float(y))
    yield _CLOSE


def write_csv(cells: ImageCells, values_HWS: np.ndarray, path: Path) -> None:
    """Write the image's table of cells."""
    write_table(path, columns(values_HWS.shape[2]), measurements(cells, values_HWS))


def write_coco(cells: ImageCells, _: np.ndarray, path: Path) -> None:
    """Write the image's cells as COCO annotations with scores; its id is 1 until :func:`join_coco`."""
    found = cells.cells
    records = found.to_coco_results(1, cells.category_ids)
    annotations = [
        record | {"id": number, "area": int(coco_mask.area(rle)), "iscrowd": 0, "segmentation": to_json_rle(rle)}
        for number, (record, rle) in enumerate(zip(records, found.rles, strict=True), start=1)
    ]
    height, width = found.size
    content = {
        "images": [{"id": 1, "file_name": cells.path.name, "height": height, "width": width}],
        "categories": _categories(cells.class_names, cells.category_ids),
        "annotations": annotations,
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


def write_overlay(cells: ImageCells, _: np.ndarray, path: Path) -> None:
    """Write the image with its cells outlined."""
    write_prediction(path, cells.image_HWC, cells.cells, cells.class_names)


def _categories(class_names: Sequence[str], category_ids: Sequence[int]) -> list[dict[str, Any]]:
    return [{"id": number, "name": name} for number, name in zip(category_ids, class_names, strict=True)]


FORMATS: dict[str, Format] = {
    "labels": Format(write_labels, ".tif"),
    "coco": Format(write_coco, ".json"),
    "geojson": Format(write_geojson, ".geojson"),
    "roi": Format(write_rois, ".zip", "roifile", "roifile"),
    "csv": Format(write_csv, ".csv", "skimage", "scikit-image"),
    "overlay": Format(write_overlay, ".png"),
}


def check_packages(names: Sequence[str]) -> None:
    """Refuse formats whose packages are not installed, as a UserError that names pip's line."""
    raise_all(
        f"--to {name}: needs the package {FORMATS[name].install}, but got none. "
        "Install it: pip install 'cellseg-search[outputs]'."
        for name in names
        if (package := FORMATS[name].package) is not None and find_spec(package) is None
    )


def file_of(out: Path, kind: str, name: str) -> Path:
    """Return the file that a format writes for an image."""
    return out / kind / f"{name}{FORMATS[kind].suffix}"


def join_outputs(
    out: Path,
    kinds: Sequence[str],
    names: Sequence[str],
    image_ids: Sequence[int],
    class_names: Sequence[str],
    category_ids: Sequence[int],
) -> list[Path]:
    """Join the tables and COCO files of all images; return the files written.

    Args:
        names: of the images that have their files.
        image_ids: COCO's id of each.
    """
    written = []
    if "csv" in kinds:
        written.append(out / "cells.csv")
        join_tables(written[-1], [(name, file_of(out, "csv", name)) for name in names])
    if "coco" in kinds:
        files = [file_of(out, "coco", name) for name in names]
        written += [out / "coco.json", out / "coco_results.json"]
        join_coco(written[-2], written[-1], files, image_ids, _categories(class_names, category_ids))
    return written


def join_coco(
    dataset: Path, results: Path, files: Sequence[Path], image_ids: Sequence[int], categories: list[dict[str, Any]]
) -> None:
    """Join the COCO files of several images: a data set with annotations, and a list of results.

    Annotations are passed on one image at a time.
    """
    images = []
    number = 0
    with (
        atomic_path(dataset) as new_dataset,
        atomic_path(results) as new_results,
        new_dataset.open("w", encoding="utf-8") as annotations_file,
        new_results.open("w", encoding="utf-8") as results_file,
    ):
        annotations_file.write('{"categories": ' + json.dumps(categories) + ',\n"annotations": [')
        results_file.write("[")
        for image_id, path in zip(image_ids, files, strict=True):
            content = json.loads(path.read_text(encoding="utf-8"))
            images.append(content["images"][0] | {"id": image_id})
            for annotation in content["annotations"]:
                number += 1
                separator = ",\n" if number > 1 else "\n"
                record = annotation | {"id": number, "image_id": image_id}
                annotations_file.write(separator + json.dumps(record))
                result = {key: record[key] for key in ("image_id", "category_id", "bbox", "score", "segmentation")}
                results_file.write(separator + json.dumps(result))
        annotations_file.write('\n],\n"images": ' + json.dumps(images) + "}\n")
        results_file.write("\n]\n")
