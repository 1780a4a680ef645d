"""Files of outlines, as labelme, QuPath, ImageJ, YOLO, CVAT and the VGG Image Annotator write them."""

import base64
import csv
import gzip
import io
import json
import unicodedata
import zipfile

import imagecodecs
import numpy as np
import pytest
import roifile
import shapely
from importing_cells import HEIGHT, POLYGONS, WIDTH, assert_cells, expected_cells, image_of, pixels_of, write_image

from cellseg.config import DataConfig
from cellseg.data import check, import_labels
from cellseg.data.dataset import open_dataset
from cellseg.data.packed import open_packed
from cellseg.data.split import split
from cellseg.errors import UserError


def problems_of(root, **settings):
    """What keeps a folder from being used."""
    with pytest.raises(UserError) as caught:
        for source in open_dataset(DataConfig(root=str(root), **settings)).sources:
            source.load()
    return caught.value.problems


# labelme


def shape(label, points, kind="polygon", group=None, **more):
    return {
        "label": label,
        "points": [list(point) for point in points],
        "group_id": group,
        "description": "",
        "shape_type": kind,
        "flags": {},
        "mask": None,
        **more,
    }


def labelme(image="a.png", shapes=None, **changes):
    """A file as labelme 5 saves it."""
    shapes = [shape(name, outline) for name, outline in POLYGONS.items()] if shapes is None else shapes
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": image,
        "imageData": base64.b64encode(imagecodecs.png_encode(image_of())).decode(),
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
        **changes,
    }


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


@pytest.mark.parametrize(
    ("image", "json_file", "image_path"),
    [
        ("a.png", "a.json", "a.png"),
        ("images/a 1.JPG", "labels/a 1.json", "..\\images\\a 1.JPG"),
        ("images/a.png", "labels/a.json", "C:\\Users\\me\\Desktop\\a.png"),
        ("deep/er/a.tif", "deep/er/a.json", "/home/me/a.tif"),
        ("renamed.png", "renamed.json", "before.png"),
    ],
)
def test_labelme_finds_its_image_wherever_it_was_annotated(tmp_path, imported, image, json_file, image_path):
    root = tmp_path / "in"
    write_image(root / image)
    write_json(root / json_file, labelme(image_path))
    (cells,) = imported(root).values()
    assert_cells(cells, expected_cells())


def test_labelme_may_hold_the_image_itself(tmp_path, imported):
    root = tmp_path / "in"
    write_json(root / "a.json", labelme("elsewhere.jpg"))
    assert_cells(imported(root)["a"], expected_cells())
    (image,) = (tmp_path / "imported" / "images").iterdir()
    assert image.name == "a.png"
    np.testing.assert_array_equal(imagecodecs.png_decode(image.read_bytes()), image_of())
    write_json(root / "b.json", labelme("elsewhere.jpg", imageData=None))
    (problem,) = problems_of(root)
    assert "b.json: must lie beside its image, elsewhere.jpg, and has no imageData" in problem


def test_every_shape_of_labelme_becomes_its_pixels(tmp_path, imported, capsys):
    root = tmp_path / "in"
    write_image(root / "a.png")
    mask = np.zeros((7, 9), np.uint8)
    mask[1:5, 2:8] = 255
    png = base64.b64encode(imagecodecs.png_encode(mask)).decode()
    shapes = [
        shape("box", [(30, 20), (10, 4)], "rectangle"),
        shape("round", [(40, 24), (50, 24)], "circle"),
        shape("painted", [(20, 30), (28, 36)], "mask", mask=png),
        shape("two parts", [(1, 1), (4, 1), (4, 4), (1, 4)], group=7),
        shape("two parts", [(50, 1), (54, 1), (54, 4), (50, 4)], group=7),
        shape("two parts", [(1, 40), (4, 40), (4, 44)], group=8),
        {"label": "old", "points": [[55, 40], [60, 40], [60, 46]], "line_color": None},
        shape("seed", [(3, 3)], "point"),
        shape("scale", [(3, 3), (5, 5)], "line"),
    ]
    write_json(root / "a.json", labelme(shapes=shapes))
    cells = imported(root)["a"]
    painted = np.zeros((HEIGHT, WIDTH), bool)
    painted[30:37, 20:29] = mask > 0
    two_parts = pixels_of(shapely.union(shapely.box(1, 1, 4, 4), shapely.box(50, 1, 54, 4)))
    assert_cells(
        cells,
        {
            "box": [pixels_of(shapely.box(10, 4, 30, 20))],
            "round": [pixels_of(shapely.Point(40, 24).buffer(10, quad_segs=500))],
            "painted": [painted],
            "two parts": [two_parts, pixels_of([(1, 40), (4, 40), (4, 44)])],
            "old": [pixels_of([(55, 40), (60, 40), (60, 46)])],
        },
    )
    note = next(line for line in capsys.readouterr().out.splitlines() if "left out" in line)
    assert "1 shapes of type line, which enclose no cell, 1 shapes of type point" in note


