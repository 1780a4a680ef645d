import copy
import hashlib
import pickle
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import huggingface_hub.constants
import pytest
import timm
import torch
from torchvision.models import resnet18
from torchvision.models.detection._utils import overwrite_eps
from torchvision.ops import FrozenBatchNorm2d

from cellseg.config import InferenceConfig, ModelConfig, TrialConfig
from cellseg.errors import UserError
from cellseg.inference.image import load_model
from cellseg.model import weights
from cellseg.model.build import build_model
from cellseg.model.norms import OnePassFrozenBatchNorm2d
from cellseg.model.weights import CLASS_LAYERS

BACKBONE = "backbone.body."
NUMBERS = {"detections_per_image": 100, "rpn_candidates": 1000, "rpn_proposals": 1000}
"""Settings that would follow from data."""


@pytest.fixture
def no_network(monkeypatch, tmp_path) -> Path:
    """Downloads fail at once, and the cache is the folder returned, which is empty."""

    def refuse(*_, **__):
        raise URLError("no network in tests")

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    folder = tmp_path / "cache" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


ADDED = {
    "se": {"model__attention": "se"},
    "cbam": {"model__attention": "cbam"},
    "deformable": {"model__deformable_stages": 2},
    "pointrend": {"model__mask_head": "pointrend"},
    "all": {"model__attention": "cbam", "model__deformable_stages": 3, "model__mask_head": "pointrend"},
}
"""Settings that add layers to the model."""


@pytest.fixture
def build(tiny_config):
    def make(num_classes=4, seed=0, **flat):
        config = tiny_config(**{"model__norm": "batch"} | flat)
        torch.manual_seed(seed)
        return build_model(config.model, config.inference, num_classes)

    return make


@pytest.fixture
def trained(build):
    """A tiny detector with values of its own in every entry, also in the norms' statistics."""
    model = build(seed=7)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(1)
    return model


def save(state, path: Path) -> str:
    torch.save(state, path)
    return str(path)


def assert_equal(model, state, *, but: tuple[str, ...] = ()) -> None:
    loaded = model.state_dict()
    assert loaded.keys() == state.keys()
    for name in loaded:
        if not name.startswith(but):
            assert torch.equal(loaded[name], state[name]), name


@pytest.mark.parametrize("backbone", ["resnet18", "resnet10t"])
def test_imagenet_weights_without_a_network_are_one_clear_line(no_network, tiny_config, backbone):
    config = tiny_config(model__weights="imagenet", model__backbone=backbone)
    with pytest.raises(UserError) as raised:
        build_model(config.model, config.inference, 4)
    (line,) = raised.value.problems
    assert line.startswith(f"model.weights: the ImageNet weights of {backbone} must be downloadable or in the cache")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("detector", "file"),
    [("v1", "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"), ("v2", "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth")],
)
def test_coco_weights_without_a_network_name_the_file_to_copy(no_network, detector, file):
    config = ModelConfig(weights="coco", detector=detector, anchors="8-128", **NUMBERS)
    with torch.device("meta"), pytest.raises(UserError) as raised:
        build_model(config, InferenceConfig(), 4)
    (line,) = raised.value.problems
    assert f"the COCO weights ({file}) must be downloadable or in $TORCH_HOME/hub/checkpoints" in line


def test_imagenet_weights_in_the_cache_are_used(no_network, tiny_config):
    torch.manual_seed(5)
    state = resnet18(weights=None).state_dict()
    torch.save(state, no_network / "resnet18-f37072fd.pth")
    config = tiny_config(model__weights="imagenet", model__backbone="resnet18")
    body = build_model(config.model, config.inference, 4).backbone.body.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in body.items())
    assert len(body) > 50


def test_a_damaged_file_in_the_cache_is_the_users_error(no_network, tiny_config):
    (no_network / "resnet18-f37072fd.pth").write_bytes(b"PK\x03\x04 and nothing more")
    config = tiny_config(model__weights="imagenet", model__backbone="resnet18")
    with pytest.raises(
        UserError, match=r"model\.weights: the ImageNet weights of resnet18 must be a whole file, but got"
    ):
        build_model(config.model, config.inference, 4)


def old_names(state: dict[str, torch.Tensor], mask_layers: int) -> dict[str, torch.Tensor]:
    """As in the files that torchvision wrote before 0.13, its COCO v1 weights among them."""
    renamed = {}
    for name, value in state.items():
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        for block in ("inner_blocks", "layer_blocks"):
            for level in range(4):
                name = name.replace(f"fpn.{block}.{level}.0.", f"fpn.{block}.{level}.")
        for layer in range(mask_layers):
            name = name.replace(f"mask_head.{layer}.0.", f"mask_head.mask_fcn{layer + 1}.")
        if not name.endswith("num_batches_tracked"):
            renamed[name] = value
    return renamed


