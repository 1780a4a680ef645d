import json
import shutil

import numpy as np
import pytest
import tifffile

from cellseg.config import DataConfig
from cellseg.data import audit, check
from cellseg.errors import UserError


def _check(root, **settings):
    return audit.check(DataConfig(root=str(root), **settings))


def test_a_sound_data_set_has_no_findings(make_release, capsys):
    root = make_release()
    report = _check(root)
    assert (report.errors, report.warnings, report.notes) == ((), (), ())
    assert check.main([str(root)]) == 0
    captured = capsys.readouterr()
    assert "errors: 0, warnings: 0" in captured.out
    assert "class3         4 in 2 images" in captured.out
    assert captured.out.count("anchor coverage  ") == 1
    assert captured.err == ""  # no progress where nobody watches


def _write(path, pixels):
    tifffile.imwrite(path, pixels)


BROKEN = {
    "image is cut off": (
        lambda root: (root / "train/s0/image.tif").write_bytes((root / "train/s0/image.tif").read_bytes()[:300]),
        "s0/image.tif: must be a whole image file",
    ),
    "image is no image": (lambda root: (root / "train/s0/image.tif").write_text("x"), "must be a TIFF, PNG or JPEG"),
    "image is missing": (lambda root: (root / "train/s0/image.tif").unlink(), "must hold one file image.tif"),
    "mask has another size": (
        lambda root: _write(root / "train/s0/class1.tif", np.zeros((24, 31))),
        "must have the size of its image, 24 x 30, but got 24 x 31",
    ),
    "ids are fractional": (
        lambda root: _write(root / "train/s0/class1.tif", np.full((24, 30), 0.5)),
        "ids must be whole numbers",
    ),
    "ids are negative": (
        lambda root: _write(root / "train/s0/class1.tif", np.full((24, 30), -1.0)),
        "ids must not be negative",
    ),
    "ids are too large": (
        lambda root: _write(root / "train/s0/class1.tif", np.full((24, 30), 1e19)),
        "ids must be below",
    ),
    "ids are not finite": (
        lambda root: _write(root / "train/s0/class1.tif", np.full((24, 30), np.nan)),
        "pixels must be finite",
    ),
    "test image is not listed": (
        lambda root: shutil.copy(root / "test_release/t0.tif", root / "test_release/t7.tif"),
        "must list every image in test_release, but lacks 1: t7.tif",
    ),
    "test image has another size": (
        lambda root: _write(root / "test_release/t0.tif", np.zeros((24, 31), np.uint8)),
        "must have the size in the test list, 24 x 30, but got 24 x 31",
    ),
    "test image is no image": (
        lambda root: (root / "test_release/t0.tif").write_bytes(b"II*\0"),
        "t0.tif: must be a whole image file",
    ),
    "test list is malformed": (
        lambda root: (root / "test_image_name_to_ids.json").write_text("{}"),
        "test_image_name_to_ids.json: must be a list",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_data_set_ends_with_one_clear_line_and_status_2(make_release, capsys, case):
    damage, expected = BROKEN[case]
    root = make_release(test_images=2)
    damage(root)
    assert check.main([str(root)]) == 2
    errors = [line for line in capsys.readouterr().out.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert expected in errors[0]


def test_all_problems_are_listed_at_once(make_release):
    root = make_release(samples=3)
    for name in ("s0", "s2"):
        (root / "train" / name / "image.tif").write_text("x")
    (root / "test_release" / "t0.tif").write_text("x")
    report = _check(root)
    assert len(report.errors) == 3
    assert report.statistics.images == 1  # what is sound is counted


def test_nothing_to_count_is_no_crash(make_release, capsys):
    root = make_release(samples=1)
    (root / "train/s0/image.tif").write_text("x")
    assert check.main([str(root)]) == 2
    assert "errors: 1" in capsys.readouterr().out


def test_a_sample_without_cells_is_a_warning(make_release, write_sample):
    root = make_release()
    write_sample(root / "train" / "bare", np.zeros((9, 9, 3), np.uint8), {})
    write_sample(root / "train" / "blank", np.ones((9, 9, 3), np.uint8), {1: np.zeros((9, 9))})
    report = _check(root)
    assert report.errors == ()
    assert [line.split(":")[0] for line in report.warnings] == ["bare", "blank"]


def test_images_with_the_same_pixels_are_a_warning_also_between_training_and_test(make_release):
    root = make_release(samples=3)
    shutil.copytree(root / "train/s1", root / "train/s7")
    pixels = tifffile.imread(root / "train/s1/image.tif")
    tifffile.imwrite(root / "test_release/t0.tif", pixels, photometric="rgb", compression="zlib")
    report = _check(root)
    assert report.errors == ()
    assert len(report.warnings) == 1
    assert report.warnings[0].startswith("s1: has the same pixels as s7, test_release/t0.tif.")


def test_a_binary_mask_read_as_ids_is_a_warning(make_release, write_sample):
    root = make_release()
    mask = np.zeros((30, 30))
    mask[1::5, 1::5] = 255
    write_sample(root / "train" / "binary", np.zeros((30, 30, 3), np.uint8), {2: mask})
    (warning,) = _check(root).warnings
    assert "only cell of class 2 is in 36 separate pieces" in warning
    assert "--instances components" in warning
    assert _check(root, instances="components").warnings == ()


def test_stray_files_are_notes(make_release):
    root = make_release()
    (root / "train" / "s0" / "notes.txt").write_text("x")
    report = _check(root)
    assert (report.errors, report.warnings) == ((), ())
    assert "notes.txt: is not part of the release layout and was ignored" in report.notes[0]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (
            lambda root: (root / "test_release/t0.tif").unlink(),
            "missing 1 of 2 test images: t0.tif; export needs them.",
        ),
        (lambda root: shutil.rmtree(root / "test_release"), "missing 2 of 2 test images; export needs them."),
        (lambda root: (root / "test_image_name_to_ids.json").unlink(), "is not there to list 2 images"),
    ],
)
def test_training_data_alone_are_sound(make_release, capsys, damage, expected):
    root = make_release(test_images=2)
    damage(root)
    assert check.main([str(root)]) == 0
    (note,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert expected in note


def test_many_missing_test_images_are_one_line(make_release):
    root = make_release(test_images=12)
    for index in range(11):
        (root / "test_release" / f"t{index}.tif").unlink()
    (note,) = _check(root).notes
    names = "t0.tif, t1.tif, t2.tif, t3.tif, t4.tif and 6 more"
    assert note.endswith(f"missing 11 of 12 test images: {names}; export needs them.")


def test_a_data_set_without_test_images_is_usable(make_release):
    root = make_release()
    shutil.rmtree(root / "test_release")
    (root / "test_image_name_to_ids.json").unlink()
    report = _check(root)
    assert report.errors == ()
    assert "has no test images" in report.notes[0]


def test_a_coco_data_set_is_checked_too(make_release):
    root = make_release()
    (root / "a.json").write_text(
        json.dumps(
            {
                "images": [
                    {"id": 1, "file_name": "s0/image.tif"},
                    {"id": 2, "file_name": "s1/image.tif"},
                    {"id": 3, "file_name": "absent.tif"},
                ],
                "categories": [{"id": 1, "name": "cell"}],
                "annotations": [
                    {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]},
                    {"id": 2, "image_id": 2, "category_id": 1, "segmentation": [[1, 1]]},
                ],
            }
        )
    )
    report = _check(root, annotations="a.json")
    assert len(report.errors) == 2
    assert "absent.tif: the file must exist" in report.errors[0]
    assert "annotation 2: a polygon must be" in report.errors[1]
    assert report.statistics.cells == 1


def test_a_missing_folder_ends_with_status_2(tmp_path, capsys):
    assert check.main([str(tmp_path / "absent")]) == 2
    assert "the data folder must exist" in capsys.readouterr().err
    with pytest.raises(UserError):
        _check(tmp_path)


def test_progress_is_told_to_a_terminal(make_release, capsys, monkeypatch):
    root = make_release()
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert check.main([str(root)]) == 0
    assert "1 of 2 images" in capsys.readouterr().err


def test_the_released_sample_is_reported_right(shared_data, capsys):
    assert check.main([str(shared_data / "hw3-sample")]) == 0
    output = capsys.readouterr().out
    assert output.count("note: ") == 1
    assert "missing 101 of 101 test images" in output
    assert "class1         2 in 1 image\n" in output
    assert "class2         159 in 1 image\n" in output
    assert "cells per image  161\n" in output


@pytest.mark.parametrize(
    ("option", "value", "known"),
    [("--instances", "blobs", ("ids", "components")), ("--layout", "folders", ("auto", "release", "coco"))],
)
def test_an_unknown_way_of_reading_is_refused_with_the_known_ones(tmp_path, capsys, option, value, known):
    with pytest.raises(SystemExit) as ended:
        check.main([str(tmp_path), option, value])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert f"invalid choice: '{value}'" in error
    assert all(name in error.split("choose from")[1] for name in known)
