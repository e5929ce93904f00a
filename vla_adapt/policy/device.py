"""Where a model runs: the device that a person named, or the best one there is."""

from __future__ import annotations

import torch


def usable_device(name: str) -> str:
    """`name`, a device of PyTorch such as "cpu" or "cuda:1", after it was tried; "auto" takes a GPU if any.

    Raises:
        ValueError: there is no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"device '{name}' cannot be used here ({reason}); wanted cpu, cuda, cuda:1, ... or auto"
        ) from None
    return name
