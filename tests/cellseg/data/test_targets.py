import numpy as np
import pytest
import torch
from torchvision.models.detection.roi_heads import project_masks_on_boxes

from cellseg.data import targets
from cellseg.data.targets import make_target, point_targets, roi_mask_targets


def crowded(height: int, width: int, num_cells: int, largest: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """The target of ragged cells on two planes, some of them cut by the border or by each other."""
    rng = np.random.default_rng(seed)
    planes_PHW = np.zeros((2, height, width), np.uint16)
    for index in range(num_cells):
        (top, left), (h, w) = rng.integers(0, [height, width]), rng.integers(1, largest, 2)
        window_hw = planes_PHW[index % 2, top : top + h, left : left + w]
        window_hw[rng.random(window_hw.shape) < 0.8] = index + 1
    return make_target(planes_PHW, np.ones(num_cells, np.int64), min_area=1)


def reference(target: dict[str, torch.Tensor], rois_R4, matched_R, resolution: int) -> torch.Tensor:
    masks_NHW = torch.stack(
        [target["planes"][plane] == number for plane, number in zip(target["plane"], target["number"], strict=True)]
    )
    return project_masks_on_boxes(masks_NHW, rois_R4, matched_R, resolution)


def ours(target: dict[str, torch.Tensor], rois_R4, matched_R, resolution: int) -> torch.Tensor:
    return roi_mask_targets(target["planes"], target["plane"], target["number"], rois_R4, matched_R, resolution)


@pytest.mark.parametrize("resolution", [14, 28])
@pytest.mark.parametrize("jitter", [0.3, 4.0, 40.0])
@pytest.mark.parametrize("size, largest", [((90, 110), 40), ((300, 260), 250)])
def test_mask_targets_equal_torchvisions_for_sampled_boxes(size, largest, jitter, resolution):
    target = crowded(*size, num_cells=25, largest=largest)
    generator = torch.Generator().manual_seed(1)
    matched_R = torch.randint(len(target["boxes"]), (60,), generator=generator)
    corners = target["boxes"][matched_R] + torch.randn(60, 4, generator=generator) * jitter
    rois_R4 = torch.cat([corners[:, :2].minimum(corners[:, 2:]), corners[:, :2].maximum(corners[:, 2:])], dim=1)
    expected = reference(target, rois_R4, matched_R, resolution)
    got = ours(target, rois_R4, matched_R, resolution)
    assert got.dtype == torch.float32
    assert 0.01 < expected.mean() < 0.99
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "roi",
    [
        pytest.param([0, 0, 60, 50], id="whole image"),
        pytest.param([-30.5, -20.25, 200, 90], id="much larger than the image"),
        pytest.param([-0.75, -0.5, 12, 12], id="less than a pixel outside"),
        pytest.param([-1.5, -1.0, 3, 3], id="more than a pixel outside"),
        pytest.param([50.5, 40.5, 61, 51], id="over the far corner"),
        pytest.param([59.5, 49.5, 60, 50], id="last pixel"),
        pytest.param([20.2, 20.2, 20.3, 20.3], id="tiny"),
        pytest.param([20.0, 20.0, 20.0, 20.0], id="a point"),
        pytest.param([10.2, 0, 10.4, 50], id="thin"),
        pytest.param([80, 80, 90, 90], id="outside"),
        pytest.param([-40, -40, -20, -20], id="outside on the other side"),
    ],
)
def test_mask_targets_of_odd_boxes_equal_torchvisions(roi):
    planes_PHW = np.ones((1, 50, 60), np.uint16)
    planes_PHW[0, 5:9, 11:30] = 0
    planes_PHW[0, 20, 20] = 0
    target = make_target(planes_PHW, np.ones(1, np.int64))
    rois_R4, matched_R = torch.tensor([roi], dtype=torch.float32), torch.zeros(1, dtype=torch.int64)
    expected = reference(target, rois_R4, matched_R, 28)
    torch.testing.assert_close(ours(target, rois_R4, matched_R, 28), expected, atol=1e-5, rtol=0)


