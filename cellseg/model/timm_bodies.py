"""timm's networks as backbones: any whose ``features_only`` form has maps of strides 4, 8, 16 and 32.

timm has some 1300 networks of many makes, so what a network does is not read off its code: a twin on torch's meta
device, which holds no numbers and draws none, maps an image once and is looked at.
"""

import difflib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from cellseg.errors import UserError, first_line
from cellseg.model.body import Body, is_part

STRIDES = (4, 8, 16, 32)
PROBE_SIZE = (64, 96)
"""Height and width of the image that the twin sees: multiples of 32 that no network has as its fixed size."""
REMEDY = "Use another, such as timm:regnety_004."


@dataclass(frozen=True)
class _Layout:
    """Facts about a network before it is built."""

    out_indices: tuple[int, ...]
    """timm's numbers of the four maps."""
    channels: tuple[int, int, int, int]
    stages: tuple[tuple[str, ...], ...]
    """Names of the parameters of the stem and the four stages."""


def timm_body(name: str, weights: Path | None) -> Body:
    """Build timm's network ``name`` up to its last map, with the weights of a file in timm's form, if one is given.

    The network keeps timm's names in its state dict. Its stem ends at its last map of stride 2 or, if it has none,
    where the layer begins that gives the map of stride 4. A stage is what a map depends on and the map before does not.

    Raises:
        UserError: no such network, or one without the four maps or made for one image size only.
        RuntimeError: weights that are damaged or of another network.
    """
    check_name(name, pretrained=weights is not None)
    layout = _layout(name)
    from_file = {} if weights is None else {"pretrained": True, "pretrained_cfg_overlay": {"file": str(weights)}}
    try:
        network = timm.create_model(name, features_only=True, out_indices=layout.out_indices, **from_file)
    except Exception as error:  # the network could be built for its layout: it is the file, which may fail in any way
        raise RuntimeError(first_line(error)) from error
    network.register_forward_hook(_named_maps)  # a module around it would change the names in the state dict
    return Body(network, layout.channels, layout.stages)


def check_name(name: str, *, pretrained: bool) -> None:
    """Refuse a network that timm does not have or, with ``pretrained``, has no weights of, as a UserError."""
    known = [*timm.list_models(), *timm.list_models(pretrained=True)]  # NAME, and NAME.TAG with the weights of TAG
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        remedy = f"Did you mean {' or '.join(f'timm:{other}' for other in near)}?" if near else REMEDY
        raise UserError(
            f"model.backbone: must be a model of timm {timm.__version__} (timm.list_models()), but got '{name}'. "
            f"{remedy}"
        )
    if pretrained and not timm.is_model_pretrained(name):
        raise UserError(
            f"model.weights: timm must have ImageNet weights of the backbone, but got none for {name}. "
            "Use weights=none, or a file."
        )


@cache  # a process trains one trial after another, and each look builds two twins
def _layout(name: str) -> _Layout:
    with torch.device("meta"), torch.enable_grad():
        try:
            infos = timm.create_model(name, features_only=True).feature_info.info
        except Exception as error:  # other people's code, which may lack features_only in any way
            raise _refusal(name, f"'{first_line(error)}'") from error
        strides = [info["reduction"] for info in infos]
        if not set(STRIDES) <= set(strides):
            raise _refusal(name, f"strides {', '.join(str(stride) for stride in sorted(set(strides)))}")
        deepest = {stride: index for index, stride in enumerate(strides)}
        four = tuple(deepest[stride] for stride in STRIDES)
        stem = tuple(index for stride, index in deepest.items() if stride == 2)
        try:
            twin = timm.create_model(name, features_only=True, out_indices=stem + four)
            maps = list(_named_maps(twin, (), twin(torch.zeros(2, 3, *PROBE_SIZE))).values())
        except Exception as error:  # most have a size built in, and each says so differently
            raise _refusal(name, f"'{first_line(error)}'") from error
    shapes = [tuple(feature_map.shape[1:]) for feature_map in maps[-4:]]
    height, width = PROBE_SIZE
    promised = [(infos[i]["num_chs"], height // s, width // s) for i, s in zip(four, STRIDES, strict=True)]
    if shapes != promised:
        raise _refusal(name, f"maps of shape {shapes} for an image of {height} x {width} px")
    first, second, third, fourth = (channels for channels, _, _ in promised)
    stages = _parameters_by_map(twin, maps)
    if not stem:
        stages = [*_split_stem(name, twin, stages[0], infos[four[0]]["module"]), *stages[1:]]
    return _Layout(four, (first, second, third, fourth), tuple(tuple(stage) for stage in stages))


def _parameters_by_map(network: nn.Module, maps: Sequence[Tensor]) -> list[list[str]]:
    """Find for each of ``maps``, computed by ``network``, the parameters that it and none before it depends on."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    groups: list[list[str]] = []
    seen: set[Any] = set()
    for feature_map in maps:
        group: list[str] = []
        open_nodes = [feature_map.grad_fn]
        while open_nodes:  # autograd's graph, from the map back to its leaves
            node = open_nodes.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            parameter = getattr(node, "variable", None)
            if parameter in names:
                group.append(names[parameter])
            open_nodes.extend(before for before, _ in node.next_functions)
        groups.append(sorted(group))
    return groups


def _split_stem(name: str, network: nn.Module, parameters: list[str], first_map: str) -> tuple[list[str], list[str]]:
    """Split ``parameters`` of the first map at the module that timm calls ``first_map``."""
    # timm flattens some networks, stages.0 to stages_0, and keeps others whole below a module of its own.
    spellings = {first_map, first_map.replace(".", "_"), f"model.{first_map}"}
    module = next((path for path, _ in network.named_modules() if path in spellings), None)
    if module is None:
        raise _refusal(name, f"no module '{first_map}', where the first stage was said to begin")
    stage = [parameter for parameter in parameters if is_part(parameter, [module])]
    return [parameter for parameter in parameters if parameter not in stage], stage


def _named_maps(network: nn.Module, _: Any, maps: Sequence[Tensor]) -> "OrderedDict[str, Tensor]":
    """Rename timm's list of maps, as a forward hook, to the names that torchvision's detectors use, channels second."""
    channels_last = str(getattr(getattr(network, "output_fmt", None), "value", "NCHW")) == "NHWC"
    return OrderedDict((str(i), m.permute(0, 3, 1, 2) if channels_last else m) for i, m in enumerate(maps))


def _refusal(name: str, evidence: str) -> UserError:
    return UserError(
        f"model.backbone: timm:{name} must give feature maps of strides {', '.join(map(str, STRIDES))} for images of "
        f"any size, but got {evidence}. {REMEDY}"
    )
