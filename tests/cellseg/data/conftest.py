"""Small data sets on disk for the tests of this folder."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import tifffile


def _write_sample(folder: Path, image: np.ndarray, class_maps: Mapping[int, np.ndarray]) -> None:
    """A sample folder as in the release: LZW-compressed TIFFs, class maps as float64."""
    folder.mkdir(parents=True)
    tifffile.imwrite(folder / "image.tif", image, photometric="rgb", compression="lzw")
    for label, ids_HW in class_maps.items():
        tifffile.imwrite(folder / f"class{label}.tif", ids_HW.astype(np.float64), compression="lzw")


def _write_test_list(root: Path, entries: list[dict]) -> None:
    (root / "test_image_name_to_ids.json").write_text(json.dumps(entries), encoding="utf-8")


@pytest.fixture
def write_sample() -> Callable[[Path, np.ndarray, Mapping[int, np.ndarray]], None]:
    """Writes (folder, image, {class: ids}) as a sample of the release layout."""
    return _write_sample


@pytest.fixture
def make_release(tmp_path: Path) -> Callable[..., Path]:
    """Builds ``samples`` images of 24 x 30 px under a new root: each a cell of class 1 and two touching of class 3."""

    def make(samples: int = 2, test_images: int = 1) -> Path:
        root = tmp_path / "data"
        rng = np.random.default_rng(0)
        for index in range(samples):
            one, three = np.zeros((24, 30)), np.zeros((24, 30))
            one[2:8, 3:9] = 700  # ids have gaps, and do not fit into a byte
            three[10:20, 5:10] = 2
            three[10:20, 10:16] = 257
            _write_sample(root / "train" / f"s{index}", _noise(rng), {1: one, 3: three})
        (root / "test_release").mkdir(parents=True)
        entries = []
        for index in range(test_images):
            tifffile.imwrite(root / "test_release" / f"t{index}.tif", _noise(rng), photometric="rgb")
            entries.append({"file_name": f"t{index}.tif", "id": index + 1, "height": 24, "width": 30})
        _write_test_list(root, entries or [{"file_name": "absent.tif", "id": 1, "height": 5, "width": 5}])
        return root

    return make


def _noise(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (24, 30, 4), dtype=np.uint8)
