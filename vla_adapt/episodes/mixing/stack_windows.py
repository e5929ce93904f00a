"""Windows to a dictionary of tensors: the `collate` of a loader whose consumer is not our trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from vla_adapt.episodes.mixing.frame_blocks import current_block
from vla_adapt.episodes.windows import Window

_NUMBERS = ("action", "action_mask", "proprio", "proprio_mask", "history_mask")
_TEXTS = ("instruction", "robot")


def stack_windows(windows: Sequence[Window]) -> dict[str, Any]:
    """Windows, all with or all without history, as one batch; images keep their size and type.

    Returns:
        images {camera: uint8 [B, h, w, 3], or a list of B tensors where datasets differ in size},
        image_mask {camera: [B] bool}, action [B, H, 32], action_mask [B, H, 32], proprio [B, 32],
        proprio_mask [B, 32] (with history as of `window`), instruction and robot (lists of str), extra {key:
        [B, ...]} of the numbers that all windows have, sample [B] int64 (its number in the mixture, or -1).
    """
    first = windows[0]
    cameras = first["images"]
    return {
        "images": {
            camera: stack_images([window["images"][camera] for window in windows]) for camera in cameras
        },
        "image_mask": {
            camera: _numbers([window["image_mask"][camera] for window in windows]) for camera in cameras
        },
        **{key: _numbers([window[key] for window in windows]) for key in _NUMBERS if key in first},
        **{key: [window[key] for window in windows] for key in _TEXTS},
        "extra": _extra([window["extra"] for window in windows]),
        "sample": _numbers([window["ids"].get("sample", -1) for window in windows]),
    }


def _extra(extras: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Numbers that all windows have, of one shape."""
    found = {}
    for key in sorted(set(extras[0]).intersection(*extras)) if any(extras) else ():
        arrays = [np.asarray(extra[key]) for extra in extras]
        if arrays[0].dtype.kind in "fiub" and len({array.shape for array in arrays}) == 1:
            found[key] = _numbers(arrays)
    return found


def _numbers(values: list[Any]) -> torch.Tensor:
    return torch.from_numpy(np.array(values))  # twice as fast as np.stack


def stack_images(frames: list[np.ndarray]) -> torch.Tensor | list[torch.Tensor]:
    """uint8 [B, h, w, 3], not copied where they lie evenly in this thread's block; a list if sizes differ."""
    if len({frame.shape for frame in frames}) > 1:
        return [torch.from_numpy(frame) for frame in frames]
    together = _in_block(frames)
    return torch.stack([torch.from_numpy(frame) for frame in frames]) if together is None else together


def _in_block(frames: list[np.ndarray]) -> torch.Tensor | None:
    """A view of frames of one shape that lie one after the other in this thread's block; else None."""
    block, first = current_block(), frames[0]
    if block is None:
        return None
    begin = next((n for n, (_, frame) in enumerate(block.frames) if frame is first), None)
    if begin is None:
        return None
    placed = block.frames[begin : begin + len(frames)]
    starts = [start for start, _ in placed]
    apart = starts[1] - starts[0] if len(starts) > 1 else first.nbytes
    if starts != list(range(starts[0], starts[0] + len(frames) * apart, apart)):
        return None
    if any(mine is not frame for (_, mine), frame in zip(placed, frames, strict=True)):
        return None
    memory = torch.frombuffer(block.memory, dtype=torch.uint8)
    return memory.as_strided((len(frames), *first.shape), (apart, *first.strides), starts[0])
