import pytest
import torch
from torch import nn

from cellseg.data.auto import resolve_auto
from cellseg.data.loader import TrainingImages
from cellseg.data.split import split
from cellseg.errors import UserError
from cellseg.model.build import build_model
from cellseg.training.stepper import Stepper, autocast_dtype

CPU = torch.device("cpu")


class Brightness(nn.Module):
    """Stands in for a detector: its loss is the mean brightness of the images, times its only weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.sizes: list[int] = []

    def forward(self, images, targets):
        self.sizes.append(len(images))
        return {"loss_mask": self.weight * torch.stack([image.mean() for image in images]).mean()}


def items(*brightness: int) -> list:
    return [(torch.full((3, 4, 4), value, dtype=torch.uint8), {}) for value in brightness]


@pytest.mark.parametrize(("micro_batch", "sizes"), [(None, [5]), (5, [5]), (2, [2, 2, 1]), (1, [1] * 5)])
def test_parts_of_a_batch_have_its_gradient_and_its_losses(tiny_config, micro_batch, sizes):
    model = Brightness()
    stepper = Stepper(model, tiny_config(train__batch_size=5), CPU, micro_batch)
    losses = stepper.add_gradients(items(0, 51, 102, 153, 255), share=0.5)
    mean = (0 + 51 + 102 + 153 + 255) / 5 / 255
    assert model.sizes == sizes
    assert losses["loss_mask"].item() == pytest.approx(mean)
    assert not losses["loss_mask"].requires_grad
    assert model.weight.grad.item() == pytest.approx(mean / 2)


def test_a_step_uses_the_gathered_gradients_once(tiny_config):
    model = Brightness()
    plain = {"optim__optimizer": "sgd", "optim__momentum": 0.0, "optim__weight_decay": 0.0, "optim__clip_norm": None}
    stepper = Stepper(model, tiny_config(**plain), CPU)
    stepper.add_gradients(items(255), share=0.5)
    stepper.add_gradients(items(51), share=0.5)
    stepper.step(learning_rate=0.5)
    assert model.weight.item() == pytest.approx(1 - 0.5 * (1 + 0.2) / 2)
    assert model.weight.grad is None


@pytest.mark.parametrize("clip_norm", [None, 10.0])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_whose_gradients_are_not_finite_is_as_if_it_had_not_been(tiny_config, bad, optimizer, clip_norm):
    config = tiny_config(optim__optimizer=optimizer, optim__clip_norm=clip_norm)

    def train(*losses_of_steps: float) -> tuple[float, tuple[int, int]]:
        model = Brightness()
        stepper = Stepper(model, config, CPU)
        for scale in losses_of_steps:
            (stepper.model.weight * scale).backward()
            stepper.step(learning_rate=0.1)
        return model.weight.item(), stepper.take_skipped()

    expected, none = train(1.0, 2.0, 3.0)
    assert none == (0, 0)
    found, skipped = train(bad, 1.0, bad, bad, 2.0, 3.0, bad)
    assert found == pytest.approx(expected, rel=1e-6)
    assert found != 1
    assert skipped == (4, 2)


def test_skipped_steps_are_counted_anew_but_in_a_row_on(tiny_config):
    stepper = Stepper(Brightness(), tiny_config(), CPU)
    for expected in ((2, 2), (2, 4)):
        for _ in range(2):
            (stepper.model.weight * float("nan")).backward()
            stepper.step(learning_rate=0.1)
        assert stepper.take_skipped() == expected
        assert stepper.skipped_in_a_row == expected[1]
    (stepper.model.weight * 1.0).backward()
    stepper.step(learning_rate=0.1)
    assert stepper.skipped_in_a_row == 0


@pytest.mark.parametrize(
    ("amp", "device", "dtype"),
    [
        ("off", "cuda", None),
        ("bf16", "cuda", torch.bfloat16),
        ("fp16", "cuda", torch.float16),
        ("bf16", "cpu", None),
        ("fp16", "cpu", None),
    ],
)
def test_only_a_gpu_computes_in_mixed_precision(amp, device, dtype):
    assert autocast_dtype(amp, torch.device(device)) is dtype


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_one_kernel_changes_all_weights(tiny_config, optimizer):
    assert Stepper(Brightness(), tiny_config(optim__optimizer=optimizer), CPU).optimizer.defaults["fused"]


@pytest.fixture
def detector(packed, tiny_config):
    """``detector(compile=...)``: a stepper of a tiny detector, always of the same weights, and a batch for it."""

    def make(**settings):
        config = resolve_auto(tiny_config(**settings), packed)
        torch.manual_seed(0)
        model = build_model(config.model, config.inference, packed.num_classes).train()
        images = TrainingImages(packed, split(packed.label_counts, config.data).training, config)
        return Stepper(model, config, CPU), [images[1, 0], images[1, 1]]

    return make


def test_a_compiled_backbone_has_the_same_losses_and_the_same_names(detector, monkeypatch):
    original = nn.Module.compile
    compiled = []

    def compile_without_a_compiler(self, **keywords):
        compiled.append(type(self).__name__)
        original(self, backend="aot_eager", **keywords)

    monkeypatch.setattr(nn.Module, "compile", compile_without_a_compiler)
    losses, names = [], []
    for setting in (False, True):
        stepper, batch = detector(train__compile=setting)
        torch.manual_seed(1)
        losses.append({name: loss.item() for name, loss in stepper.add_gradients(batch).items()})
        names.append(list(stepper.model.state_dict()))
    assert compiled == ["FPNBackbone"]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert names[0] == names[1]


def test_a_machine_that_cannot_compile_is_told_so(detector, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here\nmore")

    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **keywords: original(self, backend=broken, **keywords))
    stepper, batch = detector(train__compile=True)
    with pytest.raises(UserError, match=r"train\.compile: .*no compiler here.*set train\.compile=false") as raised:
        stepper.add_gradients(batch)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("clip_norm", "gradient"), [(10.0, 1.0), (0.25, 0.25)])
def test_gradients_are_clipped_by_their_own_size_not_by_that_of_the_scaled_loss(tiny_config, clip_norm, gradient):
    """In float16 the loss is multiplied by a large number, and so are the gradients until the step."""
    model = Brightness()
    plain = {"optim__optimizer": "sgd", "optim__momentum": 0.0, "optim__weight_decay": 0.0}
    stepper = Stepper(model, tiny_config(**plain, optim__clip_norm=clip_norm), CPU)
    stepper.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    stepper.add_gradients(items(255))
    assert model.weight.grad.item() == pytest.approx(1024.0)
    stepper.step(learning_rate=0.5)
    assert model.weight.item() == pytest.approx(1 - 0.5 * gradient, rel=1e-4)