def test_all_problems_of_labelmes_files_come_at_once(tmp_path):
    for name in "abcd":
        write_image(tmp_path / f"{name}.png", ord(name))
    write_json(
        tmp_path / "a.json", labelme("a.png", [shape("x", [(1, 2)]), shape("", [(1, 2)]), shape("x", [], "magic")])
    )
    write_json(tmp_path / "b.json", labelme("b.png", {}))
    (tmp_path / "c.json").write_text('{"shapes": [], "imagePath": "c.png"')
    write_json(tmp_path / "d.json", labelme("a.png", imageWidth=9))
    problems = problems_of(tmp_path)
    assert len(problems) == 5
    assert "a.json: shapes[0]: an outline must have at least three points" in problems[0]
    assert "a.json: shapes[1]: must have a label" in problems[1]
    assert "a.json: shapes[2]: shape_type must be polygon, rectangle, circle or mask, but got 'magic'" in problems[2]
    assert "b.json: must be a mapping with a list 'shapes'" in problems[3]
    assert "c.json: must be valid JSON" in problems[4]


def test_an_image_of_another_size_than_labelme_saw_is_refused(tmp_path):
    write_image(tmp_path / "a.png")
    write_json(tmp_path / "a.json", labelme(imageWidth=32))
    (problem,) = problems_of(tmp_path)
    assert "a.png: must have the size that its annotations state, 48 x 32, but got 48 x 64" in problem


# QuPath


def feature(outline, name=None, kind="annotation", **more):
    """An object as QuPath 0.5 writes it."""
    geometry = outline if isinstance(outline, dict) else {"type": "Polygon", "coordinates": [[*outline, outline[0]]]}
    properties = {"objectType": kind, "isLocked": False}
    if name is not None:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    return {
        "type": "Feature",
        "id": "8a3a1c32-6a1c-4a33-8a5e-6f3b1a0a41f1",
        "geometry": geometry,
        "properties": properties | more,
    }


