"""Which device computes."""

import torch

from cellseg.errors import UserError


def pick_device(name: str | None = None) -> torch.device:
    """Return the device called ``name``, or the first GPU, or the CPU.

    Raises:
        UserError: a name torch does not know, or a device that is not there.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device: must be a device of this machine, but got '{name}' ({str(error).splitlines()[0]})."
        ) from error
    return device
