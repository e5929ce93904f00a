"""Words of the steps of an episode as runs: where each stretch of equal ones begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer

from vla_adapt.episodes.storage.stored import StoredEpisodes

# (first step, text) of each stretch of steps with one text, in order; none: the episode has no steps.
Runs = Sequence[tuple[int, str]]


@runtime_checkable
class TellsRuns(Protocol):
    """A store that finds the runs of a text field without making a text of every step."""

    def text_runs(self, field: str, episode: int) -> Runs: ...


def runs_reader(store: StoredEpisodes) -> Callable[[str, int], Runs]:
    """`text_runs` of a store; from all texts where it has none."""
    return store.text_runs if isinstance(store, TellsRuns) else partial(_from_texts, store)


def runs_of_numbers(numbers: Integer[np.ndarray, " T"], text: Callable[[int], str]) -> Runs:
    """Runs of steps that hold the numbers of their texts; two numbers may stand for one text."""
    if not len(numbers):
        return ()
    data, width = numbers.tobytes(), numbers.itemsize
    if data == data[:width] * len(numbers):  # the usual case, met per sample: six times as fast as by numpy
        return ((0, text(int(numbers[0]))),)
    starts = [0, *(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist()]
    return _joined([(start, text(int(numbers[start]))) for start in starts])


def runs_of_texts(texts: Sequence[str]) -> Runs:
    """Runs of the texts of all steps."""
    return _joined(list(enumerate(texts)))


def every_step(runs: Runs, steps: int) -> list[str]:
    """The text of each of `steps` steps."""
    ends = [*(start for start, _ in runs[1:]), steps]
    return [text for (start, text), end in zip(runs, ends, strict=False) for _ in range(start, end)]


def every_nth(runs: Runs, n: int, steps: int) -> Runs:
    """Runs among the steps 0, n, 2n, ... of `steps`, which become steps 0, 1, 2, ..."""
    kept = {-(-start // n): text for start, text in runs}  # of several before one kept step the last counts
    return _joined([(start, text) for start, text in kept.items() if start * n < steps])


def _from_texts(store: StoredEpisodes, field: str, episode: int) -> Runs:
    return runs_of_texts(store.texts(field, episode))


def _joined(runs: Sequence[tuple[int, str]]) -> Runs:
    """Without runs that only go on with the text before them."""
    return tuple(run for i, run in enumerate(runs) if not i or run[1] != runs[i - 1][1])
