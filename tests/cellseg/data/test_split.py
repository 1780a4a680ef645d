import numpy as np
import pytest

from cellseg.config import DataConfig
from cellseg.data.split import Split, assign_folds, split
from cellseg.errors import UserError


def imbalanced(seed: int = 0) -> np.ndarray:
    """Cells of four classes in 103 images: class 1 in most, class 4 in five, eleven images without any."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((103, 4), np.int64)
    counts[:92, 0] = rng.integers(1, 100, 92)
    counts[rng.permutation(92)[:40], 1] = 3
    counts[rng.permutation(92)[:12], 2] = 1
    counts[rng.permutation(92)[:5], 3] = 7
    return counts[rng.permutation(103)]


def test_the_same_seed_gives_the_same_folds_and_another_gives_others():
    counts = imbalanced()
    assert np.array_equal(assign_folds(counts, 5, 3), assign_folds(counts, 5, 3))
    assert not np.array_equal(assign_folds(counts, 5, 3), assign_folds(counts, 5, 4))


def test_the_folds_of_a_seed_never_change_between_versions():
    counts = np.array([[1, 0], [0, 1], [1, 1], [0, 0], [2, 0], [0, 3], [0, 0], [1, 0]])
    assert assign_folds(counts, 2, 0).tolist() == [0, 1, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_folds", [2, 5])
def test_every_class_and_the_images_without_cells_are_spread_evenly(seed, num_folds):
    counts = imbalanced(seed)
    fold_N = assign_folds(counts, num_folds, seed)
    present_NK = np.column_stack([counts.sum(axis=1) == 0, counts > 0])
    per_fold_FK = np.array([present_NK[fold_N == fold].sum(axis=0) for fold in range(num_folds)])
    assert per_fold_FK.sum(axis=0).tolist() == present_NK.sum(axis=0).tolist()
    spread_K = np.ptp(per_fold_FK, axis=0)
    assert spread_K[0] <= 1  # without cells
    assert spread_K[4] <= 1  # the rarest class
    assert spread_K.max() <= 3
    assert np.ptp(np.bincount(fold_N, minlength=num_folds)) <= 3


def test_how_many_cells_an_image_holds_does_not_matter():
    counts = imbalanced()
    assert np.array_equal(assign_folds(counts, 5, 0), assign_folds((counts > 0).astype(np.int64), 5, 0))


def test_training_and_validation_are_disjoint_and_cover_everything():
    counts = imbalanced()
    parts = split(counts, DataConfig(num_folds=5, fold=2))
    assert set(parts.training) & set(parts.validation) == set()
    assert sorted(parts.training + parts.validation) == list(range(103))
    assert list(parts.training) == sorted(parts.training)
    assert list(parts.validation) == sorted(parts.validation)
    assert all(type(index) is int for index in parts.training + parts.validation)


def test_the_folds_are_a_partition():
    counts = imbalanced()
    validated = [index for fold in range(4) for index in split(counts, DataConfig(num_folds=4, fold=fold)).validation]
    assert sorted(validated) == list(range(103))


def test_all_images_may_train_while_the_fold_still_validates():
    counts = imbalanced()
    parts = split(counts, DataConfig(fold=2, train_on="all"))
    assert parts.training == tuple(range(103))
    assert parts.validation == split(counts, DataConfig(fold=2)).validation


def test_as_many_images_as_folds_validate_one_at_a_time():
    counts = np.eye(5, 3, dtype=np.int64)
    parts = [split(counts, DataConfig(num_folds=5, fold=fold)) for fold in range(5)]
    assert sorted(part.validation for part in parts) == [(index,) for index in range(5)]


def test_a_split_is_a_value():
    assert split(imbalanced(), DataConfig()) == split(imbalanced(), DataConfig())
    assert Split((0,), (1,)) != Split((1,), (0,))


@pytest.mark.parametrize("images", [0, 1, 4])
def test_fewer_images_than_folds_are_an_error(images):
    with pytest.raises(
        UserError, match=rf"data\.num_folds: each fold needs an image, but got 5 folds, {images} images?\."
    ):
        split(np.ones((images, 2), np.int64), DataConfig(num_folds=5))
