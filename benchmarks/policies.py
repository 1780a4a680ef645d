"""The searches that are compared: this project's, and what people get elsewhere."""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.lcbench import EPOCHS
from benchmarks.simulation import Policy
from search.asha import Asha
from search.sampler import Outcome, StudySampler
from search.space import AshaSettings, Domain, Space

Domains = Mapping[str, Domain]
Maker = Callable[[Domains, int], Policy]
"""Makes a policy from the domains and a seed."""


class Ours:
    """The product's sampler and ASHA, told what :class:`search.study.Study` tells them."""

    def __init__(self, domains: Domains, seed: int, grace: int = 3, reduction: int = 3):
        settings = AshaSettings(grace=grace, reduction=reduction)
        space = Space(metric="accuracy", trials=1, epochs=EPOCHS, seed=seed, asha=settings, domains=domains)
        self._sampler = StudySampler(space, seed)
        self._asha = space.make_asha()
        self._best: dict[int, float] = {}

    def ask(self, number: int) -> Mapping[str, Any]:
        return self._sampler.ask(number)

    def report(self, number: int, epoch: int, value: float, loss: float) -> bool:
        best = self._best[number] = max(value, self._best.get(number, value))
        self._sampler.report(number, epoch, best)
        goes_on = self._asha.report(number, epoch, best, loss)
        if epoch == EPOCHS:
            self._sampler.tell(number, Outcome.COMPLETE, best)
        elif not goes_on:
            self._sampler.tell(number, Outcome.PRUNED)
        return goes_on


class RandomSearch:
    """Uniform draws, trained to the end, or stopped by ASHA."""

    def __init__(self, domains: Domains, seed: int, grace: int | None = None, reduction: int = 3):
        self._space = Space(metric="accuracy", trials=1, epochs=EPOCHS, domains=domains)
        self._rng = np.random.default_rng(seed)
        self._asha = Asha(grace or EPOCHS, reduction, EPOCHS)

    def ask(self, number: int) -> Mapping[str, Any]:
        return self._space.sample(self._rng)

    def report(self, number: int, epoch: int, value: float, loss: float) -> bool:
        return self._asha.report(number, epoch, value)


class RayOptuna:
    """Ray Tune's OptunaSearch and AsyncHyperBandScheduler, their own objects, called as Tune calls them."""

    def __init__(self, domains: Domains, seed: int, grace: int, reduction: int = 3):
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
            max_t=EPOCHS,
            grace_period=grace,
            reduction_factor=reduction,
        )
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
        if epoch < EPOCHS and self._scheduler.on_trial_result(None, trial, result) == self._scheduler.CONTINUE:
            self._search.on_trial_result(trial.trial_id, result)
            return True
        self._scheduler.on_trial_complete(None, trial, result)
        self._search.on_trial_complete(trial.trial_id, result)
        del self._trials[number]
        return False


class OptunaPruner:
    """Optuna's default sampler with one of its pruners, through ask and tell."""

    def __init__(self, domains: Domains, seed: int, pruner: str):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        pruners = {
            "median": optuna.pruners.MedianPruner(),
            "sha": optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
            "hyperband": optuna.pruners.HyperbandPruner(min_resource=1, max_resource=EPOCHS, reduction_factor=3),
        }
        sampler = optuna.samplers.TPESampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Hyperband deals its brackets by the study's name.
            self._study = optuna.create_study(
                direction="maximize", sampler=sampler, pruner=pruners[pruner], study_name=f"seed {seed}"
            )
        self._distributions = {name: domain.distribution() for name, domain in domains.items()}
        self._trials: dict[int, Any] = {}

    def ask(self, number: int) -> Mapping[str, Any]:
        trial = self._trials[number] = self._study.ask(self._distributions)
        return trial.params

    def report(self, number: int, epoch: int, value: float, loss: float) -> bool:
        from optuna.trial import TrialState

        trial = self._trials[number]
        trial.report(value, epoch)
        if epoch == EPOCHS:
            self._study.tell(trial, value)
        elif trial.should_prune():
            self._study.tell(trial, state=TrialState.PRUNED)
            return False
        return True


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
