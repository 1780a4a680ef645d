import json
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from cellseg.config import DataConfig
from cellseg.data import coco, coco_export
from cellseg.data.dataset import open_dataset
from cellseg.data.packed import open_packed
from cellseg.data.segmentation import decode_segmentation
from cellseg.errors import UserError

SQUARE = [2, 1, 6, 1, 6, 5, 2, 5]


@pytest.fixture
def make_coco(tmp_path):
    """Writes annotations of one 12 x 16 image; returns the root. ``changes`` replace top-level keys."""

    def make(*annotations: dict, folder: str = "images", **changes) -> Path:
        root = tmp_path / "coco"
        (root / folder).mkdir(parents=True)
        (root / folder / "a.png").write_bytes(imagecodecs.png_encode(np.full((12, 16, 3), 9, np.uint8)))
        content = {
            "images": [{"id": 7, "file_name": "a.png", "height": 12, "width": 16}],
            "categories": [{"id": 30, "name": "spindle"}, {"id": 4, "name": "round"}],
            "annotations": [
                {"id": number, "image_id": 7, "category_id": 4, **annotation}
                for number, annotation in enumerate(annotations, start=1)
            ],
            **changes,
        }
        (root / "annotations.json").write_text(json.dumps(content))
        return root

    return make


def _load(root):
    (source,) = open_dataset(DataConfig(root=str(root))).sources
    return source.load()


def _whole(segmentation, height, width):
    mask_hw, (top, left) = decode_segmentation(segmentation, height, width)
    whole_HW = np.zeros((height, width), bool)
    whole_HW[top : top + mask_hw.shape[0], left : left + mask_hw.shape[1]] = mask_hw
    return whole_HW


@pytest.mark.parametrize(
    "name",
    [
        "../../secret.png",
        "/etc/secret.png",
        "sub/../../secret.png",
        "..\\secret.png",
        "C:\\secret.png",
        "..",
        ".",
        "a\0b",
    ],
)
def test_an_image_outside_of_the_data_is_refused(make_coco, name):
    root = make_coco()
    secret = imagecodecs.png_encode(np.full((12, 16, 3), 77, np.uint8))
    (root.parent / "secret.png").write_bytes(secret)
    path = root / "annotations.json"
    content = json.loads(path.read_text())
    content["images"] += [{"id": 8, "file_name": name}, {"id": 9, "file_name": "../more.png"}]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as raised:
        open_dataset(DataConfig(root=str(root)))
    assert raised.value.problems == tuple(
        f"{path}: images[{index}]: file_name must name a file below the data folder, but got {wrong!r}. Remove '..' "
        "and leading slashes; a symbolic link inside the folder may point elsewhere."
        for index, wrong in ((1, name), (2, "../more.png"))
    )


def test_the_check_lists_every_image_outside_of_the_data(make_coco, capsys):
    from cellseg.data.check import main

    images = [{"id": number, "file_name": f"../{number}.png"} for number in range(3)]
    assert main([str(make_coco(images=images))]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("but got ")[1].split(".png")[0] for line in lines] == ["'../0", "'../1", "'../2"]


def test_a_symbolic_link_inside_the_data_may_point_elsewhere(make_coco):
    root = make_coco({"segmentation": [SQUARE]})
    elsewhere = root.parent / "store"
    (root / "images").rename(elsewhere)
    (root / "images").symlink_to(elsewhere)
    assert len(_load(root).labels_N) == 1


@pytest.mark.parametrize(
    ("polygon", "match"),
    [
        (
            [0, 0, 3e7, 0, 3e7, 3e7],
            "a polygon's x must lie from -160 to 176, around the image's 0 to 16, but got 3e\\+07",
        ),
        (
            [0, 0, 5, 0, 5, -1e300],
            "a polygon's y must lie from -120 to 132, around the image's 0 to 12, but got -1e\\+300",
        ),
    ],
)
def test_a_polygon_far_beyond_the_image_is_refused_before_it_is_drawn(polygon, match):
    with pytest.raises(ValueError, match=match):
        decode_segmentation([polygon], 12, 16)


def test_a_polygon_that_reaches_beyond_the_image_is_cut_off():
    assert _whole([[-150, -100, 170, -100, 170, 130, -150, 130]], 12, 16).all()


