"""Training targets, read from instance planes: boxes, labels, and the mask targets of sampled RoIs.

torchvision wants a mask per cell and resamples those that belong to the sampled boxes. Here the planes go to the device
as they are and each RoI reads its own pixels of its own plane: nothing of size N x H x W exists anywhere.

Shape suffixes: P planes, H height, W width, N cells, R regions of interest (RoIs), M side of a mask target, S points,
h, w window of an RoI, 4 = x1, y1, x2, y2 in pixels with exclusive right and bottom edge, 2 = x, y.
"""

import numpy as np
import torch
from torch import Tensor

from cellseg.data.planes import read_instances

PIXELS_AT_ONCE = 1 << 22
"""RoIs are read in chunks of at most this many window pixels (about 60 MB); a larger RoI is a chunk of its own."""
MOST_POINTS = 1 << 20
"""Sampling points along an axis stay below this: an image would be 1 << 20 bins wide."""


def make_target(
    planes_PHW: np.ndarray, labels_N: np.ndarray, min_area: int = 4, least_areas_N: np.ndarray | None = None
) -> dict[str, Tensor]:
    """The target of an image whose cells lie in ``planes_PHW``.

    Args:
        planes_PHW: (P, H, W) uint16, after augmentation: cells may have left the image.
        labels_N: class of cell ``i + 1``, for all cells the sample had before augmentation.
        min_area: cells with fewer pixels than this are left out.
        least_areas_N: for each of the same cells the pixels below which too little of it is left to be a cell, and too
            much to be background: it is ignored. None: whatever is left is a cell.

    Returns:
        For the K cells that remain, K >= 0, ``boxes`` (K, 4) float32, ``labels`` (K,) int64, ``plane`` and ``number``
        (K,) int64 (cell k covers the pixels where ``planes[plane[k]] == number[k]``), and ``planes`` (P, H, W) integers
        (int16 where all numbers fit, else int32). For the J cells to be ignored, J >= 0, ``ignored`` (J, 4) float32:
        their boxes.
    """
    cells = read_instances(planes_PHW, labels_N)
    ignored_N = np.zeros(len(cells.numbers_N), dtype=bool)
    if least_areas_N is not None:
        ignored_N = cells.areas_N < least_areas_N[cells.numbers_N - 1]
    kept_N = (cells.areas_N >= min_area) & ~ignored_N
    # A batch travels from process to process and to the GPU, and planes are most of it after the image.
    small = len(labels_N) <= np.iinfo(np.int16).max
    return {
        "boxes": torch.from_numpy(cells.boxes_N4[kept_N]),
        "labels": torch.from_numpy(cells.labels_N[kept_N]),
        "planes": torch.from_numpy(planes_PHW.astype(np.int16 if small else np.int32)),
        "plane": torch.from_numpy(cells.plane_N[kept_N]),
        "number": torch.from_numpy(cells.numbers_N[kept_N]),
        "ignored": torch.from_numpy(cells.boxes_N4[ignored_N]),
    }