FEATURES = [feature(outline, name) for name, outline in POLYGONS.items()]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.geojson", {"type": "FeatureCollection", "features": FEATURES}),
        ("a.tif.geojson", {"type": "FeatureCollection", "features": FEATURES}),
        ("export/a.geojson", FEATURES),
        ("a.json", FEATURES),
        ("a.geojson.gz", {"type": "FeatureCollection", "features": FEATURES}),
    ],
)
def test_geojson_of_qupath_in_every_form(tmp_path, imported, name, content):
    root = tmp_path / "in"
    write_image(root / "a.tif")
    (root / name).parent.mkdir(exist_ok=True)
    text = json.dumps(content).encode()
    (root / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    assert_cells(imported(root)["a"], expected_cells())


def test_geojson_of_ome_tiffs(tmp_path, imported):
    root = tmp_path / "in"
    write_image(root / "slide 1.ome.tif")
    write_json(root / "slide 1.ome.tif.geojson", FEATURES)
    (cells,) = imported(root).values()
    assert_cells(cells, expected_cells())


def test_holes_and_parts_of_geojson_are_kept(tmp_path, imported):
    root = tmp_path / "in"
    write_image(root / "a.png")
    ring = shapely.Point(30, 24).buffer(15) - shapely.Point(30, 24).buffer(6)
    parts = shapely.union(shapely.box(1, 1, 5, 6), ring)
    write_json(root / "a.geojson", [feature(shapely.geometry.mapping(each), "x") for each in (ring, parts)])
    assert_cells(imported(root)["a"], {"x": [pixels_of(ring), pixels_of(parts)]})


def test_cells_count_where_qupath_has_cells_and_regions(tmp_path, imported, capsys):
    root = tmp_path / "in"
    write_image(root / "a.png")
    everything = [(0, 0), (WIDTH, 0), (WIDTH, HEIGHT), (0, HEIGHT)]
    nucleus = {"type": "Polygon", "coordinates": [[[10, 9], [12, 9], [12, 12], [10, 9]]]}
    tumor, immune = POLYGONS.values()
    cells = [
        feature(everything, "Region*"),
        feature(everything, "Tissue"),
        feature(tumor, "tumor", "cell") | {"nucleusGeometry": nucleus},
        feature(immune, None, "detection", classification={"names": ["immune cell", "CD8"], "color": [0, 0, 1]}),
        feature({"type": "Point", "coordinates": [3, 4]}, "tumor"),
        feature(tumor, "tumor", "tile"),
    ]
    write_json(root / "a.geojson", {"type": "FeatureCollection", "features": cells})
    assert_cells(imported(root)["a"], {"tumor": [pixels_of(tumor)], "immune cell: CD8": [pixels_of(immune)]})
    text = capsys.readouterr().out
    for reason in (
        "class Region*, which QuPath ignores",
        "1 annotations, as there are cells",
        "type Point",
        "type tile",
    ):
        assert reason in text


def test_older_qupath_names_the_kind_in_the_id(tmp_path, imported):
    root = tmp_path / "in"
    write_image(root / "a.png")
    old = [
        {"type": "Feature", "id": f"Path{kind}Object", "geometry": feature(outline)["geometry"], "properties": {}}
        for kind, outline in zip(("Annotation", "Cell"), POLYGONS.values(), strict=True)
    ]
    write_json(root / "a.geojson", old)
    assert_cells(imported(root)["a"], {"cell": [pixels_of(POLYGONS["immune cell"])]})


def test_all_problems_of_geojson_come_at_once(tmp_path):
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "b.png", 1)
    write_image(tmp_path / "c.png", 2)
    broken = [feature({"type": "Polygon", "coordinates": [[[1, 2]]]}), {"type": "Feature"}, feature({"type": "Circle"})]
    write_json(tmp_path / "a.geojson", broken)
    (tmp_path / "b.geojson.gz").write_bytes(gzip.compress(b"[]")[:9])
    write_json(tmp_path / "other.geojson", FEATURES)
    problems = problems_of(tmp_path)
    assert len(problems) == 5
    assert "a.geojson: feature 0: an outline must have at least three points" in problems[0]
    assert "a.geojson: feature 1: must have a geometry" in problems[1]
    assert "a.geojson: feature 2: geometry must be a polygon" in problems[2]
    assert "b.geojson.gz: must be a readable file" in problems[3]
    assert "other.geojson: must have an image of its name, other.tif" in problems[4]


# ImageJ


def roi_of(points, group=0):
    roi = roifile.ImagejRoi.frompoints(np.array(points, dtype=np.float32))
    roi.group = group
    return roi


