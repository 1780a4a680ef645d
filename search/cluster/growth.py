"""Growth: making an autoscaler see that a study could use more machines than there are."""

import json
from typing import Any

import ray
from ray.experimental import internal_kv
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from search.cluster.slots import TrialResources, bundle, selector

_STATUS = "__autoscaling_status"
_FIXED_KIND = "node_"
"""Ray's own prefix of kinds of machines on a cluster that nobody scales."""


def has_autoscaler() -> bool:
    """Say whether something starts machines for this cluster when trials wait."""
    config = ray._private.state.state.get_cluster_config()
    if config is not None and len(config.node_group_configs) > 0:
        return True
    try:
        report = json.loads(internal_kv._internal_kv_get(_STATUS) or b"{}").get("autoscaler_report") or {}
    except ValueError:
        return False
    kinds = {*(report.get("active_nodes") or ()), *(report.get("idle_nodes") or ())}
    kinds |= {kind for _, kind, *_ in report.get("pending_nodes") or ()}
    return any(not str(kind).startswith(_FIXED_KIND) for kind in kinds | {*(report.get("pending_launches") or ())})


class Growth:
    """Placement groups that nobody uses: while they wait for room, the autoscaler starts machines for them.

    Trials that wait would show it as well, but they had been proposed before others' results were known. A group that
    finds room is removed at once, and its room is a slot like any other.
    """

    def __init__(self) -> None:
        self._groups: list[tuple[PlacementGroup, Any, TrialResources]] = []

    def ask(self, count: int, resources: TrialResources) -> None:
        """Keep this many groups waiting, of a trial's size."""
        waiting: list[tuple[PlacementGroup, Any, TrialResources]] = []
        for group, ready, size in self._groups:
            found_room = bool(ray.wait([ready], timeout=0)[0])
            if found_room or size != resources or len(waiting) >= count:
                remove_placement_group(group)
            else:
                waiting.append((group, ready, size))
        while len(waiting) < count:
            group = placement_group([bundle(resources)], bundle_label_selector=[selector(resources)])
            waiting.append((group, group.ready(), resources))
        self._groups = waiting

    def close(self) -> None:
        """Ask for nothing any more."""
        for group, _, _ in self._groups:
            remove_placement_group(group)
        self._groups.clear()
