"""COCO as CVAT and Roboflow export it: in folders of their own, with splits, and with habits of their own."""

import json
import shutil

import numpy as np
import pytest
from importing_cells import HEIGHT, POLYGONS, WIDTH, assert_cells, cells_of, expected_cells, write_image, write_mask
from pycocotools import mask as coco_mask

from cellseg.config import DataConfig
from cellseg.data import check, import_labels
from cellseg.data.dataset import open_dataset
from cellseg.data.packed import open_packed
from cellseg.data.split import split
from cellseg.data.testset import read_test_list
from cellseg.errors import UserError

TUMOR, IMMUNE = (expected_cells()[name][0] for name in POLYGONS)


def rle(mask):
    """Uncompressed run lengths, as CVAT writes them."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]]).astype(int)))
    runs = np.diff(np.concatenate([[0], edges, [flat.size]]))
    return {"counts": [int(run) for run in (runs[:-1] if runs[-1] == 0 else runs)], "size": [*mask.shape]}


def annotation(number, image, category, mask=TUMOR, **more):
    box = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)))
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": rle(mask),
        "area": float(mask.sum()),
        "bbox": [float(value) for value in box],
        "iscrowd": 0,
    } | more


def coco(names, categories=({"id": 1, "name": "tumor", "supercategory": ""},), annotations=None, **sizes):
    size = {"height": HEIGHT, "width": WIDTH} | sizes
    return {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "date_created": "", "description": "", "url": "", "version": "", "year": ""},
        "categories": list(categories),
        "images": [{"id": index, "file_name": name, **size} for index, name in enumerate(names, start=1)],
        "annotations": [annotation(index, index, categories[-1]["id"]) for index, _ in enumerate(names, start=1)]
        if annotations is None
        else annotations,
    }


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def opened(root, **settings):
    return open_dataset(DataConfig(root=str(root), **settings))


# CVAT


@pytest.mark.parametrize("images", ["images", "images/default", "images/sub folder", "elsewhere"])
def test_the_coco_export_of_cvat_is_found_with_its_images(tmp_path, images):
    name = "sub folder/a b.png" if images == "images/sub folder" else "a b.png"
    write(
        tmp_path / "annotations" / "instances_default.json",
        coco([name, "empty.png"], annotations=[annotation(1, 1, 1)]),
    )
    write_image(tmp_path / images / "a b.png")
    write_image(tmp_path / images / "empty.png", 1)
    dataset = opened(tmp_path)
    cells = {source.name: cells_of(source.load(), dataset.class_names) for source in dataset.sources}
    assert_cells(cells[name.removesuffix(".png")], {"tumor": [TUMOR]})
    assert cells["empty"] == {}
    assert check.main([str(tmp_path)]) == 0


def test_masks_of_cvats_brush_are_cells_although_they_are_written_as_crowds(tmp_path):
    attributes = {"attributes": {"occluded": False}}
    annotations = [
        annotation(1, 1, 1, iscrowd=1, **attributes),
        annotation(2, 1, 1, IMMUNE, iscrowd=1),  # no attributes: a crowd as COCO means it
        annotation(3, 1, 1, IMMUNE, iscrowd=1, attributes={"occluded": False, "is_crowd": True}),
    ]
    write(tmp_path / "annotations" / "instances_default.json", coco(["a.png"], annotations=annotations))
    write_image(tmp_path / "images" / "a.png")
    dataset = opened(tmp_path)
    assert_cells(cells_of(dataset.sources[0].load(), dataset.class_names), {"tumor": [TUMOR]})
    assert any("1 masks drawn with a brush are cells" in note for note in dataset.notes)
    assert any("2 crowd annotations were skipped" in note for note in dataset.notes)


def test_the_splits_of_a_cvat_project(tmp_path):
    for subset, names in (("Train", ["a.png", "b.png"]), ("Validation", ["c.png"]), ("Test", ["d.png"])):
        write(tmp_path / "annotations" / f"instances_{subset}.json", coco(names))
        for name in names:
            write_image(tmp_path / "images" / subset / name, ord(name[0]))
    dataset = opened(tmp_path)
    assert [source.name for source in dataset.sources] == ["a", "b", "c"]
    assert [(test.file_name, test.height, test.width) for test in dataset.tests] == [("d.png", HEIGHT, WIDTH)]


# Roboflow

ROBOFLOW = (
    {"id": 0, "name": "cells", "supercategory": "none"},
    {"id": 1, "name": "immune cell", "supercategory": "cells"},
    {"id": 2, "name": "tumor", "supercategory": "cells"},
)


def write_roboflow(root, same_names=False):
    for part, count in (("train", 5), ("valid", 2), ("test", 2)):
        names = [f"{'' if same_names else part}{index}_png.rf.0a1b2c.jpg" for index in range(count)]
        annotations = [annotation(index, index + 1, 1 + index % 2) for index in range(count)]
        content = coco(names, ROBOFLOW, annotations)
        write(root / part / "_annotations.coco.json", content)
        for index, name in enumerate(names):
            write_image(root / part / name, 10 * ord(part[0]) + index)
    (root / "README.dataset.txt").write_text("exported by Roboflow")


def test_the_splits_of_roboflow_are_training_and_test_images(tmp_path, capsys):
    write_roboflow(tmp_path)
    dataset = opened(tmp_path)
    assert [source.name.split("_")[0] for source in dataset.sources] == [
        *(f"train{n}" for n in range(5)),
        "valid0",
        "valid1",
    ]
    assert dataset.class_names == ("immune cell", "tumor")
    assert dataset.category_ids == (1, 2)
    assert [test.file_name for test in read_test_list(tmp_path)] == [f"test{n}_png.rf.0a1b2c.jpg" for n in range(2)]
    assert check.main([str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "train/_annotations.coco.json and valid/_annotations.coco.json are joined" in text
    assert "holds 2 test images" in text
    assert "category 'cells' has no cells and only names the others" in text
    assert opened(tmp_path, annotations="valid/_annotations.coco.json").class_names == ("immune cell", "tumor")


def test_names_that_repeat_between_splits_begin_with_the_split(tmp_path):
    write_roboflow(tmp_path, same_names=True)
    dataset = opened(tmp_path)
    assert {source.name.split("_")[0] for source in dataset.sources} == {
        *(f"train/{n}" for n in range(5)),
        *(f"valid/{n}" for n in range(2)),
    }
    samples = [source.load() for source in dataset.sources]
    assert len({sample.image_HWC.tobytes() for sample in samples}) == 7


def test_an_import_of_roboflows_folder_can_be_used_as_it_is(tmp_path, capsys):
    write_roboflow(tmp_path / "in")
    assert import_labels.main([str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "from coco, 7 images" in text and "2 test images" in text
    before, after = opened(tmp_path / "in"), opened(tmp_path / "out")
    assert (before.class_names, before.category_ids) == (after.class_names, after.category_ids)
    for one, other in zip(before.sources, after.sources, strict=True):
        assert one.name == other.name
        np.testing.assert_array_equal(one.load().planes_PHW, other.load().planes_PHW)
    tests = read_test_list(tmp_path / "out")
    assert [test.image_id for test in tests] == [1, 2] and all(test.path for test in tests)
    assert check.main([str(tmp_path / "out")]) == 0


def test_boxes_of_roboflow_are_no_outlines(tmp_path):
    content = coco(["a.png"], annotations=[annotation(1, 1, 1, segmentation=[])])
    write(tmp_path / "train" / "_annotations.coco.json", content)
    write_image(tmp_path / "train" / "a.png")
    with pytest.raises(UserError, match="must have outlines in 'segmentation', but got boxes only"):
        opened(tmp_path)


# Several files


def test_candidates_between_which_no_rule_decides_are_listed(tmp_path, capsys):
    for name in ("a/x.json", "b/train.json", "c/train_2.json", "labels/x.json"):
        write(tmp_path / name, coco(["a.png"]))
        write_image(tmp_path / name.rpartition("/")[0] / "a.png")
    assert check.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "but got a/x.json, b/train.json, c/train_2.json, labels/x.json. Name it with --annotations FILE" in error
    assert check.main([str(tmp_path), "--annotations", "a/x.json"]) == 0


@pytest.mark.parametrize(
    ("names", "training", "test"),
    [
        (["instances_train2017.json", "instances_val2017.json", "person_keypoints_train2017.json"], 2, None),
        (["train.json", "test.json"], 1, "test.json"),
        (["data/train/labels.json", "data/val/labels.json"], 2, None),
        (["my_training.json", "my_dev.json"], 2, None),
    ],
)
def test_splits_are_known_by_file_and_folder(tmp_path, names, training, test):
    for name in names:
        write(tmp_path / name, coco([f"{name.replace('/', '-')}.png"]))
        write_image(tmp_path / f"{name.replace('/', '-')}.png")
    dataset = opened(tmp_path)
    assert len(dataset.sources) == training
    assert len(dataset.tests) == (test is not None)


def test_a_file_in_the_folder_itself_is_meant_whatever_lies_deeper(tmp_path):
    for name in ("mine.json", "train/labels.json", "old/labels.json"):
        write(tmp_path / name, coco([f"{name.partition('/')[0]}.png"]))
    write_image(tmp_path / "mine.json.png")
    assert opened(tmp_path).settings["annotations"] == "mine.json"


def test_splits_that_number_their_categories_differently_are_refused(tmp_path):
    write(tmp_path / "train.json", coco(["a.png"]))
    write(tmp_path / "val.json", coco(["b.png"], ({"id": 1, "name": "other"},)))
    with pytest.raises(UserError, match="category 1 must be the same in all splits, but got 'other' here and 'tumor'"):
        opened(tmp_path)


def test_what_is_hidden_and_other_json_files_do_not_confuse(tmp_path):
    write(tmp_path / "labels.json", coco(["a.png"]))
    write_image(tmp_path / "a.png")
    write(tmp_path / ".backup" / "labels.json", coco(["a.png"]))
    write(tmp_path / "__MACOSX" / "labels.json", coco(["a.png"]))
    write(tmp_path / "other.json", {"images": 1, "annotations": 2, "categories": 3})
    (tmp_path / "broken.json").write_text('{"images": [], "annotations": [], "categories": [')
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert len(opened(tmp_path).sources) == 1


def test_a_changed_split_is_packed_anew(tmp_path):
    write_roboflow(tmp_path / "in")
    first = open_packed(DataConfig(root=str(tmp_path / "in")), tmp_path / "cache")
    assert len(first) == 7
    shutil.rmtree(tmp_path / "in" / "valid")
    assert len(open_packed(DataConfig(root=str(tmp_path / "in")), tmp_path / "cache")) == 5


def test_an_archive_is_to_be_unpacked(tmp_path):
    (tmp_path / "export.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"export\.zip: .* but got an archive\. Unpack it"):
        opened(tmp_path / "export.zip")


# The data's own validation set


@pytest.mark.parametrize("by_import", [False, True])
def test_the_given_split_validates_where_it_is_asked_for(tmp_path, by_import):
    root = tmp_path / "in"
    write_roboflow(root)
    if by_import:
        assert import_labels.main([str(root), str(tmp_path / "out")]) == 0
        root = tmp_path / "out"
    packed = open_packed(DataConfig(root=str(root)), tmp_path / "cache")
    given = DataConfig(validation="given")
    parts = split(packed.label_counts, given, packed.groups, packed.validation)
    assert [packed.names[index].split("_")[0] for index in parts.validation] == ["valid0", "valid1"]
    assert [packed.names[index].split("_")[0] for index in parts.training] == [f"train{n}" for n in range(5)]
    folds = split(packed.label_counts, DataConfig(num_folds=2), packed.groups, packed.validation)
    assert folds.validation != parts.validation and not {*folds.validation} & {*folds.training}
    everything = split(packed.label_counts, DataConfig(validation="given", train_on="all"), None, packed.validation)
    assert len(everything.training) == 7 and everything.validation == parts.validation


def test_folders_of_other_tools_may_have_a_split_for_validation(tmp_path):
    for part, index in (("train", 0), ("train", 1), ("val", 2)):
        write_image(tmp_path / part / "images" / f"{index}.png", index)
        write_mask(tmp_path / part / "masks" / f"{index}.png")
    assert opened(tmp_path).validation == {"val/images/2"}


def test_a_split_that_is_not_there_cannot_validate(tmp_path):
    write(tmp_path / "labels.json", coco(["a.png", "b.png"]))
    for index, name in enumerate("ab"):
        write_image(tmp_path / f"{name}.png", index)
    packed = open_packed(DataConfig(root=str(tmp_path)), tmp_path / "cache")
    assert packed.validation is None
    with pytest.raises(UserError, match=r"data\.validation: 'given' needs images in .* valid, but got 2 and 0"):
        split(packed.label_counts, DataConfig(validation="given"), packed.groups, packed.validation)


@pytest.mark.parametrize("name", ["test_truth.json", "annotations/instances_test.json", "test/_annotations.coco.json"])
def test_annotations_of_test_images_alone_are_not_trained_on(tmp_path, name):
    write_image((tmp_path / name).parent / "a.png")
    write(tmp_path / name, coco(["a.png"]))
    with pytest.raises(UserError, match=rf"must hold annotations to train on, but got only {name}, .* --annotations"):
        open_dataset(DataConfig(root=str(tmp_path)))
    assert len(open_dataset(DataConfig(root=str(tmp_path), annotations=name)).sources) == 1


def test_the_truth_of_test_images_in_the_folder_itself_does_not_hide_the_training_split(tmp_path):
    for folder in ("", "train"):
        write_image(tmp_path / folder / "a.png")
    write(tmp_path / "train" / "_annotations.coco.json", coco(["a.png"]))
    write(tmp_path / "test_truth.json", coco(["a.png"]))
    dataset = open_dataset(DataConfig(root=str(tmp_path)))
    assert dataset.settings["annotations"] == "train/_annotations.coco.json"
    assert len(dataset.tests) == 1
