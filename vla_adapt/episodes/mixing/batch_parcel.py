"""A batch on its way from a worker to the trainer: its arrays lie in a shared block, the rest is pickled.

Left to itself PyTorch makes a shared file for every tensor of every batch, and pickles arrays.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch

from vla_adapt.episodes.mixing.frame_blocks import Block

# Smaller arrays are pickled.
_WORTH_IT = 4096


@dataclass(frozen=True)
class Parcel:
    """A packed batch.

    Attributes:
        block: number of the block that holds its arrays.
        places: start and size of each array in the block.
        pickled: all else.
    """

    block: int
    places: list[tuple[int, int]]
    pickled: bytes


def pack(batch: Any, block: Block) -> Parcel:
    """Pack a batch; arrays that do not lie in `block` yet are copied there while it has room.

    Tensors that share memory are parted.
    """
    places: list[tuple[int, int]] = []
    start = _address(block.memory)

    def stays(buffer: pickle.PickleBuffer) -> bool:
        """Put the bytes into the block; True: pickle them."""
        raw = buffer.raw()
        if len(raw) < _WORTH_IT:
            return True
        offset = _address(raw) - start
        if not 0 <= offset <= len(block.memory) - len(raw):
            if len(raw) > len(block.room()):
                return True
            offset = block.fill(len(raw))
            block.memory[offset : offset + len(raw)] = raw
        places.append((offset, len(raw)))
        return False

    file = io.BytesIO()
    _Pickler(file, pickle.HIGHEST_PROTOCOL, True, stays).dump(batch)
    return Parcel(block.number, places, file.getvalue())


def unpack(parcel: Parcel, memory: memoryview) -> Any:
    """The batch, its arrays in `memory`, the parcel's block."""
    return pickle.loads(
        parcel.pickled, buffers=[memory[start : start + size] for start, size in parcel.places]
    )


class _Pickler(ForkingPickler):
    def reducer_override(self, thing: Any) -> Any:
        if type(thing) is torch.Tensor and thing.device.type == "cpu" and not thing.requires_grad:
            try:
                return torch.from_numpy, (thing.numpy(),)
            except (TypeError, RuntimeError):  # bfloat16, sparse: PyTorch's own way
                pass
        return NotImplemented


def _address(buffer: memoryview) -> int:
    return int(np.frombuffer(buffer, np.uint8).__array_interface__["data"][0])