def test_a_file_with_torchvisions_old_names_loads(build, trained, tmp_path):
    state = old_names(trained.state_dict(), mask_layers=1)
    assert "rpn.head.conv.weight" in state and "roi_heads.mask_head.mask_fcn1.weight" in state
    model = build(model__weights=save(state, tmp_path / "old.pt"))
    unread = tuple(name for name in model.state_dict() if name.endswith("num_batches_tracked"))
    assert_equal(model, trained.state_dict(), but=unread)


@pytest.mark.parametrize(
    "added", [{}, {"attention": "cbam", "deformable_stages": 3, "mask_head": "pointrend", "frozen_stages": 1}]
)
def test_coco_v1_weights_load_as_they_are_published(no_network, monkeypatch, added):
    settings = {"anchors": "32-512", **NUMBERS}
    with torch.device("meta"):  # shapes and names alone: the real file has 170 MB
        coco = build_model(ModelConfig(weights="none", norm="frozen", **settings), InferenceConfig(), 90)
        published = old_names(coco.state_dict(), mask_layers=4)
        monkeypatch.setattr(weights, "_coco_state", lambda *_: published)
        model = build_model(ModelConfig(weights="coco", **settings, **added), InferenceConfig(), 4)
    assert {m.eps for m in model.modules() if isinstance(m, FrozenBatchNorm2d)} == {0.0}  # as torchvision does


def eps_of(model) -> set[float]:
    return {module.eps for module in model.modules() if isinstance(module, FrozenBatchNorm2d | torch.nn.BatchNorm2d)}


@pytest.mark.parametrize("is_coco", [True, False])
def test_torchvisions_coco_file_has_its_eps_under_any_name(build, tmp_path, monkeypatch, is_coco):
    frozen = {"model__norm": "frozen", "model__backbone": "resnet18"}
    path = save(build(**frozen).state_dict(), tmp_path / "mine.pt")
    digest = hashlib.sha256((tmp_path / "mine.pt").read_bytes()).hexdigest()
    monkeypatch.setattr(weights, "SMALLEST_COCO_FILE", 1)
    entry = SimpleNamespace(url=f"https://x/maskrcnn-{digest[:8] if is_coco else '0123abcd'}.pth")
    monkeypatch.setitem(weights.COCO, "v1", entry)
    assert eps_of(build(model__weights=path, **frozen)) == ({0.0} if is_coco else {1e-5})


@pytest.mark.parametrize("norm", ["frozen", "batch"])
@pytest.mark.parametrize("says_so", [True, False], ids=["new", "from-before-eps-was-kept"])
def test_a_checkpoint_hands_on_the_eps_of_its_weights(build, tiny_config, save_untrained, tmp_path, says_so, norm):
    model = build(model__norm="frozen", model__backbone="resnet18")
    overwrite_eps(model, 0.0)
    coco = tiny_config().to_flat() | {
        "model.weights": "coco",
        "model.backbone": "resnet50",
        "model.fpn_channels": 256,
        "model.box_head_width": 1024,
        "model.mask_head_layers": 4,
        "model.mask_head_width": 256,
    }
    config = tiny_config(model__norm="frozen", model__backbone="resnet18") if says_so else TrialConfig.from_flat(coco)
    if not says_so:
        for module in model.modules():
            if isinstance(module, OnePassFrozenBatchNorm2d):
                module.eps_as_made = module.eps
    folder = save_untrained(model, tmp_path / "first", config)
    second = build(model__weights=str(folder), model__norm=norm, model__backbone="resnet18")
    if norm == "batch" and not says_so:
        return  # statistics that move have an eps of their own
    assert eps_of(second) == {0.0}


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {"state_dict": s, "epoch": 3}])
def test_a_detectors_state_dict_is_loaded_whole(build, trained, tmp_path, wrap):
    path = save(wrap(trained.state_dict()), tmp_path / "detector.pt")
    assert_equal(build(model__weights=path), trained.state_dict())


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_norms_with_statistics_take_each_others_weights(build, trained, tmp_path, norm):
    path = save(trained.state_dict(), tmp_path / "detector.pt")
    state = build(model__weights=path, model__norm=norm).state_dict()
    assert torch.equal(state[f"{BACKBONE}bn1.running_var"], trained.state_dict()[f"{BACKBONE}bn1.running_var"])


def test_another_number_of_classes_keeps_everything_but_the_class_layers(build, trained, tmp_path):
    path = save(trained.state_dict(), tmp_path / "detector.pt")
    fresh = build(num_classes=2, seed=3).state_dict()
    model = build(num_classes=2, seed=3, model__weights=path)
    assert_equal(model, trained.state_dict(), but=CLASS_LAYERS)
    for name, value in model.state_dict().items():
        if name.startswith(CLASS_LAYERS):
            assert torch.equal(value, fresh[name]), name


