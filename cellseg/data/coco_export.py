"""COCO annotation files, written from a data set of any layout."""

import json
from collections.abc import Sequence
from pathlib import Path

from cellseg.data.planes import read_instances
from cellseg.data.sample import Sample
from cellseg.data.source import Dataset, in_threads, relative_name
from cellseg.errors import UserError, raise_all
from cellseg.files import atomic_path


def write_coco(dataset: Dataset, path: Path) -> int:
    """Write all cells of ``dataset`` as a COCO annotation file; returns their number.

    ``file_name`` is relative to the data set's root. Masks are compressed RLE with text counts, boxes are x, y, width,
    height in pixels, ids count from 1. pycocotools loads the file, and so does
    :func:`cellseg.data.annotations.open_coco` with the same root. Categories keep the ids of ``dataset``.

    Raises:
        UserError: the problems of all samples, or ``path`` cannot be written.
    """
    images: list[dict] = []
    annotations: list[dict] = []
    problems: list[str] = []
    for image_id, (source, sample) in enumerate(in_threads(lambda source: source.load(), dataset.sources), start=1):
        if isinstance(sample, UserError):
            problems += sample.problems
            continue
        height, width = sample.size
        file_name = relative_name(source.files[0], dataset.root)
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        for annotation in sample_annotations(sample, dataset.category_ids):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **annotation})
    raise_all(problems)
    named = zip(dataset.category_ids, dataset.class_names, strict=True)
    categories = [{"id": category, "name": name} for category, name in named]
    content = {"images": images, "annotations": annotations, "categories": categories}
    with atomic_path(path) as temporary:
        # Not indented: with thousands of masks the file is read by programs only.
        temporary.write_text(json.dumps(content), encoding="utf-8")
    return len(annotations)


def sample_annotations(sample: Sample, category_ids: Sequence[int] | None = None) -> list[dict]:
    """Convert the cells of ``sample`` to COCO annotations without id and image_id, in the order of their numbers.

    ``category_ids``: the id of class 1, 2, ...; None: the class itself.
    """
    from cellseg.data.rle import encode_sample, to_json_rle

    cells = read_instances(sample.planes_PHW, sample.labels_N)
    return [
        {
            "category_id": int(label) if category_ids is None else category_ids[label - 1],
            "segmentation": to_json_rle(rle),
            "area": int(area),
            "bbox": [float(left), float(top), float(right - left), float(bottom - top)],
            "iscrowd": 0,
        }
        for (left, top, right, bottom), label, area, rle in zip(
            cells.boxes_N4, cells.labels_N, cells.areas_N, encode_sample(sample), strict=True
        )
    ]
