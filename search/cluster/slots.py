"""Slots: what a trial occupies, and how many trials fit on the cluster side by side."""

from collections.abc import Iterable, Mapping

import ray

from cellseg.errors import UserError

RAY_UNITS = 10_000
"""Ray counts CPUs and GPUs in ten-thousandths."""


def trial_resources(wanted: Mapping[str, float | None] | None) -> dict[str, float]:
    """Decide what one trial occupies: as wanted, or a GPU and its share of the CPUs where the cluster has one, else one
    CPU.

    Args:
        wanted: ``gpu``, and ``cpu`` or None for the CPUs that go with it. None: nothing is asked for.

    Raises:
        UserError: more than any machine of the cluster has.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if wanted is None:
        wanted = {"gpu": 1 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0}
    gpu = wanted["gpu"] or 0
    cpu = wanted.get("cpu") or max(int(_cpus_of_a_gpu(nodes) * gpu), 1)
    if not any(node.get("CPU", 0) >= cpu and node.get("GPU", 0) >= gpu for node in nodes):
        largest: Mapping[str, float] = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
        raise UserError(
            f"resources: a trial must fit on one machine, but got cpu={cpu:g}, gpu={gpu:g}, and "
            f"the largest has {largest.get('CPU', 0):g} CPUs and {largest.get('GPU', 0):g} GPUs. Ask for less."
        )
    return {"cpu": cpu, "gpu": gpu}


def _cpus_of_a_gpu(nodes: Iterable[Mapping[str, float]]) -> int:
    """CPUs for a trial on each GPU of ``nodes`` at once: the smallest share there is, at least 1, and no more than
    training and the most loader processes of ``train.workers: auto`` use."""
    from cellseg.data.workers import MOST

    # A machine without CPUs for Ray takes no trial, so it has no say.
    having_both = [node for node in nodes if node.get("GPU", 0) >= 1 and node.get("CPU", 0) >= 1]
    share = min((int(node["CPU"] // node["GPU"]) for node in having_both), default=1)
    return min(max(share, 1), MOST + 1)


def num_slots(resources: Mapping[str, float]) -> int:
    """Count the trials that fit on the cluster side by side as it is now, at least 1.

    A share of a GPU is one of a single GPU: of two GPUs, 0.6 each are two trials, not three.
    """
    slots = 0
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            fits = []
            if resources.get("cpu", 0) > 0:
                fits.append(_times(has.get("CPU", 0), resources["cpu"]))
            if (gpu := resources.get("gpu", 0)) > 0:
                fits.append(int(has.get("GPU", 0)) * _times(1, gpu) if gpu < 1 else _times(has.get("GPU", 0), gpu))
            slots += min(fits, default=0)
    return max(1, slots)


def _times(whole: float, part: float) -> int:
    """Return how many times ``part`` fits into ``whole``, in ten-thousandths as Ray counts: 5 for 1 and 0.2."""
    return round(whole * RAY_UNITS) // max(round(part * RAY_UNITS), 1)
