"""The next batch is loaded and copied to the GPU while the present one is computed; a CPU needs no copy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch

from vla_adapt.policy.batch import PolicyBatch
from vla_adapt.training.sample_log import SampleId

MicroBatch = tuple[PolicyBatch, list[SampleId]]


@runtime_checkable
class Loader(Protocol):
    """Of a run: `mixing.loader.MixtureLoader`."""

    def __iter__(self) -> Iterator[list[MicroBatch]]: ...

    def state_dict(self) -> dict[str, Any]:
        """With the number of the next "sample" that it has not given out."""
        ...


@runtime_checkable
class Copies(Protocol):
    """Copies batches to a device, beside what the device computes."""

    def start(self, batch: PolicyBatch) -> PolicyBatch:
        """Begin to copy; the result may not be read yet."""
        ...

    def finish(self, batch: PolicyBatch) -> None:
        """What the device is told from now on may read what `start` returned."""
        ...


class Prefetch:
    """An iterable over a loader's steps, each a list of micro-batches; at most one of these is copied ahead.

    What goes wrong when a step is loaded ahead is raised when it is asked for.

    Args:
        loader: of this process's part of the steps.
        copies: to the device; None: batches stay as they are loaded, when they are asked for.
        global_batch: samples of a step, of all processes together.
    """

    def __init__(self, loader: Loader, copies: Copies | None, global_batch: int) -> None:
        self._loader, self._copies, self._global_batch = loader, copies, global_batch
        self._steps: Iterator[list[MicroBatch]] = iter(())
        self._forget()

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        self._steps = iter(self._loader)
        self._forget()
        while True:
            if self._error is not None:
                raise self._error
            step, self._next = self._next or next(self._steps, None), None
            if step is None:
                return
            yield step
            del step  # its memory may be wanted for the next one

    def on_device(self, loaded: PolicyBatch) -> PolicyBatch:
        """A micro-batch as the device may read it; its copy may have begun already."""
        if self._copies is None:
            return loaded
        ahead, self._copied = self._copied, None
        batch = ahead[1] if ahead is not None and ahead[0] is loaded else self._copies.start(loaded)
        self._copies.finish(batch)
        return batch

    def look_ahead(self, following: PolicyBatch | None = None) -> None:
        """Begin to copy the micro-batch that comes next; to be called when the device has work to do.

        Args:
            following: that of this step; None: it is the first one of the next step, which is loaded.
        """
        if self._copies is None or self._copied is not None:
            return
        if following is None:
            self._load()
            following = self._next[0][0] if self._next else None
        if following is not None:
            self._copied = (following, self._copies.start(following))

    def state_dict(self) -> dict[str, Any]:
        """Of the loader, as if it had given out no more steps than were asked for here."""
        state = self._loader.state_dict()
        ahead = self._global_batch if self._next else 0
        return {**state, "sample": state["sample"] - ahead}

    def _load(self) -> None:
        if self._next is None and self._error is None:
            try:
                self._next = next(self._steps, None)
            except Exception as error:  # of any kind: raised in its turn
                self._error = error

    def _forget(self) -> None:
        self._next: list[MicroBatch] | None = None
        self._copied: tuple[PolicyBatch, PolicyBatch] | None = None
        self._error: Exception | None = None


class CudaCopies:
    """Through page-locked memory, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def start(self, batch: PolicyBatch) -> PolicyBatch:
        """Only the copy into page-locked memory has happened when this returns."""
        with torch.cuda.stream(self._stream):
            return batch.pin_memory().to(self._device)

    def finish(self, batch: PolicyBatch) -> None:
        """The present stream waits for the copies; the memory of `batch` is its own from now on."""
        present = torch.cuda.current_stream(self._device)
        present.wait_stream(self._stream)
        for value in (*vars(batch).values(), *batch.extra.values()):
            if isinstance(value, torch.Tensor):
                value.record_stream(present)


def copies_to(device: torch.device) -> Copies | None:
    """How batches get to `device`; None: they are there when they are loaded."""
    return CudaCopies(device) if device.type == "cuda" else None