@torch.no_grad()
def roi_mask_targets(
    planes_PHW: Tensor,
    plane_N: Tensor,
    number_N: Tensor,
    rois_R4: Tensor,
    matched_R: Tensor,
    resolution: int,
    points_R2: np.ndarray | None = None,
    aligned: bool = False,
) -> Tensor:
    """Compute mask targets of RoIs: the share of each of M x M bins that the matched cell covers.

    Equals ``roi_align`` of the cell's binary mask with adaptive sampling and ``aligned``; False is torchvision's
    ``project_masks_on_boxes``, which takes pixel i to lie at i instead of i + 0.5. Bilinear sampling on a regular grid
    is separable, so the target is
    ``rows_Mh @ mask_hw @ columns_Mw.T`` on the RoI's window of the mask; RoIs with the same number of sampling points
    per bin share a window size and are done together.

    Args:
        planes_PHW: (P, H, W) integers.
        plane_N, number_N: plane and number of each cell, int64.
        rois_R4: (R, 4) float, may cross the image's border. R may be 0.
        matched_R: (R,) int64, the cell of each RoI, in 0..N-1.
        resolution: M.
        points_R2: what :func:`sampling_points` gives, where the host knows it already. Otherwise it waits for a GPU.
        aligned: read pixel i at i + 0.5, where it lies, as :func:`point_targets` does.

    Returns:
        (R, M, M) float32 in [0, 1] on the device of ``planes_PHW``.
    """
    rois_R4 = rois_R4.to(torch.float32)
    targets_RMM = rois_R4.new_zeros(len(rois_R4), resolution, resolution)
    if not len(rois_R4):
        return targets_RMM
    plane_R, number_R = plane_N[matched_R], number_N[matched_R]
    points_on_device_R2 = sampling_points(rois_R4, resolution)
    if points_R2 is None:
        points_R2 = points_on_device_R2.cpu().numpy()
    offset = 0.5 if aligned else 0.0
    groups_G2, counts_G = np.unique(points_R2, axis=0, return_counts=True)  # sorted by x, then by y, as here:
    members = (points_on_device_R2[:, 0] * MOST_POINTS + points_on_device_R2[:, 1]).argsort().split(counts_G.tolist())
    for (points_x, points_y), of_group in zip(groups_G2.tolist(), members, strict=True):
        window_pixels = (points_y * resolution + 2) * (points_x * resolution + 2)
        for chunk in of_group.split(max(PIXELS_AT_ONCE // window_pixels, 1)):
            targets_RMM[chunk] = _group_targets(
                planes_PHW, plane_R[chunk], number_R[chunk], rois_R4[chunk] - offset, points_y, points_x, resolution
            )
    return targets_RMM


def sampling_points(rois_R4: Tensor, resolution: int) -> Tensor:
    """(R, 2) int64: at how many points in x and y the mask of each RoI is read for each of ``resolution`` bins."""
    sides_R2 = (rois_R4[:, 2:] - rois_R4[:, :2]).clamp(min=1)
    return torch.ceil(sides_R2 / resolution).to(torch.int64)


@torch.no_grad()
def point_targets(
    planes_PHW: Tensor, plane_N: Tensor, number_N: Tensor, points_RS2: Tensor, matched_R: Tensor
) -> Tensor:
    """Look up whether points lie on a cell: the truth of the pixel that each falls into, pixel i covering [i, i + 1).

    Args:
        planes_PHW: (P, H, W) integers.
        plane_N, number_N: plane and number of each cell, int64.
        points_RS2: (R, S, 2) float, x and y in pixels; may lie outside of the image. R may be 0.
        matched_R: (R,) int64, the cell of each row of points, in 0..N-1.

    Returns:
        (R, S) float32: 1 on the cell, 0 beside it and outside of the image.
    """
    _, height, width = planes_PHW.shape
    column_RS, row_RS = points_RS2.floor().to(torch.int64).unbind(dim=2)
    inside_RS = (column_RS >= 0) & (column_RS < width) & (row_RS >= 0) & (row_RS < height)
    plane_R, number_R = plane_N[matched_R], number_N[matched_R]
    value_RS = planes_PHW[plane_R[:, None], row_RS.clamp(0, height - 1), column_RS.clamp(0, width - 1)]
    return (inside_RS & (value_RS == number_R[:, None])).to(torch.float32)


def _group_targets(
    planes_PHW: Tensor,
    plane_R: Tensor,
    number_R: Tensor,
    rois_R4: Tensor,
    points_y: int,
    points_x: int,
    resolution: int,
) -> Tensor:
    """Compute targets (R, M, M) of RoIs that all have ``points_y`` x ``points_x`` sampling points per bin."""
    _, height, width = planes_PHW.shape
    x1_R, y1_R, x2_R, y2_R = rois_R4.unbind(dim=1)
    row_Rh, row_weights_RMh = _axis_weights(y1_R, y2_R, height, points_y, resolution)
    column_Rw, column_weights_RMw = _axis_weights(x1_R, x2_R, width, points_x, resolution)
    window_Rhw = planes_PHW[plane_R[:, None, None], row_Rh[:, :, None], column_Rw[:, None, :]]
    mask_Rhw = (window_Rhw == number_R[:, None, None]).to(torch.float32)
    with torch.autocast(planes_PHW.device.type, enabled=False):  # the weights need float32
        return row_weights_RMh @ mask_Rhw @ column_weights_RMw.transpose(1, 2)


def _axis_weights(start_R: Tensor, stop_R: Tensor, side: int, points: int, resolution: int) -> tuple[Tensor, Tensor]:
    """Compute, along one axis, the pixels of each RoI's window and their weights in each bin.

    The weight of a pixel in a bilinear sample falls linearly from 1 to 0 over a distance of one pixel. A bin's weights
    are the mean over its ``points`` samples. Samples more than a pixel outside of the image count as background, nearer
    ones take the border pixel: roi_align's rule.

    Returns:
        pixels (R, h) int64 in 0..side-1 and weights (R, M, h) float32, with h = points * M + 2.
    """
    bin_R = (stop_R - start_R).clamp(min=1) / resolution
    bin_index_M = torch.arange(resolution, device=start_R.device)
    first_R = start_R.floor().clamp(0, side - 1)
    pixels_Rh = first_R[:, None] + torch.arange(points * resolution + 2, device=start_R.device)
    weights_RMh = start_R.new_zeros(len(start_R), resolution, points * resolution + 2)
    for point in range(points):
        sample_RM = start_R[:, None] + bin_index_M * bin_R[:, None] + ((point + 0.5) * bin_R / points)[:, None]
        inside_RM = (sample_RM >= -1) & (sample_RM <= side)
        distance_RMh = (sample_RM.clamp(0, side - 1)[:, :, None] - pixels_Rh[:, None, :]).abs()
        weights_RMh += (1 - distance_RMh).clamp(min=0) * inside_RM[:, :, None]
    return pixels_Rh.clamp(max=side - 1).to(torch.int64), weights_RMh / points