def write_rois(path, rois, **names):
    """A zip as ImageJ's ROI Manager saves it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for index, roi in enumerate(rois):
            archive.writestr(f"{index:04d}-0012-0034.roi", roi.tobytes())


SUBPIXEL = [roi_of(outline, group=number) for number, outline in enumerate(POLYGONS.values(), start=1)]


@pytest.mark.parametrize("name", ["a.zip", "a_rois.zip", "RoiSet_a.zip", "a.tif.zip", "RoiSet.zip", "rois/a.zip"])
def test_the_zip_of_the_roi_manager_is_found(tmp_path, imported, name):
    root = tmp_path / "in"
    write_image(root / "a.tif")
    write_rois(root / name, SUBPIXEL)
    tumor, immune = (pixels_of(outline) for outline in POLYGONS.values())
    assert_cells(imported(root)["a"], {"group 1": [tumor], "group 2": [immune]})


def test_single_roi_files_are_joined_only_if_they_are_all(tmp_path, imported):
    root = tmp_path / "in"
    write_image(root / "a.tif")
    (root / "a.roi").write_bytes(roi_of(POLYGONS["tumor"]).tobytes())
    assert_cells(imported(root)["a"], {"cell": [pixels_of(POLYGONS["tumor"])]})
    write_rois(root / "a.zip", SUBPIXEL)
    (problem,) = problems_of(root)
    assert "a.tif: must have one file of selections, but got a.roi and a.zip" in problem


def test_every_selection_of_imagej_becomes_its_pixels(tmp_path, imported, capsys):
    root = tmp_path / "in"
    write_image(root / "a.png")
    kind = roifile.ROI_TYPE
    bounds = {"top": 5, "left": 8, "bottom": 25, "right": 38}
    traced = roi_of([(1, 30), (6, 30), (6, 34), (9, 34), (9, 40), (1, 40)])
    traced.roitype, traced.subpixel_coordinates = kind.TRACED, None
    traced.options = roifile.ROI_OPTIONS.NONE
    traced.integer_coordinates = np.array([(0, 0), (5, 0), (5, 4), (8, 4), (8, 10), (0, 10)], np.int32)
    traced.left, traced.top, traced.right, traced.bottom = 1, 30, 9, 40
    composite = roifile.ImagejRoi(roitype=kind.RECT, top=2, left=40, bottom=22, right=60)
    path = []
    for x1, y1, x2, y2 in ((40, 2, 60, 22), (45, 6, 55, 12)):
        path += [0, x1, y1, 1, x2, y1, 1, x2, y2, 1, x1, y2, 4]
    composite.multi_coordinates = np.array(path, np.float32)
    composite.shape_roi_size = len(path)
    named = roifile.ImagejRoi(roitype=kind.RECT, **bounds)
    named.props = "class: immune cell\nscore: 0.75\n"
    rois = [
        roifile.ImagejRoi(roitype=kind.OVAL, group=1, **bounds),
        traced,
        composite,
        named,
        roifile.ImagejRoi(roitype=kind.LINE, x1=1, y1=1, x2=9, y2=9),
        roi_of([(3, 4)]),
    ]
    rois[-1].roitype = kind.POINT
    write_rois(root / "a.zip", rois)
    cells = imported(root)["a"]
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    oval = ((columns - 23) / 15) ** 2 + ((rows - 15) / 10) ** 2 <= 1
    area = pixels_of([(1, 30), (6, 30), (6, 34), (9, 34), (9, 40), (1, 40)])
    frame = pixels_of(shapely.box(40, 2, 60, 22) - shapely.box(45, 6, 55, 12))
    assert_cells(
        cells, {"group 1": [oval], "cell": [area, frame], "immune cell": [pixels_of(shapely.box(8, 5, 38, 25))]}
    )
    text = capsys.readouterr().out
    assert "1 selections of type line, which enclose no cell, 1 selections of type point" in text


def test_damaged_selections_are_listed(tmp_path):
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "b.png", 1)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1.roi", SUBPIXEL[0].tobytes()[:70])
        archive.writestr("2.roi", b"nothing")
        archive.writestr("3.roi", SUBPIXEL[1].tobytes())
    (tmp_path / "b.roi").write_bytes(b"Iout")
    problems = problems_of(tmp_path)
    assert [problem.split("/")[-1].split(": must")[0] for problem in problems] == [
        "a.zip: 1.roi",
        "a.zip: 2.roi",
        "b.roi: b.roi",
    ]


@pytest.mark.parametrize(("layout", "package"), [("imagej", "roifile"), ("cvat", "defusedxml")])
def test_a_missing_package_is_named_with_the_line_that_installs_it(tmp_path, monkeypatch, layout, package):
    write_image(tmp_path / "a.png")
    write_rois(tmp_path / "a.zip", SUBPIXEL)
    (tmp_path / "annotations.xml").write_text("<annotations></annotations>")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else object())
    (problem,) = problems_of(tmp_path, layout=layout)
    assert f"needs the package {package}, but got none. Install it: pip install 'cellseg-search[import]'" in problem


# YOLO


def yolo_line(number, outline):
    return " ".join([str(number), *(f"{x / WIDTH:.8f} {y / HEIGHT:.8f}" for x, y in outline)])


LINES = "\n".join(yolo_line(number, outline) for number, outline in zip((0, 2), POLYGONS.values(), strict=True)) + "\n"
NAMES = (
    "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 3\nnames: [tumor, unused, immune cell]\n"
)


def test_a_roboflow_export_for_yolo(tmp_path, capsys):
    root = tmp_path / "in"
    root.mkdir()
    (root / "data.yaml").write_text(NAMES)
    (root / "README.roboflow.txt").write_text("exported")
    for part, count in (("train", 3), ("valid", 1), ("test", 1)):
        for index in range(count):
            write_image(root / part / "images" / f"{part}{index}_jpg.rf.0a1b.jpg", index)
            (root / part / "labels").mkdir(exist_ok=True)
            (root / part / "labels" / f"{part}{index}_jpg.rf.0a1b.txt").write_text(LINES if index < 2 else "")
    assert import_labels.main([str(root), str(tmp_path / "out")]) == 0
    assert "the folder test holds 1 test image," in capsys.readouterr().out
    dataset = open_dataset(DataConfig(root=str(root)))
    assert dataset.class_names == ("tumor", "unused", "immune cell")
    assert dataset.category_ids == (0, 1, 2)
    assert [len(source.load().labels_N) for source in dataset.sources] == [2, 2, 0, 2]


@pytest.mark.parametrize("names", ["names:\n  0: tumor\n  2: immune cell\n", None])
def test_yolos_outlines_become_their_pixels(tmp_path, imported, names):
    root = tmp_path / "in"
    write_image(root / "images" / "a.png")
    (root / "labels").mkdir()
    (root / "labels" / "a.txt").write_text(LINES)
    if names:
        (root / "data.yaml").write_text(names)
    else:
        (root / "classes.txt").write_text("tumor\nunused\nimmune cell\n")
    cells = imported(root)["a"]
    assert_cells(cells, expected_cells())


def test_problems_of_yolos_files_come_at_once(tmp_path):
    for index, text in enumerate(
        (LINES + "0 0.5 0.5 0.1 x\n", yolo_line(7, POLYGONS["tumor"]), "1 10 20 30 40 50 60\n")
    ):
        write_image(tmp_path / f"{index}.png", index)
        (tmp_path / f"{index}.txt").write_text(text)
    (tmp_path / "data.yaml").write_text(NAMES)
    problems = problems_of(tmp_path)
    assert len(problems) == 3
    assert "0.txt: line 3: must be a class number and x, y pairs" in problems[0]
    assert "2.txt: line 1: must have coordinates from 0 to 1" in problems[1]
    assert "data.yaml: must name every class, but got none for 7" in problems[2]


def test_boxes_are_no_outlines(tmp_path):
    write_image(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    assert "must hold outlines, but got 1 boxes and none" in problems_of(tmp_path)[0]


# CVAT

CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><id>3</id><name>cells</name><size>2</size><labels>
    <label><name>tumor</name><color>#ff0000</color><type>any</type><attributes></attributes></label>
    <label><name>immune cell</name><color>#00ff00</color><type>any</type><attributes></attributes></label>
  </labels></task><dumped>2026-01-02</dumped></meta>
  <image id="0" name="{name}" width="{width}" height="{height}">
    {shapes}
  </image>
  <image id="1" name="empty.png" width="{width}" height="{height}">
  </image>
</annotations>
"""