def test_a_classifiers_backbone_is_loaded_and_nothing_else(build, trained, tmp_path):
    backbone = {
        name.removeprefix(BACKBONE): value for name, value in trained.state_dict().items() if name.startswith(BACKBONE)
    }
    path = save(backbone | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, tmp_path / "c.pt")
    state, fresh = build(seed=3, model__weights=path).state_dict(), build(seed=3).state_dict()
    for name, value in state.items():
        expected = trained.state_dict() if name.startswith(BACKBONE) else fresh
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("added", ADDED)
def test_weights_from_before_layers_were_added_load_and_the_added_ones_start_anew(build, trained, tmp_path, added):
    path = save(trained.state_dict(), tmp_path / "detector.pt")
    fresh = build(seed=3, **ADDED[added]).state_dict()
    state = build(seed=3, **ADDED[added], model__weights=path).state_dict()
    assert trained.state_dict().keys() < state.keys()
    for name, value in state.items():
        assert torch.equal(value, trained.state_dict().get(name, fresh[name])), name


@pytest.mark.parametrize("added", ADDED)
def test_weights_with_added_layers_load_whole(build, tmp_path, added):
    model = build(seed=7, **ADDED[added])
    path = save(model.state_dict(), tmp_path / "detector.pt")
    assert_equal(build(seed=3, **ADDED[added], model__weights=path), model.state_dict())


@pytest.mark.parametrize(
    ("saved", "loaded", "match"),
    [
        ("cbam", {}, "got 0 missing and .* unknown entries, such as 'backbone.body.layer1.0.se.mlp.0.bias'"),
        ("deformable", {}, "got 0 missing and 4 unknown entries, such as '.*conv2.offset.bias'"),
        ("pointrend", {}, "got 0 missing and .* unknown entries, such as 'roi_heads.point_head"),
        ("se", ADDED["cbam"], "got 8 missing and 0 unknown entries, such as '.*se.places.bias'"),
        ("cbam", ADDED["se"], "got 0 missing and 8 unknown entries, such as '.*se.places.bias'"),
        ("se", ADDED["se"] | {"model__attention_reduction": 4}, "size mismatch for backbone.body.layer1.0.se.mlp"),
    ],
)
def test_weights_with_other_added_layers_are_refused(build, tmp_path, saved, loaded, match):
    path = save(build(**ADDED[saved]).state_dict(), tmp_path / "detector.pt")
    with pytest.raises(UserError, match=match):
        build(model__weights=path, **loaded)


def test_all_but_the_added_layers_stay_strict(build, trained, tmp_path):
    state = trained.state_dict()
    del state["backbone.body.layer2.0.conv2.weight"]
    path = save(state, tmp_path / "detector.pt")
    with pytest.raises(UserError, match=r"got 1 missing and 0 unknown entries, such as '.*layer2\.0\.conv2\.weight'"):
        build(model__weights=path, **ADDED["all"])


def test_imagenet_weights_load_into_a_body_with_added_layers(no_network, tiny_config):
    state = resnet18(weights=None).state_dict()
    torch.save(state, no_network / "resnet18-f37072fd.pth")
    config = tiny_config(model__weights="imagenet", model__backbone="resnet18", **ADDED["all"])
    body = build_model(config.model, config.inference, 4).backbone.body.state_dict()
    assert {name for name in body if name not in state or not torch.equal(body[name], state[name])} == {
        name for name in body if ".se." in name or ".offset." in name
    }


def test_another_number_of_classes_starts_the_whole_point_head_anew(build, tmp_path):
    path = save(build(seed=7, **ADDED["pointrend"]).state_dict(), tmp_path / "detector.pt")
    fresh = build(num_classes=2, seed=3, **ADDED["pointrend"]).state_dict()
    state = build(num_classes=2, seed=3, **ADDED["pointrend"], model__weights=path).state_dict()
    head = [name for name in state if name.startswith("roi_heads.point_head.")]
    assert head and all(torch.equal(state[name], fresh[name]) for name in head)


@pytest.mark.parametrize("name", ["efficientnet_b0", "convnext_atto"])
def test_timms_classifiers_load_by_the_names_their_backbones_have(build, tmp_path, name):
    classifier = timm.create_model(name)
    path = save(classifier.state_dict(), tmp_path / "classifier.pt")
    body = build(model__backbone=f"timm:{name}", model__norm="auto", model__weights=path).backbone.body
    theirs = {key.replace(".", "_"): value for key, value in classifier.state_dict().items()}
    assert all(torch.equal(value, theirs[key.replace(".", "_")]) for key, value in body.state_dict().items())


