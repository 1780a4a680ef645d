"""Every format, read back by the library of the tool it is for: areas are those of the masks."""

import csv
import io
import json
import zipfile
from contextlib import redirect_stdout

import numpy as np
import pytest
import roifile
import shapely
import tifffile
from PIL import Image
from pycocotools.coco import COCO
from skimage.draw import polygon2mask
from skimage.measure import regionprops

from cellseg.data.detections import Detections
from cellseg.errors import UserError
from cellseg.inference.outputs import writers
from cellseg.inference.outputs.cells import ImageCells
from cellseg.inference.outputs.writers import FORMATS, check_packages, file_of, join_outputs


def write(kind, cells, out, values_HWS=None):
    path = file_of(out, kind, cells.name)
    FORMATS[kind].write(cells, cells.image_HWC if values_HWS is None else values_HWS, path)
    return path


def empty_cells(image_cells) -> ImageCells:
    found = Detections.empty((40, 50))
    return ImageCells.of("none", image_cells.path, image_cells.image_HWC, found, ("nucleus", "other"), (3, 7))


@pytest.mark.parametrize("kind", list(FORMATS))
def test_an_image_without_cells_has_its_file_too(kind, image_cells, tmp_path):
    path = write(kind, empty_cells(image_cells), tmp_path)
    assert path.stat().st_size > 0
    if kind == "labels":
        assert not tifffile.imread(path).any()


def test_a_label_image_has_a_number_per_cell(image_cells, odd_masks, tmp_path):
    labels_HW = tifffile.imread(write("labels", image_cells, tmp_path))
    assert labels_HW.dtype == np.uint16
    for number, mask_HW in enumerate(odd_masks, start=1):
        np.testing.assert_array_equal(labels_HW == number, mask_HW)


def test_more_cells_than_16_bits_can_number_are_written_with_32(image_cells, tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "MOST_SHORT_LABELS", 5)
    labels_HW = tifffile.imread(write("labels", image_cells, tmp_path))
    assert (labels_HW.dtype, labels_HW.max()) == (np.uint32, 6)


def test_geojson_features_are_detections_with_class_and_measurements(image_cells, odd_masks, tmp_path):
    content = json.loads(write("geojson", image_cells, tmp_path).read_text())
    assert content["type"] == "FeatureCollection"
    ys, xs = np.mgrid[:40, :50]
    for feature, mask_HW, name in zip(content["features"], odd_masks, ["nucleus", "Zelle, groß"] * 3, strict=True):
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid
        np.testing.assert_array_equal(shapely.contains_xy(shape, xs + 0.5, ys + 0.5), mask_HW)
        properties = feature["properties"]
        assert properties["objectType"] == "detection"
        assert properties["classification"]["name"] == name
        assert properties["measurements"]["Area px^2"] == shape.area == mask_HW.sum()
    assert len({feature["id"] for feature in content["features"]}) == len(odd_masks)
    kinds = [feature["geometry"]["type"] for feature in content["features"]]
    assert kinds == ["Polygon", "Polygon", "MultiPolygon", "MultiPolygon", "Polygon", "Polygon"]
    ring = content["features"][0]["geometry"]["coordinates"][0]
    assert ring[0] == ring[-1]


def test_imagej_regions_hold_the_masks_and_their_properties(image_cells, odd_masks, tmp_path):
    path = write("roi", image_cells, tmp_path)
    rois = roifile.roiread(path)
    assert [roi.name for roi in rois] == ["1", "2", "3", "4", "5", "6"]
    for roi, mask_HW in zip(rois, odd_masks, strict=True):
        drawn_HW = np.zeros((40, 50), bool)
        for ring in roi.coordinates(multi=True):
            # Rows and columns of pixel centres; what an even number of rings holds is a hole.
            drawn_HW ^= polygon2mask((40, 50), ring[:, ::-1] - 0.5)
        np.testing.assert_array_equal(drawn_HW, mask_HW)
        ys, xs = np.nonzero(mask_HW)
        assert (roi.left, roi.top, roi.right, roi.bottom) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    assert [roi.composite for roi in rois] == [False, True, True, True, False, False]
    assert rois[1].properties["class"] == "Zelle, groß" and rois[1].group == 2
    assert rois[0].properties["score"] == pytest.approx(0.9)
    assert rois[0].roitype == roifile.ROI_TYPE.TRACED


