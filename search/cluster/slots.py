"""Slots: what a trial occupies, and how many trials fit on the cluster side by side."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import ray

from cellseg.errors import UserError
from cellseg.names import counted

RAY_UNITS = 10_000
"""Ray counts CPUs and GPUs in ten-thousandths."""
GIB = 2**30
NODE_ID = "ray.io/node-id"
"""Label that Ray gives every machine."""

Node = Mapping[str, Any]
"""A machine as ``ray.nodes()`` describes it."""
TrialResources = Mapping[str, Any]
"""What a trial occupies: ``cpu``, ``gpu``, perhaps ``memory`` (GiB), ``custom`` (by name) and ``labels`` of the
machine; see :class:`search.space.settings.Resources`."""


def live_nodes() -> list[Node]:
    """List the machines of the cluster that are up."""
    return [node for node in ray.nodes() if node["Alive"]]


def node_name(node: Node) -> str:
    """Name a machine: its host, and the beginning of the id that Ray's dashboard shows."""
    return name_of(node["NodeManagerHostname"], node["NodeID"])


def name_of(host: str, node_id: str) -> str:
    """Name the machine that has this host name and this id."""
    return f"{host} ({node_id[:8]})"


def node_kind(node: Node) -> str:
    """Describe the kind of a machine by which seconds compare: its GPUs, or else the number of its CPUs."""
    kinds = [name.partition(":")[2] for name in node["Resources"] if name.startswith("accelerator_type:")]
    return node.get("Labels", {}).get("ray.io/accelerator-type") or (
        kinds[0] if kinds else f"{node['Resources'].get('CPU', 0):g} CPUs"
    )


def trial_resources(wanted: TrialResources | None, *, grows: bool = False) -> dict[str, Any]:
    """Decide what one trial occupies: as wanted, or a GPU and its share of the CPUs where the cluster has one, else one
    CPU.

    Args:
        wanted: ``cpu`` may be None, for the CPUs that go with the GPU. None: nothing is asked for.
        grows: a machine that fits may still come, so that none has to be there.

    Raises:
        UserError: more than any machine of the cluster has.
    """
    nodes = live_nodes()
    if wanted is None:
        wanted = {"gpu": 1 if has_gpu(nodes) else 0}
    resources = complete(wanted, nodes)
    if not grows and not fitting(nodes, resources):
        raise UserError(
            f"resources: a trial must fit on one machine, but got {describe(resources)}, and "
            f"{describe_largest(nodes)}. Ask for less."
        )
    return resources


def has_gpu(nodes: Iterable[Node]) -> bool:
    """Say whether one of the machines has a whole GPU."""
    return any(node["Resources"].get("GPU", 0) >= 1 for node in nodes)


def complete(wanted: TrialResources, nodes: Iterable[Node]) -> dict[str, Any]:
    """Add the CPUs of a trial that are not given: its share of those of the machines that have GPUs."""
    labels = wanted.get("labels") or {}
    gpu = wanted.get("gpu") or 0
    having = [node["Resources"] for node in nodes if has_labels(node, labels)]
    cpu = wanted.get("cpu") or max(int(_cpus_of_a_gpu(having) * gpu), 1)
    more = {name: value for name in ("memory", "custom", "labels") if (value := wanted.get(name))}
    return {"cpu": cpu, "gpu": gpu} | more


def _cpus_of_a_gpu(nodes: Iterable[Mapping[str, float]]) -> int:
    """CPUs for a trial on each GPU of ``nodes`` at once: the smallest share there is, at least 1, and no more than
    training and the most loader processes of ``train.workers: auto`` use."""
    from cellseg.data.workers import MOST

    # A machine without CPUs for Ray takes no trial, so it has no say.
    having_both = [node for node in nodes if node.get("GPU", 0) >= 1 and node.get("CPU", 0) >= 1]
    share = min((int(node["CPU"] // node["GPU"]) for node in having_both), default=1)
    return min(max(share, 1), MOST + 1)


def bundle(resources: TrialResources) -> dict[str, float]:
    """Return what a trial occupies under Ray's names, without zeros."""
    amounts = {"CPU": resources["cpu"], "GPU": resources.get("gpu", 0), "memory": resources.get("memory", 0) * GIB}
    return {name: float(amount) for name, amount in (amounts | resources.get("custom", {})).items() if amount > 0}


def selector(resources: TrialResources, avoided: Collection[str] = ()) -> dict[str, str]:
    """Return the labels that Ray is to look for, without the machines that are avoided (their ids)."""
    # Ray allows spaces after commas, and then looks for labels that begin with one.
    labels = {key: value.replace(" ", "") for key, value in resources.get("labels", {}).items()}
    if avoided:
        labels[NODE_ID] = f"!in({','.join(sorted(avoided))})"
    return labels


def describe(resources: TrialResources) -> str:
    """Describe what a trial occupies."""
    parts = [f"cpu={resources['cpu']:g}", f"gpu={resources.get('gpu', 0):g}"]
    if memory := resources.get("memory"):
        parts.append(f"memory={memory:g} GiB")
    parts += [f"{name}={amount:g}" for name, amount in resources.get("custom", {}).items()]
    parts += [f"label {key}: {value}" for key, value in resources.get("labels", {}).items()]
    return ", ".join(parts)


def describe_largest(nodes: Sequence[Node]) -> str:
    """Describe the largest machine there is."""
    of_all = [node["Resources"] for node in nodes]
    largest: Mapping[str, float] = max(of_all, key=lambda has: (has.get("GPU", 0), has.get("CPU", 0)), default={})
    return f"the largest has {counted(largest.get('CPU', 0), 'CPU')} and {counted(largest.get('GPU', 0), 'GPU')}"


def has_labels(node: Node, labels: Mapping[str, str]) -> bool:
    """Say whether a machine has the labels, each ``VALUE`` or ``in(A, B)``, or after ``!`` has none of these."""
    own = node.get("Labels", {})
    for key, wanted in labels.items():
        values = wanted.removeprefix("!").removeprefix("in(").removesuffix(")").replace(" ", "").split(",")
        if (own.get(key) in values) == wanted.startswith("!"):
            return False
    return True


def fitting(nodes: Iterable[Node], resources: TrialResources, avoided: Collection[str] = ()) -> list[Node]:
    """List the machines on which a trial fits if they are empty."""
    return [node for node in nodes if node.get("NodeID") not in avoided and slots_of(node, resources) > 0]


def slots_of(node: Node, resources: TrialResources) -> int:
    """Count the trials that fit on a machine side by side.

    A share of a GPU is one of a single GPU: of two GPUs, 0.6 each are two trials, not three.
    """
    if not has_labels(node, resources.get("labels", {})):
        return 0
    has, fits = node["Resources"], []
    for name, amount in bundle(resources).items():
        if name == "GPU" and amount < 1:
            fits.append(int(has.get(name, 0)) * _times(1, amount))
        else:
            fits.append(_times(has.get(name, 0), amount))
    return min(fits, default=0)


def num_slots(resources: TrialResources) -> int:
    """Count the trials that fit on the cluster side by side as it is now, at least 1."""
    return max(1, sum(slots_of(node, resources) for node in live_nodes()))


def _times(whole: float, part: float) -> int:
    """Return how many times ``part`` fits into ``whole``, in ten-thousandths as Ray counts: 5 for 1 and 0.2."""
    return round(whole * RAY_UNITS) // max(round(part * RAY_UNITS), 1)
