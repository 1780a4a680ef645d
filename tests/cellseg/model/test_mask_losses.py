import pytest
import torch

from cellseg.model.mask_losses import cross_entropy_loss, dice_loss, own_class


def test_own_class_picks_a_class_for_each_roi():
    logits_RCMM = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert torch.equal(
        own_class(logits_RCMM, torch.tensor([2, 1])), torch.stack([logits_RCMM[0, 2], logits_RCMM[1, 1]])
    )


@pytest.mark.parametrize(
    ("probability", "truth", "loss"),
    [
        pytest.param([[1, 1], [0, 0]], [[1, 1], [0, 0]], 0, id="equal"),
        pytest.param([[0, 0], [0, 0]], [[0, 0], [0, 0]], 0, id="both empty"),
        pytest.param([[0, 0], [1, 1]], [[1, 1], [0, 0]], 1 - 1 / 5, id="opposite"),
        pytest.param([[1, 0], [0, 0]], [[1, 1], [0, 0]], 1 - 3 / 4, id="half"),
        pytest.param([[0.5, 0.5], [0, 0]], [[0.5, 0.5], [0, 0]], 0, id="equal shares"),
        pytest.param([[0.5, 0.5], [0, 0]], [[1, 1], [0, 0]], 1 - 3 / 3.5, id="unsure"),
    ],
)
def test_dice_loss_of_a_mask(probability, truth, loss):
    logits_RMM = torch.logit(torch.tensor([probability], dtype=torch.float32), eps=1e-7)
    assert float(dice_loss(logits_RMM, torch.tensor([truth], dtype=torch.float32))) == pytest.approx(loss, abs=1e-5)


def test_dice_loss_is_the_mean_over_rois_whatever_their_cells_sizes():
    logits_RMM, truth_RMM = torch.full((2, 8, 8), -20.0), torch.zeros(2, 8, 8)
    logits_RMM[0, :6], truth_RMM[0, :6], truth_RMM[1, :1] = 20, 1, 1
    assert float(dice_loss(logits_RMM, truth_RMM)) == pytest.approx((0 + 1 - 1 / 9) / 2)


@pytest.mark.parametrize("loss", [cross_entropy_loss, dice_loss])
def test_without_rois_a_loss_is_0_and_keeps_the_graph(loss):
    logits_RMM = torch.zeros(0, 28, 28, requires_grad=True)
    value = loss(logits_RMM, torch.zeros(0, 28, 28))
    assert value == 0
    value.backward()
    assert logits_RMM.grad is not None