def test_mask_targets_do_not_depend_on_the_size_of_chunks(monkeypatch):
    target = crowded(200, 200, num_cells=20, largest=100)
    matched_R = torch.arange(len(target["boxes"]))
    whole = ours(target, target["boxes"], matched_R, 14)
    monkeypatch.setattr(targets, "PIXELS_AT_ONCE", 1)
    torch.testing.assert_close(ours(target, target["boxes"], matched_R, 14), whole, atol=1e-6, rtol=0)


def test_mask_targets_are_exact_under_autocast():
    target = crowded(120, 120, num_cells=10, largest=60)
    matched_R = torch.arange(len(target["boxes"]))
    rois_R4 = target["boxes"] + 0.3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ours(target, rois_R4, matched_R, 28)
    torch.testing.assert_close(got, ours(target, rois_R4, matched_R, 28), atol=0, rtol=0)


def test_no_rois_give_no_mask_targets():
    target = make_target(np.zeros((1, 9, 9), np.uint16), np.zeros(0, np.int64))
    got = ours(target, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 28)
    assert got.shape == (0, 28, 28)


def test_a_target_has_exclusive_edges_and_points_every_cell_to_its_pixels():
    planes_PHW = np.zeros((2, 12, 15), np.uint16)
    planes_PHW[1, 2:5, 3:9] = 1
    planes_PHW[0, 0:12, 0:4] = 40_000
    labels_N = np.arange(1, 40_001)
    target = make_target(planes_PHW, labels_N)
    assert target["boxes"].tolist() == [[3, 2, 9, 5], [0, 0, 4, 12]]
    assert target["labels"].tolist() == [1, 40_000]
    assert {key: value.dtype for key, value in target.items()} == {
        "boxes": torch.float32,
        "labels": torch.int64,
        "planes": torch.int32,
        "plane": torch.int64,
        "number": torch.int64,
        "ignored": torch.float32,
    }
    areas = [int((target["planes"][p] == n).sum()) for p, n in zip(target["plane"], target["number"], strict=True)]
    assert areas == [18, 48]


def test_cells_that_augmentation_cut_to_crumbs_are_left_out():
    planes_PHW = np.zeros((1, 10, 10), np.uint16)
    planes_PHW[0, 0, :3], planes_PHW[0, 5:7, :2] = 1, 3
    labels_N = np.array([1, 2, 3])
    assert make_target(planes_PHW, labels_N)["labels"].tolist() == [3]
    assert make_target(planes_PHW, labels_N, min_area=3)["labels"].tolist() == [1, 3]


def test_an_image_without_cells_is_a_legal_target():
    target = make_target(np.zeros((1, 10, 12), np.uint16), np.zeros(0, np.int64))
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == target["plane"].shape == target["number"].shape == (0,)
    assert target["planes"].shape == (1, 10, 12)


def test_targets_of_a_real_image_are_those_of_its_masks(shared_data):
    tifffile = pytest.importorskip("tifffile")
    folder = next((shared_data / "hw3-sample").rglob("class2.tif")).parent
    planes_PHW = tifffile.imread(folder / "class2.tif")[None].astype(np.uint16)
    target = make_target(planes_PHW, np.full(planes_PHW.max(), 2), min_area=1)
    assert len(target["boxes"]) == 159
    matched_R = torch.arange(159)[::8]
    rois_R4 = target["boxes"][matched_R] + torch.tensor([-2.3, 1.4, 3.1, 0.6])
    expected = reference(target, rois_R4, matched_R, 28)
    torch.testing.assert_close(ours(target, rois_R4, matched_R, 28), expected, atol=1e-5, rtol=0)


