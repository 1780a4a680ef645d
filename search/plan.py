"""The plan of an experiment, found out without data: what it costs, that its configs are sound, that its models build.

Nothing is written, nothing is downloaded, Ray is not needed.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellseg.config import InferenceConfig, ModelConfig
from cellseg.errors import UserError, raise_all
from cellseg.names import counted
from search.ablation import Ablation
from search.space import AshaSettings, Choices, Params, Range, Space
from search.space.rules import combination_problems, random_draws, relevance_problems
from search.study.experiment import Experiment

NUM_SAMPLES = 500
_SEED = 1
"""Of the samples: not that of the draws which every space is checked with when it is read."""
_NUM_CLASSES = 4
"""Of cells, in the models that are built. The data say; it is a matter of a few thousand parameters."""
_STAND_INS = {
    "anchors": ("auto", "8-128"),
    "detections_per_image": ("auto", 100),
    "normalization": ("dataset", "imagenet"),
    "rpn_candidates": ("auto", 1000),
    "rpn_proposals": ("auto", 1000),
}
"""Model field -> its value that needs data, and what stands for that."""

WEIGHTLESS = frozenset(
    {
        "normalization",
        "roi_levels",
        "rpn_candidates",
        "rpn_proposals",
        "rpn_nms_threshold",
        "rpn_samples",
        "rpn_positive_fraction",
        "rpn_assignment",
        "rpn_foreground_iou",
        "rpn_background_iou",
        "rpn_atss_places",
        "rpn_best_anchor",
        "roi_samples",
        "roi_positive_fraction",
        "point_samples",
        "point_doublings",
        "detections_per_image",
        "max_trainable",
    }
)
"""Model fields that change no layer: the way to the largest model passes them by."""


def describe_plan(experiment: Experiment) -> Iterator[str]:
    """Describe what the experiment will do, line by line as it is found out.

    Raises:
        UserError: configs that are not valid, or models that cannot be built.
    """
    yield from experiment.describe()
    if isinstance(experiment, Ablation):
        models = build_models(experiment.row_config(row).model for row in experiment.trained_rows)
    else:
        assert isinstance(experiment, Space), experiment
        yield from describe_cost(experiment)
        samples = sample_params(experiment)
        yield f"configs: {len(samples)} sampled, all valid"
        if missing := never_drawn(experiment, samples):
            yield f"never drawn: {', '.join(missing)}"
        models = build_extremes(experiment, samples)
    yield describe_models(models)


@dataclass(frozen=True)
class Cost:
    """The cost of a study if one trial in ``reduction``, and at least one, goes on from every rung."""

    trials_at: Mapping[int, float]
    """Epoch of every rung, and the last of all -> how many trials are trained so far."""
    epochs: float
    """Trained by all trials together."""
    full_epochs: int
    """The same if none were stopped."""


def expected_cost(space: Space) -> Cost:
    """Compute the expected cost of a study. Early arrivals at a rung go on more often, so a small study costs more."""
    reduction = (space.asha or AshaSettings()).reduction
    trials, before, total = float(space.trials), 0, 0.0
    trials_at: dict[int, float] = {}
    for epoch in (*space.rungs, space.epochs):
        trials_at[epoch] = trials
        total += trials * (epoch - before)
        trials, before = max(1.0, trials / reduction), epoch
    return Cost(trials_at, total, space.trials * space.epochs)


def describe_cost(space: Space) -> list[str]:
    """Describe the expected cost in lines for people."""
    cost = expected_cost(space)
    if len(cost.trials_at) == 1:
        return [f"cost: {counted(space.trials, 'trial')}, {counted(cost.full_epochs, 'epoch')}"]
    share = 100 * cost.epochs / cost.full_epochs
    first, *others = cost.trials_at.items()
    reach = [f"{_rounded(first[1])} trials reach epoch {first[0]}"]
    reach += [f"{_rounded(trials)} reach epoch {epoch}" for epoch, trials in others]
    return [
        f"cost: {counted(space.trials, 'trial')}, about {counted(round(cost.epochs), 'epoch')}, "
        f"{share:.0f} % of {cost.full_epochs:,}",
        f"rungs: about {', '.join(reach)}",
    ]


def sample_params(space: Space, count: int = NUM_SAMPLES) -> list[Params]:
    """Draw the start configs, their open keys filled, and random params: ``count`` in all, or one for each start.

    Raises:
        UserError: every distinct problem of the configs they make, and of keys that have no effect in them.
    """
    rng = np.random.default_rng(_SEED)
    starts = [space.sample(rng, start) for start in space.starts]
    samples = starts + random_draws(space, count - len(starts), _SEED)
    raise_all(relevance_problems(space, samples) + combination_problems(space, samples))
    return samples


def never_drawn(space: Space, samples: Sequence[Params]) -> list[str]:
    """List keys and choices of the space that no sample has, as ``KEY`` and ``KEY=VALUE``: rare, or made impossible by
    conditions."""
    found = []
    for key, domain in space.domains.items():
        drawn = {repr(params[key]) for params in samples if key in params}
        if not drawn:
            found.append(key)
        elif isinstance(domain, Choices):
            found += [f"{key}={value}" for value in domain.choices if repr(value) not in drawn]
    return found


def without_data(model: ModelConfig) -> ModelConfig:
    """Return ``model`` with stand-ins for values that would be taken from the training images."""
    values = model.model_dump()
    values |= {name: new for name, (old, new) in _STAND_INS.items() if values[name] == old}
    return ModelConfig.model_validate(values)


def cover(models: Sequence[ModelConfig], ranges: Collection[str] = ()) -> list[ModelConfig]:
    """Choose a few of the models in which every field has every value that it has in any, greedily.

    Args:
        ranges: fields with numbers from a range: only their smallest and largest value need be there.
    """
    values = [model.model_dump() for model in models]
    ends = {name: {min(v[name] for v in values), max(v[name] for v in values)} for name in ranges}
    shows = [{(name, repr(v)) for name, v in each.items() if name not in ends or v in ends[name]} for each in values]
    missing = set().union(*shows)
    chosen = []
    while missing:
        best = max(range(len(models)), key=lambda index: len(shows[index] & missing))
        chosen.append(models[best])
        missing -= shows[best]
    return chosen


class ModelTrials:
    """Builds models to see whether they can be built and how large they are, and remembers both.

    Models are built on torch's meta device, which takes neither memory nor random numbers and a tenth of the time.
    Pretrained weights are left out.
    """

    def __init__(self) -> None:
        self.sizes: dict[ModelConfig, int] = {}
        """Model -> trainable parameters, of those that could be built."""
        self._problems: dict[str, ModelConfig] = {}

    def size(self, model: ModelConfig, device: str = "meta") -> int:
        """Return the model's trainable parameters; 0 if it cannot be built."""
        import torch

        from cellseg.model.build import build_model, count_parameters

        model = without_data(model)
        if model not in self.sizes or device != "meta":
            try:
                with torch.device(device):
                    built = build_model(model, InferenceConfig(), _NUM_CLASSES, load=False)
            except UserError as error:
                for problem in error.problems:
                    self._problems.setdefault(problem, model)
                return 0
            self.sizes[model] = count_parameters(built, trainable=True)
        return self.sizes[model]

    def build_ends(self) -> None:
        """Build the smallest and the largest model in earnest, with memory and initial weights on the CPU.

        Raises:
            UserError: every distinct problem of all models, with the values that differ from the defaults in one that
                has it.
        """
        if not self._problems:
            for model in {min(self.sizes, key=self.sizes.__getitem__), max(self.sizes, key=self.sizes.__getitem__)}:
                self.size(model, "cpu")
        raise_all(f"{problem} Seen with {_described(model)}." for problem, model in self._problems.items())


