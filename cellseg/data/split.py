"""Training and validation images: stratified folds, the same everywhere for the same seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cellseg.config import DataConfig
from cellseg.errors import UserError
from cellseg.names import counted


@dataclass(frozen=True, slots=True)
class Split:
    """Indices of samples, ascending. They share none unless ``data.train_on`` is ``all``; ``unvalidated`` has none to
    validate."""

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


def assign_grouped_folds(label_counts_NC: np.ndarray, groups: Sequence[str], num_folds: int, seed: int) -> np.ndarray:
    """The fold of each sample, (N,) int64 in 0..num_folds-1, the same for all samples of a group.

    The largest group is dealt out first, equally large ones by the seed, each to the fold where it brings the numbers
    of images, of images with each class and of empty ones nearest to equal shares, in squares of shares. No fold is
    empty if there are as many groups.

    Args:
        label_counts_NC: cells of each class in each sample.
        groups: the group of each sample.
    """
    names, group_N = np.unique(np.asarray(groups), return_inverse=True)
    counted_NK = np.column_stack([np.ones(len(group_N)), label_counts_NC.sum(axis=1) == 0, label_counts_NC > 0]).astype(
        float
    )
    shares_NK = counted_NK / counted_NK.sum(axis=0).clip(min=1)
    shares_GK = np.zeros((len(names), shares_NK.shape[1]))
    np.add.at(shares_GK, group_N, shares_NK)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(names))
    fold_G = np.zeros(len(names), dtype=np.int64)
    held_FK = np.zeros((num_folds, shares_GK.shape[1]))
    for group in shuffled[np.argsort(-shares_GK[shuffled, 0], kind="stable")]:
        # What is added to the sum of squares, but for a term that is the same for all folds.
        excess_F = (held_FK * shares_GK[group]).sum(axis=1)
        fold = int(np.lexsort((rng.random(num_folds), excess_F))[0])
        fold_G[group] = fold
        held_FK[fold] += shares_GK[group]
    return fold_G[group_N]


def split(
    label_counts_NC: np.ndarray,
    data: DataConfig,
    groups: Sequence[str] | None = None,
    given: Sequence[bool] | None = None,
) -> Split:
    """Training and validation samples: fold ``data.fold`` of ``data.num_folds`` validates, or the data's own split.

    The others train, or all do: ``data.train_on``.

    Args:
        label_counts_NC: cells of each class in each sample.
        groups: the group of each sample, see ``data.groups``: :attr:`cellseg.data.packed.PackedDataset.groups`.

        given: whether each sample is in the data's own split for validation, see ``data.validation``:
            :attr:`cellseg.data.packed.PackedDataset.validation`.

    Raises:
        UserError: fewer samples or groups than folds, or no split where ``data.validation`` asks for it.
    """
    if data.validation == "given":
        return _given_split(len(label_counts_NC), data, given)
    if data.groups is not None and groups is None:
        raise UserError(
            f"data.groups: must be known when the data are opened, but got '{data.groups}' later. "
            "Give all trials of a study the same groups."
        )
    if data.train_on == "unvalidated":
        return Split(tuple(range(len(label_counts_NC))), ())
    if groups is not None and len(set(groups)) < data.num_folds:
        raise UserError(
            f"data.num_folds: each fold needs a group of images, but got {data.num_folds} folds, "
            f"{counted(len(set(groups)), 'group')}. Use fewer folds, or smaller groups in data.groups."
        )
    if len(label_counts_NC) < data.num_folds:
        raise UserError(
            f"data.num_folds: each fold needs an image, but got {data.num_folds} folds, "
            f"{counted(len(label_counts_NC), 'image')}. Use fewer folds or more images."
        )
    if groups is None:
        fold_N = assign_folds(label_counts_NC, data.num_folds, data.split_seed)
    else:
        fold_N = assign_grouped_folds(label_counts_NC, groups, data.num_folds, data.split_seed)
    validation = np.flatnonzero(fold_N == data.fold)
    if len(validation) == 0 or len(validation) == len(fold_N):
        raise UserError(
            f"data.fold: fold {data.fold} must leave images on both sides, but got {len(validation)} of {len(fold_N)}. "
            "Use fewer folds or more images."
        )
    training = np.flatnonzero((fold_N != data.fold) | (data.train_on == "all"))
    return Split(tuple(training.tolist()), tuple(validation.tolist()))


def _given_split(num_samples: int, data: DataConfig, given: Sequence[bool] | None) -> Split:
    validates_N = np.zeros(num_samples, dtype=bool) if given is None else np.asarray(given, dtype=bool)
    count = int(validates_N.sum())
    if count in (0, num_samples):
        raise UserError(
            f"data.validation: 'given' needs images in the data's splits train and valid, but got "
            f"{num_samples - count} and {count}. Use 'folds'."
        )
    training = np.flatnonzero(~validates_N | (data.train_on == "all"))
    return Split(tuple(training.tolist()), tuple(np.flatnonzero(validates_N).tolist()))
