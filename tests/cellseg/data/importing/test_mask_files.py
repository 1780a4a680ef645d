"""Mask files: Cellpose's, StarDist's folders, and those that are named after their image."""

import pickle

import numpy as np
import pytest
from importing_cells import (
    HEIGHT,
    POLYGONS,
    WIDTH,
    assert_cells,
    expected_cells,
    labels_of,
    pixels_of,
    write_image,
    write_mask,
)
from PIL import Image

from cellseg.config import DataConfig
from cellseg.data import check, import_labels
from cellseg.data.dataset import open_dataset
from cellseg.data.importing.seg_npy import read_seg_npy
from cellseg.errors import UserError

BOTH = {"cell": [mask for masks in expected_cells().values() for mask in masks]}
"""The cells without classes."""


def write_seg(path, masks, **entries):
    """A file as Cellpose's io.masks_flows_to_seg and its GUI save it."""
    flows = [
        np.zeros((1, HEIGHT, WIDTH, 3), np.uint8),
        np.zeros((1, HEIGHT, WIDTH), np.uint8),
        [np.zeros((2, 5), np.float32)],
    ]
    content = {
        "outlines": np.zeros((HEIGHT, WIDTH), np.uint16),
        "colors": np.full((2, 3), 7, np.uint8),
        "masks": masks,
        "chan_choose": [0, 0],
        "ismanual": np.zeros(2, bool),
        "filename": str(path).replace("_seg.npy", ".tif"),
        "flows": flows,
        "diameter": np.float64(30.2),
        "est_diam": np.float32(12),
        **entries,
    }
    np.save(path, content)


def test_masks_of_cellposes_command_line_are_found_among_its_other_files(tmp_path, imported):
    root = tmp_path / "cells"
    for index, suffix in enumerate((".tif", ".PNG", ".jpg")):
        write_image(root / f"well {index}{suffix}", index)
        write_mask(root / f"well {index}_cp_masks.{'png' if index else 'tif'}")
        write_mask(root / f"well {index}_flows.tif", np.zeros((9, 9), np.uint8))
        write_mask(root / f"well {index}_cp_output.png", np.zeros((9, 9), np.uint8))
        (root / f"well {index}_cp_outlines.txt").write_text("1,2,3,4,5,6\n7,8,9,10,11,12\n")
        (root / f"well {index}_rois.zip").write_bytes(b"PK")
    (root / "Thumbs.db").write_text("x")
    write_mask(root / ".hidden_masks.png")
    cells = imported(root)
    assert list(cells) == ["well 0", "well 1", "well 2"]
    for found in cells.values():
        assert_cells(found, BOTH)


def test_the_training_set_of_cellpose_has_its_test_images_apart(tmp_path, capsys):
    root = tmp_path / "cellpose"
    for index in range(6):
        write_image(root / "train" / f"00{index}_img.png", index)
        write_mask(root / "train" / f"00{index}_masks.png")
    write_image(root / "test" / "000_img.png", 9)
    write_mask(root / "test" / "000_masks.png")
    assert check.main([str(root)]) == 0
    assert "the folder test holds 1 test image," in capsys.readouterr().out
    dataset = open_dataset(DataConfig(root=str(root)))
    assert [source.name for source in dataset.sources] == [f"00{index}_img" for index in range(6)]
    assert [(test.file_name, test.height, test.width) for test in dataset.tests] == [
        ("test/000_img.png", HEIGHT, WIDTH)
    ]
    assert import_labels.main([str(root), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "test_release" / "000_img.png").is_file()
    assert check.main([str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int32, ">u2"])
def test_the_file_of_cellposes_gui_is_read(tmp_path, imported, dtype):
    root = tmp_path / "gui"
    write_image(root / "a.tif")
    write_seg(root / "a_seg.npy", labels_of().astype(dtype))
    assert_cells(imported(root)["a"], BOTH)


def test_corrections_in_seg_npy_win_over_a_mask_file(tmp_path, imported, capsys):
    root = tmp_path / "gui"
    write_image(root / "a.png")
    write_mask(root / "a_cp_masks.png", labels_of()[::-1].copy())
    write_seg(root / "a_seg.npy", labels_of())
    assert_cells(imported(root)["a"], BOTH)
    assert "the masks in _seg.npy are used" in capsys.readouterr().out


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("order", ["C", "F"])
def test_seg_npy_is_read_as_numpy_reads_it(tmp_path, protocol, order):
    path = tmp_path / "a_seg.npy"
    masks = np.array(labels_of()[None], order=order)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(np.array({"masks": masks, "flows": [masks * 1.5]}, dtype=object), file, protocol=protocol)
    np.testing.assert_array_equal(read_seg_npy(path), labels_of())
    np.testing.assert_array_equal(np.load(path, allow_pickle=True).item()["masks"][0], labels_of())


RAN: list[str] = []


def run_code(text):
    RAN.append(text)


class _Attack:
    def __reduce__(self):
        return run_code, ("once",)


def test_seg_npy_runs_no_code(tmp_path):
    path = tmp_path / "a_seg.npy"
    write_seg(path, labels_of(), filename=_Attack())
    RAN.clear()
    np.testing.assert_array_equal(read_seg_npy(path), labels_of())
    assert RAN == []
    np.load(path, allow_pickle=True)
    assert RAN == ["once"], "the file does attack"


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"masks": labels_of().astype(np.float32)}, "masks must be whole numbers, but got the type f4"),
        ({"masks": np.stack([labels_of()] * 3)}, r"a flat image, but got the shape \(3, 48, 64\)"),
        ({"masks": [1, 2]}, "must hold 'masks'"),
        ({"masks": labels_of().astype(np.int16) - 5}, "ids must not be negative, but got -5"),
    ],
)
def test_a_seg_npy_without_usable_masks_is_refused(tmp_path, entries, match):
    path = tmp_path / "a_seg.npy"
    write_seg(path, **{"masks": labels_of()} | entries)
    with pytest.raises(UserError, match=match):
        read_seg_npy(path)


