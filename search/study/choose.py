"""The sampler and the scheduler of an experiment: the one place that picks them."""

from search.ablation import Ablation
from search.sampling.protocol import Sampler
from search.sampling.rows import RowSampler
from search.space import AshaSettings, Space
from search.study.asha import Asha
from search.study.experiment import Experiment


def make_asha(experiment: Experiment) -> Asha:
    """Make the scheduler of a new study. With ``asha: off`` it has no rungs and stops nothing."""
    settings = experiment.asha or AshaSettings(grace=experiment.epochs)
    return Asha(settings.grace, settings.reduction, experiment.epochs)


def make_sampler(experiment: Experiment) -> Sampler:
    """Make the sampler of a new study."""
    if isinstance(experiment, Ablation):
        return RowSampler(experiment.runs)
    assert isinstance(experiment, Space), experiment

    from search.sampling.sampler import StudySampler  # it imports optuna

    return StudySampler(
        experiment.domains,
        fixed=experiment.fixed,
        start_from=experiment.start_from,
        direction=experiment.direction,
        levels=(*experiment.rungs, experiment.epochs),
        seed=experiment.seed,
    )
