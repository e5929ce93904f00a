"""Weights of an original checkpoint into a model built on the meta device, one tensor at a time."""

from __future__ import annotations

import torch
from torch import nn

from vla_adapt.policy.checkpoint import Checkpoint
from vla_adapt.policy.naming import to_ours

_COPY_BELOW_BYTES = 1 << 28  # smaller checkpoints are copied out of the mapped file, larger ones stay mapped


def load_weights(
    model: nn.Module, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device
) -> dict[str, torch.Tensor]:
    """Assign every parameter of `model`; the peak is about the size of the result.

    Returns:
        Tensors of the checkpoint, by original name, that the model has no use for.

    Raises:
        ValueError: when tensors are missing or of the wrong shape.
    """
    wanted = {name: parameter.shape for name, parameter in model.state_dict().items()}
    copy = checkpoint.total_bytes < _COPY_BELOW_BYTES
    state: dict[str, torch.Tensor] = {}
    unused: dict[str, torch.Tensor] = {}
    for name in checkpoint.tensors:
        stored = checkpoint.read(name)
        ours = to_ours(name, stored)
        if not ours or not ours.keys() <= wanted.keys():
            unused[name] = stored.clone()
            continue
        for target, tensor in ours.items():
            if tensor.shape != wanted[target]:
                got, want = list(tensor.shape), list(wanted[target])
                raise ValueError(f"{name} gives {target} the shape {got}, but config.json wants {want}")
            state[target] = tensor.to(device=device, dtype=dtype, copy=copy)
    missing = sorted(wanted.keys() - state.keys())
    if missing:
        raise ValueError(
            f"checkpoint {checkpoint.directory} lacks {len(missing)} tensors that config.json asks for, "
            f"first {missing[0]}"
        )
    model.load_state_dict(state, strict=True, assign=True)
    return unused
