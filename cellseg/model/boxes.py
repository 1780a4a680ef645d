"""Box coding and suppression, in float32 under every precision of training.

Shape suffixes: B images, K candidates of an image, X kept ones of all images, N boxes, C classes, 4 = x1, y1, x2, y2 in
pixels.
"""

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, nms

from cellseg.model import waiting

TOGETHER = 1 << 15
"""Most boxes that one suppression call on a GPU compares: all pairs, one bit each, 128 MiB. An image with more boxes
is a call of its own."""


class Float32BoxCoder(BoxCoder):
    """torchvision's coder for any precision, computed in float32 without making tensors from scalars."""

    def encode_single(self, reference_boxes: Tensor, proposals: Tensor) -> Tensor:
        """Return the deltas (N, 4) that turn ``proposals`` (N, 4) into the cells' ``reference_boxes`` (N, 4)."""
        centre_N2, side_N2 = _centres_and_sides(proposals.float())
        true_centre_N2, true_side_N2 = _centres_and_sides(reference_boxes.float())
        (wx, wy, ww, wh), shift_N2 = self.weights, true_centre_N2 - centre_N2
        (dx, dy), (dw, dh) = (wx * shift_N2[:, 0], wy * shift_N2[:, 1]), torch.log(true_side_N2 / side_N2).unbind(1)
        return torch.stack([dx / side_N2[:, 0], dy / side_N2[:, 1], ww * dw, wh * dh], dim=1)

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Return ``boxes`` (N, 4) changed by the deltas (N, 4C): (N, 4C) float32."""
        centre_N2, side_N2 = _centres_and_sides(boxes.float())
        dx, dy, dw, dh = (
            delta_NC / weight
            for delta_NC, weight in zip(rel_codes.float().unflatten(1, (-1, 4)).unbind(2), self.weights, strict=True)
        )
        x_NC, y_NC = dx * side_N2[:, :1] + centre_N2[:, :1], dy * side_N2[:, 1:] + centre_N2[:, 1:]
        half_width_NC = 0.5 * (torch.exp(dw.clamp(max=self.bbox_xform_clip)) * side_N2[:, :1])
        half_height_NC = 0.5 * (torch.exp(dh.clamp(max=self.bbox_xform_clip)) * side_N2[:, 1:])
        edges = [x_NC - half_width_NC, y_NC - half_height_NC, x_NC + half_width_NC, y_NC + half_height_NC]
        return torch.stack(edges, dim=2).flatten(1)


def suppress_in_groups(
    boxes_BK4: Tensor, scores_BK: Tensor, groups_K: Tensor, is_there_BK: Tensor, threshold: float
) -> Tensor:
    """Return the positions in (B * K) of boxes that survive non-maximum suppression, best first within each image.

    Boxes of different images or groups do not suppress each other. Absent boxes may survive.

    On a GPU the boxes of several images and all groups share one call, for which the host waits once; each group
    is shifted to a separate place. Coordinates stay below 2^14 px, so float32 resolves 0.001 px.

    Args:
        groups_K: int64 from 0, the same for all images.
    """
    batch, count = scores_BK.shape
    if waiting.may_wait(boxes_BK4.device):
        kept = []
        for image in range(batch):
            here_k = torch.nonzero(is_there_BK[image])[:, 0]
            best_k = batched_nms(boxes_BK4[image, here_k], scores_BK[image, here_k], groups_K[here_k], threshold)
            kept.append(here_k[best_k] + image * count)
        return torch.cat(kept)
    together = max(TOGETHER // max(count, 1), 1)
    kept = []
    for first in range(0, batch, together):
        boxes_bK4 = boxes_BK4[first : first + together]
        side = boxes_bK4.amax() + 1
        row_b = torch.arange(len(boxes_bK4), device=boxes_bK4.device) * side
        corner_bK2 = torch.stack(torch.broadcast_tensors(groups_K * side, row_b[:, None]), dim=-1)
        moved_bK4 = boxes_bK4 + corner_bK2.repeat(1, 1, 2)
        scores_bK = scores_BK[first : first + together].masked_fill(~is_there_BK[first : first + together], -torch.inf)
        kept.append(nms(moved_bK4.flatten(0, 1), scores_bK.flatten(), threshold) + first * count)
    return torch.cat(kept)


def best_of_each_image(
    kept: Tensor, boxes_BK4: Tensor, scores_BK: Tensor, is_there_BK: Tensor, limit: int
) -> tuple[Tensor, Tensor]:
    """Gather the first ``limit`` boxes of each image among the ``kept`` positions in (B * K), with their scores.

    Returns:
        Boxes (B, limit, 4) and scores (B, limit). Images with fewer are padded with 0: boxes without area.
    """
    batch, count = scores_BK.shape
    image_B = torch.arange(batch, device=kept.device)
    is_its_XB = (kept.div(count, rounding_mode="floor")[:, None] == image_B) & is_there_BK.flatten()[kept][:, None]
    rank_XB = is_its_XB.cumsum(0) - 1
    nowhere = batch * limit
    slot = torch.where(is_its_XB & (rank_XB < limit), rank_XB + image_B * limit, nowhere).amin(dim=1)
    best = boxes_BK4.new_zeros(nowhere + 1, 5)
    values = torch.cat([boxes_BK4.flatten(0, 1)[kept], scores_BK.flatten()[kept][:, None]], dim=1)
    best = best.index_put((slot,), values)[:-1].unflatten(0, (batch, limit))
    return best[..., :4], best[..., 4]


def _centres_and_sides(boxes_N4: Tensor) -> tuple[Tensor, Tensor]:
    side_N2 = boxes_N4[:, 2:] - boxes_N4[:, :2]
    return boxes_N4[:, :2] + 0.5 * side_N2, side_N2
