"""Rules of a space beyond those of each key: conditions, relevance, start configs, combinations.

Every rule is a function from the parsed parts to problems. Keys that are ``broken``, because something is wrong with
their own domain or value, cause no second problem here.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

import numpy as np

from cellseg.config import ACTIVE_WHEN, TrialConfig
from cellseg.errors import Problem
from search.space.conditions import DEFAULTS, is_among
from search.space.domain import Choices, Domain, Range

if TYPE_CHECKING:
    from search.space.space import Params, Space

_SET_BY_STUDY = {
    "train.epochs": "Set epochs at the top.",
    "train.metric": "Set metric at the top.",
    "train.seed": "It is made from seed, at the top, and the trial's number.",
    "model.weights_folder": "It is made from --results; set TORCH_HOME for another place.",
    "data.root": "Write data: {root: FOLDER} at the top, or give --data.",
}
"""Config fields that a space may neither sample nor fix, with the place to set each."""
SAME_IN_ALL_TRIALS = (
    "data.split_seed",
    "data.validation",
    "data.num_folds",
    "data.fold",
    "data.layout",
    "data.annotations",
    "data.instances",
    "data.channels",
    "data.projection",
    "data.train_on",
)
"""Config fields that a space may fix but not sample: they decide what a trial learns from and is measured on."""
UNRANKED = Problem(
    "data.train_on",
    "must leave images to validate with, or nothing ranks the models",
    "unvalidated",
    "Train the best config so afterwards: python -m cellseg.train --from-study NAME --all-images.",
)
"""What a study cannot do with ``data.train_on: unvalidated``."""
SET_FROM_OUTSIDE: Mapping[str, tuple[Any, ...]] = {"model.weights": ("none",)}
"""Values that a condition may name though the key's domain lacks them. The command line sets them where no weights can
be had, and such a condition says what then still makes sense."""
_NUM_DRAWS = 300


def ownership_problems(domains: Mapping[str, Domain], fixed: Mapping[str, Any]) -> list[Problem]:
    """Report keys that belong to the study, not to a trial."""
    found = [
        Problem(key, "is set by the study", "it in the space", remedy)
        for key, remedy in _SET_BY_STUDY.items()
        if key in domains or key in fixed
    ]
    if fixed.get("data.train_on") == "unvalidated":
        found.append(UNRANKED)
    law = "must be the same in all trials, or their scores cannot be compared"
    return found + [
        Problem(key, law, "a domain", "Fix it to one value.") for key in SAME_IN_ALL_TRIALS if key in domains
    ]


def condition_problems(domains: Mapping[str, Domain], broken: Collection[str] = ()) -> list[Problem]:
    """Report conditions on keys that are not sampled, or on values that they cannot take."""
    found = []
    for key, domain in domains.items():
        for other, values in domain.when.items():
            if other in broken:
                continue
            if other not in domains:
                sampled = ", ".join(name for name in domains if name != key) or "none"
                remedy = f"The other sampled keys are {sampled}."
                found.append(Problem(key, "when must name a sampled key", f"'{other}'", remedy))
                continue
            if not values:
                found.append(Problem(key, f"when needs at least one value of {other}", "none"))
            takes, default = str(domains[other]), []
            if domains[other].when:
                default = [DEFAULTS[other]]  # its value where it is not sampled
                takes += f", and {DEFAULTS[other]} where its own when does not hold"
            law = f"when must name a value that {other} can take"
            found += [
                Problem(key, law, f"{value!r}", f"It takes {takes}.")
                for value in values
                if not (domains[other].contains(value) or is_among(value, [*default, *SET_FROM_OUTSIDE.get(other, ())]))
            ]
    return found


def circle_problem(error: CycleError) -> Problem:
    """Report conditions that depend on each other, as :func:`dependency_order` finds them."""
    circle = error.args[1]
    return Problem(circle[0], "conditions must not be circular", " -> ".join(circle), "Remove a when.")


def dependency_order(domains: Mapping[str, Domain]) -> list[str]:
    """Order the sampled keys so that each follows those that its condition names; otherwise their order stays.

    Raises:
        CycleError: the conditions are circular.
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
    """Draw params of the space, the same ones at every call."""
    rng = np.random.default_rng(seed)
    return [space.sample(rng) for _ in range(count if space.domains else 1)]


