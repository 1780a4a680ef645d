"""Ablation studies: named configs, each trained with several seeds, beside figures reported elsewhere."""

from search.ablation.ablation import Ablation, Row
from search.ablation.file import load_ablation, parse_ablation

__all__ = ["Ablation", "Row", "load_ablation", "parse_ablation"]