def cvat_polygon(label, outline, **attributes):
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in outline)
    more = "".join(f' {name}="{value}"' for name, value in attributes.items())
    return f'<polygon label="{label}" source="manual" occluded="0" points="{points}" z_order="0"{more}></polygon>'


def write_cvat(root, *shapes, name="sub/a.png", **changes):
    write_image(root / "images" / "sub" / "a.png")
    write_image(root / "images" / "empty.png", 1)
    values = {"name": name, "width": WIDTH, "height": HEIGHT, "shapes": "\n".join(shapes)} | changes
    (root / "annotations.xml").write_text(CVAT.format(**values))


def test_the_xml_of_cvat_with_polygons_masks_and_ellipses(tmp_path, imported, capsys):
    root = tmp_path / "in"
    mask = expected_cells()["immune cell"][0][5:30, 28:55]
    flat = mask.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]]).astype(int)))
    runs = np.diff(np.concatenate([[0], edges, [flat.size]]))
    runs = runs[:-1] if runs[-1] == 0 else runs
    write_cvat(
        root,
        cvat_polygon("tumor", POLYGONS["tumor"]),
        f'<mask label="immune cell" occluded="0" rle="{", ".join(map(str, runs))}" left="28" top="5" width="27" '
        'height="25" z_order="0"></mask>',
        '<ellipse label="tumor" occluded="0" cx="50" cy="36" rx="8.5" ry="4" rotation="30.0"></ellipse>',
        '<box label="tumor" xtl="1" ytl="1" xbr="5" ybr="5"></box>',
        cvat_polygon("tumor", [(1, 40), (4, 40), (4, 46)], group_id=2),
        cvat_polygon("tumor", [(6, 40), (9, 40), (9, 46)], group_id=2),
        '<tag label="tumor"></tag>',
    )
    cells = imported(root)
    assert list(cells) == ["empty", "sub/a"]
    assert cells["empty"] == {}
    ellipse = shapely.affinity.rotate(shapely.affinity.scale(shapely.Point(0, 0).buffer(1, 500), 8.5, 4), 30, (0, 0))
    grouped = shapely.union(shapely.Polygon([(1, 40), (4, 40), (4, 46)]), shapely.Polygon([(6, 40), (9, 40), (9, 46)]))
    tumors = [POLYGONS["tumor"], shapely.affinity.translate(ellipse, 50, 36), grouped]
    expected = {"tumor": [pixels_of(each) for each in tumors], "immune cell": expected_cells()["immune cell"]}
    assert_cells(cells["sub/a"], expected)
    assert "1 shapes of type box, which have no outline" in capsys.readouterr().out


