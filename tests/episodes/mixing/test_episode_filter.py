"""Filters: each condition alone, all together, and what they refuse."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import MemoryDataset, fake_data, open_dataset
from vla_adapt.episodes.mixing.episode_filter import EpisodeFilter, filter_episodes

TEXTS = ["open the drawer", "Close the drawer", "", "  ", "pick up the cup", "open the door"]


@pytest.fixture
def dataset(robot: Embodiment) -> MemoryDataset:
    rng = np.random.default_rng(0)
    episodes = [fake_data(robot, rng, length) for length in (3, 8, 5, 6, 2, 7)]
    for number, (data, text) in enumerate(zip(episodes, TEXTS, strict=True)):
        data.instruction = text
        data.metadata = {"success": number % 2 == 0, "operator": "ann" if number < 3 else "bob"}
    return MemoryDataset("six", robot, episodes)


@pytest.mark.parametrize(
    ("conditions", "kept", "gone"),
    [
        ({}, [0, 1, 2, 3, 4, 5], {}),
        ({"min_steps": 5}, [1, 2, 3, 5], {"min_steps": 2}),
        ({"max_steps": 5}, [0, 2, 4], {"max_steps": 3}),
        ({"min_steps": 3, "max_steps": 7}, [0, 2, 3, 5], {"min_steps": 1, "max_steps": 1}),
        ({"instruction": "^open"}, [0, 5], {"instruction": 4}),
        ({"instruction": "(?i)close|cup"}, [1, 4], {"instruction": 4}),
        ({"not_instruction": "drawer"}, [2, 3, 4, 5], {"not_instruction": 2}),
        ({"has_instruction": True}, [0, 1, 4, 5], {"has_instruction": 2}),
        ({"metadata": {"success": True}}, [0, 2, 4], {"metadata.success": 3}),
        ({"metadata": {"operator": ["bob", "eve"]}}, [3, 4, 5], {"metadata.operator": 3}),
        ({"ids": ["5", "0"]}, [0, 5], {"ids": 4}),
        ({"not_ids": ["5", "0"]}, [1, 2, 3, 4], {"not_ids": 2}),
        (
            {"min_steps": 3, "has_instruction": True, "metadata": {"success": False}, "not_ids": ["1"]},
            [5],
            {"min_steps": 1, "not_ids": 1, "has_instruction": 2, "metadata.success": 1},
        ),
    ],
)
def test_conditions(
    dataset: MemoryDataset, conditions: dict[str, Any], kept: list[int], gone: dict[str, int]
) -> None:
    index, reasons = filter_episodes(dataset, EpisodeFilter(**conditions))
    assert index.tolist() == kept
    assert reasons == Counter(gone)


def test_names_from_a_file(dataset: MemoryDataset, tmp_path: Path) -> None:
    file = tmp_path / "good.txt"
    file.write_text("1\n\n4\n")
    assert filter_episodes(dataset, EpisodeFilter(ids=str(file)))[0].tolist() == [1, 4]
    assert EpisodeFilter(ids=str(file), min_steps=2).without_ids() == EpisodeFilter(min_steps=2)


def test_stored_episodes(written: Path) -> None:
    whole = open_dataset(written)
    wanted = whole[3].instruction
    texts = [whole[i].instruction for i in range(len(whole))]
    index = filter_episodes(whole, EpisodeFilter(instruction=f"^{wanted}$", metadata={"success": True}))[0]
    assert index.tolist() == [i for i, text in enumerate(texts) if text == wanted]


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"min_steps": 9}, r"six: the filter leaves none of 6 episodes \(6 by min_steps\)"),
        ({"ids": ["0", "x7"]}, "six: filter.ids names 1 episodes that are not there, first 'x7'"),
        ({"not_ids": "nowhere.txt"}, "six: filter.not_ids: no file 'nowhere.txt'"),
        ({"metadata": {"succes": True}}, "six: episode 0: no metadata 'succes'.*did you mean 'success'"),
    ],
)
def test_refusals(dataset: MemoryDataset, conditions: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        filter_episodes(dataset, EpisodeFilter(**conditions))


def test_a_broken_expression_is_refused_when_read() -> None:
    with pytest.raises(ValidationError, match="no regular expression"):
        EpisodeFilter(instruction="open (the")


@pytest.mark.parametrize(
    ("conditions", "kept"),
    [
        ({"instruction": "cup"}, [1, 2]),
        ({"not_instruction": "cup"}, [0]),
        ({"has_instruction": True}, [0, 1]),
    ],
)
def test_instructions_that_change_within_an_episode(
    conditions: dict[str, Any], kept: list[int], robot: Embodiment
) -> None:
    episodes = [fake_data(robot, np.random.default_rng(0), 6) for _ in range(3)]
    for data, later in zip(episodes, ("push", "lift the cup", ""), strict=True):
        data.instruction, data.instruction_changes = "reach", [(4, later)]
    episodes[2].instruction = "cup"
    index, _ = filter_episodes(MemoryDataset("three", robot, episodes), EpisodeFilter(**conditions))
    assert index.tolist() == kept
