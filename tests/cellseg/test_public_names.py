"""Names without an underscore are used outside of the tests, and ``__all__`` lists what callers import."""

import ast
import re
from collections import Counter
from pathlib import Path

import cellseg.config

REPOSITORY = Path(__file__).parents[2]
SOURCES = {
    path: path.read_text(encoding="utf-8")
    for folder in ("cellseg", "search", "benchmarks")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
}
HOOKS = {
    "check_targets",
    "assign_targets_to_anchors",
    "apply_to_mask",
    "get_params_dependent_on_data",
    "construct_mapping",
}
"""Methods that a library calls by name."""


def public_names(tree: ast.Module) -> list[str]:
    """Names of the classes, functions and constants of a module, and of the methods of its classes."""
    names = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            names += [inner.name for inner in node.body if isinstance(inner, ast.FunctionDef)]
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.append(node.target.id)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [name for name in names if not name.startswith("_")]


def test_every_public_name_of_cellseg_is_used_outside_the_tests():
    words = Counter(word for text in SOURCES.values() for word in re.findall(r"\w+", text))
    unused = {
        name
        for path, text in SOURCES.items()
        if path.is_relative_to(REPOSITORY / "cellseg")
        for name in public_names(ast.parse(text))
        if words[name] < 2
    }
    assert unused - HOOKS == set()


def test_the_public_names_of_the_config_are_those_that_callers_import():
    exported = set(cellseg.config.__all__)
    imported = {
        alias.name
        for text in SOURCES.values()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and node.module == "cellseg.config"
        for alias in node.names
    }
    assert imported <= exported
    assert all(hasattr(cellseg.config, name) for name in exported)