def test_xml_with_entities_is_refused(tmp_path):
    write_cvat(tmp_path)
    text = (tmp_path / "annotations.xml").read_text()
    bomb = '<!DOCTYPE a [<!ENTITY b "bbb">]>\n<annotations>'
    (tmp_path / "annotations.xml").write_text(text.replace("<annotations>", bomb, 1))
    assert "annotations.xml: must be valid XML without entities" in problems_of(tmp_path)[0]


def test_problems_of_cvats_file_come_at_once(tmp_path):
    write_cvat(
        tmp_path,
        cvat_polygon("tumor", [(1, 2), (3, 4)]),
        '<mask label="tumor" rle="3, 4" left="0" top="0" width="5" height="5"></mask>',
        '<ellipse label="tumor" cx="1" cy="x" rx="1" ry="2"></ellipse>',
    )
    problems = problems_of(tmp_path)
    assert [problem.split("sub/a.png: ")[1].split(":")[0] for problem in problems] == [
        "polygon 0",
        "mask 1",
        "ellipse 2",
    ]
    write_cvat(tmp_path, name="absent.png")
    assert "but got no absent.png. Copy it there" in problems_of(tmp_path)[0]


# VGG Image Annotator


def via_regions(**attributes):
    regions = [
        {
            "shape_attributes": {
                "name": "polygon",
                "all_points_x": [x for x, _ in outline],
                "all_points_y": [y for _, y in outline],
            },
            "region_attributes": {"kind of cell": name, **attributes},
        }
        for name, outline in POLYGONS.items()
    ]
    return [
        *regions,
        {"shape_attributes": {"name": "point", "cx": 3, "cy": 3}, "region_attributes": {}},
    ]


def via_image(name="a.png", regions=None):
    return {f"{name}1234": {"filename": name, "size": 1234, "regions": regions or via_regions(), "file_attributes": {}}}


@pytest.mark.parametrize(
    "content",
    [
        via_image(),
        {"_via_settings": {}, "_via_img_metadata": via_image(), "_via_attributes": {}},
        via_image(regions={str(index): region for index, region in enumerate(via_regions())}),
    ],
)
def test_json_of_the_vgg_image_annotator(tmp_path, imported, content):
    root = tmp_path / "in"
    write_image(root / "pictures" / "a.png")
    write_json(root / "via_region_data.json", content)
    assert_cells(imported(root)["a"], expected_cells())


def test_csv_of_the_vgg_image_annotator(tmp_path, imported):
    root = tmp_path / "in"
    write_image(root / "a.png")
    write_image(root / "b.png", 1)
    text = io.StringIO()
    writer = csv.writer(text)
    header = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    writer.writerow(header.split(","))
    regions = via_regions()
    for index, region in enumerate(regions):
        values = [json.dumps(region["shape_attributes"]), json.dumps(region["region_attributes"])]
        writer.writerow(["a.png", 1234, "{}", len(regions), index, *values])
    writer.writerow(["b.png", 1234, "{}", 0, 0, "{}", "{}"])
    (root / "via_export_csv.csv").write_text(text.getvalue())
    cells = imported(root)
    assert_cells(cells["a"], expected_cells())
    assert cells["b"] == {}