@pytest.mark.parametrize("counts", ["o" * 3_000_000, [10**30], "l" * 20 + "0"])
def test_runs_that_no_image_has_are_refused_at_once(counts):
    with pytest.raises(ValueError, match="RLE counts must"):
        decode_segmentation({"size": [12, 16], "counts": counts}, 12, 16)


def test_an_rle_of_terabytes_is_refused(make_coco):
    rle = {"size": [10**9, 10**9], "counts": [10**18]}
    with pytest.raises(UserError, match=r"RLE size must be that of the image, \[12, 16\], but got \[1000000000"):
        _load(make_coco({"segmentation": rle}))


def test_polygons_and_both_kinds_of_rle_become_cells_that_may_overlap(make_coco):
    mask = np.zeros((12, 16), np.uint8, order="F")
    mask[3:9, 4:12] = 1
    compressed = coco_mask.encode(mask)
    runs = np.diff(np.flatnonzero(np.diff(np.r_[2, mask.ravel("F"), 2]))).tolist()  # starts with background
    root = make_coco(
        {"segmentation": [SQUARE]},
        {"segmentation": {"size": [12, 16], "counts": compressed["counts"].decode()}, "category_id": 30},
        {"segmentation": {"size": [12, 16], "counts": runs}, "iscrowd": 0},
    )
    sample = _load(root)
    assert sample.name == "a"
    assert sample.labels_N.tolist() == [1, 2, 1]  # category ids in ascending order
    assert sample.planes_PHW.shape == (3, 12, 16)
    assert np.count_nonzero(sample.planes_PHW == 1) == 16
    for number in (2, 3):
        np.testing.assert_array_equal((sample.planes_PHW == number).any(axis=0), mask)


def test_names_of_categories_become_names_of_classes(make_coco):
    assert open_dataset(DataConfig(root=str(make_coco()))).class_names == ("round", "spindle")


def test_an_image_without_annotations_has_no_cells(make_coco):
    assert _load(make_coco()).labels_N.shape == (0,)


def test_crowds_are_skipped_and_counted(make_coco):
    crowd = {"segmentation": {"size": [12, 16], "counts": [0, 192]}, "iscrowd": 1}
    root = make_coco(crowd, {"segmentation": [SQUARE]}, crowd)
    dataset = open_dataset(DataConfig(root=str(root)))
    assert len(dataset.sources[0].load().labels_N) == 1
    assert "2 crowd annotations were skipped" in dataset.notes[0]


@pytest.mark.parametrize("folder", ["images", "train", "."])
def test_images_are_looked_up_in_the_usual_folders(make_coco, folder):
    assert _load(make_coco(folder=folder)).size == (12, 16)


def test_images_may_lie_beside_the_annotation_file(make_coco, tmp_path):
    root = make_coco(folder=".")
    (tmp_path / "empty").mkdir()
    data = DataConfig(root=str(tmp_path / "empty"), annotations=str(root / "annotations.json"))
    assert open_dataset(data).sources[0].load().size == (12, 16)


@pytest.mark.parametrize("offset", [-3.0, 0.0, 0.4, 7.5, 50.3, 90.0])
def test_polygons_cover_exactly_the_pixels_that_pycocotools_gives_them(offset):
    rng = np.random.default_rng(int(offset * 10) % 101)
    for _ in range(20):
        polygons = [(rng.uniform(0, 15, 12) + offset).tolist() for _ in range(2)]
        truth = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 100, 90))).astype(bool)
        if truth.any():
            np.testing.assert_array_equal(_whole(polygons, 100, 90), truth)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.97])
def test_compressed_rle_is_decoded_as_pycocotools_does(share):
    rng = np.random.default_rng(3)
    for height, width in ((1, 1), (7, 300), (300, 7), (60, 50)):
        mask = np.asfortranarray(rng.random((height, width)) < share).astype(np.uint8, order="F")
        if mask.any():
            counts = coco_mask.encode(mask)["counts"].decode()
            np.testing.assert_array_equal(_whole({"size": [height, width], "counts": counts}, height, width), mask)


