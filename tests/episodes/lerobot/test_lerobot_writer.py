"""The writer's parts that recordings do not use: splits, facts that some episodes lack, the lasting name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import open_dataset
from vla_adapt.episodes.lerobot import lerobot_writer
from vla_adapt.episodes.lerobot.lerobot_writer import LeRobotEpisode, LeRobotWriter
from vla_adapt.episodes.mapping.entry import DatasetEntry

ENTRY = DatasetEntry(
    embodiment="franka_panda", cameras={"top": "observation.images.top"}, state=(), instruction="task"
)


def episode(number: int, **facts: object) -> LeRobotEpisode:
    """Of so many steps as its number says, and one."""
    steps = number + 1
    picture = np.full((64, 64, 3), 20 * number, np.uint8)
    return LeRobotEpisode(
        tasks=["go"] * steps,
        numbers={"action": np.full((steps, 7), number, np.float32)},
        images={"observation.images.top": [picture] * steps},
        facts=facts,
    )


@pytest.mark.parametrize("images", ["image", "video"])
def test_splits_are_stretches_of_episodes(
    tmp_path: Path, robot: Embodiment, images: lerobot_writer.ImageStorage
) -> None:
    with LeRobotWriter(tmp_path / "new", robot, ENTRY, 10, images) as writer:
        for number, split in ((1, None), (2, None), (3, "val"), (4, "test"), (5, "test")):
            writer.add(episode(number), split)
    for split, numbers in (("train", (1, 2)), ("val", (3,)), ("test", (4, 5))):
        dataset = open_dataset(tmp_path / "new", split=split)
        assert dataset.lengths.tolist() == [number + 1 for number in numbers]
        assert dataset.episode_id(0) == f"{split}/0"
        for number, one in zip(numbers, dataset, strict=True):
            assert (one.action == number).all()
            assert abs(one.image(number, "top").mean() - 20 * number) < 2


def test_a_split_cannot_be_taken_up_again(tmp_path: Path, robot: Embodiment) -> None:
    with LeRobotWriter(tmp_path / "new", robot, ENTRY, 10, "image") as writer:
        writer.add(episode(1), "train")
        writer.add(episode(2), "val")
        with pytest.raises(ValueError, match="episode 2: split 'train' was left for 'val'; LeRobot's splits"):
            writer.add(episode(3), "train")
    assert open_dataset(tmp_path / "new", split="val").lengths.tolist() == [3]


def test_facts_that_the_first_episodes_lack(
    tmp_path: Path, robot: Embodiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lerobot_writer, "_EPISODES_AT_ONCE", 1)
    examples = {"score": np.float32(0), "place": np.zeros(2, np.int16)}
    with LeRobotWriter(tmp_path / "new", robot, ENTRY, 10, "image", fact_examples=examples) as writer:
        writer.add(episode(1, score=None, place=None))
        writer.add(episode(2, score=np.float32(0.5), place=np.array([3, 4], np.int16)))
    dataset = open_dataset(tmp_path / "new")
    assert [dataset.metadata(i)["score"] for i in range(2)] == [None, 0.5]
    assert [dataset.metadata(i)["place"] for i in range(2)] == [None, [3, 4]]


def test_the_lasting_name_is_the_folders_at_writing_unless_one_is_given(
    tmp_path: Path, robot: Embodiment
) -> None:
    for folder, given in (("kitchen", None), ("copy", "kitchen"), ("nameless", "")):
        with LeRobotWriter(tmp_path / folder, robot, ENTRY, 10, "image", lasting_name=given) as writer:
            writer.add(episode(1))
        (tmp_path / folder).rename(tmp_path / f"{folder}_moved")
    names = [
        open_dataset(tmp_path / f"{name}_moved").stable_name(0) for name in ("kitchen", "copy", "nameless")
    ]
    assert names == [("kitchen", "train/0"), ("kitchen", "train/0"), ("", "train/0 2")]
