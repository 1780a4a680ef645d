"""Space files that several tests read."""

import pytest

from cellseg.errors import UserError
from cellseg.files import parse_yaml
from search.space import Space, parse_space

TINY_SPACE = """
metric: segm/AP50
direction: maximize
trials: 3
epochs: 2
keep: 1
asha: {grace: 1, reduction: 3}
resources: {cpu: 1}
data:
  generate: {train: 10, test: 3, seed: 1, size: 64}
space:
  optim.lr: {low: 1e-3, high: 1e-2, log: true}
  model.backbone: resnet10t
  model.weights: none
  model.fpn_channels: 8
  model.box_head_width: 16
  model.mask_head_layers: 1
  model.mask_head_width: 8
  model.rpn_proposals: 20
  model.roi_samples: 8
"""
"""Three trials of a network that trains in a second."""
HEAD = "metric: segm/AP50\ndirection: maximize\ntrials: 8\nepochs: 9\n"
LR = "  optim.lr: {low: 1e-4, high: 1e-2, log: true}\n"
FULL = (
    HEAD
    + """
seed: 4
asha: {grace: 1, reduction: 3}
resources: {cpu: 1, gpu: 0.5}
data: {generate: {train: 48, test: 8, seed: 1, size: 128}}
space:
  optim.momentum: {low: 0.8, high: 0.99, when: {optim.optimizer: sgd}}
  optim.optimizer: {choices: [sgd, adamw]}
  optim.lr: {low: 1e-4, high: 1e-2, log: true}
  optim.clip_norm: {choices: [null, 1, 10.0]}
  train.batch_size: {low: 1, high: 7, step: 2, type: int}
  augment.preset: {choices: [none, flips, full]}
  augment.strength: {low: 0, high: 1, when: {augment.preset: [full]}}
  model.backbone: {choices: [resnet18, resnet34]}
  model.weights: none
  model.norm: {choices: [group, batch]}
  model.anchors: 8-128
start_from:
  - {optim.lr: 1e-3}
  - {optim: {optimizer: sgd, momentum: 0.9}}
"""
)


def parse(text: str) -> Space:
    return parse_space(parse_yaml(text), "s.yaml")


def problems_of(text: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        parse(text)
    return list(caught.value.problems)