@pytest.mark.parametrize(
    ("segmentation", "match"),
    [
        (None, "segmentation must be polygons or an RLE, but got None"),
        ([], "must cover a pixel of the image, but is empty"),
        ([[1, 2, 3, 4]], "at least three x, y pairs"),
        ([[1, 2, 3, 4, 5, 6, 7]], "at least three x, y pairs"),
        ([[1, 2, 3, 4, 5, float("nan")]], "of finite numbers"),
        ([[1, 2, 3, 4, 5, 10**400]], "of finite numbers"),
        ([["1", 2, 3, 4, 5, 6]], "of finite numbers"),
        ([1, 2, 3, 4, 5, 6], "a polygon must be a list"),
        ([[50, 50, 60, 50, 60, 60]], "must cover a pixel of the image, but covers none"),
        ([[-50, -50, -60, -50, -60, -60]], "must cover a pixel of the image, but covers none"),
        ({"size": [16, 12], "counts": [0, 192]}, r"RLE size must be that of the image, \[12, 16\], but got \[16, 12\]"),
        ({"size": [12, 16], "counts": [0, 191]}, "must add up to the image's 192 pixels, but got 191"),
        ({"size": [12, 16], "counts": [200, -8]}, "must be a list of whole numbers or COCO's string"),
        ({"size": [12, 16], "counts": "zzz~~"}, "must be a list of whole numbers or COCO's string"),
        ({"size": [12, 16], "counts": "zzzzzz"}, "must be a list of whole numbers or COCO's string"),
        ({"size": [12, 16], "counts": "01"}, "must add up to"),
        ({"size": [12, 16]}, "must be a list of whole numbers or COCO's string, but got 'None'"),
        ({"size": [12, 16], "counts": [192]}, "must cover a pixel of the image"),
    ],
)
def test_a_broken_segmentation_names_its_annotation(make_coco, segmentation, match):
    root = make_coco({"segmentation": [SQUARE]}, {"segmentation": segmentation})
    with pytest.raises(UserError, match=match) as caught:
        _load(root)
    assert str(caught.value).startswith(f"{root / 'annotations.json'}: annotation 2: ")


def test_all_broken_segmentations_of_an_image_are_told_at_once(make_coco):
    with pytest.raises(UserError) as caught:
        _load(make_coco({"segmentation": 1}, {"segmentation": [SQUARE]}, {}))
    assert [problem.split(": ")[1] for problem in caught.value.problems] == ["annotation 1", "annotation 3"]


@pytest.mark.parametrize(
    ("changes", "matches"),
    [
        (
            {"images": [{"id": 7, "file_name": "a.png", "height": 13, "width": 16}]},
            ["states, 13 x 16, but got 12 x 16"],
        ),
        ({"images": [{"id": 7, "file_name": "b.png"}]}, [r"none of 1 was found, as b\.png"]),
        ({"images": []}, ["images must not be empty"]),
        ({"categories": []}, ["categories must not be empty"]),
        (
            {"images": [{"id": "7", "file_name": 3}]},
            [r"images\[0\]: id must be a whole", r"file_name must be a string"],
        ),
        ({"annotations": [4]}, [r"annotations\[0\]: must be a mapping, but got 4"]),
        (
            {"annotations": [{"image_id": 1, "category_id": 4}, {"image_id": 7, "category_id": 5}]},
            ["image_id .* must be in images, but got 1 in 1", "category_id .* must be in categories, but got 5"],
        ),
        (
            {"images": [{"id": 7, "file_name": "a.png"}, {"id": 7, "file_name": "a.tif"}]},
            ["id must be unique, but got 7 2 times", "without suffix must be unique, but got 'a' 2 times"],
        ),
    ],
)
def test_a_malformed_annotation_file_is_explained(make_coco, changes, matches):
    root = make_coco(**changes)
    with pytest.raises(UserError) as caught:
        _load(root)
    assert len(caught.value.problems) == len(matches)
    for match in matches:
        assert caught.match(match)


