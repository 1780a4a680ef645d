"""Random sampling of the anchors and proposals that a training step learns from."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler


@dataclass(frozen=True)
class Sample:
    """Anchors or proposals drawn from one image; within positives and negatives, drawn ones come first.

    The sizes of the tensors do not depend on values, so the host need not wait for a GPU.
    """

    positive_P: Tensor
    """(P,) int64; P is the largest number that may be drawn."""
    is_positive_P: Tensor
    """(P,) bool: whether it was drawn."""
    negative_Q: Tensor
    is_negative_Q: Tensor


class Sampler(BalancedPositiveNegativeSampler):
    """torchvision's sampler with another way to draw: each anchor gets a random number, and the largest ones win.

    torchvision counts the positives to draw a permutation of that length, for which the host would wait for a GPU.
    """

    @classmethod
    def like(cls, other: BalancedPositiveNegativeSampler) -> "Sampler":
        """Build a sampler with the numbers of ``other``."""
        return cls(other.batch_size_per_image, other.positive_fraction)

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """torchvision's masks (uint8) of the positive and of the negative ones drawn from each image."""
        masks: tuple[list[Tensor], list[Tensor]] = ([], [])
        for labels_A in matched_idxs:
            drawn = self.draw(labels_A)
            chosen = (drawn.positive_P[drawn.is_positive_P], drawn.negative_Q[drawn.is_negative_Q])
            for of_kind, index in zip(masks, chosen, strict=True):
                of_kind.append(torch.zeros_like(labels_A, dtype=torch.uint8).index_fill_(0, index, 1))
        return masks

    def draw(self, labels_A: Tensor) -> Sample:
        """Draw from torch's global generator.

        Args:
            labels_A: 1 and above is positive, 0 negative; others are not drawn.
        """
        total, num_anchors = self.batch_size_per_image, len(labels_A)
        chance_A = torch.rand(num_anchors, device=labels_A.device)
        nothing = chance_A.new_full((), -1)
        chance_P, positive_P = _largest(
            torch.where(labels_A >= 1, chance_A, nothing), int(total * self.positive_fraction)
        )
        is_positive_P = chance_P >= 0
        chance_Q, negative_Q = _largest(torch.where(labels_A == 0, chance_A, nothing), total)
        rank_Q = torch.arange(len(negative_Q), device=labels_A.device)
        is_negative_Q = (chance_Q >= 0) & (rank_Q < total - is_positive_P.sum())
        return Sample(positive_P, is_positive_P, negative_Q, is_negative_Q)


def _largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    values, indices = values.topk(min(count, len(values)))
    return values, indices
