"""Where to compute."""

import torch

from metalstm.errors import UserError


def usable(device: torch.device | str) -> torch.device:
    """A device by its name: `cpu`, `cuda` or `cuda:1`.

    Raises:
        UserError: There is no such device here.
    """
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).item()
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {device}: not usable here ({reason}): pass --device cpu") from error
    return found
