"""The laws that a space must obey beyond each key's own: conditions, relevance, start configs, combinations.

Every rule is a function from what was parsed to problems, lines ``key: law, but got evidence. Remedy.`` Keys that are
``broken``, because something is wrong with their own domain or value, cause no second problem here.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

import numpy as np

from cellseg.config import ACTIVE_WHEN
from cellseg.errors import UserError
from search.space.conditions import DEFAULTS, is_among
from search.space.domain import Choices, Domain

if TYPE_CHECKING:
    from search.space.space import Params, Space

_SET_BY_STUDY = {
    "train.epochs": "Set epochs at the top.",
    "train.metric": "Set metric at the top.",
    "train.seed": "It is made from seed, at the top, and the trial's number.",
    "data.root": "Write data: {root: FOLDER} at the top, or give --data.",
}
"""Config fields that a space may neither sample nor fix, and where they come from."""
SAME_IN_ALL_TRIALS = (
    "data.split_seed",
    "data.num_folds",
    "data.fold",
    "data.layout",
    "data.annotations",
    "data.instances",
    "data.train_on",
)
"""Config fields that a space may fix but not sample: they decide what a trial learns from and is measured on."""
_NUM_DRAWS = 300


def ownership_problems(domains: Mapping[str, Domain], fixed: Mapping[str, Any]) -> list[str]:
    """Keys that belong to the study, not to a trial."""
    found = [
        f"{key}: is set by the study, but got it in the space. {remedy}"
        for key, remedy in _SET_BY_STUDY.items()
        if key in domains or key in fixed
    ]
    return found + [
        f"{key}: must be the same in all trials, or their scores do not compare, but got a domain. Fix it to one value."
        for key in SAME_IN_ALL_TRIALS
        if key in domains
    ]


def condition_problems(domains: Mapping[str, Domain], broken: Collection[str] = ()) -> list[str]:
    """Conditions on keys that are not sampled, or on values that cannot be."""
    found = []
    for key, domain in domains.items():
        for other, values in domain.when.items():
            if other in broken:
                continue
            if other not in domains:
                sampled = ", ".join(name for name in domains if name != key) or "none"
                found.append(f"{key}: when must name a sampled key, but got '{other}'. Sampled besides: {sampled}.")
                continue
            default = [DEFAULTS[other]] if domains[other].when else []  # its value where it is not sampled
            takes = str(domains[other]) + "".join(
                f", and {value} where its own when does not hold" for value in default
            )
            found += [f"{key}: when needs at least one value of {other}, but got none."] * (not values)
            found += [
                f"{key}: when must name a value that {other} can take, but got {value!r}. It takes {takes}."
                for value in values
                if not (domains[other].contains(value) or is_among(value, default))
            ]
    return found


def circle_problem(error: CycleError) -> str:
    """Conditions that depend on each other, as :func:`dependency_order` finds them."""
    circle = error.args[1]
    return f"{circle[0]}: conditions must not run in a circle, but got {' -> '.join(circle)}. Remove a when."


def dependency_order(domains: Mapping[str, Domain]) -> list[str]:
    """The sampled keys, each after those its condition names, otherwise in their own order.

    Raises:
        CycleError: conditions run in a circle.
    """
    graph = {key: [other for other in domain.when if other in domains] for key, domain in domains.items()}
    sorter = TopologicalSorter(graph)
    sorter.prepare()
    place = {key: index for index, key in enumerate(domains)}
    order: list[str] = []
    ready = list(sorter.get_ready())
    while ready:
        ready.sort(key=place.__getitem__)
        key = ready.pop(0)
        order.append(key)
        sorter.done(key)
        ready += sorter.get_ready()
    return order


def random_draws(space: "Space", count: int = _NUM_DRAWS, seed: int = 0) -> list["Params"]:
    """Params of the space, always the same ones."""
    rng = np.random.default_rng(seed)
    return [space.sample(rng) for _ in range(count if space.domains else 1)]


def relevance_problems(space: "Space", draws: Iterable["Params"], broken: Collection[str] = ()) -> list[str]:
    """Keys that are sampled although the trial may ignore them: noise to the model, a riddle to the reader.

    Judged by what the draws have. Every condition of ``ACTIVE_WHEN`` that a key misses is one problem.
    """
    beside: dict[tuple[str, str], set[Any]] = {}  # (key, other) -> the values that other has where key is sampled
    for params in draws:
        values = space.values(params)
        for key in params:
            for other in ACTIVE_WHEN.get(key, ()):
                beside.setdefault((key, other), set()).add(values[other])
    found = []
    for key in space.domains:
        for other, condition in ACTIVE_WHEN.get(key, {}).items():
            possible = _in_order(beside.get((key, other), set()), other, space.domains)
            useful = [value for value in possible if value in condition]
            useless = [str(value) for value in possible if value not in condition]
            if not useless or other in broken:
                continue
            law = f"{key}: only matters for {other} {condition}, but got"
            if other not in space.domains:
                found.append(f"{law} {other}={useless[0]}. Leave {key} out, or sample {other} too.")
            elif not useful:
                found.append(f"{law} {other} sampled from {', '.join(useless)}. Leave {key} out.")
            else:
                fix = str(useful[0]) if len(useful) == 1 else f"[{', '.join(map(str, useful))}]"
                found.append(f"{law} it sampled for {', '.join(useless)} too. Add when: {{{other}: {fix}}}.")
    return found


def start_problems(
    starts: Sequence[Mapping[str, Any]], domains: Mapping[str, Domain], broken: Collection[str] = ()
) -> list[str]:
    """Start configs that the space could not have sampled. ``domains`` are in :func:`dependency_order`."""
    found = []
    for index, start in enumerate(starts):
        where = f"start_from[{index}]"
        found += [f"{where}: must name at least one sampled key, but got none."] * (not start)
        if dict(start) in [dict(earlier) for earlier in starts[:index]]:
            found.append(f"{where}: start configs must differ, but got one twice. Remove it.")
        known = _known_values(start, domains)
        for key, value in start.items():
            if key in broken:
                continue
            if key not in domains:
                names = ", ".join(domains)
                found.append(
                    f"{where}: {key}: must be a sampled key, but got it fixed or unknown. Sampled are {names}."
                )
                continue
            if not domains[key].contains(value):
                found.append(f"{where}: {key}: must be inside its domain, {domains[key]}, but got {value!r}.")
            for other, values in domains[key].when.items():
                if other not in known or not is_among(known[other], values):
                    got = f"{other}={known[other]}" if other in known else f"no {other}"
                    remedy = " or ".join(f"{other}: {allowed}" for allowed in values)
                    found.append(f"{where}: {key}: needs {remedy} beside it, but got {got}.")
    return found


def combination_problems(space: "Space", draws: Sequence["Params"]) -> list[str]:
    """Rules over several fields that some configs of the space break.

    Judged by trying the start configs and the draws. The same problem is reported once, with the sampled values of the
    part of the config that it is about.
    """
    rng = np.random.default_rng(0)
    tries = [*(space.sample(rng, start) for start in space.start_from), *draws]
    examples: dict[str, str] = {}
    counts: dict[str, int] = {}
    for params in tries:
        try:
            space.config(params, seed=0)
        except UserError as error:
            for problem in error.problems:
                line = problem.removeprefix("trial: ")
                law = line.split(", but got")[0]
                part = line.split(".")[0]
                values = ", ".join(f"{key}={value}" for key, value in params.items() if key.startswith(f"{part}."))
                examples.setdefault(law, f"{line} Sampled: {values or 'nothing of this part'}.")
                counts[law] = counts.get(law, 0) + 1
    return [
        f"{line} {math.ceil(100 * counts[law] / len(tries))} % of the space are like this: bind keys by when, "
        "or remove values."
        if "Sampled: nothing" not in line
        else line.removesuffix(" Sampled: nothing of this part.")
        for law, line in examples.items()
    ]


def _known_values(start: Mapping[str, Any], domains: Mapping[str, Domain]) -> dict[str, Any]:
    """The values of a start config, and the default of every other key that is certainly not sampled beside them."""
    known = dict(start)
    for key, domain in domains.items():
        excluded = any(other in known and not is_among(known[other], allowed) for other, allowed in domain.when.items())
        if key not in known and excluded:
            known[key] = DEFAULTS[key]
    return known


def _in_order(values: set[Any], key: str, domains: Mapping[str, Domain]) -> list[Any]:
    """Values of a key in the order of its choices; of a range, and for a default beyond the choices, by size."""
    domain = domains.get(key)
    choices = [value for value in domain.choices if value in values] if isinstance(domain, Choices) else []
    others = values.difference(choices)
    numbers = [value for value in others if isinstance(value, int | float)]
    return choices + sorted(numbers) + sorted(others.difference(numbers), key=str)
