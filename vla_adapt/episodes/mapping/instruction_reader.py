"""What an episode's steps are told to do, by whichever form its dataset stores it in."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from jaxtyping import Integer, Shaped

from vla_adapt.episodes.mapping.entry import DatasetEntry
from vla_adapt.episodes.mapping.entry_fields import METADATA, is_character_codes
from vla_adapt.episodes.storage.stored import StoredEpisodes
from vla_adapt.episodes.storage.text_runs import Runs, runs_of_numbers, runs_reader


class InstructionReader:
    """Instructions of the episodes of `store`, as `entry` says where they lie.

    Args:
        store: recorded episodes.
        entry: names a text of every step, a text of the whole episode, character codes, or a fixed text.

    Attributes:
        runs: a call (episode) for (first recorded step, instruction) of each stretch of recorded steps with
            one instruction. Which one is settled once: it is met per sample.
    """

    def __init__(self, store: StoredEpisodes, entry: DatasetEntry):
        self._store, self._field = store, entry.instruction
        self.runs: Callable[[int], Runs]
        if entry.instruction_text is not None or not entry.instruction:
            self._fixed = ((0, entry.instruction_text or ""),)
            self.runs = self._of_dataset
        elif entry.instruction not in store.fields:
            self.runs = self._of_episode
        elif is_character_codes(store, entry.instruction):
            self.runs = self._of_codes
        else:
            self.runs = partial(runs_reader(store), entry.instruction)

    def _of_dataset(self, episode: int) -> Runs:
        return self._fixed

    def _of_episode(self, episode: int) -> Runs:
        return ((0, str(self._store.metadata(episode)[self._field.removeprefix(METADATA)])),)

    def _of_codes(self, episode: int) -> Runs:
        return _runs_of_codes(self._store.numbers(self._field, episode))


def kept_runs(runs: Runs, first: int, steps: int) -> Runs:
    """The runs of `steps` steps from recorded step `first` on, which become steps 0, 1, ...

    Where nothing is kept, the run that step `first` would be in.
    """
    before = sum(start <= first for start, _ in runs) - 1
    later = [(start - first, text) for start, text in runs[before + 1 :] if start - first < steps]
    return ((0, runs[before][1]), *later)


def _runs_of_codes(codes: Integer[np.ndarray, "T N"]) -> Runs:
    """Of rows of character codes, padded with 0."""
    if not len(codes) or (codes == codes[0]).all():
        return tuple((0, _text_of(row)) for row in codes[:1])
    number_of = np.unique(codes, axis=0, return_inverse=True)
    return runs_of_numbers(number_of[1].reshape(-1), lambda number: _text_of(number_of[0][number]))


def _text_of(codes: Shaped[np.ndarray, " N"]) -> str:
    """Up to the first 0."""
    ends = np.flatnonzero(codes == 0)
    return "".join(map(chr, codes[: ends[0]] if len(ends) else codes))
