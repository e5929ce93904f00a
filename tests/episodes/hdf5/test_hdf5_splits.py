"""Episodes to judge on never get into "train", whichever filter keys a file has."""

from __future__ import annotations

import pytest

from vla_adapt.episodes.hdf5.hdf5_scan import Contents
from vla_adapt.episodes.hdf5.hdf5_splits import HELD_OUT_KEYS, episodes_by_split


def splits(file: list[int], **masks: list[int]) -> dict[str, list[int]]:
    found = episodes_by_split(Contents(file=file, masks=masks))
    return {name: numbers.tolist() for name, numbers in found.items()}


def test_without_filter_keys_train_is_everything() -> None:
    assert splits([0, 0, 1]) == {"all": [0, 1, 2], "train": [0, 1, 2]}


@pytest.mark.parametrize("key", HELD_OUT_KEYS)
def test_train_is_the_rest_where_only_episodes_to_judge_on_are_named(key: str) -> None:
    assert splits([0] * 4, **{key: [3, 1]}) == {"all": [0, 1, 2, 3], key: [3, 1], "train": [0, 2]}


def test_a_train_key_says_it_all_and_keeps_its_order() -> None:
    assert splits([0] * 4, train=[2, 0], valid=[3])["train"] == [2, 0]


def test_other_keys_hold_nothing_out() -> None:
    assert splits([0] * 3, half=[0])["train"] == [0, 1, 2]


def test_file_by_file() -> None:
    """One with both keys, one with none, one with only episodes to judge on."""
    found = splits([0, 0, 0, 1, 1, 2, 2], train=[0], valid=[1], test=[6])
    assert found["train"] == [0, 3, 4, 5]


def test_all_to_judge_on() -> None:
    assert splits([0, 0], val=[0, 1])["train"] == []
