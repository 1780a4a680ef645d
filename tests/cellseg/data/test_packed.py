import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tifffile

import cellseg.data.packed
from cellseg.config import DataConfig
from cellseg.data.dataset import open_dataset
from cellseg.data.packed import PackedDataset, default_cache, fingerprint, open_packed
from cellseg.errors import UserError
from cellseg.owners import owner_mark


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def _open(root, cache, **settings):
    return open_packed(DataConfig(root=str(root), **settings), cache)


def test_packed_samples_equal_those_on_disk(make_release, write_sample, cache):
    root = make_release()
    overlapping = np.zeros((9, 11))
    overlapping[2:5, 2:5] = 1
    write_sample(
        root / "train" / "odd", np.arange(297, dtype=np.uint8).reshape(9, 11, 3), {1: overlapping, 2: overlapping}
    )
    write_sample(root / "train" / "none", np.zeros((5, 7, 3), np.uint8), {})
    packed = _open(root, cache)
    sources = open_dataset(DataConfig(root=str(root))).sources
    assert packed.names == tuple(source.name for source in sources) == ("none", "odd", "s0", "s1")
    assert len(packed) == 4
    for index, source in enumerate(sources):
        truth, sample = source.load(), packed[index]
        assert sample.name == truth.name
        assert tuple(packed.sizes[index]) == truth.size == sample.size
        for field in ("image_HWC", "planes_PHW", "labels_N"):
            packed_array, true_array = getattr(sample, field), getattr(truth, field)
            assert packed_array.dtype == true_array.dtype
            np.testing.assert_array_equal(packed_array, true_array)
            assert packed_array.flags.aligned
            assert not packed_array.flags.writeable


def test_boxes_labels_and_counts_need_no_pixels(make_release, cache):
    packed = _open(make_release(), cache)
    assert packed.boxes(0).tolist() == [[3, 2, 9, 8], [5, 10, 10, 20], [10, 10, 16, 20]]
    assert packed.boxes(0).dtype == np.float32
    assert packed.labels(1).tolist() == [1, 3, 3]
    assert packed.class_names == ("class1", "class2", "class3")
    assert packed.num_classes == 3
    assert packed.label_counts.tolist() == [[1, 0, 2], [1, 0, 2]]
    assert packed.statistics().cells_per_class == (2, 0, 4)


def test_samples_are_views_into_the_table(make_release, cache):
    packed = _open(make_release(), cache)
    first, again = packed[1], packed[1]
    assert np.shares_memory(first.image_HWC, again.image_HWC)
    assert np.shares_memory(first.planes_PHW, again.planes_PHW)


def test_a_packed_data_set_pickles_as_its_table_without_copying(make_release, cache):
    packed = _open(make_release(), cache)
    buffers = []
    data = pickle.dumps(packed, protocol=5, buffer_callback=buffers.append)
    copy = pickle.loads(data, buffers=buffers)
    assert copy.fingerprint == packed.fingerprint
    assert np.shares_memory(copy[0].image_HWC, packed[0].image_HWC)
    rebuilt = PackedDataset(copy.table)
    assert rebuilt.settings == {"layout": "release", "instances": "ids"}
    assert rebuilt.label_counts.tolist() == packed.label_counts.tolist()


def test_the_second_opening_reads_no_image(make_release, cache, monkeypatch):
    root = make_release()
    first = _open(root, cache)
    monkeypatch.setattr("cellseg.data.release.read_image", lambda path: pytest.fail("read again"))
    assert _open(root, cache).fingerprint == first.fingerprint


def test_progress_counts_the_images(make_release, cache):
    seen = []
    data = DataConfig(root=str(make_release(samples=3)))
    open_packed(data, cache, on_progress=lambda done, total: seen.append((done, total)))
    open_packed(data, cache, on_progress=lambda done, total: seen.append("again"))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def _edit_map(root: Path) -> None:
    ids_HW = tifffile.imread(root / "train" / "s0" / "class1.tif")
    ids_HW[20, 20] = 3
    tifffile.imwrite(root / "train" / "s0" / "class1.tif", ids_HW)


