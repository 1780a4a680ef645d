"""Training and validation images: stratified folds, the same everywhere for the same seed."""

from dataclasses import dataclass

import numpy as np

from cellseg.config import DataConfig
from cellseg.errors import UserError


@dataclass(frozen=True, slots=True)
class Split:
    """Indices of samples, ascending. They share none unless ``data.train_on`` is ``all``."""

    training: tuple[int, ...]
    validation: tuple[int, ...]


def assign_folds(label_counts_NC: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """Assign each sample to a fold, (N,) int64 in 0..num_folds-1.

    Iterative stratification (Sechidis et al. 2011) over the classes an image contains: the rarest class is dealt out
    first, each image to the fold that lacks that class most, ties to the fold with fewest images, then by the seed.
    Images without cells count as a class of their own. Fold sizes differ by a few images at most.

    Args:
        label_counts_NC: cells of each class in each sample.
    """
    num_samples = len(label_counts_NC)
    rng = np.random.default_rng(seed)
    # Column 0 is "no cells", so that empty images are spread evenly too.
    present_NK = np.column_stack([label_counts_NC.sum(axis=1) == 0, label_counts_NC > 0])
    wanted_FK = np.tile(present_NK.sum(axis=0) / num_folds, (num_folds, 1))
    room_F = np.full(num_folds, num_samples / num_folds)
    fold_N = np.full(num_samples, -1, dtype=np.int64)
    order = rng.permutation(num_samples)
    while (open_N := fold_N < 0).any():
        left_K = present_NK[open_N].sum(axis=0)
        rarest = int(np.argmin(np.where(left_K > 0, left_K, num_samples + 1)))
        for sample in order:
            if fold_N[sample] >= 0 or not present_NK[sample, rarest]:
                continue
            luck_F = rng.random(num_folds)
            fold = int(np.lexsort((luck_F, -room_F, -wanted_FK[:, rarest]))[0])
            fold_N[sample] = fold
            wanted_FK[fold, present_NK[sample]] -= 1
            room_F[fold] -= 1
    return fold_N


def split(label_counts_NC: np.ndarray, data: DataConfig) -> Split:
    """Training and validation samples: fold ``data.fold`` of ``data.num_folds`` validates.

    The others train, or all do: ``data.train_on``.

    Raises:
        UserError: fewer samples than folds.
    """
    if len(label_counts_NC) < data.num_folds:
        raise UserError(
            f"data.num_folds: each fold needs an image, but got {data.num_folds} folds, {len(label_counts_NC)} images. "
            "Use fewer folds or more images."
        )
    fold_N = assign_folds(label_counts_NC, data.num_folds, data.split_seed)
    validation = np.flatnonzero(fold_N == data.fold)
    if len(validation) == 0 or len(validation) == len(fold_N):
        raise UserError(
            f"data.fold: fold {data.fold} must leave images on both sides, but got {len(validation)} of {len(fold_N)}. "
            "Use fewer folds or more images."
        )
    training = np.flatnonzero((fold_N != data.fold) | (data.train_on == "all"))
    return Split(tuple(training.tolist()), tuple(validation.tolist()))
