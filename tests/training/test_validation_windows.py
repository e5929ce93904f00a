"""Held-out windows: balanced over episodes, spread within them, the same ones every time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.source import MemoryDataset
from vla_adapt.recipe import Recipe
from vla_adapt.training.setting import Setting, prepare
from vla_adapt.training.validation_windows import ROWS, HeldOutBatches, held_out_places


class Lengths(MemoryDataset):
    """A dataset of which only the lengths are asked."""

    def __init__(self, lengths: list[int]) -> None:
        super().__init__("lengths", Embodiment.load("ur5e"), [])
        self._lengths = lengths

    @property
    def lengths(self) -> np.ndarray:
        return np.array(self._lengths, np.int64)

    def __len__(self) -> int:
        return len(self._lengths)


def steps(lengths: list[list[int]], count: int) -> dict[tuple[int, int], list[int]]:
    """(dataset, episode) -> steps."""
    datasets = [Lengths(each) for each in lengths]
    found: dict[tuple[int, int], list[int]] = {}
    for place in held_out_places("r", datasets, count):
        number = next(n for n, dataset in enumerate(datasets) if dataset is place.dataset)
        found.setdefault((number, place.episode), []).append(place.step)
    return found


def test_episodes_give_alike_and_short_ones_all_they_have():
    found = steps([[100, 3], [50]], 30)
    assert {key: len(each) for key, each in found.items()} == {(0, 0): 14, (0, 1): 3, (1, 0): 13}
    assert found[0, 1] == [0, 1, 2]
    gaps = np.diff(found[0, 0])
    assert gaps.min() >= 7
    assert gaps.max() <= 8


def test_more_episodes_than_windows():
    found = steps([[10] * 40], 8)
    assert [key[1] for key in found] == list(range(0, 40, 5))
    assert len({each[0] for each in found.values()}) > 4, "not the same step of every episode"


@pytest.mark.parametrize("count", [1, 7, 12, 13, 500])
def test_never_the_same_step_twice_and_never_beyond_an_episode(count: int):
    lengths = [[5, 0, 1], [7]]
    found = steps(lengths, count)
    flat = [(key, step) for key, each in found.items() for step in each]
    assert len(flat) == len(set(flat)) == min(count, 13)
    assert all(0 <= step < lengths[dataset][episode] for (dataset, episode), step in flat)


def test_nothing_held_out():
    assert steps([], 5) == {}


@pytest.fixture(scope="module")
def setting(make_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Setting:
    policy = {"head": {"kind": "parallel", "horizon": 4, "proprio": True}, "center_crop": 0.8}
    folder = str(tmp_path_factory.mktemp("v"))
    return prepare(make_recipe(folder, policy=policy, augmentation={"enabled": True}))


def test_batches_mix_robots_and_are_seen_as_when_served(setting: Setting):
    batches = HeldOutBatches(setting, 6)
    assert len(batches) == 1
    batch = batches[0]
    assert Counter(batch.robots) == {"ur5e": 6, "bimanual_panda": 6}
    assert [robot for robot, _ in batch.segments()] == list(setting.robots)
    policy = setting.policy("ur5e")
    places = held_out_places("ur5e", setting.robots["ur5e"].held_out, 6)
    image = places[0].dataset[0].image(places[0].step, "primary")
    wanted = policy.batch({
        "images": {"primary": image}, "prompt": "lift", "state": places[0].dataset[0].state[places[0].step],
    })  # fmt: skip
    assert torch.equal(batch.pixel_values[0], wanted.pixel_values[0]), "the center crop, no augmentation"
    torch.testing.assert_close(batch.proprio[0], wanted.proprio[0])
    assert setting.builder.augment is not None, "training goes on as it was"


def test_every_batch_holds_its_part_of_each_robot(setting: Setting, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vla_adapt.training.validation_windows.ROWS", ROWS // 4)
    batches = HeldOutBatches(setting, 7)
    counts = [Counter(batches[number].robots) for number in range(len(batches))]
    assert all(abs(count["ur5e"] - count["bimanual_panda"]) <= 1 for count in counts)
    assert sum(counts, Counter()) == {"ur5e": 7, "bimanual_panda": 7}
