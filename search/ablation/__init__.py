"""Ablation studies: a table of named configs, each trained with several seeds, beside figures reported elsewhere."""

from search.ablation.file import is_table, load_ablation, parse_ablation
from search.ablation.table import Ablation, Row
from search.sampling.rows import RowSampler

__all__ = ["Ablation", "Row", "RowSampler", "is_table", "load_ablation", "parse_ablation"]
