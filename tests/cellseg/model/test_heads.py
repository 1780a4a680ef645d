import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign

from cellseg.model.build import build_model
from cellseg.model.heads import PyramidRoIAlign


@pytest.fixture
def build(tiny_config):
    def make():
        torch.manual_seed(0)
        config = tiny_config()
        return build_model(config.model, config.inference, 2)

    return make


@pytest.fixture
def model(build):
    return build()


def target(boxes, labels) -> dict[str, torch.Tensor]:
    """Boxes (x1, y1, x2, y2) filled with their cells, on 64 x 64 px."""
    planes = torch.zeros(1, 64, 64, dtype=torch.int32)
    for number, (left, top, right, bottom) in enumerate(boxes, start=1):
        planes[0, top:bottom, left:right] = number
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "planes": planes,
        "plane": torch.zeros(len(boxes), dtype=torch.int64),
        "number": torch.arange(1, len(boxes) + 1),
    }


LOSSES = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}


def test_without_cells_the_mask_loss_is_0_and_every_parameter_still_gets_a_gradient(model):
    losses = model.train()([torch.rand(3, 64, 64)], [target([], [])])
    assert set(losses) == LOSSES
    assert losses["loss_mask"] == 0
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_cells_and_no_cells_in_one_batch_give_finite_losses(model):
    images = [torch.rand(3, 64, 64), torch.rand(3, 64, 64)]
    losses = model.train()(images, [target([(4, 4, 20, 24), (30, 30, 50, 50)], [1, 2]), target([], [])])
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["loss_mask"] > 0


def test_only_the_mask_of_the_cells_own_class_is_trained(model):
    losses = model.train()([torch.rand(3, 64, 64)], [target([(4, 4, 30, 30)], [2])])
    losses["loss_mask"].backward()
    gradient = model.roi_heads.mask_predictor.mask_fcn_logits.bias.grad
    assert gradient[:2].tolist() == [0, 0]
    assert gradient[2] != 0


def test_a_target_without_planes_is_our_bug(model):
    torchvisions = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    with pytest.raises(AssertionError):
        model.train()([torch.rand(3, 64, 64)], [torchvisions])


def test_a_detection_is_a_box_with_probabilities_inside_of_it(model):
    with torch.inference_mode():
        (found,) = model.eval()([torch.rand(3, 64, 48)])
    count = len(found["boxes"])
    assert 0 < count <= 20
    assert found["masks"].shape == (count, 1, 28, 28)
    assert 0 <= found["masks"].min() <= found["masks"].max() <= 1
    assert set(found["labels"].tolist()) <= {1, 2}
    assert (found["boxes"][:, 2] <= 48).all() and (found["boxes"][:, 3] <= 64).all()
    assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)


@pytest.mark.parametrize("levels", [["0", "1"], ["0", "1", "2", "3"]])
def test_pooling_is_torchvisions_where_padding_is_small(levels):
    generator = torch.Generator().manual_seed(0)
    features = {str(i): torch.rand(1, 4, 128 >> i, 160 >> i, generator=generator) for i in range(4)}
    corners = torch.rand(50, 2, generator=generator) * 300
    boxes = [torch.cat([corners, corners + torch.rand(50, 2, generator=generator) * 330 + 1], dim=1)]
    own = PyramidRoIAlign(levels, 7)(features, boxes, [(512, 640)])
    assert torch.equal(own, MultiScaleRoIAlign(levels, 7, sampling_ratio=2)(features, boxes, [(512, 640)]))


@pytest.mark.parametrize("first", [(33, 86), (20, 20), (66, 64), (45, 33)])
def test_what_is_found_does_not_depend_on_the_images_seen_before(build, first):
    """torchvision's own pooling takes its strides from the first image, and wrong ones from these sizes."""
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    fresh, used = build().eval(), build().eval()
    with torch.inference_mode():
        used([torch.rand(3, *first)])
        (alone,), (later,) = fresh([image]), used([image])
    assert len(alone["boxes"]) > 0
    assert all(torch.equal(alone[name], later[name]) for name in alone)
