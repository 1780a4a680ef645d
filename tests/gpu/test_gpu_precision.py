"""Training in every precision against float32."""

import math

import pytest
import torch
from gpu_suite import DRY_RUN
from torch.nn.functional import pad

from cellseg.data.batch import Item
from cellseg.data.loader import plain_item
from cellseg.model.build import build_model
from cellseg.training.fit import fit
from cellseg.training.stepper import Stepper

EPOCHS = 4 if DRY_RUN else 6

BAND = {"off": 0.02, "bf16": 0.15, "fp16": 0.1}
"""How far the losses of an epoch may lie from those of float32, as a share of them. Sampling is the same; rounding is
not, and decides which of two regions of almost equal score is sampled."""

LAG = {"off": 0, "bf16": 0, "fp16": 3}
"""Epochs by which losses may be late: float16 skips its first steps until the scale of its gradients fits."""


@pytest.fixture(scope="module")
def curves() -> dict[str, list[float]]:
    """Losses of each epoch, by precision."""
    return {}


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_losses_fall_as_in_float32(data, config, tmp_path, device, curves, amp):
    epochs = 1 if DRY_RUN and amp == "fp16" else EPOCHS  # a CPU's float16 is slow
    if "reference" not in curves:  # the CPU computes in float32 and rounds in another order
        cpu = torch.device("cpu")
        reference = fit(config(train__epochs=EPOCHS, train__amp="off"), data, tmp_path / "reference", device=cpu)
        curves["reference"] = [report.losses["loss"] for report in reference]
    reports = list(fit(config(train__epochs=epochs, train__amp=amp), data, tmp_path / amp, device=device))
    losses = [report.losses["loss"] for report in reports]
    assert all(map(math.isfinite, losses))
    assert all(math.isfinite(report.metrics["loss/validation"]) for report in reports)
    if DRY_RUN and amp == "fp16":
        return  # so few steps are all skipped while the scaler looks for its scale
    assert losses[-1] < losses[0]
    expected = curves["reference"]
    for epoch, loss in enumerate(losses):
        late, band = max(epoch - LAG[amp], 0), BAND[amp] * (epoch + 1)  # what rounding changes grows with every step
        least, most = min(expected[late : epoch + 1]), max(expected[late : epoch + 1])
        assert least * (1 - band) <= loss <= most * (1 + band), f"epoch {epoch + 1}"


def moved(item: Item, pixels: int) -> Item:
    """An item with so many empty columns to the left: of the numbers there, bfloat16 has every fourth."""
    image_CHW, target = item
    frame = (pixels, 0)
    boxes_N4 = target["boxes"] + torch.tensor([pixels, 0, pixels, 0])
    target = target | {"boxes": boxes_N4, "planes": pad(target["planes"], frame)}
    return pad(image_CHW, frame), target


@pytest.mark.parametrize("detector", ["v1", "v2"])
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_true_boxes_come_through_training_exactly(data, config, device, monkeypatch, amp, detector):
    settings = config(train__amp=amp, model__detector=detector, model__roi_samples=512)  # room for every cell
    torch.manual_seed(0)
    model = build_model(settings.model, settings.inference, data.num_classes).train()
    stepper = Stepper(model, settings, device)
    item = moved(plain_item(data[0], settings.data), 517)
    seen = {}
    original = model.roi_heads.regions

    def recorded(proposals, targets):
        (regions,) = original(proposals, targets)
        seen.update(proposals=proposals[0], regions=regions)
        return [regions]

    monkeypatch.setattr(model.roi_heads, "regions", recorded)
    losses = stepper.add_gradients([item])
    regions, boxes = seen["regions"], item[1]["boxes"]
    assert seen["proposals"].dtype == regions.boxes_P4.dtype == torch.float32
    taught = {
        tuple(box): tuple(boxes[cell].tolist())
        for box, cell in zip(regions.boxes_P4.tolist(), regions.matched_P[: regions.on_cells].tolist(), strict=False)
    }
    assert len(boxes)
    assert all(taught.get(tuple(box)) == tuple(box) for box in boxes.tolist())
    proposals = seen["proposals"].detach().cpu()
    on_grid = torch.isclose(proposals, proposals.bfloat16().float(), rtol=0, atol=0).float().mean()
    assert on_grid < 0.6, "proposals that went through bfloat16 all lie on its grid (so do those cut at the border)"
    assert all(torch.isfinite(loss) for loss in losses.values())
