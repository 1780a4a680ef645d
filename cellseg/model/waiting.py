"""Choice between shapes that depend on values, free on a CPU, and fixed shapes, which spare a GPU synchronisation."""

import torch


def may_wait(device: torch.device) -> bool:
    """Whether code may read tensor values as it goes. If not, it uses fixed sizes and marks absent entries."""
    return device.type != "cuda"
