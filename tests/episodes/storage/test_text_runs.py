"""Runs of equal texts: found from numbers as from texts, and spread over the steps again."""

from __future__ import annotations

import numpy as np
import pytest

from vla_adapt.episodes.storage.text_runs import every_nth, every_step, runs_of_numbers, runs_of_texts

WORDS = ["pick", "place", "pick"]  # numbers 0 and 2 are one text, as where a table repeats itself


@pytest.mark.parametrize(
    ("numbers", "runs"),
    [
        ([], ()),
        ([1, 1, 1], ((0, "place"),)),
        ([0, 0, 1], ((0, "pick"), (2, "place"))),
        ([0, 2, 2, 1, 0], ((0, "pick"), (3, "place"), (4, "pick"))),
    ],
)
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_runs_and_back(numbers: list[int], runs: tuple[tuple[int, str], ...], dtype: str) -> None:
    texts = [WORDS[number] for number in numbers]
    assert runs_of_numbers(np.array(numbers, dtype), WORDS.__getitem__) == runs
    assert tuple(runs_of_texts(texts)) == runs
    assert every_step(runs, len(numbers)) == texts


def test_a_text_is_looked_up_once_a_run() -> None:
    asked: list[int] = []
    runs_of_numbers(np.repeat([0, 1], 50), lambda number: asked.append(number) or "")
    assert asked == [0, 1]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 20])
def test_every_nth_step_keeps_its_text(n: int) -> None:
    texts = list("aaabbcabbbbca")
    for steps in range(1, len(texts) + 1):
        runs = runs_of_texts(texts[:steps])
        assert tuple(every_nth(runs, n, steps)) == tuple(runs_of_texts(texts[:steps:n]))
