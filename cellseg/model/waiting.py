"""Where values may decide shapes: on a CPU at no cost, on a GPU at that of waiting for all it has been given to do."""

import torch


def may_wait(device: torch.device) -> bool:
    """Whether code may look at values as it goes. Where not, it works with fixed sizes and marks what is not there."""
    return device.type != "cuda"