@pytest.mark.parametrize("kept", [0, 5, 100, 500, 3000])
def test_a_damaged_seg_npy_is_refused_in_one_line(tmp_path, kept):
    path = tmp_path / "a_seg.npy"
    write_seg(path, labels_of())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match="must be a file that Cellpose wrote") as caught:
        read_seg_npy(path)
    assert len(caught.value.problems) == 1


def test_all_problems_of_a_folder_come_at_once_and_nothing_is_left(tmp_path, capsys):
    root = tmp_path / "cells"
    write_image(root / "a.png")
    write_mask(root / "a_masks.png", np.zeros((5, 5), np.uint8))
    write_image(root / "b.png")
    (root / "b_seg.npy").write_bytes(b"x")
    assert import_labels.main([str(root), str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "a_masks.png: must have the size of its image, 48 x 64, but got 5 x 5" in errors[0]
    assert "b_seg.npy: must be a file that Cellpose wrote" in errors[1]
    assert [path.name for path in tmp_path.iterdir()] == ["cells"]


def test_a_mask_without_its_image_says_where_it_belongs(tmp_path):
    write_mask(tmp_path / "a_masks.png")
    write_mask(tmp_path / "b_masks.png")
    with pytest.raises(UserError, match=r"a_masks\.png: must lie beside its image, a\.tif, \.png or \.jpg") as caught:
        open_dataset(DataConfig(root=str(tmp_path)))
    assert len(caught.value.problems) == 2


# Folders


@pytest.mark.parametrize("names", [("images", "masks"), ("Images", "Labels"), ("raw", "gt")])
def test_folders_as_stardist_reads_them(tmp_path, imported, names):
    root = tmp_path / "dsb"
    for index in range(3):
        write_image(root / names[0] / f"{index}.tif", index)
        write_mask(root / names[1] / f"{index}.tif")
    cells = imported(root)
    assert list(cells) == ["0", "1", "2"]
    assert_cells(cells["1"], BOTH)


def test_the_example_data_of_stardist(tmp_path):
    root = tmp_path / "dsb2018"
    for split, count in (("train", 4), ("test", 2)):
        for index in range(count):
            write_image(root / split / "images" / f"{split}{index}.tif", index + count)
            write_mask(root / split / "masks" / f"{split}{index}.tif")
    dataset = open_dataset(DataConfig(root=str(root)))
    assert dataset.layout == "stardist"
    assert [source.name for source in dataset.sources] == [f"train{index}" for index in range(4)]
    assert [test.file_name for test in dataset.tests] == ["test/images/test0.tif", "test/images/test1.tif"]


def test_folders_of_masks_are_classes(tmp_path, imported):
    root = tmp_path / "classes"
    write_image(root / "images" / "a.png")
    for name, mask in expected_cells().items():
        write_mask(root / "masks" / name / "a.png", mask[0].astype(np.uint8) * 255)
    assert_cells(imported(root)["a"], expected_cells())


def test_folders_below_the_images_are_no_classes(tmp_path, imported):
    root = tmp_path / "plates"
    for plate in ("p1", "p2"):
        write_image(root / "images" / plate / "a.png", int(plate[1]))
        write_mask(root / "masks" / plate / "a_mask.png")
    cells = imported(root)
    assert list(cells) == ["p1/a", "p2/a"]
    assert_cells(cells["p2/a"], BOTH)


def test_a_folder_for_each_image_with_a_mask_for_each_cell(tmp_path, imported):
    root = tmp_path / "stage1_train"
    for index in range(2):
        write_image(root / f"id{index}" / "images" / f"id{index}.png", index)
        for number, outline in enumerate(POLYGONS.values()):
            mask = pixels_of(outline).astype(np.uint8) * 255
            write_mask(root / f"id{index}" / "masks" / f"hash{number}.png", mask)
    cells = imported(root)
    assert list(cells) == ["id0/images/id0", "id1/images/id1"]
    assert_cells(cells["id1/images/id1"], BOTH)


def test_binary_masks_are_read_as_components(tmp_path):
    root = tmp_path / "binary"
    write_image(root / "images" / "a.png")
    write_mask(root / "masks" / "a.png", (labels_of() > 0).astype(np.uint8) * 255)
    loaded = [
        open_dataset(DataConfig(root=str(root), instances=instances)).sources[0].load()
        for instances in ("ids", "components")
    ]
    assert [len(sample.labels_N) for sample in loaded] == [1, 2]


def test_masks_in_jpeg_are_refused(tmp_path):
    write_image(tmp_path / "images" / "a.png")
    write_image(tmp_path / "masks" / "a.jpg")
    with pytest.raises(UserError, match=r"a\.jpg: a mask must be TIFF or PNG, but got JPEG, which changes ids"):
        open_dataset(DataConfig(root=str(tmp_path)))


# Names


@pytest.mark.parametrize("mark", ["_mask", "-labels", "_Label", "_gt"])
def test_label_images_named_after_their_image(tmp_path, imported, mark):
    root = tmp_path / "named"
    write_image(root / "sub" / "a.tif")
    write_mask(root / "sub" / f"a{mark}.tif")
    assert_cells(imported(root)["a"], BOTH)


@pytest.mark.parametrize(
    ("pattern", "place"),
    [
        ("seg/{name}_{class}.tif", "seg/a b_{}.tif"),
        ("{class}/m-{name}.png", "{}/m-a b.png"),
        ("o*/{class}/{name}.png", "o1/{}/a b.png"),
    ],
)
def test_a_pattern_finds_masks_and_classes(tmp_path, imported, pattern, place):
    root = tmp_path / "pattern"
    write_image(root / "pictures" / "a b.png")
    for name, masks in expected_cells().items():
        write_mask(root / place.format(name), masks[0].astype(np.uint8))
    assert_cells(imported(root, "--masks", pattern)["a b"], expected_cells())


@pytest.mark.parametrize(
    ("pattern", "match"),
    [
        ("masks/*.png", "must have {name} once"),
        ("masks/{name}.tif", "must find a file, but got none"),
        ("masks/{name}png", "must have an image named"),
    ],
)
def test_a_pattern_that_does_not_fit_is_refused(tmp_path, capsys, pattern, match):
    write_image(tmp_path / "in" / "a.png")
    write_mask(tmp_path / "in" / "masks" / "a.png")
    assert import_labels.main([str(tmp_path / "in"), str(tmp_path / "out"), "--masks", pattern]) == 2
    assert match in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_name_for_the_class(tmp_path, imported):
    root = tmp_path / "in"
    write_image(root / "a.png")
    write_mask(root / "a_mask.png")
    assert list(imported(root, "--class-name", "nucleus")["a"]) == ["nucleus"]


def test_images_without_masks_are_told(tmp_path, capsys):
    write_image(tmp_path / "in" / "a.png")
    write_image(tmp_path / "in" / "b.png", 1)
    write_mask(tmp_path / "in" / "a_masks.png")
    assert import_labels.main([str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "left out 1 image without masks: b.png" in text
    assert "from cellpose, 1 image" in text
    assert "cell: 2 cells" in text


@pytest.mark.parametrize("made", ["file", "folder"])
def test_what_is_there_is_never_overwritten(tmp_path, capsys, made):
    write_image(tmp_path / "in" / "a.png")
    write_mask(tmp_path / "in" / "a_masks.png")
    dest = tmp_path / "out"
    if made == "file":
        dest.write_text("mine")
    else:
        write_image(dest / "mine.png")
    assert import_labels.main([str(tmp_path / "in"), str(dest)]) == 2
    assert "must be a new folder" in capsys.readouterr().err
    assert import_labels.main([str(tmp_path / "in"), str(tmp_path / "in" / "out")]) == 2
    assert "must not lie inside the folder" in capsys.readouterr().err
    assert not (tmp_path / "in" / "out").exists()


def test_several_formats_are_named_and_one_can_be_chosen(tmp_path, capsys):
    root = tmp_path / "in"
    write_image(root / "a.png")
    write_mask(root / "a_masks.png")
    (root / "a.json").write_text('{"shapes": [], "imagePath": "a.png", "imageHeight": 48, "imageWidth": 64}')
    assert check.main([str(root)]) == 2
    error = capsys.readouterr().err
    assert "1 masks in Cellpose's style (cellpose), 1 labelme files (labelme)" in error
    assert check.main([str(root), "--layout", "cellpose"]) == 0
    assert check.main([str(root), "--layout", "labelme"]) == 0
    assert check.main([str(root), "--layout", "yolo"]) == 2
    assert "must hold label files of YOLO, but got none. It holds 2 .png, 1 .json" in capsys.readouterr().err


def test_a_png_with_a_palette_holds_its_indices(tmp_path, imported):
    root = tmp_path / "in"
    write_image(root / "images" / "a.png")
    numbers = np.where(labels_of() == 700, 2, labels_of() > 0).astype(np.uint8)
    mask = Image.fromarray(numbers, mode="P")
    mask.putpalette([0, 0, 0, 128, 0, 0, 128, 0, 0])  # both cells look alike
    (root / "masks").mkdir()
    mask.save(root / "masks" / "a.png")
    assert_cells(imported(root)["a"], BOTH)
