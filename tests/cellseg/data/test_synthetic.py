"""Generated cells: the files' layout, what the masks promise, and that the kinds can be told apart."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pycocotools.coco import COCO
from scipy import ndimage

from cellseg.data.planes import read_instances
from cellseg.data.sample import Sample
from cellseg.data.synthetic import dataset, generate_dataset
from cellseg.data.synthetic.__main__ import main
from cellseg.data.synthetic.kinds import KINDS
from cellseg.data.synthetic.scene import generate_sample
from cellseg.data.synthetic.section import MIN_VISIBLE
from cellseg.errors import UserError

TRAIN, TEST = 8, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "cells"
    generate_dataset(root, train=TRAIN, test=TEST, seed=5, size=96)
    return root


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [generate_sample(np.random.default_rng([11, index]), f"{index}", 128, 128) for index in range(40)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cell_masks(sample: Sample) -> list[np.ndarray]:
    cells = read_instances(sample.planes_PHW, sample.labels_N)
    return [sample.planes_PHW[plane] == number for plane, number in zip(cells.plane_N, cells.numbers_N, strict=True)]


def test_images_are_lzw_compressed_rgba_bytes(folder: Path) -> None:
    paths = [*folder.glob("train/*/image.tif"), *folder.glob("test_release/*.tif")]
    assert len(paths) == TRAIN + TEST
    for path in paths:
        with tifffile.TiffFile(path) as tiff:
            assert tiff.pages[0].compression == tifffile.COMPRESSION.LZW
            image = tiff.asarray()
        assert image.dtype == np.uint8
        assert image.shape[2] == 4
        assert (image[..., 3] == 255).all()


def test_class_maps_are_float_ids_with_gaps_and_an_absent_class_has_no_file(folder: Path) -> None:
    paths = sorted(folder.glob("train/*/class*.tif"))
    assert {path.name for path in paths} == {f"class{label}.tif" for label in range(1, 5)}
    assert len(paths) < 4 * TRAIN
    gaps = 0
    for path in paths:
        class_map = tifffile.imread(path)
        assert class_map.dtype == np.float64
        assert class_map.shape == tifffile.imread(path.parent / "image.tif").shape[:2]
        ids = np.unique(class_map)
        assert ids[0] == 0
        assert len(ids) > 1
        np.testing.assert_array_equal(ids, np.round(ids))
        gaps += ids[-1] > len(ids) - 1
    assert gaps > 0


def test_images_differ_in_size_but_mildly(folder: Path) -> None:
    shapes = [tifffile.imread(path).shape[:2] for path in folder.glob("train/*/image.tif")]
    assert len(set(shapes)) == len(shapes)
    assert any(height != width for height, width in shapes)
    assert all(round(0.8 * 96) <= side <= round(1.2 * 96) for shape in shapes for side in shape)


def test_the_test_list_names_every_test_image_with_its_size(folder: Path) -> None:
    entries = json.loads((folder / "test_image_name_to_ids.json").read_text())
    assert [entry["id"] for entry in entries] == list(range(1, TEST + 1))
    assert {entry["file_name"] for entry in entries} == {path.name for path in folder.glob("test_release/*")}
    for entry in entries:
        image = tifffile.imread(folder / "test_release" / entry["file_name"])
        assert list(entry) == ["file_name", "id", "height", "width"]
        assert image.shape[:2] == (entry["height"], entry["width"])


def test_the_truth_of_the_test_images_loads_with_pycocotools(folder: Path) -> None:
    truth = COCO(folder / "test_truth.json")
    entries = json.loads((folder / "test_image_name_to_ids.json").read_text())
    assert truth.dataset["images"] == entries
    assert [category["name"] for category in truth.loadCats([1, 2, 3, 4])] == list(KINDS)
    assert all(truth.getAnnIds(imgIds=entry["id"]) for entry in entries)
    for annotation in truth.dataset["annotations"]:
        rows, columns = np.nonzero(truth.annToMask(annotation))
        left, top = columns.min(), rows.min()
        assert annotation["bbox"] == [left, top, columns.max() + 1 - left, rows.max() + 1 - top]
        assert annotation["area"] == len(rows) >= MIN_VISIBLE
        assert annotation["iscrowd"] == 0
        assert isinstance(annotation["segmentation"]["counts"], str)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_ones(tmp_path: Path) -> None:
    for name, seed in [("a", 3), ("b", 3), ("c", 4)]:
        generate_dataset(tmp_path / name, train=2, test=1, seed=seed, size=64)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    other = contents(tmp_path / "c")
    assert all(other[name] != data for name, data in contents(tmp_path / "a").items() if name.endswith("image.tif"))


def test_an_image_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    generate_dataset(tmp_path / "few", train=1, test=1, seed=3, size=64)
    generate_dataset(tmp_path / "many", train=3, test=2, seed=3, size=64)
    few, many = contents(tmp_path / "few"), contents(tmp_path / "many")
    for name, data in few.items():
        if name.endswith(".tif"):
            assert many[name] == data
    assert few["train/train-0001/image.tif"] != few["test_release/test-0001.tif"]


def test_a_data_set_without_test_images_has_an_empty_list(tmp_path: Path) -> None:
    generate_dataset(tmp_path / "cells", train=1, test=0, seed=0, size=64)
    assert json.loads((tmp_path / "cells/test_image_name_to_ids.json").read_text()) == []
    assert json.loads((tmp_path / "cells/test_truth.json").read_text())["annotations"] == []
    assert (tmp_path / "cells/test_release").is_dir()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train": 0}, r"^train: must be at least 1 image, but got 0\."),
        ({"test": -1}, r"^test: .* but got -1\."),
        ({"seed": -7}, r"^seed: .* but got -7\."),
        ({"size": 63}, r"^size: 64 <= size <= 2048 .* but got 63\."),
        ({"size": 2049}, r"^size: .* but got 2049\."),
    ],
)
def test_a_number_out_of_range_is_refused(tmp_path: Path, changed: dict[str, int], message: str) -> None:
    numbers = {"train": 1, "test": 1, "seed": 0, "size": 64} | changed
    with pytest.raises(UserError, match=message):
        generate_dataset(tmp_path / "cells", **numbers)
    assert not list(tmp_path.iterdir())


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError) as caught:
        generate_dataset(tmp_path, train=0, test=-1, seed=-1, size=1)
    assert len(caught.value.problems) == 5


def test_a_folder_with_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="must be new or empty"):
        generate_dataset(tmp_path, train=1, test=0, seed=0, size=64)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cells").write_text("mine")
    with pytest.raises(UserError, match="must be a folder, but got a file"):
        generate_dataset(tmp_path / "cells", train=1, test=0, seed=0, size=64)


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    generate_dataset(tmp_path, train=1, test=0, seed=0, size=64)
    assert (tmp_path / "train/train-0001/image.tif").is_file()


def test_nothing_is_left_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dataset, "write_json", fail)
    with pytest.raises(UserError, match="No space left"):
        generate_dataset(tmp_path / "cells", train=1, test=1, seed=0, size=64)
    assert not list(tmp_path.iterdir())


def test_every_cell_is_whole_enough_to_be_seen(samples: list[Sample]) -> None:
    for sample in samples:
        for mask in cell_masks(sample):
            assert mask.sum() >= MIN_VISIBLE
            assert ndimage.label(mask, structure=np.ones((3, 3)))[1] == 1
            rows, columns = np.nonzero(mask)
            assert max(np.ptp(rows), np.ptp(columns)) < 44


def test_images_hold_few_to_many_cells_and_some_are_ruled_by_one_class(samples: list[Sample]) -> None:
    counts = [len(sample.labels_N) for sample in samples]
    assert min(counts) >= 6
    assert max(counts) <= 25
    assert max(counts) - min(counts) > 8
    largest_share = [np.bincount(sample.labels_N).max() / len(sample.labels_N) for sample in samples]
    assert max(largest_share) > 0.8
    assert min(largest_share) < 0.5
    per_class = np.bincount(np.concatenate([sample.labels_N for sample in samples]), minlength=5)[1:]
    assert per_class.min() > 0.15 * per_class.sum()


def test_cells_touch_and_only_those_of_different_classes_share_pixels(samples: list[Sample]) -> None:
    touching = sharing = 0
    for sample in samples:
        masks = cell_masks(sample)
        for index, first in enumerate(masks):
            grown = ndimage.binary_dilation(first)
            for other in range(index + 1, len(masks)):
                touching += bool((grown & masks[other]).any())
                shared = int((first & masks[other]).sum())
                sharing += shared > 0
                if sample.labels_N[index] == sample.labels_N[other]:
                    assert shared == 0
    assert touching > len(samples)
    assert sharing > 5


def test_kinds_are_told_apart_by_colour_size_and_shape(samples: list[Sample]) -> None:
    # If four means per class nearly do it, a small network can learn it in minutes.
    features, labels = [], []
    for sample in samples:
        for mask, label in zip(cell_masks(sample), sample.labels_N, strict=True):
            pixels = np.argwhere(mask)
            if pixels.min() > 0 and pixels.max() < 127:
                minor, major = np.sqrt(np.linalg.eigvalsh(np.cov(pixels.T)))
                red, _, blue = sample.image_HWC[mask].mean(axis=0)
                features.append([red, blue, np.sqrt(mask.sum()), major / minor])
                labels.append(label)
    classes = np.array(labels)
    points = np.array(features) / np.std(features, axis=0)
    centroids = np.stack([points[classes == label].mean(axis=0) for label in range(1, 5)])
    nearest = 1 + np.linalg.norm(points[:, None] - centroids, axis=2).argmin(axis=1)
    assert (nearest == classes).mean() > 0.95


def test_the_mask_of_a_dark_cell_is_where_the_image_is_dark(samples: list[Sample]) -> None:
    agreement = []
    for sample in samples:
        if set(sample.labels_N) != {1}:
            continue
        mask = np.logical_or.reduce(cell_masks(sample))
        dark = sample.image_HWC[..., 0] < 145  # half-way between these nuclei and the tissue, in red light
        agreement.append((mask & dark).sum() / (mask | dark).sum())
    assert len(agreement) > 0
    assert min(agreement) > 0.9


def test_the_command_writes_the_data_set_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "cells"
    assert main([str(target), "--train", "2", "--test", "1", "--seed", "3", "--size", "64"]) == 0
    assert len(list(target.glob("train/*/image.tif"))) == 2
    assert str(target) in capsys.readouterr().out


def test_the_command_ends_a_user_error_with_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "cells"), "--train", "0", "--test", "1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())
