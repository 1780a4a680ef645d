"""Experiments from files and from ``study.json``: the one place that tells a space from an ablation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cellseg.errors import UserError
from cellseg.files import read_yaml
from search.ablation import Ablation, load_ablation
from search.space import load_space, parse_space
from search.study.experiment import Experiment


def load_experiment(path: Path, overrides: Sequence[str] = (), rows: Sequence[str] | None = None) -> Experiment:
    """Read and check the file of a space, or of an ablation.

    Args:
        overrides: ``key=value``; see :func:`search.space.load_space` and :func:`search.ablation.load_ablation`.
        rows: of an ablation, the rows to be trained. None: not asked for.

    Raises:
        UserError: every problem of the overrides and of the file with them.
    """
    content = read_yaml(path)
    if _is_ablation(content):
        if "space" in content:
            raise UserError(
                f"{path}: must have space (to be searched) or rows (an ablation), but got both. Remove one."
            )
        return load_ablation(path, overrides, rows or ())
    if rows is not None:
        raise UserError(f"--rows: is for ablations, but got {path}, which has no rows. Leave it out.")
    return load_space(path, overrides)


def experiment_from_json(content: Mapping[str, Any], where: str) -> Experiment:
    """Make the experiment that :meth:`Experiment.to_json` described.

    Args:
        where: the file that holds ``content``.

    Raises:
        UserError: a space that this version does not know.
    """
    return Ablation.from_json(content) if _is_ablation(content) else parse_space(content, where)


def _is_ablation(content: Any) -> bool:
    """Whether the content of a file describes an ablation, which has ``rows``, and not a space."""
    return isinstance(content, Mapping) and "rows" in content
