"""Settings of one training run: typed, frozen and strict.

A :class:`TrialConfig` has one part per file here. The same config trains alone or inside a search, and predicts after
export. Outside Python it is a flat mapping with dotted keys (``{"optim.lr": 1e-3}``): a space samples this form and a
checkpoint stores it. An unknown key is an error that names the nearest field. ``python -m cellseg.config`` prints every
field with its values, default and meaning.
"""

from cellseg.config.augment import AugmentConfig
from cellseg.config.base import Count, Fraction, Positive, parse_numbers
from cellseg.config.conditions import ACTIVE_WHEN, AnyBut, Condition, OneOf
from cellseg.config.data import DataConfig
from cellseg.config.inference import InferenceConfig
from cellseg.config.loss import LossConfig
from cellseg.config.model import (
    BACKBONES,
    CONVNEXTS,
    EFFICIENTNETS,
    NUM_STAGES,
    RESNETS,
    TIMM_PREFIX,
    ModelConfig,
    parse_anchor_range,
    parse_normalization,
    sizes_per_level,
)
from cellseg.config.optim import OptimConfig
from cellseg.config.problems import problems_of
from cellseg.config.train import METRICS, MINIMIZED, Metric, TrainConfig, gain
from cellseg.config.trial import FIELDS, TrialConfig, check_value, flatten, parse_overrides, unknown_key

__all__ = [
    "ACTIVE_WHEN",
    "BACKBONES",
    "CONVNEXTS",
    "EFFICIENTNETS",
    "FIELDS",
    "METRICS",
    "MINIMIZED",
    "NUM_STAGES",
    "RESNETS",
    "TIMM_PREFIX",
    "AnyBut",
    "AugmentConfig",
    "Condition",
    "Count",
    "DataConfig",
    "Fraction",
    "InferenceConfig",
    "LossConfig",
    "Metric",
    "ModelConfig",
    "OneOf",
    "OptimConfig",
    "Positive",
    "TrainConfig",
    "TrialConfig",
    "check_value",
    "flatten",
    "gain",
    "parse_anchor_range",
    "parse_normalization",
    "parse_numbers",
    "parse_overrides",
    "problems_of",
    "sizes_per_level",
    "unknown_key",
]
