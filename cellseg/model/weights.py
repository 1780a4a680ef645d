"""Pretrained weights of a whole detector: torchvision's COCO weights, a state-dict file, or a checkpoint folder.

ImageNet weights belong to the backbone alone and are loaded where it is built.
"""

import hashlib
from pathlib import Path

from torch import Tensor, nn
from torchvision.models.detection._utils import overwrite_eps

from cellseg.checkpoint import DESCRIPTION, find_weights, load_tensors, open_checkpoint
from cellseg.errors import UserError, first_line
from cellseg.model.attention import CBAM, SqueezeExcitation
from cellseg.model.deformable import Offsets
from cellseg.model.norms import EPS
from cellseg.model.pointrend import PointHead
from cellseg.model.pretrained import COCO, obtain, published_weights

NAMED = ("none", "imagenet", "coco")
CLASS_LAYERS = (
    "roi_heads.box_predictor.cls_score.",
    "roi_heads.box_predictor.bbox_pred.",
    "roi_heads.mask_predictor.mask_fcn_logits.",
    "roi_heads.point_head.",
)
"""Layers whose shape depends on the classes: they start anew where the number of classes differs."""
ADDED_LAYERS = (SqueezeExcitation, CBAM, Offsets, PointHead)
"""Modules that a model may have without weights for them: they start as (almost) the identity."""
CLASSIFIER_LAYERS = ("fc.", "head.", "classifier.", "conv_head.", "bn2.")
"""Layers of torchvision's and timm's classifiers beyond the last feature map. The stem's norm is the only one outside
of stages in our backbones, so ``bn2`` is what EfficientNets have there."""
SMALLEST_COCO_FILE = 100_000_000
"""Bytes: files of fewer are not read to find out whether they are torchvision's, which has 178 million."""
REMEDY = "Use the backbone, detector, heads, attention, norm and widths they were trained with."


def load_detector_weights(model: nn.Module, weights: str, detector: str, folder: Path | None = None) -> None:
    """Load what ``weights`` names into ``model``; ``none`` and ``imagenet`` need nothing here.

    Args:
        folder: where published weights are looked for before the caches.

    Raises:
        UserError: download impossible, file missing or unsafe, or weights of another architecture.
    """
    if weights == "coco":
        _load(model, _coco_state(detector, folder), "coco")
    elif weights not in NAMED:
        path = _file(weights)
        _load(model, _file_state(path), weights)
        if _trained_without_eps(path):
            overwrite_eps(model, 0.0)


def eps_of_coco(detector: str) -> float | None:
    """The ``eps`` that frozen norms had when torchvision trained its COCO weights; None: what they have now."""
    return 0.0 if detector == "v1" else None


def _trained_without_eps(path: Path) -> bool:
    """Whether ``path`` is torchvision's file of COCO v1, by whatever name, or a checkpoint that goes back to it and is
    too old to say so itself (:data:`cellseg.model.norms.EPS`)."""
    if path.parent.joinpath(DESCRIPTION).is_file():
        model = open_checkpoint(path.parent).config.model
        return model.weights == "coco" and eps_of_coco(model.detector) is not None
    url = COCO["v1"].url
    if path.stat().st_size < SMALLEST_COCO_FILE:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(Path(url).stem.rsplit("-", 1)[-1])


def _coco_state(detector: str, folder: Path | None) -> dict[str, Tensor]:
    file = published_weights("coco", "resnet50", detector)
    assert file is not None
    try:
        path = obtain(file, folder)
    except OSError as error:
        raise UserError(
            f"model.weights: the COCO weights ({file.name}) must be downloadable or in $TORCH_HOME/hub/checkpoints, "
            f"but got '{first_line(error)}'. Copy the file there from a machine with a network, or use weights=none."
        ) from error
    return _file_state(path)