def test_a_class_among_several_attributes_is_chosen(tmp_path, imported, capsys):
    root = tmp_path / "in"
    write_image(root / "a.png")
    write_json(root / "via.json", via_image(regions=via_regions(quality={"good": True})))
    assert check.main([str(root)]) == 2
    error = capsys.readouterr().err
    assert "must be the class, but got kind of cell, quality. Name it: " in error
    assert_cells(imported(root, "--class-key", "kind of cell")["a"], expected_cells())


def test_the_other_shapes_of_the_vgg_image_annotator(tmp_path, imported):
    root = tmp_path / "in"
    write_image(root / "a.png")
    shapes = [
        {"name": "rect", "x": 3, "y": 4, "width": 10, "height": 6},
        {"name": "circle", "cx": 40, "cy": 20, "r": 7.5},
        {"name": "ellipse", "cx": 20, "cy": 36, "rx": 12, "ry": 5, "theta": 0.5},
    ]
    write_json(
        root / "via.json", via_image(regions=[{"shape_attributes": each, "region_attributes": {}} for each in shapes])
    )
    circle = shapely.Point(0, 0).buffer(1, 500)
    ellipse = shapely.affinity.rotate(shapely.affinity.scale(circle, 12, 5), 0.5, (0, 0), use_radians=True)
    expected = [
        shapely.box(3, 4, 13, 10),
        shapely.Point(40, 20).buffer(7.5, 500),
        shapely.affinity.translate(ellipse, 20, 36),
    ]
    assert_cells(imported(root)["a"], {"cell": [pixels_of(each) for each in expected]})


def test_outlines_without_a_pixel_are_left_out_and_told(tmp_path, capsys):
    write_image(tmp_path / "in" / "a.png")
    tiny = feature([(3.6, 3.6), (4.4, 3.6), (4.4, 4.4)], "x")
    write_json(tmp_path / "in" / "a.geojson", [*FEATURES, tiny, feature([(90, 90), (99, 90), (99, 99)], "x")])
    assert import_labels.main([str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert "a.png: 2 of 4 outlines cover no pixel of the image and were left out" in captured.err
    assert "  x: 0 cells" in captured.out


# What is recognised but not read


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        (
            "a.xml",
            "<annotation><object><name>x</name></object></annotation>",
            r"I see XML files of Pascal VOC \(1\): not read",
        ),
        ("a.xml", '<?xml version="1.0"?><Annotations MicronsPerPixel="1">', "of Aperio ImageScope.* export GeoJSON"),
        (
            "a.json",
            '[{"result": [{"from_name": "a", "to_name": "b"}]}]',
            "of Label Studio.* Export them as COCO or YOLO",
        ),
        ("a.json", '{"objects": [{"geometryType": "polygon"}]}', "JSON files of Supervisely"),
        ("a.czi", "x", r"I see 1 \.czi file: not read\. Save them as OME-TIFF"),
        ("a.svs", "x", r"I see 1 \.svs file: not read\. Export regions"),
        ("a.bmp", "x", r"1 \.bmp file: not read\. Save them as PNG"),
        ("a.txt", "x", r"It holds 1 \.png, 1 \.txt\. Check --data; .* --masks PATTERN"),
    ],
)
def test_what_is_not_read_is_named_with_the_way_out(tmp_path, name, content, match):
    write_image(tmp_path / "b.png")
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=match):
        open_dataset(DataConfig(root=str(tmp_path)))


def test_annotations_of_images_that_are_not_read_say_so(tmp_path):
    (tmp_path / "a.czi").write_bytes(b"x")
    write_json(tmp_path / "a.geojson", FEATURES)
    assert "I see 1 .czi file: not read. Save them as OME-TIFF" in problems_of(tmp_path)[0]


