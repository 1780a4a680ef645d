"""Losses: trials whose process or machine died, and what follows from that.

A trial goes on elsewhere from its last checkpoint. What is counted is only what speaks against somebody: the death of
a whole machine speaks against no trial, an epoch that a trial reports clears it, and an epoch that ends on a machine
clears the machine.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

MAX_LOSSES = 3
"""A trial that lost its process so often without an epoch in between, on machines that live on, is given up."""
NODE_LOSSES = 3
"""A machine on which so many processes died, of two trials at least, without an epoch in between, is avoided."""


@dataclass
class Losses:
    """Counts losses by trial and by machine (their ids); knows nothing of Ray."""

    bad_nodes: set[str] = field(default_factory=set)
    """Machines that are avoided."""
    _of_trial: dict[int, list[str]] = field(default_factory=dict)  # machines, since its last epoch
    _on_node: dict[str, list[int]] = field(default_factory=dict)  # trials, since the machine's last epoch

    def lost(self, trial: int, node: str) -> None:
        """Take in that the process of a trial died on a machine; empty if it is not known which."""
        self._of_trial.setdefault(trial, []).append(node)
        self._on_node.setdefault(node, []).append(trial)

    def against(self, trial: int, alive: Collection[str]) -> int:
        """Count the losses that speak against a trial: those without an epoch in between, on machines that live and
        are not avoided. The death of a machine may be noticed late, so all are judged again each time.

        Args:
            alive: the machines that are up.
        """
        lost_at = self._of_trial.get(trial, [])
        return sum((not node or node in alive) and node not in self.bad_nodes for node in lost_at)

    def is_suspect(self, node: str) -> bool:
        """Say whether a machine is to be avoided: it kills one trial after the other."""
        trials = self._on_node.get(node, [])
        return bool(node) and len(trials) >= NODE_LOSSES and len(set(trials)) > 1

    def trials_on(self, node: str) -> set[int]:
        """Return the trials that lost their process on a machine since it saw an epoch end."""
        return set(self._on_node.get(node, []))

    def progressed(self, trial: int, node: str) -> None:
        """Take in that a trial finished an epoch on a machine."""
        self._of_trial.pop(trial, None)
        self._on_node.pop(node, None)

    def ended(self, trial: int) -> None:
        """Forget a trial."""
        self._of_trial.pop(trial, None)

    def nodes_of(self, trial: int) -> set[str]:
        """Return the machines that cost the trial its process since its last epoch."""
        return {node for node in self._of_trial.get(trial, []) if node}
