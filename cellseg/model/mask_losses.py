"""Losses of predicted masks.

Shape suffixes: R positive regions of interest (RoIs), C classes with background first, M side of a mask, S points.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def own_class(logits_RC: Tensor, labels_R: Tensor) -> Tensor:
    """Select from logits (R, C, ...) of all classes those (R, ...) of each RoI's own class (He et al. 2017)."""
    return logits_RC[torch.arange(len(labels_R), device=labels_R.device), labels_R]


def cross_entropy_loss(logits_R: Tensor, truth_R: Tensor) -> Tensor:
    """Compute the mean binary cross-entropy of logits (R, ...) and truth in [0, 1] of this shape; 0 without RoIs."""
    if logits_R.shape[0] == 0:
        return logits_R.sum() * 0  # keeps the graph, so that every parameter gets a gradient
    return F.binary_cross_entropy_with_logits(logits_R.float(), truth_R)


def dice_loss(logits_RMM: Tensor, truth_RMM: Tensor) -> Tensor:
    """Compute 1 - Dice coefficient, mean over RoIs; 0 without RoIs.

    The coefficient of probabilities p and truth t is (2 sum(p t) + 1) / (sum(p^2) + sum(t^2) + 1), Milletari et al.
    2016. With squares it is 1 just where p = t, also for a truth between 0 and 1; the ones keep an empty mask defined.
    """
    if logits_RMM.shape[0] == 0:
        return logits_RMM.sum() * 0
    p_RX, t_RX = logits_RMM.float().sigmoid().flatten(1), truth_RMM.flatten(1)  # sums need more than half precision
    overlap_R, total_R = (p_RX * t_RX).sum(1), p_RX.square().sum(1) + t_RX.square().sum(1)
    return (1 - (2 * overlap_R + 1) / (total_R + 1)).mean()