@pytest.mark.parametrize(
    "change",
    [
        _edit_map,
        lambda root: (root / "train" / "s0" / "class3.tif").unlink(),
        lambda root: (root / "train" / "s1").rename(root / "train" / "s9"),
        lambda root: shutil.rmtree(root / "train" / "s1"),
        lambda root: shutil.copytree(root / "train" / "s1", root / "train" / "s2"),
        lambda root: (root / "train" / "s1" / "class1.tif").rename(root / "train" / "s1" / "class2.tif"),
    ],
)
def test_a_changed_input_is_packed_anew_and_replaces_its_old_file(make_release, cache, change):
    root = make_release()
    before = _open(root, cache)
    old_image = before[0].image_HWC.copy()
    change(root)
    after = _open(root, cache)
    assert after.fingerprint != before.fingerprint
    assert after.names == tuple(source.name for source in open_dataset(DataConfig(root=str(root))).sources)
    assert [path.suffix for path in cache.iterdir()] == [".arrow"]
    np.testing.assert_array_equal(before[0].image_HWC, old_image)  # whoever still uses the old file may go on


def test_stray_files_and_test_images_do_not_change_the_fingerprint(make_release, cache):
    root = make_release()
    before = _open(root, cache).fingerprint
    (root / "train" / "s0" / "notes.txt").write_text("x")
    (root / "test_release" / "t0.tif").unlink()
    assert _open(root, cache).fingerprint == before


def test_a_folder_in_the_place_of_an_image_counts_with_its_contents(make_release):
    root = make_release()
    inside = root / "images" / "b.tif" / "chunks" / "0"
    inside.parent.mkdir(parents=True)
    shutil.copy(root / "train" / "s0" / "image.tif", root / "images" / "a.tif")
    images = [{"id": number, "file_name": name} for number, name in enumerate(("a.tif", "b.tif"))]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cell"}]}
    (root / "cells.json").write_text(json.dumps(content))

    def fingerprint_now() -> str:
        return fingerprint(open_dataset(DataConfig(root=str(root), layout="coco")))

    prints = [fingerprint_now()]
    for pixels in (b"one", b"two"):
        inside.write_bytes(pixels)
        prints.append(fingerprint_now())
    inside.rename(inside.with_name("1"))
    prints.append(fingerprint_now())
    assert len(set(prints)) == 4
    assert fingerprint_now() == prints[-1]


def test_the_fingerprint_does_not_depend_on_where_the_data_lie(make_release, tmp_path):
    root = make_release()
    shutil.copytree(root, tmp_path / "elsewhere")
    here, there = (open_dataset(DataConfig(root=str(path))) for path in (root, tmp_path / "elsewhere"))
    assert fingerprint(here) == fingerprint(there)


def test_another_way_of_reading_has_its_own_file(make_release, cache):
    root = make_release()
    ids, components = _open(root, cache), _open(root, cache, instances="components")
    assert ids.fingerprint != components.fingerprint
    assert (len(ids.labels(0)), len(components.labels(0))) == (3, 2)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "other table", "other format", "missing column"])
