"""The training loop, and the metric that judges it."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from cellseg.config.base import Count, Part, Seed

Metric = Literal[
    "segm/AP", "segm/AP50", "segm/AP75", "segm/AP@all", "segm/AP50@all", "segm/AP75@all", "loss/validation"
]
"""``segm/AP`` is COCO's AP at 100 detections per image and class, as leaderboards run it; ``@all`` has no such limit.
These are in [0, 1] and larger is better. ``loss/validation`` is the weighted training loss on the validation images;
smaller is better."""
METRICS: tuple[str, ...] = get_args(Metric)
MINIMIZED: frozenset[str] = frozenset({"loss/validation"})
"""Metrics of which smaller is better."""


def gain(metric: str, value: float) -> float:
    """``value`` of ``metric`` as a number of which larger is better: the value, or its negative."""
    return -value if metric in MINIMIZED else value


class TrainConfig(Part):
    """The training loop."""

    epochs: Count = 50
    """Full length of the run in epochs; the schedule is laid over it."""
    batch_size: Count = 2
    """Images per optimiser step, unless ``optim.accumulate_batches`` says otherwise. Where they do not fit into memory
    together, fewer at a time go through the network, and their gradients are averaged."""
    metric: Metric = "segm/AP50"
    """Validation metric that picks the best epoch, prunes and ranks."""
    patience: Count | None = None
    """End after this many epochs without a new best. None: never."""
    stop_after_decays: Count | None = None
    """plateau schedule: end when the rate would be lowered for this many-th time since the last new best of ``metric``.
    None: never."""
    amp: Literal["off", "bf16", "fp16"] = "bf16"
    """Mixed precision on a GPU; a CPU always computes in float32."""
    compile: bool = False
    """Have torch compile the backbone and its pyramid (``torch.compile``): minutes at the start and at each new image
    size, for less time per step. Needs a C++ compiler, and Triton for a GPU."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Loader processes. The samples are the same for any number. ``auto``: none where a CPU trains; for a GPU the CPUs
    that the trial was given less one, at least 1, or as many as shared memory has room for."""
    seed: Seed = 0
    """Seed of weights, order, augmentation and sampling."""