def test_an_image_beyond_imagejs_coordinates_is_refused(image_cells, tmp_path):
    wide = Detections.empty((2, 40_000))
    cells = ImageCells.of("wide", image_cells.path, np.zeros((2, 40_000, 3), np.uint8), wide, ("a",), (1,))
    with pytest.raises(UserError, match="at most 32767 px, but got 2 x 40000"):
        write("roi", cells, tmp_path)


def test_the_table_measures_each_cell_in_the_units_of_its_file(image_cells, odd_masks, tmp_path):
    values_HWS = np.random.default_rng(0).integers(0, 60_000, (40, 50, 1), dtype=np.uint16)
    path = write("csv", image_cells, tmp_path, values_HWS)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [*rows[0]] == [
        "id", "class", "score", "area", "centroid_x", "centroid_y", "perimeter", "eccentricity", "mean_intensity",
    ]  # fmt: skip
    assert [row["class"] for row in rows] == ["nucleus", "Zelle, groß"] * 3
    for row, mask_HW in zip(rows, odd_masks, strict=True):
        (region,) = regionprops(mask_HW.astype(np.uint8), intensity_image=values_HWS[..., 0])
        assert int(row["area"]) == region.area
        expected = [*region.centroid[::-1], region.perimeter, region.eccentricity, region.intensity_mean]
        got = [float(row[name]) for name in [*rows[0]][4:]]
        assert got == pytest.approx(expected, abs=1e-3)
    rgb = write("csv", image_cells, tmp_path).read_text().splitlines()[0]
    assert rgb.endswith("mean_intensity_0,mean_intensity_1,mean_intensity_2")


def test_coco_files_are_joined_with_the_images_ids(image_cells, odd_masks, tmp_path):
    other = ImageCells.of(
        "other", image_cells.path, image_cells.image_HWC, image_cells.cells, image_cells.class_names, (3, 7)
    )
    grey = np.zeros((40, 50, 1), np.uint8)
    for cells, values_HWS in ((image_cells, None), (empty_cells(image_cells), None), (other, grey)):
        write("coco", cells, tmp_path)
        write("csv", cells, tmp_path, values_HWS)
    written = join_outputs(
        tmp_path, ("csv", "coco"), ["slide", "none", "other"], [12, 5, 8], image_cells.class_names, (3, 7)
    )
    assert [path.name for path in written] == ["cells.csv", "coco.json", "coco_results.json"]
    with redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "coco.json"))
        results = truth.loadRes(str(tmp_path / "coco_results.json"))
    assert sorted(truth.imgs) == [5, 8, 12]
    assert [category["id"] for category in truth.dataset["categories"]] == [3, 7]
    for image_id in (12, 8):
        for loaded in (truth, results):
            annotations = loaded.loadAnns(loaded.getAnnIds([image_id]))
            for annotation, mask_HW in zip(annotations, odd_masks, strict=True):
                np.testing.assert_array_equal(loaded.annToMask(annotation), mask_HW)
                assert 0 < annotation["score"] <= 0.9
    assert [record["area"] for record in truth.loadAnns(truth.getAnnIds([8]))] == [mask.sum() for mask in odd_masks]
    assert [record["category_id"] for record in truth.loadAnns(truth.getAnnIds([12]))] == [3, 7] * 3
    with (tmp_path / "cells.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["slide"] * 6 + ["other"] * 6
    assert rows[-1]["mean_intensity"] == "0.0" and rows[-1]["mean_intensity_0"] == ""


def test_an_overlay_is_the_image_with_outlines(image_cells, tmp_path):
    with Image.open(write("overlay", image_cells, tmp_path)) as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert (86, 180, 233) in colours  # of the second class


def test_a_missing_package_is_one_line_with_pips_command(monkeypatch):
    monkeypatch.setattr(writers, "find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        check_packages(["labels", "roi", "csv"])
    assert error.value.problems == (
        "--to roi: needs the package roifile, but got none. Install it: pip install 'cellseg-search[outputs]'.",
        "--to csv: needs the package scikit-image, but got none. Install it: pip install 'cellseg-search[outputs]'.",
    )


def test_a_zip_is_the_same_for_the_same_cells(image_cells, tmp_path):
    with zipfile.ZipFile(write("roi", image_cells, tmp_path / "a")) as archive:
        first = [archive.read(name) for name in archive.namelist()]
    with zipfile.ZipFile(write("roi", image_cells, tmp_path / "b")) as archive:
        assert [archive.read(name) for name in archive.namelist()] == first
