"""Start configs from earlier studies: ``start_from: {study: NAME, top: 5}``.

They are chosen once, when a study is created or first names the earlier one, and written into its description: a study
that is continued does not look at the earlier one again, and goes on without it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cellseg.config import ACTIVE_WHEN, TrialConfig
from cellseg.errors import Problem, UserError
from cellseg.names import nearest
from search.space import Params, Space
from search.space.conditions import DEFAULTS, is_among
from search.space.settings import StudyStart
from search.storage.fetch import fetch_studies, fetch_study
from search.storage.remote import is_uri, reading_folder, remote_results
from search.storage.store import StudyStore
from search.storage.tables import UNFINISHED, TrialRow
from search.study.experiment import Experiment
from search.study.load import experiment_from_json

MAX_NAMED = 8
"""Values that a line names."""


def with_starts(
    experiment: Experiment, name: str, results: Path, former: Mapping[str, Any] | None = None
) -> tuple[Experiment, list[str]]:
    """Choose the start configs that an experiment takes from earlier studies.

    Args:
        name: of the study that is to carry it out.
        results: folder of all studies.
        former: the experiment in the description of the study that is continued, as JSON values: what it took stays.

    Returns:
        The experiment with these configs; what was taken now, in lines for people.

    Raises:
        UserError: an earlier study that is not there, or has nothing to take.
    """
    if not isinstance(experiment, Space) or all(start.taken is not None for start in experiment.start_studies):
        return experiment, []
    known = {(start.study, start.top): start.taken for start in _former_starts(former)}
    configs, settled, lines = [*experiment.start_from], [], []
    for start in experiment.start_studies:
        taken = start.taken if start.taken is not None else known.get((start.study, start.top))
        if taken is None:
            choice = choose(experiment, start, _open(start, name, results), configs)
            taken = choice.configs
            lines += choice.describe(start)
        configs += taken
        settled.append(start.model_copy(update={"taken": taken}))
    return replace(experiment, start_studies=tuple(settled)), lines


@dataclass
class Choice:
    """What is taken from an earlier study, and what is not."""

    num_ended: int
    """Its trials that ended with a value."""
    configs: list[Params] = field(default_factory=list)
    trials: list[TrialRow] = field(default_factory=list)
    """The trials that these configs come from."""
    unknown: dict[str, None] = field(default_factory=dict)
    """Keys that these trials sampled and the new space does not, in order."""
    outside: list[str] = field(default_factory=list)
    """Values outside the new domains, with their trials; some of these gave nothing else."""
    invalid: list[str] = field(default_factory=list)
    """Trials whose values do not go together with the rest of the new space."""

    def describe(self, start: StudyStart) -> list[str]:
        """Say it in one line or two."""
        best = ", ".join(f"t{row.number:04d} ({row.metric:.4f})" for row in self.trials[:MAX_NAMED])
        line = f"start_from: study '{start.study}': {len(self.configs)} configs of its {self.num_ended} ended trials: "
        left = []
        if self.unknown:
            left.append(f"{_some(self.unknown)} (not sampled here)")
        if self.outside:
            left.append(f"{_some(self.outside)} (outside its range here, drawn instead)")
        if self.invalid:
            left.append(f"{_some(self.invalid)} (not valid here)")
        lines = [line + best + (", ..." if len(self.trials) > MAX_NAMED else "")]
        return lines + ([f"start_from: study '{start.study}': not taken: {'; '.join(left)}"] if left else [])


def choose(space: Space, start: StudyStart, earlier: StudyStore, configs: Iterable[Params]) -> Choice:
    """Take the best configs of an earlier study, as far as they fit into a space.

    A config is the whole one that a trial ran with: what the earlier study had fixed may be sampled now.

    Args:
        configs: start configs that are there already: none is taken twice.

    Raises:
        UserError: no trial has ended with a value, or none fits.
    """
    numbers = earlier.best_ended(len(earlier.trials()))
    if not numbers:
        states = [row.state for row in earlier.trials()]
        running = sum(state in UNFINISHED for state in states)
        law = f"study '{start.study}' must have trials that ended with a value"
        got = f"none of {len(states)}" + (f", {running} of them unfinished" if running else "")
        raise UserError(Problem("start_from", law, got, "Wait for it, or leave it out."))
    choice, seen = Choice(len(numbers)), list(configs)
    is_repeated = False
    for row in map(earlier.trial, numbers):
        config, outside = fitting_values(space, json.loads(row.config))
        named = [f"{value} of t{row.number:04d}" for value in outside]
        if not config:
            choice.outside += named
            continue
        if config in seen:
            is_repeated = True
            continue
        if problems := _broken_rules(space, config):
            choice.invalid.append(f"t{row.number:04d}: {problems[0].law}")
            continue
        seen.append(config)
        choice.configs.append(config)
        choice.trials.append(row)
        choice.unknown |= dict.fromkeys(key for key in json.loads(row.params) if key not in space.domains)
        choice.outside += named
        if len(choice.configs) == start.top:
            break
    if not (choice.configs or is_repeated):
        law = f"study '{start.study}' must have configs with values of this space's keys"
        reasons = choice.invalid + choice.outside
        got = f"none among its {len(numbers)} ended trials" + (f" ({reasons[0]})" if reasons else "")
        raise UserError(Problem("start_from", law, got, "Leave it out."))
    return choice


def fitting_values(space: Space, config: Mapping[str, Any]) -> tuple[Params, list[str]]:
    """Return the values of a config that make a start config of a space, and those that its domains exclude.

    A key is left to chance, too, if one that its condition names is, or if the config ignored it.
    """
    ran = {**DEFAULTS, **config}
    known: dict[str, Any] = {}  # what the keys certainly have in the new trial
    start: Params = {}
    outside = []
    for key, domain in space.domains.items():
        if any(other in known and not is_among(known[other], allowed) for other, allowed in domain.when.items()):
            known[key] = DEFAULTS.get(key)
            continue
        had_effect = all(ran[other] in condition for other, condition in ACTIVE_WHEN.get(key, {}).items())
        if key not in ran or not had_effect or any(other not in known for other in domain.when):
            continue
        if domain.contains(ran[key]):
            start[key] = known[key] = ran[key]
        else:
            outside.append(f"{key}={ran[key]}")
    return start, outside


def _broken_rules(space: Space, config: Params) -> list[Problem]:
    drawn = space.sample(np.random.default_rng(0), config)
    return TrialConfig.problems_of_flat(space.flat_config(drawn, seed=0))


def _former_starts(former: Mapping[str, Any] | None) -> Iterator[StudyStart]:
    if former is not None:
        experiment = experiment_from_json(former, "study.json")
        if isinstance(experiment, Space):
            yield from experiment.start_studies


def _open(start: StudyStart, name: str, results: Path) -> StudyStore:
    """Open an earlier study: by its path, or by its name in the results folder."""
    is_name = "/" not in start.study
    remote = remote_results(results)
    # What is in a store is copied elsewhere: a search may be working on the local copy in the results folder.
    place, earlier = (remote.uri if remote else str(results)), start.study
    if not is_name:
        place, _, earlier = start.study.rstrip("/").rpartition("/")
        place = place or "/"
    parent = reading_folder(place) if is_uri(place) else Path(place).expanduser()
    if earlier == name and (is_name or parent.resolve() == results.resolve()):
        raise UserError(Problem("start_from", "must name an earlier study", f"'{start.study}', which is this one"))
    fetch_study(parent / earlier)
    if StudyStore.exists(parent / earlier):
        return StudyStore.open(parent / earlier)
    fetch_studies(parent)
    there = sorted(file.parent.name for file in parent.glob("*/study.json") if file.parent.name != name)
    if (near := nearest(earlier, there)) is not None:
        remedy = f"Did you mean '{near}'?"
    else:
        remedy = f"The studies there are {_some(there)}." if there else "There are no other studies."
    raise UserError(Problem("start_from", "must name a study", f"'{earlier}', which is not in {place}", remedy))


def _some(names: Iterable[str]) -> str:
    """The first names."""
    names = list(names)
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
