"""The searches that are compared: this project's, and what people get elsewhere."""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.lcbench import EPOCHS
from benchmarks.simulation import Policy, Resume
from search.sampling.protocol import Outcome
from search.space import AshaSettings, Domain, Params, Range, Space
from search.space.settings import SamplerName, auto_asha
from search.study.asha import Asha
from search.study.choose import make_asha, make_sampler

Domains = Mapping[str, Domain]
Maker = Callable[..., Policy]
"""Makes a policy from the domains and a seed; ``epochs`` is the full length of a trial."""


class Ours:
    """The product's sampler, or another one that it offers, and ASHA, told what :class:`search.study.study.Study` tells
    them.

    Args:
        sampler: as in a space file.
        grace: None: rungs as by ``asha: auto``.
        start_from: start configs.
        ahead: so many proposals are kept prepared, and the driver finds the time to make one of them between two
            events; 0: each is made when it is asked for.
        epochs: full length of a trial; also of the other policies.
        fixed: keys that have one value in all trials; conditions may look at them.
    """

    def __init__(
        self,
        domains: Domains,
        seed: int,
        grace: int | None = 3,
        reduction: int = 3,
        ahead: int = 0,
        sampler: SamplerName = "auto",
        epochs: int = EPOCHS,
        fixed: Mapping[str, Any] = MappingProxyType({}),
        start_from: Sequence[Params] = (),
    ):
        settings = auto_asha(epochs) if grace is None else AshaSettings(grace=min(grace, epochs), reduction=reduction)
        space = Space(
            metric="accuracy",
            trials=1,
            epochs=epochs,
            seed=seed,
            asha=settings,
            sampler=sampler,
            domains=domains,
            fixed=fixed,
            start_from=tuple(start_from),
        )
        self._epochs = epochs
        self._sampler = make_sampler(space)
        self._asha = make_asha(space)
        self._best: dict[int, float] = {}
        self._ahead = ahead

    def ask(self, number: int) -> Mapping[str, Any]:
        return self._sampler.ask(number)

    def adopt(self, number: int, params: Mapping[str, Any]) -> None:
        """Learn that the trial just asked for has these params instead, from a pool of known ones."""
        self._sampler.tell(number, Outcome.FAILED)  # which teaches nothing
        self._sampler.replay(number, params, None)

    def report(self, number: int, epoch: int, value: float, loss: float) -> bool:
        if self._ahead:
            self._sampler.prepare(self._ahead)  # in the pause before this report
        best = self._best[number] = max(value, self._best.get(number, value))
        self._sampler.report(number, epoch, best)
        goes_on = self._asha.report(number, epoch, best, loss).goes_on
        if epoch == self._epochs:
            self._sampler.tell(number, Outcome.COMPLETE, best)
        elif not goes_on:
            self._sampler.tell(number, Outcome.PRUNED)
        return goes_on


class RandomSearch:
    """Uniform draws, trained to the end, or stopped by ASHA."""

    def __init__(
        self,
        domains: Domains,
        seed: int,
        grace: int | None = None,
        reduction: int = 3,
        epochs: int = EPOCHS,
        fixed: Mapping[str, Any] = MappingProxyType({}),
    ):
        self._space = Space(metric="accuracy", trials=1, epochs=epochs, domains=domains, fixed=fixed)
        self._rng = np.random.default_rng(seed)
        self._asha = Asha(grace or epochs, reduction, epochs)

    def ask(self, number: int) -> Mapping[str, Any]:
        return self._space.sample(self._rng)

    def report(self, number: int, epoch: int, value: float, loss: float) -> bool:
        return self._asha.report(number, epoch, value, loss).goes_on


class RayOptuna:
    """Ray Tune's OptunaSearch and AsyncHyperBandScheduler, their own objects, called as Tune calls them."""

    def __init__(self, domains: Domains, seed: int, grace: int, reduction: int = 3, epochs: int = EPOCHS):
        import optuna
        from ray.tune.schedulers import AsyncHyperBandScheduler
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._search = OptunaSearch(
                space={name: domain.distribution() for name, domain in domains.items()},
                metric="value",
                mode="max",
                seed=seed,
            )
        self._scheduler = AsyncHyperBandScheduler(
            time_attr="training_iteration",
            metric="value",
            mode="max",
            max_t=epochs,
            grace_period=grace,
            reduction_factor=reduction,
        )
        self._epochs = epochs
        self._trials: dict[int, SimpleNamespace] = {}

    def ask(self, number: int) -> Mapping[str, Any]:
        trial = self._trials[number] = SimpleNamespace(trial_id=str(number))
        params = self._search.suggest(trial.trial_id)
        self._scheduler.on_trial_add(None, trial)
        return params

    def report(self, number: int, epoch: int, value: float, loss: float) -> bool:
        trial = self._trials[number]
        result = {"value": value, "training_iteration": epoch, "trial_id": trial.trial_id}
        # As the controller does: a result that ends the trial goes to on_trial_complete alone.
        if epoch < self._epochs and self._scheduler.on_trial_result(None, trial, result) == self._scheduler.CONTINUE:
            self._search.on_trial_result(trial.trial_id, result)
            return True
        self._scheduler.on_trial_complete(None, trial, result)
        self._search.on_trial_complete(trial.trial_id, result)
        del self._trials[number]
        return False


