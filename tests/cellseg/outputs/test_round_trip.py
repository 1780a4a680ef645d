"""What ``predict`` writes, ``import`` reads: the same cells, classes and areas, but for the loss that the docs name."""

import shutil
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from cellseg.config import DataConfig
from cellseg.data import import_labels
from cellseg.data.dataset import open_dataset
from cellseg.inference.outputs.writers import FORMATS, file_of


def written(kind: str, image_cells, folder: Path) -> Path:
    """A folder with the image and what was written for it, as their users lay them side by side."""
    out = folder / "predictions"
    path = file_of(out, kind, image_cells.name)
    FORMATS[kind].write(image_cells, image_cells.image_HWC, path)
    source = folder / "source"
    beside = {"labels": source / "masks", "coco": source, "geojson": source / "images", "roi": source / "images"}
    for place in (source / "images", beside[kind]):
        place.mkdir(parents=True, exist_ok=True)
    (source / "images" / image_cells.path.name).write_bytes(imagecodecs.png_encode(image_cells.image_HWC))
    shutil.copy(path, beside[kind] / path.name)
    return source


def cells_of(root: Path) -> dict[tuple[str, bytes], int]:
    """(class, mask) -> area of every cell of a data set with one image."""
    dataset = open_dataset(DataConfig(root=str(root)))
    (source,) = dataset.sources
    sample = source.load()
    masks = {}
    for number, label in enumerate(sample.labels_N, start=1):
        mask_HW = (sample.planes_PHW == number).any(axis=0)
        masks[dataset.class_names[label - 1], mask_HW.tobytes()] = int(mask_HW.sum())
    return masks


@pytest.mark.parametrize("kind", ["labels", "coco", "geojson", "roi"])
def test_cells_come_back_with_their_pixels_and_classes(kind, image_cells, odd_masks, tmp_path, capsys):
    source = written(kind, image_cells, tmp_path)
    assert import_labels.main([str(source), str(tmp_path / "dest")]) == 0, capsys.readouterr().err
    names = ["cell"] * 6 if kind == "labels" else ["nucleus", "Zelle, groß"] * 3  # label images hold no classes
    expected = {(name, mask.tobytes()): int(mask.sum()) for name, mask in zip(names, odd_masks, strict=True)}
    assert cells_of(source) == expected
    assert cells_of(tmp_path / "dest") == expected


def test_the_joined_coco_file_of_a_folder_is_a_data_set_too(image_cells, odd_masks, tmp_path):
    out = tmp_path / "source"
    FORMATS["coco"].write(image_cells, image_cells.image_HWC, file_of(out, "coco", image_cells.name))
    (out / "slide.png").write_bytes(imagecodecs.png_encode(image_cells.image_HWC))
    assert sum(cells_of(out).values()) == sum(int(mask.sum()) for mask in odd_masks)


def test_overlapping_cells_come_back_whole_except_from_label_images(tmp_path):
    from shapes import detections, disc

    from cellseg.inference.outputs.cells import ImageCells

    low, high = disc(40, 50, 20, 18, 8), disc(40, 50, 20, 28, 8)
    image_HWC = np.zeros((40, 50, 3), np.uint8)
    cells = ImageCells.of("a", Path("a.png"), image_HWC, detections(high, low), ("nucleus",), (1,))
    areas = {}
    for kind in ("labels", "coco", "geojson", "roi"):
        areas[kind] = sorted(cells_of(written(kind, cells, tmp_path / kind)).values())
    assert areas["coco"] == areas["geojson"] == areas["roi"]
    assert sum(areas["labels"]) == int((low | high).sum())
