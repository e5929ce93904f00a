"""Packing a batch into a shared block and unpacking it elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vla_adapt.episodes.mixing.batch_parcel import pack, unpack
from vla_adapt.episodes.mixing.frame_blocks import Block


@dataclass
class Held:
    pixels: torch.Tensor
    names: list[str]


def block(size: int = 1 << 20) -> Block:
    return Block(3, memoryview(bytearray(size)))


def batch(rng: np.random.Generator) -> dict[str, Any]:
    wide = rng.normal(size=(60, 70)).astype(np.float32)
    return {
        "held": Held(torch.from_numpy(rng.normal(size=(4, 6, 32, 32))), ["a", "b"]),
        "half": torch.zeros(64, 64, dtype=torch.bfloat16) + 1.5,
        "sparse": torch.eye(80).to_sparse(),
        "bool": torch.from_numpy(rng.random((70, 90)) > 0.5),
        "transposed": torch.from_numpy(wide.T),
        "every other": wide[::2],
        "fortran": np.asfortranarray(wide),
        "small": np.arange(5),
        "empty": np.zeros((0, 9)),
        "objects": np.array(["x", None], object),
        "text": "put the cup down",
    }


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    assert torch.equal(a["held"].pixels, b["held"].pixels)
    assert a["held"].names == b["held"].names
    for key in ("half", "bool", "transposed"):
        assert torch.equal(a[key], b[key])
        assert a[key].dtype == b[key].dtype
    assert torch.equal(a["sparse"].to_dense(), b["sparse"].to_dense())
    for key in ("every other", "fortran", "small", "empty", "objects"):
        np.testing.assert_array_equal(a[key], b[key])
        assert a[key].dtype == b[key].dtype
    assert a["text"] == b["text"]


def test_what_is_packed_is_unpacked() -> None:
    sent, memory = batch(np.random.default_rng(0)), block()
    parcel = pack(sent, memory)
    assert parcel.block == 3
    assert len(parcel.pickled) < 60_000, "the large arrays are in the block"
    assert_same(unpack(parcel, memoryview(bytearray(memory.memory))), sent)


def test_what_does_not_fit_is_pickled() -> None:
    sent = batch(np.random.default_rng(1))
    for size in (0, 100, 30_000, 200_000):
        memory = block(size)
        assert_same(unpack(pack(sent, memory), memory.memory), sent)


def test_arrays_in_the_block_are_not_copied() -> None:
    memory = block()
    frame = np.frombuffer(memory.room()[:12_288], np.uint8).reshape(64, 64, 3)
    frame[:] = 5
    memory.fill(frame.nbytes)
    parcel = pack([frame, torch.from_numpy(frame)[1:], np.ones(2000)], memory)
    assert parcel.places == [(16, 12_288), (12_304, 16_000)]
    got = unpack(parcel, memory.memory)
    got[0][0] = 9
    got[1][0] = 7
    assert (frame[0] == 9).all(), "the same memory"
    assert (frame[1] == 7).all(), "the same memory"


def test_a_tensor_with_gradient_goes_its_own_way() -> None:
    weight, memory = torch.ones(2000, requires_grad=True), block()
    assert unpack(pack([weight], memory), memory.memory)[0].requires_grad
