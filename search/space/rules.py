"""The laws that a space must obey beyond each key's own: conditions, relevance, start configs, combinations.

Every rule is a function from what was parsed to problems, lines ``key: law, but got evidence. Remedy.`` Keys that are
``broken``, because something is wrong with their own domain or value, cause no second problem here.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

import numpy as np

from cellseg.config import ACTIVE_WHEN, FIELDS
from cellseg.errors import UserError
from search.space.domain import Choices, Domain, Value, is_among

if TYPE_CHECKING:
    from search.space.space import Space

_SET_BY_STUDY = {
    "train.epochs": "Set epochs at the top.",
    "train.metric": "Set metric at the top.",
    "train.seed": "It is made from seed, at the top, and the trial's number.",
    "data.root": "Write data: {root: FOLDER} at the top, or give --data.",
}
"""Config fields that a space may neither sample nor fix, and where they come from."""
_SAME_IN_ALL_TRIALS = (
    "data.split_seed",
    "data.num_folds",
    "data.fold",
    "data.layout",
    "data.annotations",
    "data.instances",
)
"""Config fields that a space may fix but not sample: they decide which images and cells a trial is measured on."""
_NUM_COMBINATIONS = 300


def ownership_problems(domains: Mapping[str, Domain], fixed: Mapping[str, Any]) -> list[str]:
    """Keys that belong to the study, not to a trial."""
    found = [
        f"{key}: is set by the study, but got it in the space. {remedy}"
        for key, remedy in _SET_BY_STUDY.items()
        if key in domains or key in fixed
    ]
    return found + [
        f"{key}: must be the same in all trials, or their scores do not compare, but got a domain. Fix it to one value."
        for key in _SAME_IN_ALL_TRIALS
        if key in domains
    ]


def condition_problems(domains: Mapping[str, Domain], broken: Collection[str] = ()) -> list[str]:
    """Conditions on keys that are not sampled, on values that cannot be, or in a circle."""
    found = []
    for key, domain in domains.items():
        for other, values in domain.when.items():
            if other in broken:
                continue
            if other not in domains:
                sampled = ", ".join(name for name in domains if name != key) or "none"
                found.append(f"{key}: when must name a sampled key, but got '{other}'. Sampled besides: {sampled}.")
                continue
            found += [f"{key}: when needs at least one value of {other}, but got none."] * (not values)
            found += [
                f"{key}: when must name a value that {other} can take, but got {value!r}. It takes {domains[other]}."
                for value in values
                if not domains[other].contains(value)
            ]
    try:
        dependency_order(domains)
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        found.append(f"{error.args[1][0]}: conditions must not run in a circle, but got {circle}. Remove a when.")
    return found


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


def relevance_problems(
    domains: Mapping[str, Domain], fixed: Mapping[str, Any], broken: Collection[str] = ()
) -> list[str]:
    """Keys that are sampled although the trial may ignore them: noise to the model, a riddle to the reader."""
    found = []
    for key in domains:
        if key not in ACTIVE_WHEN or ACTIVE_WHEN[key][0] in broken:
            continue
        other, relevant = ACTIVE_WHEN[key]
        if other not in domains:
            value = fixed.get(other, FIELDS[other].default)
            if value not in relevant:
                found.append(
                    f"{key}: only matters for {_either(other, relevant)}, but got {other}={value}. "
                    f"Leave {key} out, or sample {other} too."
                )
            continue
        possible = _possible_values(key, other, domains)
        useful = [value for value in possible if value in relevant]
        if not useful:
            found.append(
                f"{key}: only matters for {_either(other, relevant)}, but got {other} sampled from "
                f"{', '.join(map(str, possible))}. Leave {key} out."
            )
        elif len(useful) < len(possible):
            condition = useful[0] if len(useful) == 1 else f"[{', '.join(map(str, useful))}]"
            found.append(
                f"{key}: only matters for {_either(other, relevant)}, but got it sampled for "
                f"{', '.join(str(value) for value in possible if value not in relevant)} too. "
                f"Add when: {{{other}: {condition}}}."
            )
    return found


def start_problems(
    starts: Sequence[Mapping[str, Any]], domains: Mapping[str, Domain], broken: Collection[str] = ()
) -> list[str]:
    """Start configs that the space could not have sampled."""
    found = []
    for index, start in enumerate(starts):
        where = f"start_from[{index}]"
        found += [f"{where}: must name at least one sampled key, but got none."] * (not start)
        if dict(start) in [dict(earlier) for earlier in starts[:index]]:
            found.append(f"{where}: start configs must differ, but got one twice. Remove it.")
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
                if other not in start or not is_among(start[other], values):
                    got = f"{other}={start[other]}" if other in start else f"no {other}"
                    remedy = " or ".join(f"{other}: {allowed}" for allowed in values)
                    found.append(f"{where}: {key}: needs {remedy} beside it, but got {got}.")
    return found


def combination_problems(space: "Space") -> list[str]:
    """Rules over several fields that some configs of the space break.

    Judged by trying: the start configs and a few hundred random draws. The same problem is reported once, with the
    sampled values of the part of the config that it is about.
    """
    rng = np.random.default_rng(0)
    starts = [*space.start_from, *[None] * (_NUM_COMBINATIONS if space.domains else 1)]
    examples: dict[str, str] = {}
    counts: dict[str, int] = {}
    for start in starts:
        params = space.sample(rng, start)
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
        f"{line} {math.ceil(100 * counts[law] / len(starts))} % of the space are like this: bind keys by when, "
        "or remove values."
        if "Sampled: nothing" not in line
        else line.removesuffix(" Sampled: nothing of this part.")
        for law, line in examples.items()
    ]


def _possible_values(key: str, other: str, domains: Mapping[str, Domain]) -> list[Value]:
    """The values that ``other``, a key with choices, can have when ``key`` is active."""
    domain = domains[other]
    assert isinstance(domain, Choices), "fields that decide about others are texts"
    possible = list(domain.choices)
    pending, seen = [key], set[str]()
    while pending:  # what a condition's own keys depend on holds as well
        condition = domains.get(pending.pop())
        when = condition.when if condition else {}
        if other in when:
            possible = [value for value in possible if is_among(value, when[other])]
        fresh = set(when) - seen
        seen |= fresh
        pending += sorted(fresh)
    return possible


def _either(key: str, values: frozenset[str]) -> str:
    return f"{key} {' or '.join(sorted(values))}"