def build_models(models: Iterable[ModelConfig]) -> dict[ModelConfig, int]:
    """Return the trainable parameters of every model; all are built, the smallest and the largest in earnest.

    Raises:
        UserError: every distinct problem.
    """
    trials = ModelTrials()
    for model in models:
        trials.size(model)
    trials.build_ends()
    return trials.sizes


def build_extremes(space: Space, samples: Sequence[Params]) -> dict[ModelConfig, int]:
    """Return the trainable parameters of models that show every value of ``model.*`` among the samples, and of the
    largest that is found from there; the smallest and the largest are built in earnest.

    Raises:
        UserError: every distinct problem.
    """
    trials = ModelTrials()
    by_model = {without_data(space.config(params, seed=0).model): params for params in reversed(samples)}
    ranges = {key.removeprefix("model.") for key in _model_keys(space) if isinstance(space.domains[key], Range)}
    for model in cover(list(reversed(by_model)), ranges):
        trials.size(model)
    if trials.sizes:
        _climb(space, by_model[max(trials.sizes, key=trials.sizes.__getitem__)], trials)
    trials.build_ends()
    return trials.sizes


def _climb(space: Space, params: Params, trials: ModelTrials) -> None:
    """Change one key of ``model.*`` after the other to the value that makes the model largest."""
    rng = np.random.default_rng(_SEED)

    def size(params: Mapping[str, Any]) -> int:
        return trials.size(space.config(params, seed=0).model)

    for key in _model_keys(space):
        if key.removeprefix("model.") in WEIGHTLESS:
            continue
        domain = space.domains[key]
        values = domain.choices if isinstance(domain, Choices) else (domain.low, domain.high)
        # Sampling around what is known opens and closes the keys that depend on the changed one.
        changed = [space.sample(rng, params | {key: value}) for value in values if space.is_active(key, params)]
        params = max([params, *changed], key=size)


def describe_models(sizes: Mapping[ModelConfig, int]) -> str:
    """Describe the built models in a line for people."""
    smallest, largest = min(sizes.values()), max(sizes.values())
    extent = f"{smallest:,}" if smallest == largest else f"{smallest:,} to {largest:,}"
    return f"models: {len(sizes)} built, {extent} trainable parameters"


def _rounded(number: float) -> str:
    return f"{number:.0f}" if number >= 10 or number == round(number) else f"{number:.1f}"


def _model_keys(space: Space) -> list[str]:
    return [key for key in space.domains if key.startswith("model.")]


def _described(model: ModelConfig) -> str:
    default = ModelConfig().model_dump()
    return ", ".join(f"{name}={value}" for name, value in model.model_dump().items() if value != default[name])
