"""Where to compute."""

import torch

from metalstm.errors import UserError, shown


def usable(device: torch.device | str) -> torch.device:
    """A device by its name: `cpu`, `cuda` or `cuda:1`.

    Raises:
        UserError: There is no such device here.
    """
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).item()
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        named = device if isinstance(device, str) else shown(device)
        raise UserError(f"--device {named}: not usable here ({reason}): pass --device cpu") from error
    return found
