"""One micro-batch ahead and no more; errors and the position belong to the step that is asked for."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vla_adapt.policy.batch import PolicyBatch
from vla_adapt.recipe import Recipe
from vla_adapt.training import loop
from vla_adapt.training.prefetch import CudaCopies, MicroBatch, Prefetch, copies_to
from vla_adapt.training.sample_log import SampleId

GLOBAL_BATCH = 4


def batch(number: int) -> PolicyBatch:
    slots = torch.zeros(1, 32)
    return PolicyBatch(
        input_ids=torch.tensor([[number]]), attention_mask=torch.ones(1, 1, dtype=torch.bool),
        pixel_values=torch.zeros(1, 6, 2, 2), proprio=slots, proprio_mask=slots.bool(),
        slot_mask=slots.bool(), extra={"depth": torch.full((1, 2), float(number))}, robots=["ur5e"],
    )  # fmt: skip


class FakeLoader:
    """Steps of two micro-batches; `fails` is the step that cannot be read."""

    def __init__(self, events: list[str], steps: int = 3, fails: int | None = None) -> None:
        self.events, self.steps, self.fails, self.given = events, steps, fails, 0

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        for step in range(self.steps):
            if step == self.fails:
                raise OSError(f"step {step} is unreadable")
            self.events.append(f"load {step}")
            self.given += 1
            yield [(batch(10 * step + part), [SampleId(step, "a", "b", part)]) for part in range(2)]

    def state_dict(self) -> dict[str, Any]:
        return {"sample": self.given * GLOBAL_BATCH, "mixture": "same"}


class FakeCopies:
    """Writes down what happens; copies are marked by their robots."""

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def start(self, batch: PolicyBatch) -> PolicyBatch:
        self.events.append(f"copy {batch.input_ids.item()}")
        return replace(batch, robots=["copied"])

    def finish(self, batch: PolicyBatch) -> None:
        assert batch.robots == ["copied"]


def run(data: Prefetch, events: list[str], looks: bool = True) -> list[int]:
    """A loop over all steps; the positions after them."""
    positions = []
    for parts in data:
        assert [ids[0].sample for _, ids in parts] == [len(positions)] * 2
        for number, (loaded, _) in enumerate(parts, start=1):
            batch = data.on_device(loaded)
            assert batch.input_ids is loaded.input_ids
            events.append(f"compute {batch.input_ids.item()}")
            for _ in range(2 * looks):  # the second one has nothing to do
                data.look_ahead(parts[number][0] if number < len(parts) else None)
        positions.append(data.state_dict()["sample"] // GLOBAL_BATCH)
    return positions


def test_the_next_micro_batch_is_copied_while_this_one_is_computed():
    events: list[str] = []
    assert run(Prefetch(FakeLoader(events), FakeCopies(events), GLOBAL_BATCH), events) == [1, 2, 3]
    assert events == [
        "load 0", "copy 0", "compute 0", "copy 1", "compute 1",
        "load 1", "copy 10", "compute 10", "copy 11", "compute 11",
        "load 2", "copy 20", "compute 20", "copy 21", "compute 21",
    ]  # fmt: skip


def test_nobody_has_to_look_ahead():
    events: list[str] = []
    data = Prefetch(FakeLoader(events, steps=2), FakeCopies(events), GLOBAL_BATCH)
    assert run(data, events, looks=False) == [1, 2]
    assert events[:5] == ["load 0", "copy 0", "compute 0", "copy 1", "compute 1"]
    assert events[5:] == ["load 1", "copy 10", "compute 10", "copy 11", "compute 11"]


def test_a_step_loaded_ahead_is_not_counted_and_nothing_more_is_loaded():
    loader = FakeLoader([])
    data = Prefetch(loader, FakeCopies([]), GLOBAL_BATCH)
    steps = iter(data)
    for number in (1, 2):
        for loaded, _ in next(steps):
            data.on_device(loaded)
        data.look_ahead()
        assert loader.given == number + 1
        assert data.state_dict() == {"sample": GLOBAL_BATCH * number, "mixture": "same"}


def test_an_error_comes_at_its_own_step():
    data = Prefetch(FakeLoader([], fails=1), FakeCopies([]), GLOBAL_BATCH)
    steps = iter(data)
    next(steps)
    data.look_ahead()
    assert data.state_dict()["sample"] == GLOBAL_BATCH, "the step at hand can be saved"
    with pytest.raises(OSError, match="step 1 is unreadable"):
        next(steps)


def test_on_a_cpu_nothing_is_done_ahead():
    events: list[str] = []
    assert copies_to(torch.device("cpu")) is None
    data = Prefetch(FakeLoader(events, steps=2), None, GLOBAL_BATCH)
    assert run(data, events) == [1, 2]
    assert events == ["load 0", "compute 0", "compute 1", "load 1", "compute 10", "compute 11"]
    parts = next(iter(data))
    assert data.on_device(parts[0][0]) is parts[0][0]


def test_a_second_pass_starts_anew():
    data = Prefetch(FakeLoader([], fails=1), FakeCopies([]), GLOBAL_BATCH)
    for _ in range(2):
        assert next(iter(data))[0][0].input_ids.item() == 0
        data.look_ahead()


class Clones(FakeCopies):
    """Real copies, beside nothing."""

    def start(self, batch: PolicyBatch) -> PolicyBatch:
        self.events.append("copy")
        return batch.select(range(len(batch)))

    def finish(self, batch: PolicyBatch) -> None:
        del batch


def test_a_run_that_looks_ahead_is_stopped_and_resumes_as_if_it_did_not(
    finished_run: Path,
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    events: list[str] = []
    monkeypatch.setattr(loop, "copies_to", lambda _: Clones(events))
    signals = iter((0, signal.SIGTERM, 0))
    monkeypatch.setattr(loop.StopSignal, "agreed", lambda _: next(signals))
    with pytest.raises(loop.Stopped, match="after step 2"):
        loop.train(make_recipe(str(tmp_path)))
    assert len(events) == 3, "the third step's batch was there already"
    loop.train(make_recipe(str(tmp_path)))
    assert len(events) == 4
    for file in ("metrics.jsonl", "bundles/ur5e/adapter_model.safetensors"):
        assert (tmp_path / file).read_bytes() == (finished_run / file).read_bytes()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_arrive_whole_on_a_gpu():
    device = torch.device("cuda")
    assert isinstance(copies_to(device), CudaCopies)
    data = Prefetch(FakeLoader([]), copies_to(device), GLOBAL_BATCH)
    for step, parts in enumerate(data):
        for number, (loaded, _) in enumerate(parts):
            batch = data.on_device(loaded)
            data.look_ahead(parts[1][0] if number == 0 else None)
            assert batch.input_ids.device.type == batch.extra["depth"].device.type == "cuda"
            assert batch.input_ids.tolist() == [[10 * step + number]]
            assert batch.extra["depth"].tolist() == [[10 * step + number] * 2]
            assert not loaded.input_ids.is_cuda