def test_points_read_the_pixel_they_fall_into():
    planes_PHW = np.zeros((2, 12, 15), np.uint16)
    planes_PHW[1, 2:5, 3:9] = 1
    planes_PHW[0, 0:12, 0:4] = 2
    target = make_target(planes_PHW, np.ones(2, np.int64))
    of_first = [(3.0, 2.0), (2.99, 2.0), (3.0, 1.99), (8.99, 4.99), (9.0, 4.5), (8.5, 5.0)]
    of_second = [(0.0, 0.0), (-0.01, 0.0), (3.99, 11.99), (1.0, 12.0), (1.0, -0.01), (15.0, 3.0)]
    got = point_targets(
        *(target[name] for name in ("planes", "plane", "number")),
        torch.tensor([of_first, of_second, of_second]),
        torch.tensor([0, 1, 0]),
    )
    assert got.dtype == torch.float32
    assert got.tolist() == [[1, 0, 0, 1, 0, 0], [1, 0, 1, 0, 0, 0], [0] * 6]


def test_points_at_the_centres_of_pixels_read_the_mask():
    target = crowded(60, 70, num_cells=8, largest=40)
    masks_NHW = torch.stack(
        [target["planes"][plane] == number for plane, number in zip(target["plane"], target["number"], strict=True)]
    )
    x, y = torch.meshgrid(torch.arange(70) + 0.5, torch.arange(60) + 0.5, indexing="xy")
    points_RS2 = torch.stack([x, y], dim=2).reshape(1, -1, 2).expand(len(masks_NHW), -1, -1)
    arguments = target["planes"], target["plane"], target["number"], points_RS2, torch.arange(len(masks_NHW))
    assert torch.equal(point_targets(*arguments).reshape(masks_NHW.shape).bool(), masks_NHW)


def test_no_rois_have_no_points():
    target = make_target(np.zeros((1, 9, 9), np.uint16), np.zeros(0, np.int64))
    arguments = target["planes"], target["plane"], target["number"], torch.zeros(0, 5, 2), torch.zeros(0).long()
    assert point_targets(*arguments).shape == (0, 5)


def test_what_is_left_of_a_cell_below_its_least_area_is_ignored():
    planes_PHW = np.zeros((2, 20, 30), np.uint16)
    planes_PHW[0, 0:2, 0:10] = 1  # 20 px
    planes_PHW[0, 10:20, 10:20] = 2  # 100 px
    planes_PHW[1, 0:1, 0:3] = 4  # 3 px: too few for a cell, enough of it to be none
    planes_PHW[1, 12:14, 12:14] = 5
    labels_N = np.array([1, 2, 1, 2, 1])
    target = make_target(planes_PHW, labels_N, least_areas_N=np.array([20.5, 100, 5, 3, 4.5]))
    assert target["boxes"].tolist() == [[10, 10, 20, 20]]
    assert target["labels"].tolist() == [2] and target["number"].tolist() == [2] and target["plane"].tolist() == [0]
    assert target["ignored"].tolist() == [[0, 0, 10, 2], [12, 12, 14, 14]]
    assert make_target(planes_PHW, labels_N)["ignored"].shape == (0, 4)


@pytest.mark.parametrize(("count", "dtype"), [(32_767, torch.int16), (32_768, torch.int32)])
def test_planes_take_two_bytes_a_pixel_where_the_numbers_fit(count, dtype):
    planes_PHW = np.full((1, 6, 7), count, np.uint16)
    planes_PHW.flags.writeable = False
    target = make_target(planes_PHW, np.ones(count, np.int64))
    assert target["planes"].dtype == dtype
    assert (target["planes"] == target["number"][0]).all() and target["number"].tolist() == [count]
    rois_R4 = torch.tensor([[0.0, 0, 7, 6]])
    cell = target["plane"], target["number"]
    first = torch.zeros(1, dtype=torch.int64)
    assert (roi_mask_targets(target["planes"], *cell, rois_R4, first, 4) == 1).all()
    assert (point_targets(target["planes"], *cell, torch.full((1, 3, 2), 2.0), first) == 1).all()
