"""The import graph: no circles, floors from low to high, and public names that somebody uses."""

import ast
from collections import Counter
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("cellseg", "search")

FLOORS: tuple[tuple[str, ...], ...] = (
    ("cellseg.errors",),
    ("cellseg.cli", "cellseg.device", "cellseg.files", "cellseg.names"),
    ("cellseg.config", "cellseg.owners"),
    ("cellseg.checkpoint", "cellseg.data"),
    ("cellseg.evaluate", "cellseg.model", "cellseg.overlay"),
    ("cellseg.inference",),
    ("cellseg.predict", "cellseg.training"),
    ("cellseg.train",),
    ("search.space",),
    ("search.cost", "search.sampling"),
    ("search.storage",),
    ("search.ablation",),
    ("search.study",),
    ("search.levers", "search.plan", "search.prepare", "search.views"),
    ("search.cluster",),
    ("search.diagnosis",),
    ("search.commands", "search.export", "search.optuna_export", "search.report", "search.run"),
    ("search.__main__",),
)
"""Rooms (a folder, or a file beside the folders) from low to high. A module imports from its own room and from lower
floors, never from its neighbours or from above. Every module has a room."""
MAX_ENTRIES = {"cellseg": 18, "search": 20}

PUBLIC_API = {"search.storage.find.list_studies"}
"""``module.name`` of what is there for users of the packages, with no caller inside them."""


@cache
def modules() -> dict[str, Path]:
    """Every module of the packages by its dotted name; a package by that of its folder."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_type_checking(node: ast.AST) -> bool:
    """Whether a node is an ``if TYPE_CHECKING`` block."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def imported(module: str, *, typing_too: bool) -> set[str]:
    """The dotted names that a module imports anywhere, inside functions too.

    Args:
        typing_too: whether those under ``if TYPE_CHECKING`` count.
    """
    names: set[str] = set()
    pending: list[ast.AST] = [tree(modules()[module])]
    while pending:
        node = pending.pop()
        if is_type_checking(node) and not typing_too:
            assert isinstance(node, ast.If)
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{module}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        pending += ast.iter_child_nodes(node)
    return names


def nearest_module(name: str) -> str | None:
    """The module of ours that an imported name is or lies in; None for other packages."""
    parts = name.split(".")
    prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in modules()), None)


@cache
def graph(*, typing_too: bool) -> dict[str, set[str]]:
    """Module -> modules of ours that it imports. A package's ``__init__`` counts only where it is named itself."""
    arrows = {}
    for module in modules():
        targets = {nearest_module(name) for name in imported(module, typing_too=typing_too)}
        arrows[module] = {target for target in targets if target is not None and target != module}
    return arrows


@pytest.mark.parametrize("typing_too", [False, True])
def test_no_circle_of_imports(typing_too):
    try:
        TopologicalSorter(graph(typing_too=typing_too)).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def room(module: str) -> str:
    """The entry of :data:`FLOORS` that a module belongs to."""
    return ".".join(module.split(".")[:2])


def test_every_room_has_one_floor_and_every_floor_has_rooms():
    named = [name for floor in FLOORS for name in floor]
    assert len(named) == len(set(named))
    assert set(named) == {room(module) for module in modules()} - set(PACKAGES)


TYPING_ARROWS = {("search.cost", "search.storage.tables")}
"""Arrows that run up for type checkers only: costs are read from rows, whose tables are ranked by cost."""


@pytest.mark.parametrize("typing_too", [False, True])
def test_no_arrow_runs_up_or_to_a_neighbour(typing_too):
    floor_of = {name: index for index, floor in enumerate(FLOORS) for name in floor}
    allowed = TYPING_ARROWS if typing_too else set()
    assert [
        f"{module} -> {target}"
        for module, targets in graph(typing_too=typing_too).items()
        for target in sorted(targets)
        if module not in PACKAGES and target not in PACKAGES and room(module) != room(target)
        if floor_of[room(target)] >= floor_of[room(module)] and (module, target) not in allowed
    ] == []


def test_arrows_for_type_checkers_are_no_imports():
    assert all(target not in graph(typing_too=False)[module] for module, target in TYPING_ARROWS)
    assert all(target in graph(typing_too=True)[module] for module, target in TYPING_ARROWS), "or the list is too long"


def importers(package: str, *, of: str) -> list[str]:
    """Modules of ``package`` that import ``of``, in functions and for type checkers too."""
    return [
        module
        for module in modules()
        if module.split(".")[0] == package
        and any(name.split(".")[0] == of for name in imported(module, typing_too=True))
    ]


@pytest.mark.parametrize("other", ["search", "ray", "optuna"])
def test_cellseg_knows_neither_search_nor_ray_nor_optuna(other):
    assert importers("cellseg", of=other) == []


def test_only_the_cluster_imports_ray():
    found = importers("search", of="ray")
    assert found
    assert all(module.startswith("search.cluster.") for module in found)


def test_spaces_and_ablations_know_neither_samplers_nor_studies():
    for module, targets in graph(typing_too=True).items():
        if module.startswith(("search.space", "search.ablation")):
            assert not [name for name in targets if name.startswith(("search.sampling", "search.study"))], module


@pytest.mark.parametrize("package", PACKAGES)
def test_a_floor_has_few_entries(package):
    entries = [path.name for path in (ROOT / package).iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MAX_ENTRIES[package], sorted(entries)


def top_level_names(body: list[ast.stmt]) -> set[str]:
    """Public names that statements define: functions, classes and assigned names."""
    names: set[str] = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def dunder_all(path: Path) -> list[str] | None:
    """The list ``__all__`` of a file; None where it has none."""
    for node in tree(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return None


def exported(module: str) -> set[str]:
    """Public names that a file defines or, as a package does, takes from modules of ours for others."""
    body = tree(modules()[module]).body
    names = top_level_names(body)
    for node in body:
        if isinstance(node, ast.ImportFrom) and nearest_module(node.module or "") is not None:
            names |= {alias.asname or alias.name for alias in node.names}
    return {name for name in names if not name.startswith("_")}


LISTED = [name for name, path in modules().items() if dunder_all(path) is not None and name not in PACKAGES]
"""Modules with ``__all__``; the packages themselves give their names on demand (tests/search/test_package.py)."""


@pytest.mark.parametrize("module", LISTED)
def test_all_is_complete(module):
    listed = dunder_all(modules()[module])
    assert listed is not None
    path = modules()[module]
    public = exported(module) if path.name == "__init__.py" else top_level_names(tree(path).body)
    assert set(listed) == public
    assert len(listed) == len(set(listed))


@cache
def mentions() -> Counter[str]:
    """How often each identifier is used in the packages and benchmarks: as a name, an attribute or an import."""
    found: Counter[str] = Counter()
    for path in [*modules().values(), *(ROOT / "benchmarks").glob("*.py")]:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                found[node.id] += 1
            elif isinstance(node, ast.Attribute):
                found[node.attr] += 1
            elif isinstance(node, ast.ImportFrom) and path.name != "__init__.py":
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                found[node.value] += path.name != "__init__.py"  # an annotation in quotes
    return found


def test_every_public_name_has_a_caller_outside_tests():
    unused = [
        f"{module}.{name}"
        for module, path in modules().items()
        for name in sorted(top_level_names(tree(path).body))
        if not mentions()[name] and f"{module}.{name}" not in PUBLIC_API and name != "main"
    ]
    assert unused == []
