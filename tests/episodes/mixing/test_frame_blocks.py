"""Blocks of memory: taken again only when nothing refers to them, in this process or another."""

from __future__ import annotations

import multiprocessing
import threading
from typing import Any

import numpy as np

from vla_adapt.episodes.mixing.frame_blocks import Block, BlockPool, current_block, frames_into

SIZE = 1 << 16


def test_a_block_is_free_when_its_last_array_is_gone() -> None:
    pool = BlockPool(1, 2, SIZE)
    first, second = pool.take(0), pool.take(0)
    assert first is not None
    assert second is not None
    assert {first.number, second.number} == {0, 1}
    assert pool.take(0) is None
    array = np.frombuffer(first.room()[:10], np.uint8)[2:4]
    del first
    assert pool.take(0) is None, "a view of a view still refers to it"
    array[:] = 7
    del array
    again = pool.take(0)
    assert again is not None
    assert bytes(again.room()[:5]) == b"\0\0\7\7\0"


def test_owners_have_blocks_of_their_own() -> None:
    pool = BlockPool(3, 1, SIZE)
    taken = [pool.take(owner) for owner in range(3)]
    assert [block.number for block in taken if block] == [0, 1, 2]
    taken[0].memory[:] = b"\1" * SIZE  # type: ignore[union-attr]
    assert not any(taken[1].memory)  # type: ignore[union-attr]


def test_filling() -> None:
    block = Block(0, memoryview(bytearray(1000)))
    assert [block.fill(100), block.fill(1), block.fill(800)] == [16, 144, 208]
    assert (block.used, len(block.room())) == (1000, 0)


def test_frames_never_start_at_a_multiple_of_32() -> None:
    """There libjpeg-turbo is slower."""
    pool = BlockPool(1, 2, SIZE)
    blocks = [pool.take(0) for _ in range(2)]
    for block in blocks:
        assert block is not None
        for size in (100, 64, 768, 1):
            assert np.frombuffer(block.room(), np.uint8).__array_interface__["data"][0] % 32 == 16
            block.fill(size)


def test_untouched_memory_is_free() -> None:
    before = resident()
    pool = BlockPool(2, 8, 1 << 28)  # 4 GiB
    block = pool.take(1)
    assert block is not None
    block.memory[: 1 << 20] = bytes(1 << 20)
    assert resident() - before < 16 << 20


def resident() -> int:
    with open("/proc/self/statm") as file:
        return 4096 * int(file.read().split()[1])


def test_given_to_another_process() -> None:
    """The child fills and gives its block, and gets it back when the parent has let go of it."""
    pool, context = BlockPool(1, 1, SIZE), multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=fill, args=(pool, there))
    child.start()
    for value in (1, 2):
        array = np.frombuffer(pool.receive(here.recv()), np.uint8)[:9]
        assert array.tolist() == [value] * 9
        here.send("again")
        assert here.recv() is None, "the parent still has it"
        del array
        here.send("again")
    assert here.recv() == 0
    here.send("stop")
    child.join()
    assert child.exitcode == 0


def fill(pool: BlockPool, pipe: Any) -> None:
    value = 0
    while True:
        block = pool.take(0)
        if block is None:
            pipe.send(None)
        else:
            value += 1
            block.memory[:9] = bytes([value]) * 9
            pool.give(block.number)
            pipe.send(block.number)
            del block
        if pipe.recv() == "stop":
            return


def test_the_current_block_is_of_this_thread() -> None:
    block, seen = Block(0, memoryview(bytearray(8))), []
    with frames_into(block):
        thread = threading.Thread(target=lambda: seen.append(current_block()))
        thread.start()
        thread.join()
        with frames_into(None):
            assert current_block() is None
        assert current_block() is block
    assert [current_block(), *seen] == [None, None]