def test_a_detector_with_one_anchor_size_a_level_serves_one_with_more(build, trained, tmp_path):
    path = save(trained.state_dict(), tmp_path / "detector.pt")
    head = build(model__anchors="2-64", model__weights=path).rpn.head
    bias = trained.rpn.head.cls_logits.bias
    assert torch.equal(head.cls_logits.bias, torch.cat([bias, bias]))


def test_a_checkpoint_folder_is_loaded_whole(build, trained, tmp_path, tiny_config, save_untrained):
    folder = save_untrained(trained, tmp_path / "best", tiny_config(model__norm="batch"))
    assert_equal(build(model__weights=str(folder)), trained.state_dict())


def test_prediction_needs_none_of_the_weights_that_training_started_from(
    no_network, trained, tmp_path, tiny_config, save_untrained
):
    config = tiny_config(model__norm="batch", model__weights="imagenet")
    from cellseg.checkpoint import open_checkpoint

    folder = save_untrained(trained, tmp_path / "best", config)
    assert_equal(load_model(open_checkpoint(folder)), trained.state_dict())


def test_the_home_folder_may_be_written_as_a_tilde(build, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(trained.state_dict(), tmp_path / "detector.pt")
    assert_equal(build(model__weights="~/detector.pt"), trained.state_dict())


@pytest.mark.parametrize("weights", ["nowhere.pt", "Imagenet", "~nobody-of-that-name/a.pt", "a" * 5000])
def test_a_file_that_is_not_there_is_named_beside_the_known_names(build, weights):
    with pytest.raises(UserError) as raised:
        build(model__weights=weights)
    (line,) = raised.value.problems
    assert line.startswith("model.weights: must be none, imagenet, coco, a file or a checkpoint folder, but got ")
    assert weights in line


def test_a_folder_without_a_checkpoint_is_refused(build, tmp_path):
    with pytest.raises(UserError, match=r"must be a checkpoint folder with a checkpoint\.json"):
        build(model__weights=str(tmp_path))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model__backbone": "resnet18"}, "must fit the model, but got size mismatch for backbone.body"),
        ({"model__norm": "group"}, "got 0 missing and .* unknown entries, such as '.*running_mean'"),
        ({"model__detector": "v2"}, "missing and .* unknown entries"),
        ({"model__mask_head_layers": 2}, "got 2 missing and 0 unknown entries, such as '.*mask_head.1.0.bias'"),
        ({"model__fpn_channels": 24}, "must fit the model, but got size mismatch for backbone.fpn"),
        ({"model__box_head_width": 40}, "must fit the model, but got size mismatch for roi_heads.box_head"),
    ],
)
def test_weights_of_another_architecture_are_refused_with_an_entry(build, trained, tmp_path, change, match):
    path = save(trained.state_dict(), tmp_path / "detector.pt")
    with pytest.raises(UserError, match=match) as raised:
        build(model__weights=path, **change)
    (line,) = raised.value.problems
    assert line.startswith(f"model.weights: {path} must fit the model")
    assert line.endswith("Use the backbone, detector, heads, attention, norm and widths they were trained with.")
    assert "\n" not in line


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {"a": 1}, {}, {"model": {"a": 1}}])
def test_a_file_without_a_state_dict_is_refused(build, tmp_path, content):
    with pytest.raises(UserError, match=r"model\.weights: .*a\.pt must hold a state dict, but got"):
        build(model__weights=save(content, tmp_path / "a.pt"))


class Bomb:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("dump", [lambda o, p: torch.save(o, p), lambda o, p: p.write_bytes(pickle.dumps(o))])
def test_code_in_a_file_is_refused_and_not_run(build, tmp_path, dump):
    dump({"model": Bomb(tmp_path / "exploded")}, tmp_path / "bomb.pt")
    with pytest.raises(UserError, match=r"model\.weights: .*bomb\.pt: must be a file of tensors and plain values only"):
        build(model__weights=str(tmp_path / "bomb.pt"))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x80\x02.", b"\0" * 99, b"\xff\xd8 a photo"])
def test_a_file_of_anything_else_is_one_clear_line(build, tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(UserError) as raised:
        build(model__weights=str(tmp_path / "a.pt"))
    (line,) = raised.value.problems
    assert line.startswith(f"model.weights: {tmp_path / 'a.pt'}: must be a")
    assert "\n" not in line


def test_loading_leaves_the_file_and_its_tensors_alone(build, trained, tmp_path):
    before = copy.deepcopy(trained.state_dict())
    path = Path(save(trained.state_dict(), tmp_path / "detector.pt"))
    content = path.read_bytes()
    model = build(model__weights=str(path))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert path.read_bytes() == content
    assert_equal(trained, before)
