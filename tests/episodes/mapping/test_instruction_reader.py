"""Instructions of steps: in every stored form, counted from the first kept step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import EpisodeData, fake_data, open_dataset
from vla_adapt.episodes.episode_facts import instructions
from vla_adapt.episodes.lerobot.lerobot_write import write_lerobot
from vla_adapt.episodes.mapping.instruction_reader import kept_runs
from vla_adapt.episodes.mapping.mapped import MappedDataset
from vla_adapt.episodes.rlds.write import RldsWriter
from vla_adapt.episodes.storage.text_runs import runs_of_texts
from vla_adapt.episodes.subset import EpisodeSubset

CHANGES = ((2, "place it"), (5, "go home"))
TEXTS = ["pick it"] * 2 + ["place it"] * 3 + ["go home"] * 3


def recordings(robot: Embodiment) -> list[EpisodeData]:
    """One whose instruction changes, and one where it stays."""
    rng = np.random.default_rng(0)
    changing, staying = (fake_data(robot, rng, length=8) for _ in range(2))
    changing.instruction, changing.instruction_changes = TEXTS[0], CHANGES
    return [changing, staying]


def rlds(folder: Path, robot: Embodiment) -> MappedDataset:
    with RldsWriter(folder, "changing", robot) as writer:
        for data in recordings(robot):
            writer.add("train", data)
    return open_dataset(writer.path)


def lerobot(folder: Path, robot: Embodiment) -> MappedDataset:
    write_lerobot(folder / "lerobot", robot, recordings(robot))
    return open_dataset(folder / "lerobot")


@pytest.mark.parametrize("make", [rlds, lerobot])
def test_of_every_step(make: Callable[..., MappedDataset], tmp_path: Path, robot: Embodiment) -> None:
    dataset = make(tmp_path, robot)
    for episode in (dataset[0], dataset.observations(0), EpisodeSubset(dataset, [1, 0])[1]):
        assert [episode.instruction_at(t) for t in range(8)] == TEXTS
        assert (episode.instruction, episode.instruction_changes) == (TEXTS[0], CHANGES)
        assert episode.told == "pick it; then: place it; then: go home"
    assert dataset[1].instruction_changes == ()
    assert dataset.instruction(0) == TEXTS[0]
    assert instructions(EpisodeSubset(dataset, [1, 0]), 1) == ("pick it", "place it", "go home")
    assert instructions(dataset, 1) == (dataset.instruction(1),)


@pytest.mark.parametrize(
    ("transforms", "first", "last"),
    [(("drop_last_step",), 0, 1), (("drop_first_step",), 1, 0), (("drop_first_step",) * 3, 3, 0)],
)
def test_steps_that_the_entry_drops_do_not_shift_the_words(
    transforms: tuple[str, ...], first: int, last: int, tmp_path: Path, robot: Embodiment
) -> None:
    path = rlds(tmp_path, robot).path
    entry = open_dataset(path).entry.model_copy(update={"transforms": transforms})
    dataset = open_dataset(path, entry=entry)
    assert [dataset[0].instruction_at(t) for t in range(len(dataset[0]))] == TEXTS[first : 8 - last]
    assert dataset.instructions(0) == tuple(dict.fromkeys(TEXTS[first : 8 - last]))
    assert dataset.recorded_instructions(0) == TEXTS


def test_any_part_of_an_episode() -> None:
    runs = tuple(runs_of_texts(TEXTS))
    for first in range(8):
        for steps in range(1, 9 - first):
            assert kept_runs(runs, first, steps) == tuple(runs_of_texts(TEXTS[first : first + steps]))


def test_character_codes(tmp_path: Path, robot: Embodiment) -> None:
    data = fake_data(robot, np.random.default_rng(0), length=8)
    changing, staying = np.zeros((2, 8, 12), np.int32)
    for row, text in zip(changing, TEXTS, strict=True):
        row[: len(text)] = [ord(letter) for letter in text]
    staying[:] = changing[0]
    with RldsWriter(tmp_path, "codes", robot) as writer:
        for codes in (changing, staying):
            writer.add("train", replace(data, extra={"codes": codes}))
    entry = open_dataset(writer.path).entry.model_copy(update={"instruction": "observation/codes"})
    dataset = open_dataset(writer.path, entry=entry)
    assert [dataset[0].instruction_at(t) for t in range(8)] == TEXTS
    assert (dataset[1].instruction, dataset[1].instruction_changes) == (TEXTS[0], ())
    assert dataset.recorded_instructions(0) == TEXTS
