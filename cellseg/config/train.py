"""The training loop, and the metric that ranks its epochs."""

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
"""Metrics for which smaller is better."""


def gain(metric: str, value: float) -> float:
    """Return ``value`` of ``metric`` sign-adjusted: larger is better."""
    return -value if metric in MINIMIZED else value


class TrainConfig(Part):
    """The training loop."""

    epochs: Count = 50
    """Full length of the run in epochs, over which the schedule extends."""
    batch_size: Count = 2
    """Images per batch, and per optimiser step unless ``optim.accumulate_batches`` is set. A batch that does not fit
    into memory goes through the network in parts, whose gradients are averaged."""
    metric: Metric = "segm/AP50"
    """Validation metric that picks the best epoch, prunes and ranks."""
    patience: Count | None = None
    """End after this many epochs without a new best. None: never."""
    stop_after_decays: Count | None = None
    """plateau schedule: end when the rate would be lowered this many times since the last new best of ``metric``.
    None: never."""
    amp: Literal["off", "bf16", "fp16"] = "bf16"
    """Mixed precision on a GPU; a CPU always computes in float32."""
    compile: bool = False
    """Compile the backbone and its pyramid with ``torch.compile``: costs minutes at the start and at each new image
    size, and saves time per step. Needs a C++ compiler, and Triton for a GPU."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Loader processes. Any number gives the same samples. ``auto``: 0 on a CPU; for a GPU, the trial's CPUs minus
    one, at least 1, at most what shared memory has room for."""
    seed: Seed = 0
    """Seed of weights, order, augmentation and sampling."""