def test_a_damaged_cache_file_is_packed_again(make_release, cache, damage):
    root = make_release()
    intact = _open(root, cache)
    (path,) = cache.iterdir()
    data = path.read_bytes()
    if damage == "other format":
        metadata = {**intact.table.schema.metadata, b"format_version": b"0"}
        _write_table(path, intact.table.replace_schema_metadata(metadata))
    elif damage == "other table":
        _write_table(path, pa.table({"a": [1]}))
    elif damage == "missing column":
        _write_table(path, intact.table.drop_columns(["boxes"]))
    else:
        path.write_bytes({"empty": b"", "cut": data[: len(data) * 2 // 3], "garbage": b"x" * 5000}[damage])
    again = _open(root, cache)
    assert again.fingerprint == intact.fingerprint
    assert again.boxes(0).shape == (3, 4)
    assert path.stat().st_size == len(data)


def _write_table(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path) + ".new", "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    Path(str(path) + ".new").replace(path)


def test_the_problems_of_all_samples_are_told_and_nothing_is_left(make_release, cache):
    root = make_release(samples=4)
    (root / "train" / "s0" / "image.tif").write_bytes(b"nothing")
    tifffile.imwrite(root / "train" / "s2" / "class1.tif", np.full((24, 30), -1, np.int16))
    (root / "train" / "s3" / "image.tif").unlink()
    with pytest.raises(UserError) as caught:
        _open(root, cache)
    assert [problem.split("train")[1][1:3] for problem in caught.value.problems] == ["s0", "s2", "s3"]
    assert list(cache.iterdir()) == []


def test_broken_input_leaves_the_old_packed_file_alone(make_release, cache):
    root = make_release()
    _open(root, cache)
    (path,) = cache.iterdir()
    before = path.read_bytes()
    (root / "train" / "s0" / "image.tif").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"s0.image\.tif: must be a TIFF"):
        _open(root, cache)
    assert path.read_bytes() == before


def test_the_cache_folder_comes_from_the_environment_at_call_time(make_release, tmp_path, monkeypatch):
    monkeypatch.setenv("CELLSEG_CACHE", str(tmp_path / "from-env"))
    open_packed(DataConfig(root=str(make_release())))
    assert len(list((tmp_path / "from-env").glob("data-*.arrow"))) == 1
    monkeypatch.delenv("CELLSEG_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "cellseg"


def test_a_cache_that_cannot_be_written_names_the_remedy(make_release, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"must be writable, but got 'Not a directory'\. Set CELLSEG_CACHE"):
        _open(make_release(), tmp_path / "file" / "cache")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_cache_names_the_remedy(make_release, cache):
    cache.mkdir(mode=0o500)
    with pytest.raises(UserError, match=r"must be writable, but got 'Permission denied'\. Set CELLSEG_CACHE"):
        _open(make_release(), cache)


def test_the_real_sample_is_packed(shared_data, cache):
    packed = _open(shared_data / "hw3-sample", cache)
    assert packed.label_counts.tolist() == [[2, 159]]
    assert packed.sizes.tolist() == [[397, 482]]
    assert len(packed.boxes(0)) == 161


def test_what_a_killed_process_left_is_swept_and_what_others_pack_now_is_not(make_release, cache):
    root = make_release()
    others = subprocess.run(
        [sys.executable, "-c", "import cellseg.owners; print(cellseg.owners.owner_mark())"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    marks = {"gone": others.stdout, "here": owner_mark(), "elsewhere": "1-another host", "old": "1-another host"}
    for name, mark in marks.items():
        scratch = cache / f".{name}-0.arrow.x1"
        scratch.mkdir(parents=True)
        (scratch / "owner").write_text(mark.strip())
        (scratch / f"{name}-0.arrow").write_bytes(b"x" * 1000)
        if name == "old":
            for path in (scratch / "owner", scratch / "old-0.arrow", scratch):
                os.utime(path, (0, 0))
    (cache / ".young-0.arrow.x1").mkdir()  # it may get its owner in a moment
    _open(root, cache)
    left = {path.name.partition("-")[0].strip(".") for path in cache.iterdir() if path.is_dir()}
    assert left == {"here", "elsewhere", "young"}


def test_a_process_that_packs_marks_its_scratch(make_release, cache, monkeypatch):
    marks = []

    def noted(*arguments):
        marks.extend(path.read_text() for path in cache.glob(".*/owner"))
        return real(*arguments)

    real = cellseg.data.packed._row
    monkeypatch.setattr(cellseg.data.packed, "_row", noted)
    _open(make_release(), cache)
    assert set(marks) == {owner_mark()}
    assert [path.suffix for path in cache.iterdir()] == [".arrow"]