def test_a_folder_for_each_image_with_a_roi_set(tmp_path, imported):
    root = tmp_path / "in"
    for name in ("one", "two"):
        write_image(root / name / f"{name}.tif", len(name) + ord(name[0]))
        write_rois(root / name / "RoiSet.zip", SUBPIXEL)
    cells = imported(root)
    assert list(cells) == ["one/one", "two/two"]
    assert all(len(found) == 2 for found in cells.values())


def test_a_folder_of_another_tool_is_packed_for_a_search(tmp_path):
    for index in range(5):
        write_image(tmp_path / "in" / f"{index}.png", index)
        write_json(tmp_path / "in" / f"{index}.json", labelme(f"{index}.png"))
    data = DataConfig(root=str(tmp_path / "in"))
    packed = open_packed(data, tmp_path / "cache")
    assert packed.class_names == ("immune cell", "tumor")
    assert split(packed.label_counts, data).validation
    assert open_packed(data, tmp_path / "cache").fingerprint == packed.fingerprint
    write_json(tmp_path / "in" / "3.json", labelme("3.png", [shape("tumor", POLYGONS["tumor"])]))
    assert open_packed(data, tmp_path / "cache").fingerprint != packed.fingerprint


# What people's folders are like


def test_labels_that_labelme_ignores_are_left_out(tmp_path, imported, capsys):
    root = tmp_path / "in"
    write_image(root / "a.png")
    ignored = shape("__ignore__", [(1, 1), (9, 1), (9, 9)])
    write_json(root / "a.json", labelme(shapes=[ignored, shape("tumor", POLYGONS["tumor"])]))
    assert_cells(imported(root)["a"], {"tumor": [pixels_of(POLYGONS["tumor"])]})
    assert "1 shapes with the label __ignore__" in capsys.readouterr().out


def test_outlines_of_another_image_are_refused(tmp_path):
    write_image(tmp_path / "a.png")
    write_json(tmp_path / "a.geojson", [feature([(1000 + x, 900 + y) for x, y in POLYGONS["tumor"]], "tumor")])
    assert "a.png: must contain its outlines, but got 1 of which none covers a pixel of it" in problems_of(tmp_path)[0]


@pytest.mark.parametrize(
    "name",
    ["a_cells.geojson", "a.tif - Series 1.geojson", "a_RoiSet.zip", "a ROIs.zip", "RoiSet a.zip", "a.tif_rois.zip"],
)
def test_names_with_more_than_that_of_the_image(tmp_path, imported, name):
    root = tmp_path / "in"
    for image in ("a.tif", "ab.tif", "b.tif"):
        write_image(root / image, len(image) + ord(image[0]))
    if name.endswith("zip"):
        write_rois(root / name, SUBPIXEL)
    else:
        write_json(root / name, FEATURES)
    (cells,) = imported(root).values()
    assert sum(map(len, cells.values())) == 2
    assert (tmp_path / "imported" / "images" / "a.tif").is_file()


def test_accents_written_in_two_ways_are_the_same(tmp_path, imported):
    root = tmp_path / "in"
    write_image(root / unicodedata.normalize("NFD", "Zellen_ä.png"))
    name = unicodedata.normalize("NFC", "Zellen_ä.png")
    write_json(root / name.replace(".png", ".json"), labelme(name))
    (cells,) = imported(root).values()
    assert_cells(cells, expected_cells())


def test_json_with_a_mark_of_its_encoding_is_read(tmp_path, imported):
    root = tmp_path / "in"
    write_image(root / "a.png")
    (root / "a.json").write_text(json.dumps(labelme()), encoding="utf-8-sig")
    assert_cells(imported(root)["a"], expected_cells())


def test_the_subsets_of_a_cvat_project_may_repeat_names(tmp_path):
    images = ""
    for index, subset in enumerate(("Train", "Test")):
        write_image(tmp_path / "images" / subset / "a.png", index)
        shapes = cvat_polygon("tumor", POLYGONS["tumor"])
        images += f'<image id="{index}" name="a.png" subset="{subset}" width="64" height="48">{shapes}</image>'
    text = f"<annotations><version>1.1</version>{images}</annotations>"
    (tmp_path / "annotations.xml").write_text(text)
    dataset = open_dataset(DataConfig(root=str(tmp_path)))
    assert len(dataset.sources) == 1
    assert [test.file_name for test in dataset.tests] == ["images/Test/a.png"]
