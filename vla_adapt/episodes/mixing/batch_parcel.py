"""A batch on its way from a worker to the trainer: its arrays lie in a shared block, the rest is pickled.

Left to itself PyTorch makes a shared file for every tensor of every batch, and pickles arrays.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from torch.multiprocessing import reductions

from vla_adapt.episodes.mixing.frame_blocks import Block

# Smaller arrays are pickled.
_WORTH_IT = 4096
# Tensors that NumPy knows; others go PyTorch's own way.
_DTYPES = {
    getattr(torch, name): name
    for name in ("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "bool")
}


@dataclass(frozen=True)
class Parcel:
    """A packed batch.

    Attributes:
        block: number of the block that holds its arrays.
        places: start and size of each array in the block; where tensors are stands in `pickled`.
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

    def tensor(thing: torch.Tensor) -> Any:
        """What a tensor is made from again: its place in the block, put there if need be and room be."""
        plain = thing.is_cpu and thing.layout is torch.strided and not thing.requires_grad
        if not plain or thing.dtype not in _DTYPES:
            return reductions.reduce_tensor(thing)  # PyTorch's own way
        dtype, shape, strides = _DTYPES[thing.dtype], tuple(thing.shape), None
        offset = thing.data_ptr() - start
        if not 0 <= offset < len(block.memory):
            if thing.nbytes > len(block.memory) - block.used:
                return torch.from_numpy, (thing.numpy(),)
            offset = block.fill(thing.nbytes)
            np.ndarray(shape, dtype, block.memory, offset)[...] = thing.numpy()
        elif not thing.is_contiguous():
            strides = tuple(thing.element_size() * stride for stride in thing.stride())
        return _at, (offset, shape, dtype, strides)

    file = io.BytesIO()
    pickler = ForkingPickler(file, pickle.HIGHEST_PROTOCOL, True, stays)
    pickler.dispatch_table[torch.Tensor] = tensor  # type: ignore[index]
    pickler.dump(batch)
    return Parcel(block.number, places, file.getvalue())


def unpack(parcel: Parcel, memory: memoryview) -> Any:
    """The batch, its arrays in `memory`, the parcel's block."""
    buffers = [memory[start : start + size] for start, size in parcel.places]
    return _Unpickler(parcel.pickled, buffers, memory).load()


class _Unpickler(pickle.Unpickler):
    """Takes `_at` for "at a place in `memory`"."""

    def __init__(self, pickled: bytes, buffers: list[memoryview], memory: memoryview):
        super().__init__(io.BytesIO(pickled), buffers=buffers)
        self._memory = memory

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) == (__name__, _at.__name__):
            return partial(_at, memory=self._memory)
        return super().find_class(module, name)


def _at(
    offset: int, shape: tuple[int, ...], dtype: str, strides: tuple[int, ...] | None, memory: memoryview
) -> torch.Tensor:
    return torch.from_numpy(np.ndarray(shape, dtype, memory, offset, strides))


def _address(buffer: memoryview) -> int:
    return int(np.frombuffer(buffer, np.uint8).__array_interface__["data"][0])
