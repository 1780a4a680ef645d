"""PointRend (Kirillov et al. 2020, arXiv:1912.08193): masks refined at the points where they are uncertain.

A small network, :class:`PointHead`, says for single points whether they lie on the cell, from what it reads there in
the finest feature map and in the coarse mask. Training asks it at sampled points of each cell (:func:`point_loss`).
Prediction doubles the coarse mask in size, lets it replace the most uncertain values, and so on (:func:`refine_masks`).

A *place* is a point relative to a box: (0, 0) is its upper left corner, (1, 1) its lower right one. Images, feature
maps and masks share one convention: element i of an axis covers [i, i + 1) and has its value at the centre, i + 0.5.

Shape suffixes: B images, H, W sides of the feature map, F its channels, R regions of interest (RoIs) or boxes,
C classes with background first, M side of a mask, S points, 2 = x, y, 4 = x1, y1, x2, y2 in pixels of the network's
input.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cellseg.data.targets import point_targets
from cellseg.model.mask_losses import cross_entropy_loss, own_class

STRIDE = 4
"""Pixels of the network's input per element of the feature map."""
OVERSAMPLING = 3
"""Candidates drawn per uncertain training point, the paper's k."""
UNCERTAIN_SHARE = 0.75
"""Share of training points that are picked for their uncertainty, the paper's beta."""
POINTS_AT_ONCE = 1 << 16
"""Masks are refined in chunks of at most this many points: 64 MiB for each layer of 256 channels."""


class PointHead(nn.Module):
    """A perceptron with three hidden layers for each point alone; the coarse logits enter every layer anew.

    Args:
        channels: F, of the feature map.
        width: features of the hidden layers.
        num_outputs: C.
        samples: points per RoI in a training step, and per mask after each doubling; at least 1.
        doublings: how often a predicted mask is doubled and refined.
    """

    def __init__(self, channels: int, width: int, num_outputs: int, *, samples: int, doublings: int):
        super().__init__()
        self.samples = samples
        self.doublings = doublings
        layers = [nn.Conv1d(inputs + num_outputs, width, kernel_size=1) for inputs in (channels, width, width)]
        self.layers = nn.ModuleList(layers)
        self.predictor = nn.Conv1d(width + num_outputs, num_outputs, kernel_size=1)
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.predictor.weight, std=0.001)
        for layer in (*layers, self.predictor):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, fine_RFS: Tensor, coarse_RCS: Tensor) -> Tensor:
        """Compute logits (R, C, S) at points with features ``fine_RFS`` and coarse logits ``coarse_RCS``."""
        hidden_RFS = fine_RFS
        for layer in self.layers:
            hidden_RFS = F.relu(layer(torch.cat([hidden_RFS, coarse_RCS], dim=1)))
        return self.predictor(torch.cat([hidden_RFS, coarse_RCS], dim=1))


def point_loss(
    head: PointHead,
    features_BFHW: Tensor,
    coarse_RCMM: Tensor,
    labels_R: Tensor,
    rois: list[Tensor],
    matched: list[Tensor],
    targets: list[dict[str, Tensor]],
) -> Tensor:
    """Compute the mean binary cross-entropy at sampled points of each RoI for its own class; 0 without RoIs.

    Args:
        features_BFHW: the finest feature map, of stride 4.
        coarse_RCMM: logits of the coarse masks; R runs over the RoIs of all images.
        labels_R: (R,) int64, class of each RoI.
        rois: (r, 4) for each image.
        matched: (r,) int64 for each image, the cells of its RoIs.
        targets: those of :func:`cellseg.data.targets.make_target`.
    """
    places_RS2 = sample_places(own_class(coarse_RCMM, labels_R), head.samples)
    coarse_RCS = sample_maps(coarse_RCMM, places_RS2)
    fine, truth = [], []
    places_of_image = places_RS2.split([len(boxes_R4) for boxes_R4 in rois])
    for features_FHW, boxes_R4, index, t, places in zip(
        features_BFHW, rois, matched, targets, places_of_image, strict=True
    ):
        points_RS2 = in_image(places, boxes_R4)
        fine.append(sample_features(features_FHW, points_RS2))
        truth.append(point_targets(t["planes"], t["plane"], t["number"], points_RS2, index))
    logits_RCS = head(torch.cat(fine), coarse_RCS)
    return cross_entropy_loss(own_class(logits_RCS, labels_R), torch.cat(truth))