def _file(weights: str) -> Path:
    """The file of weights that a path, to it or to a checkpoint folder, means."""
    try:
        path = Path(weights).expanduser()
        if path.is_dir():
            path = find_weights(path)
        exists = path.is_file()
    except (OSError, RuntimeError):  # a name too long for a file, the home of nobody
        exists = False
    if not exists:
        raise UserError(
            f"model.weights: must be {', '.join(NAMED)}, a file or a checkpoint folder, but got '{weights}'. "
            "Check the path."
        )
    return path


def _file_state(path: Path) -> dict[str, Tensor]:
    try:
        state = load_tensors(path)
    except UserError as error:
        raise UserError(*(f"model.weights: {problem}" for problem in error.problems)) from error
    for wrapper in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not (isinstance(state, dict) and state and all(isinstance(value, Tensor) for value in state.values())):
        raise UserError(f"model.weights: {path} must hold a state dict, but got {type(state).__name__}.")
    return state


def _load(model: nn.Module, state: dict[str, Tensor], origin: str) -> None:
    own = model.state_dict()
    prefix = ""
    if not any(key.startswith("backbone.") for key in state):  # weights of a classifier: its backbone alone
        prefix = "backbone.body."
        state = _classifier_backbone(state, own, prefix)
    new_classes = _other_classes(state, own)
    try:
        # torchvision's modules rename what its older files (COCO v1) call otherwise, so names are compared by loading.
        result = model.load_state_dict({k: v for k, v in state.items() if k not in new_classes}, strict=False)
    except RuntimeError as error:
        detail = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"model.weights: {origin} must fit the model, but got {detail} {REMEDY}") from error
    # Batch norms count batches; frozen ones do not have the counter, and nothing reads it.
    missing, surplus = (
        sorted(key for key in keys if not key.endswith("num_batches_tracked") and key not in new_classes)
        for keys in result
    )
    surplus = [key for key in surplus if not _takes_eps(model, key, state)]
    added = _added_layers(model, state)
    missing = [key for key in missing if key.startswith(prefix) and not key.startswith(added)]
    if missing or surplus:
        raise UserError(
            f"model.weights: {origin} must fit the model, but got {len(missing)} missing and {len(surplus)} unknown "
            f"entries, such as '{(missing + surplus)[0]}'. {REMEDY}"
        )


def _takes_eps(model: nn.Module, key: str, state: dict[str, Tensor]) -> bool:
    """Give a batch norm, which is none of those that read it themselves, the ``eps`` of its weights."""
    name, _, entry = key.rpartition(".")
    norm = dict(model.named_modules()).get(name)
    if entry != EPS or not isinstance(norm, nn.BatchNorm2d):
        return False
    norm.eps = float(state[key])
    return True


def _classifier_backbone(state: dict[str, Tensor], own: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Extract the backbone of a classifier's ``state``, renamed as in ``own``, whose names begin with ``prefix``."""
    renamed = {}
    for key, value in state.items():
        if not key.startswith(CLASSIFIER_LAYERS):
            flat = key.replace(".", "_", 1)  # where timm made stages_0 of stages.0
            renamed[prefix + (flat if prefix + flat in own else key)] = value
    return renamed


def _other_classes(state: dict[str, Tensor], own: dict[str, Tensor]) -> set[str]:
    """Find the entries of the layers in ``state`` that were made for another number of classes."""
    common = state.keys() & own.keys()
    found = set()
    for layer in CLASS_LAYERS:
        entries = {key for key in common if key.startswith(layer)}
        if any(state[key].shape != own[key].shape for key in entries):
            found |= entries
    return found


def _added_layers(model: nn.Module, state: dict[str, Tensor]) -> tuple[str, ...]:
    """List the prefixes of added layers of which ``state`` has no entry."""
    layers = (f"{name}." for name, module in model.named_modules() if isinstance(module, ADDED_LAYERS))
    return tuple(layer for layer in layers if not any(key.startswith(layer) for key in state))