def test_a_file_of_another_form_is_refused_when_named(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(UserError, match="must be a mapping with lists of images, annotations and categories"):
        open_dataset(DataConfig(root=str(tmp_path), annotations="a.json"))


def test_the_way_from_release_to_coco_and_back_keeps_every_mask_and_label(make_release, write_sample):
    root = make_release()
    ids_HW = np.zeros((24, 30))
    ids_HW[3:12, 3:12] = 4  # overlaps the next class's cell, and reaches no edge
    other_HW = np.zeros((24, 30))
    other_HW[8:, 8:] = 1  # reaches the bottom right corner
    write_sample(root / "train" / "s5", np.zeros((24, 30, 3), np.uint8), {1: ids_HW, 2: other_HW})
    write_sample(root / "train" / "s6", np.ones((24, 30, 3), np.uint8), {})
    out = root / "out.json"
    assert coco.main([str(root), str(out)]) == 0
    before = open_dataset(DataConfig(root=str(root)))
    after = open_dataset(DataConfig(root=str(root), annotations="out.json"))
    assert after.layout == "coco"
    assert after.class_names == before.class_names
    for source, again in zip(before.sources, after.sources, strict=True):
        sample, copy = source.load(), again.load()
        assert copy.name == f"train/{sample.name}/image"
        np.testing.assert_array_equal(copy.image_HWC, sample.image_HWC)
        np.testing.assert_array_equal(copy.planes_PHW, sample.planes_PHW)
        np.testing.assert_array_equal(copy.labels_N, sample.labels_N)


def test_the_written_file_is_what_pycocotools_expects(make_release, capsys):
    root = make_release()
    out = root.parent / "deep" / "out.json"
    assert coco.main([str(root), str(out)]) == 0
    assert "2 images, 6 cells, 3 classes" in capsys.readouterr().out
    index = COCO(str(out))
    assert sorted(index.imgs) == [1, 2]
    assert sorted(index.anns) == [1, 2, 3, 4, 5, 6]
    first = index.anns[1]
    assert first["bbox"] == [3, 2, 6, 6]
    assert (first["area"], first["iscrowd"], first["category_id"]) == (36, 0, 1)
    assert isinstance(first["segmentation"]["counts"], str)
    for annotation in index.anns.values():
        mask_HW = index.annToMask(annotation)
        assert mask_HW.sum() == annotation["area"]
        assert coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask_HW))).tolist() == annotation["bbox"]


def test_nothing_is_written_when_a_sample_is_broken(make_release, capsys):
    root = make_release(samples=3)
    for name in ("s0", "s2"):
        (root / "train" / name / "image.tif").write_bytes(b"II*\0")
    out = root.parent / "out.json"
    assert coco.main([str(root), str(out)]) == 2
    assert not out.exists()
    errors = capsys.readouterr().err.splitlines()
    assert [line.split("train/")[1][:2] for line in errors] == ["s0", "s2"]


def test_the_released_sample_survives_the_way_through_coco(shared_data, tmp_path):
    dataset = open_dataset(DataConfig(root=str(shared_data / "hw3-sample")))
    assert coco_export.write_coco(dataset, tmp_path / "out.json") == 161
    after = open_dataset(DataConfig(root=str(dataset.root), annotations=str(tmp_path / "out.json")))
    sample, copy = dataset.sources[0].load(), after.sources[0].load()
    np.testing.assert_array_equal(copy.planes_PHW, sample.planes_PHW)
    np.testing.assert_array_equal(copy.labels_N, sample.labels_N)


@pytest.mark.parametrize("ids", [(0, 7), (90, 0, 7), (3, 5, 1000)])
def test_category_ids_travel_from_annotations_to_packed_data_and_out_again(make_coco, tmp_path, ids):
    categories = [{"id": number, "name": f"kind {number}"} for number in ids]
    cells = [{"segmentation": [SQUARE], "category_id": number} for number in ids]
    root = make_coco(*cells, categories=categories)
    data = DataConfig(root=str(root))
    packed = open_packed(data, tmp_path / "cache")
    assert packed.category_ids == tuple(sorted(ids))
    assert packed.class_names == tuple(f"kind {number}" for number in sorted(ids))
    assert packed.labels(0).tolist() == [sorted(ids).index(number) + 1 for number in ids]
    coco_export.write_coco(open_dataset(data), root / "deep" / "out.json")
    content = json.loads((root / "deep" / "out.json").read_text())
    assert [annotation["category_id"] for annotation in content["annotations"]] == list(ids)
    assert content["categories"] == sorted(categories, key=lambda category: category["id"])


def test_the_classes_of_a_release_are_their_own_category_ids(make_release):
    assert open_dataset(DataConfig(root=str(make_release()))).category_ids == (1, 2, 3)