@torch.no_grad()
def refine_masks(
    head: PointHead, features_BFHW: Tensor, coarse_RCMM: Tensor, boxes: list[Tensor], labels: list[Tensor]
) -> list[Tensor]:
    """Refine masks to M' = M * 2^doublings: probabilities (r, 1, M', M') for each image, float32.

    Args:
        features_BFHW: the finest feature map, of stride 4.
        coarse_RCMM: logits of the coarse masks; R runs over the boxes of all images.
        boxes: (r, 4) for each image.
        labels: (r,) int64 for each image, the class of each mask.
    """
    at_once = max(POINTS_AT_ONCE // head.samples, 1)
    coarse_of_image = coarse_RCMM.split([len(boxes_R4) for boxes_R4 in boxes])
    refined = []
    for features_FHW, coarse, boxes_R4, labels_R in zip(features_BFHW, coarse_of_image, boxes, labels, strict=True):
        chunks = zip(coarse.split(at_once), boxes_R4.split(at_once), labels_R.split(at_once), strict=True)
        refined.append(torch.cat([_refine(head, features_FHW, *chunk) for chunk in chunks]))
    return refined


def _refine(head: PointHead, features_FHW: Tensor, coarse_RCMM: Tensor, boxes_R4: Tensor, labels_R: Tensor) -> Tensor:
    """Refine the masks of one image: probabilities (R, 1, M', M')."""
    logits_R1MM = own_class(coarse_RCMM, labels_R).float()[:, None]
    for _ in range(head.doublings):
        logits_R1MM = F.interpolate(logits_R1MM, scale_factor=2, mode="bilinear", align_corners=False)
        side = logits_R1MM.shape[-1]
        flat_RX = logits_R1MM.flatten(1)
        index_RS = flat_RX.abs().topk(min(head.samples, side * side), dim=1, largest=False).indices
        column_RS, row_RS = index_RS % side, index_RS // side
        places_RS2 = (torch.stack([column_RS, row_RS], dim=2) + 0.5) / side
        fine_RFS = sample_features(features_FHW, in_image(places_RS2, boxes_R4))
        points_RCS = head(fine_RFS, sample_maps(coarse_RCMM, places_RS2))
        flat_RX = flat_RX.scatter(1, index_RS, own_class(points_RCS, labels_R).float())
        logits_R1MM = flat_RX.reshape(logits_R1MM.shape)
    return logits_R1MM.sigmoid()


@torch.no_grad()
def sample_places(logits_RMM: Tensor, count: int) -> Tensor:
    """Draw places (R, count, 2) to train at: three quarters where the mask is uncertain, the rest anywhere.

    The draws come from torch's global generator.
    """
    num_uncertain = int(UNCERTAIN_SHARE * count)
    device, num_rois = logits_RMM.device, len(logits_RMM)
    candidates_RX2 = torch.rand(num_rois, OVERSAMPLING * count, 2, device=device)
    certainty_RX = sample_maps(logits_RMM[:, None], candidates_RX2)[:, 0].abs()
    index_RS = certainty_RX.topk(num_uncertain, dim=1, largest=False).indices
    uncertain_RS2 = candidates_RX2.gather(1, index_RS[:, :, None].expand(-1, -1, 2))
    anywhere_RS2 = torch.rand(num_rois, count - num_uncertain, 2, device=device)
    return torch.cat([uncertain_RS2, anywhere_RS2], dim=1)


def in_image(places_RS2: Tensor, boxes_R4: Tensor) -> Tensor:
    """Convert places in boxes to points (R, S, 2) in pixels of the image."""
    return boxes_R4[:, None, :2] + places_RS2 * (boxes_R4[:, None, 2:] - boxes_R4[:, None, :2])


def sample_features(features_FHW: Tensor, points_RS2: Tensor) -> Tensor:
    """Sample features (R, F, S) float32 of an image at points (R, S, 2) given in pixels."""
    channels, height, width = features_FHW.shape
    x_RS, y_RS = points_RS2.unbind(dim=2)  # a tensor of both sides would be copied to the device
    places_RS2 = torch.stack([x_RS / (STRIDE * width), y_RS / (STRIDE * height)], dim=2)
    values_1FX = sample_maps(features_FHW[None], places_RS2.reshape(1, -1, 2))
    return values_1FX.reshape(channels, *points_RS2.shape[:2]).transpose(0, 1)


def sample_maps(maps_RCHW: Tensor, places_RS2: Tensor) -> Tensor:
    """Interpolate values (R, C, S) float32 of each map, bilinearly, at its places in [0, 1]^2.

    Between the outermost centres and the edge the value is that of the edge, as in bilinear upsampling.
    """
    grid_RS12 = 2 * places_RS2.float()[:, :, None] - 1
    values_RCS1 = F.grid_sample(maps_RCHW.float(), grid_RS12, padding_mode="border", align_corners=False)
    return values_RCS1[:, :, :, 0]
