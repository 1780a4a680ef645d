"""The way through the command ``import``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from importing_cells import cells_of

from cellseg.config import DataConfig
from cellseg.data import import_labels
from cellseg.data.dataset import open_dataset


@pytest.fixture
def imported(tmp_path: Path) -> Callable[..., dict[str, dict[str, list[np.ndarray]]]]:
    """Reads a folder directly and by way of the command ``import``; the cells of each image, which are the same."""

    def read(root: Path, *options: str, **settings: Any) -> dict[str, dict[str, list[np.ndarray]]]:
        dest = tmp_path / "imported"
        assert import_labels.main([str(root), str(dest), *options]) == 0
        written = open_dataset(DataConfig(root=str(dest)))
        after = {source.name: source.load() for source in written.sources}
        if not options:
            dataset = open_dataset(DataConfig(root=str(root), **settings))
            before = {source.name: source.load() for source in dataset.sources}
            assert dataset.class_names == written.class_names
            assert dataset.category_ids == written.category_ids
            assert before.keys() == after.keys()
            for name, sample in before.items():
                np.testing.assert_array_equal(sample.image_HWC, after[name].image_HWC)
                np.testing.assert_array_equal(sample.planes_PHW, after[name].planes_PHW)
                np.testing.assert_array_equal(sample.labels_N, after[name].labels_N)
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
        return {name: cells_of(sample, written.class_names) for name, sample in after.items()}

    return read
