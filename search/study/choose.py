"""The sampler and the scheduler of an experiment: the one place that picks them."""

import importlib
from collections.abc import Mapping

from cellseg.errors import Problem, UserError
from search.ablation import Ablation
from search.sampling.protocol import Sampler
from search.sampling.rows import RowSampler
from search.space import AshaSettings, Space
from search.study.asha import Asha
from search.study.experiment import Experiment

PACKAGES: Mapping[str, tuple[str, ...]] = {"gp": ("scipy", "torch"), "cmaes": ("cmaes",), "qmc": ("scipy",)}
"""Packages that Optuna needs for a sampler and does not require itself."""


def make_asha(experiment: Experiment) -> Asha:
    """Make the scheduler of a new study. With ``asha: off`` it has no rungs and stops nothing."""
    settings = experiment.asha or AshaSettings(grace=experiment.epochs)
    return Asha(settings.grace, settings.reduction, experiment.epochs)


def make_sampler(experiment: Experiment) -> Sampler:
    """Make the sampler of a new study.

    Raises:
        UserError: the sampler that the experiment names needs a package that cannot be imported.
    """
    if isinstance(experiment, Ablation):
        return RowSampler(experiment.runs)
    assert isinstance(experiment, Space), experiment
    require_packages(experiment)
    if experiment.sampler != "auto":
        from search.sampling.named import OptunaSampler  # it imports optuna

        return OptunaSampler(
            experiment.sampler,
            experiment.domains,
            fixed=experiment.fixed,
            start_from=experiment.starts,
            direction=experiment.direction,
            seed=experiment.seed,
        )
    from search.sampling.sampler import StudySampler  # it imports optuna

    return StudySampler(
        experiment.domains,
        fixed=experiment.fixed,
        start_from=experiment.starts,
        direction=experiment.direction,
        levels=(*experiment.rungs, experiment.epochs),
        seed=experiment.seed,
    )


def require_packages(experiment: Experiment) -> None:
    """Import what the experiment's sampler needs.

    Raises:
        UserError: a package is missing or broken.
    """
    name = experiment.sampler if isinstance(experiment, Space) else ""
    for package in PACKAGES.get(name, ()):
        try:
            importlib.import_module(package)
        except ImportError as error:
            remedy = f"Install it (pip install {package}), or choose another sampler."
            got = f"none that can be imported ({error})"
            raise UserError(Problem("sampler", f"{name} needs the package {package}", got, remedy)) from None