class OptunaPruner:
    """Optuna's default sampler with one of its pruners, through ask and tell."""

    def __init__(self, domains: Domains, seed: int, pruner: str, epochs: int = EPOCHS):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        pruners = {
            "median": optuna.pruners.MedianPruner(),
            "sha": optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
            "hyperband": optuna.pruners.HyperbandPruner(min_resource=1, max_resource=epochs, reduction_factor=3),
        }
        sampler = optuna.samplers.TPESampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Hyperband deals its brackets by the study's name.
            self._study = optuna.create_study(
                direction="maximize", sampler=sampler, pruner=pruners[pruner], study_name=f"seed {seed}"
            )
        self._epochs = epochs
        self._distributions = {name: domain.distribution() for name, domain in domains.items()}
        self._trials: dict[int, Any] = {}

    def ask(self, number: int) -> Mapping[str, Any]:
        trial = self._trials[number] = self._study.ask(self._distributions)
        return trial.params

    def adopt(self, number: int, params: Mapping[str, Any]) -> None:
        """Learn that the trial just asked for has these params instead, from a pool of known ones."""
        from optuna.trial import TrialState

        self._study.tell(self._trials[number], state=TrialState.FAIL)  # which teaches nothing
        self._study.enqueue_trial(dict(params))
        self._trials[number] = self._study.ask({key: self._distributions[key] for key in params})

    def report(self, number: int, epoch: int, value: float, loss: float) -> bool:
        from optuna.trial import TrialState

        trial = self._trials[number]
        trial.report(value, epoch)
        if epoch == self._epochs:
            self._study.tell(trial, value)
        elif trial.should_prune():
            self._study.tell(trial, state=TrialState.PRUNED)
            return False
        return True


class SyneTune:
    """One of Syne Tune's asynchronous schedulers, its own object, called as its tuner calls it.

    Version 0.14 is the last that has MOBSTER and PASHA. ASHA, BOHB and MOBSTER stop trials; PASHA pauses and resumes
    them.

    Args:
        scheduler: name of a class in ``syne_tune.optimizer.legacy_baselines``.
    """

    def __init__(
        self, domains: Domains, seed: int, scheduler: str, grace: int, reduction: int = 3, epochs: int = EPOCHS
    ):
        from syne_tune.optimizer import legacy_baselines

        logging.getLogger("syne_tune").setLevel(logging.ERROR)
        self._scheduler = getattr(legacy_baselines, scheduler)(
            {name: _syne_tune_domain(domain) for name, domain in domains.items()},
            metric="value",
            mode="max",
            resource_attr="epoch",
            max_t=epochs,
            grace_period=grace,
            reduction_factor=reduction,
            random_seed=seed,
            # Else the GP-based ones write a line at every proposal.
            **({"search_options": {"debug_log": False}} if scheduler in {"ASHA", "MOBSTER", "PASHA"} else {}),
        )
        self._trials: dict[int, Any] = {}

    def ask(self, number: int) -> Mapping[str, Any] | Resume:
        from syne_tune.backend.trial_status import Trial

        suggestion = self._scheduler.suggest(number)
        if not suggestion.spawn_new_trial_id:
            return Resume(suggestion.checkpoint_trial_id)
        self._trials[number] = Trial(number, suggestion.config, datetime.now(UTC))
        self._scheduler.on_trial_add(self._trials[number])
        return suggestion.config

    def report(self, number: int, epoch: int, value: float, loss: float) -> bool:
        from syne_tune.optimizer.scheduler import SchedulerDecision

        trial = self._trials[number]
        goes_on = self._scheduler.on_trial_result(trial, {"value": value, "epoch": epoch}) == SchedulerDecision.CONTINUE
        if not goes_on:
            self._scheduler.on_trial_remove(trial)
        return goes_on


def _syne_tune_domain(domain: Domain) -> Any:
    from syne_tune import config_space

    if not isinstance(domain, Range):
        return config_space.choice(list(domain.choices))
    draw = {
        (False, False): config_space.uniform,
        (False, True): config_space.loguniform,
        (True, False): config_space.randint,
        (True, True): config_space.lograndint,
    }[domain.integer, domain.log]
    return draw(domain.low, domain.high)


OURS = "ours"
POLICIES: dict[str, Maker] = {
    OURS: Ours,
    "random": RandomSearch,
    "random+asha(grace 1)": partial(RandomSearch, grace=1),
    "random+asha(grace 3)": partial(RandomSearch, grace=3),
    "ray optuna+asha(grace 1)": partial(RayOptuna, grace=1),
    "ray optuna+asha(grace 3)": partial(RayOptuna, grace=3),
    "optuna tpe+median": partial(OptunaPruner, pruner="median"),
    "optuna tpe+successive halving": partial(OptunaPruner, pruner="sha"),
    "optuna tpe+hyperband": partial(OptunaPruner, pruner="hyperband"),
}
"""Those that are compared by default."""
NAMED: tuple[SamplerName, ...] = ("random", "tpe", "gp", "cmaes", "qmc")
VARIANTS: dict[str, Maker] = {
    "ours+ahead": partial(Ours, ahead=8),
    **{f"sampler {name}": partial(Ours, sampler=name) for name in NAMED},
}
"""Those that take long to simulate, and Optuna's samplers as the product offers them."""
SYNE_TUNE_POLICIES: dict[str, Maker] = {
    f"syne-tune {scheduler.lower()}(grace {grace})": partial(SyneTune, scheduler=scheduler, grace=grace)
    for scheduler in ("ASHA", "BOHB", "MOBSTER", "PASHA")
    for grace in (1, 3)
}


def has_syne_tune() -> bool:
    """Whether a Syne Tune is installed that has all schedulers of :data:`SYNE_TUNE_POLICIES`."""
    return find_spec("syne_tune") is not None and find_spec("syne_tune.optimizer.legacy_baselines") is not None