def relevance_problems(space: "Space", draws: Iterable["Params"], broken: Collection[str] = ()) -> list[Problem]:
    """Report keys that are sampled although the trial may ignore them: noise to the model, a riddle to the reader.

    Judged by the draws. Every condition of ``ACTIVE_WHEN`` that a key misses is one problem.
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
            if other not in space.domains:
                got, remedy = f"{other}={useless[0]}", f"Leave {key} out, or sample {other} too."
            elif not useful:
                got, remedy = f"{other} sampled from {', '.join(useless)}", f"Leave {key} out."
            else:
                fix = str(useful[0]) if len(useful) == 1 else f"[{', '.join(map(str, useful))}]"
                got, remedy = f"it sampled for {', '.join(useless)} too", f"Add when: {{{other}: {fix}}}."
            found.append(Problem(key, f"only matters for {other} {condition}", got, remedy))
    return found


def sampler_problems(sampler: str, domains: Mapping[str, Domain]) -> list[Problem]:
    """Report a sampler that has nothing to work on in this space."""
    if sampler != "cmaes" or any(isinstance(domain, Range) and not domain.when for domain in domains.values()):
        return []
    law = "cmaes must have ranges of numbers that every trial has"
    return [Problem("sampler", law, "choices and conditions only", "Choose tpe or auto.")]


def start_problems(
    starts: Sequence[Mapping[str, Any]], domains: Mapping[str, Domain], broken: Collection[str] = ()
) -> list[Problem]:
    """Report start configs that the space could not have sampled. ``domains`` are in :func:`dependency_order`."""
    found = []
    for index, start in enumerate(starts):
        where = f"start_from[{index}]"
        if not start:
            found.append(Problem(where, "must name at least one sampled key", "none"))
        if dict(start) in [dict(earlier) for earlier in starts[:index]]:
            found.append(Problem(where, "start configs must differ", "one twice", "Remove it."))
        known = _known_values(start, domains)
        for key, value in start.items():
            if key in broken:
                continue
            if key not in domains:
                remedy = f"The sampled keys are {', '.join(domains)}."
                found.append(Problem(f"{where}: {key}", "must be a sampled key", "it fixed or unknown", remedy))
                continue
            if not domains[key].contains(value):
                found.append(Problem(f"{where}: {key}", f"must be inside its domain, {domains[key]}", f"{value!r}"))
            for other, values in domains[key].when.items():
                if other not in known or not is_among(known[other], values):
                    got = f"{other}={known[other]}" if other in known else f"no {other}"
                    needed = " or ".join(f"{other}: {allowed}" for allowed in values)
                    found.append(Problem(f"{where}: {key}", f"needs {needed} in the same start config", got))
    return found


def combination_problems(space: "Space", draws: Sequence["Params"]) -> list[Problem]:
    """Report rules over several fields that some configs of the space break.

    Judged by trying the start configs and the draws. The same problem is reported once, with the sampled values of the
    part of the config that it is about.
    """
    rng = np.random.default_rng(0)
    tries = [*(space.sample(rng, start) for start in space.starts), *draws]
    first: dict[tuple[str, str], tuple[Problem, dict[str, Any]]] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for params in tries:
        for problem in TrialConfig.problems_of_flat(space.flat_config(params, seed=0)):
            first.setdefault((problem.where, problem.law), (problem, params))
            counts[problem.where, problem.law] += 1
    return [
        _with_sampled_values(problem, params, counts[identity] / len(tries))
        for identity, (problem, params) in first.items()
    ]


def _with_sampled_values(problem: Problem, params: "Params", share: float) -> Problem:
    """Add the sampled values of the part that a problem is about, and its share of the space, to the remedy."""
    part, _, _ = problem.where.partition(".")
    values = ", ".join(f"{key}={value}" for key, value in params.items() if key.startswith(f"{part}."))
    if not values:
        return problem
    percent = math.ceil(100 * share)
    advice = f"Sampled: {values}. {percent} % of the space has this problem: bind keys with when, or remove values."
    return replace(problem, remedy=f"{problem.remedy} {advice}".lstrip())


def _known_values(start: Mapping[str, Any], domains: Mapping[str, Domain]) -> dict[str, Any]:
    """Return the values of a start config, and the default of every key that is certainly not sampled beside them."""
    known = dict(start)
    for key, domain in domains.items():
        excluded = any(other in known and not is_among(known[other], allowed) for other, allowed in domain.when.items())
        if key not in known and excluded:
            known[key] = DEFAULTS[key]
    return known


def _in_order(values: set[Any], key: str, domains: Mapping[str, Domain]) -> list[Any]:
    """Sort values of a key in the order of its choices; numbers outside of the choices by size, the rest by name."""
    domain = domains.get(key)
    choices = [value for value in domain.choices if value in values] if isinstance(domain, Choices) else []
    others = values.difference(choices)
    numbers = [value for value in others if isinstance(value, int | float)]
    return choices + sorted(numbers) + sorted(others.difference(numbers), key=str)
