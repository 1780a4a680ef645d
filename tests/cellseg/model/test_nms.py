import math

import pytest
import torch
from torchvision.ops import batched_nms, box_iou

from cellseg.config import InferenceConfig
from cellseg.model import nms
from cellseg.model.nms import suppress


def crowd(count: int, num_classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 60
    boxes_N4 = torch.cat([corners, corners + 5 + torch.rand(count, 2, generator=generator) * 30], dim=1)
    labels_N = torch.randint(1, num_classes + 1, (count,), generator=generator)
    return boxes_N4, torch.rand(count, generator=generator), labels_N


def naive_soft_nms(boxes_N4, scores_N, labels_N, sigma, score_threshold, limit) -> list[tuple[int, float]]:
    """Figure 2 of Bodla et al. 2017, one detection and one pair at a time."""
    scores = dict(enumerate(scores_N.tolist()))
    kept: list[tuple[int, float]] = []
    while scores and len(kept) < limit:
        best = max(scores, key=lambda index: scores[index])
        score = scores.pop(best)
        if score < score_threshold:
            break
        kept.append((best, score))
        for other in scores:
            if labels_N[other] == labels_N[best]:
                iou = float(box_iou(boxes_N4[best : best + 1], boxes_N4[other : other + 1]))
                scores[other] *= math.exp(-(iou**2) / sigma)
    return kept


@pytest.mark.parametrize("limit", [5, 1000])
@pytest.mark.parametrize("score_threshold", [0.0, 0.3])
@pytest.mark.parametrize(("sigma", "num_classes"), [(0.5, 1), (0.1, 3), (5.0, 3)])
def test_soft_is_the_papers_algorithm(sigma, num_classes, score_threshold, limit):
    boxes_N4, scores_N, labels_N = crowd(40, num_classes)
    config = InferenceConfig(nms="soft", soft_nms_sigma=sigma, score_threshold=score_threshold)
    indices_K, scores_K = suppress(boxes_N4, scores_N, labels_N, config, limit)
    expected = naive_soft_nms(boxes_N4, scores_N, labels_N, sigma, score_threshold, limit)
    assert indices_K.tolist() == [index for index, _ in expected]
    assert scores_K.tolist() == pytest.approx([score for _, score in expected], rel=1e-5)
    assert len(expected) == 5 if limit == 5 else len(expected) > 5
    assert (indices_K.dtype, scores_K.dtype) == (torch.int64, torch.float32)


@pytest.mark.parametrize("at_once", [1, 7, 300])
def test_soft_does_not_depend_on_how_many_overlaps_are_computed_at_once(monkeypatch, at_once):
    config = InferenceConfig(nms="soft", soft_nms_sigma=0.1, score_threshold=0.01)
    expected = suppress(*crowd(200, 2), config, 1000)
    monkeypatch.setattr(nms, "PENALTIES_AT_ONCE", at_once)
    found = suppress(*crowd(200, 2), config, 1000)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert 50 < len(expected[0]) < 200


@pytest.mark.parametrize("limit", [5, 1000])
@pytest.mark.parametrize("nms_threshold", [0.0, 0.3, 1.0])
def test_hard_is_torchvisions(nms_threshold, limit):
    boxes_N4, scores_N, labels_N = crowd(200, 3)
    config = InferenceConfig(nms_threshold=nms_threshold, score_threshold=0.9)
    indices_K, scores_K = suppress(boxes_N4, scores_N, labels_N, config, limit)
    expected = batched_nms(boxes_N4, scores_N, labels_N, nms_threshold)[:limit]
    assert torch.equal(indices_K, expected)
    assert torch.equal(scores_K, scores_N[expected])


def test_soft_leaves_boxes_alone_that_do_not_overlap_within_their_class():
    boxes_N4 = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [10, 0, 20, 10], [50, 50, 60, 60]])
    scores_N, labels_N = torch.tensor([0.2, 0.9, 0.123456, 0.7]), torch.tensor([1, 2, 1, 1])
    indices_K, scores_K = suppress(boxes_N4, scores_N, labels_N, InferenceConfig(nms="soft"), 100)
    assert indices_K.tolist() == [1, 3, 0, 2]
    assert torch.equal(scores_K, scores_N[indices_K])


@pytest.mark.parametrize("sigma", [1e-300, 1e-3])
def test_a_tiny_sigma_drops_whatever_overlaps(sigma):
    boxes_N4, scores_N, labels_N = crowd(50, 2)
    config = InferenceConfig(nms="soft", soft_nms_sigma=sigma, score_threshold=1e-6)
    indices_K, scores_K = suppress(boxes_N4, scores_N, labels_N, config, 100)
    assert torch.isfinite(scores_K).all()
    iou_KK = box_iou(boxes_N4[indices_K], boxes_N4[indices_K]) * (labels_N[indices_K] == labels_N[indices_K][:, None])
    assert iou_KK.fill_diagonal_(0).max() < 0.12
    assert 1 < len(indices_K) < 50


@pytest.mark.parametrize("nms", ["hard", "soft"])
def test_of_nothing_nothing_remains(nms):
    empty = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    indices_K, scores_K = suppress(*empty, InferenceConfig(nms=nms), 10)
    assert (indices_K.shape, indices_K.dtype, scores_K.shape) == ((0,), torch.int64, (0,))


def test_equal_scores_keep_their_order():
    boxes_N4 = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]])
    arguments = boxes_N4, torch.full((3,), 0.5), torch.tensor([2, 1, 1])
    indices_K, _ = suppress(*arguments, InferenceConfig(nms="soft"), 10)
    assert indices_K.tolist() == [1, 2, 0]
