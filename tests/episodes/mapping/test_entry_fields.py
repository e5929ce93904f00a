"""Entries against what a dataset holds: instructions, depth, computed fields, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import DatasetEntry, EpisodeData, open_dataset
from vla_adapt.episodes.measuring.statistics import robot_statistics
from vla_adapt.episodes.mixing.mixture import Mixture
from vla_adapt.episodes.rlds.write import RldsWriter

STEPS = 5
WORDS = "push the blue cube, über"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two episodes of a Franka with a pose in the plane, depth, character codes and a text of the episode."""
    robot, rng = Embodiment.load("franka_panda"), np.random.default_rng(3)
    codes = np.zeros((STEPS, 100), np.int32)
    codes[:, : len(WORDS)] = [ord(letter) for letter in WORDS]
    with RldsWriter(tmp_path / "data", "mine", robot) as writer:
        for number in range(2):
            data = EpisodeData(
                action=rng.uniform(-1, 1, (STEPS, 7)).astype(np.float32),
                images={"primary": rng.integers(0, 256, (STEPS, 16, 24, 3), dtype=np.uint8)},
                instruction="recorded words",
                extra={
                    "codes": codes,
                    "place": rng.normal(size=(STEPS, 2)).astype(np.float32),
                    "yaw": rng.normal(size=(STEPS, 1)).astype(np.float32),
                    "depth": rng.integers(0, 5000, (STEPS, 16, 24, 1), dtype=np.int32),
                },
                metadata={"task": f"task {number}"},
            )
            writer.add("train", data)
    (writer.path / "vla_adapt.json").unlink()
    return writer.path


def entry(**more: Any) -> DatasetEntry:
    keys = {"embodiment": "franka_panda", "cameras": {"primary": "observation/primary"}, "state": []}
    return DatasetEntry.model_validate(keys | more)


def moving(**more: Any) -> DatasetEntry:
    computed = {"motion": {"function": "planar_steps", "of": ["observation/place", "observation/yaw"]}}
    action = {"base_velocity": {"field": "motion", "scale": 4}}
    keys = {"embodiment": "mobile_base", "computed": computed, "action": action}
    return entry(**(keys | {"transforms": ["drop_last_step"]} | more))


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({}, "recorded words"),
        ({"instruction": "observation/codes"}, WORDS),
        ({"instruction": "episode_metadata/task"}, "task 1"),
        ({"instruction": "task"}, "task 1"),
        ({"instruction_text": "always this"}, "always this"),
        ({"instruction": ""}, ""),
    ],
)
def test_where_the_instruction_is(folder: Path, keys: dict[str, Any], wanted: str) -> None:
    assert open_dataset(folder, entry=entry(**keys))[1].instruction == wanted


def test_depth_in_meters(folder: Path) -> None:
    depth = {"primary": {"field": "observation/depth", "scale": 0.001}}
    episode = open_dataset(folder, entry=entry(depth=depth, extra={"raw": "observation/depth"}))[0]
    assert episode.depth(2).dtype == np.float32
    np.testing.assert_allclose(episode.depth(2), episode.extra("raw")[2, :, :, 0] / 1000, rtol=1e-6)
    with pytest.raises(ValueError, match="no depth camera 'wrist'; it has primary"):
        episode.depth(0, "wrist")
    with pytest.raises(ValueError, match=r"step 5 asked, it has steps 0\.\.4"):
        episode.depth(5)


def test_computed_action_and_a_robot_name_of_its_own(folder: Path) -> None:
    dataset = open_dataset(folder, entry=moving(robot="my_cart"))
    assert dataset.embodiment.name == "my_cart"
    assert dataset.lengths.tolist() == [STEPS - 1] * 2
    raw = open_dataset(folder, entry=entry(extra={"place": "observation/place", "yaw": "observation/yaw"}))[0]
    place, yaw = raw.extra("place"), raw.extra("yaw")[:, 0]
    ahead = place[1] - place[0]
    forward = np.cos(yaw[0]) * ahead[0] + np.sin(yaw[0]) * ahead[1]
    np.testing.assert_allclose(dataset[0].action[0, 0], 4 * forward, rtol=1e-5)
    assert open_dataset(folder, entry=moving(robot="my_cart"), embodiment="mobile_base").embodiment.name == (
        "mobile_base"
    )


def test_images_are_put_right(folder: Path) -> None:
    plain = open_dataset(folder, entry=entry())[0].image(1)
    wrong = open_dataset(folder, entry=entry(image_quirks={"primary": ["bgr", "flip_vertical"]}))[0]
    np.testing.assert_array_equal(wrong.image(1), plain[::-1, :, ::-1])


def test_only_read_columns_must_be_finite(tmp_path: Path) -> None:
    robot, rng = Embodiment.load("franka_panda"), np.random.default_rng(0)
    place = rng.normal(size=(STEPS, 2)).astype(np.float32)
    place[3, 1] = np.nan
    with RldsWriter(tmp_path / "data", "mine", robot) as writer:
        action = rng.uniform(-1, 1, (STEPS, 7)).astype(np.float32)
        images = {"primary": np.zeros((STEPS, 8, 8, 3), np.uint8)}
        writer.add("train", EpisodeData(action, images, "go", extra={"place": place, "yaw": place[:, :1]}))
    open_dataset(writer.path, entry=entry(action={**FIRST, "gripper": GRIPPER | {"columns": [0]}}))
    for spec in (entry(action={**FIRST, "gripper": GRIPPER | {"columns": [1]}}), moving()):
        with pytest.raises(ValueError, match=r"step 3: action field 'observation/place' is not finite"):
            open_dataset(writer.path, entry=spec)


FIRST: dict[str, Any] = {
    "position": {"field": "action", "columns": [0, 1, 2]},
    "rotation": {"field": "action", "columns": [3, 4, 5]},
}
GRIPPER: dict[str, Any] = {"field": "observation/place", "open": -1, "closed": 1}


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (
            entry(action={**FIRST, "gripper": {"field": "observation/grip", "open": 1, "closed": 0}}),
            r"mine: no field 'observation/grip'; number fields: action, discount",
        ),
        (
            entry(action={**FIRST, "gripper": {"field": "observation/primary", "columns": [0]}}),
            r"mine: field 'observation/primary' is image uint8\[16, 24, 3\], wanted number",
        ),
        (
            moving(action={"base_velocity": {"field": "motoin"}}),
            r"no field 'motoin'; number fields: .*; computed: motion",
        ),
        (moving(computed={"motion": {"function": "planar_step", "of": ["action"]}}), "did you mean 'planar"),
        (
            moving(computed={"motion": {"function": "planar_steps", "of": ["action"]}}),
            "computed field 'motion': planar_steps takes 2 fields, got 1",
        ),
        (
            entry(instruction="observation/yaw"),
            r"field 'observation/yaw' is number float32\[1\], wanted text; text fields: language_instruction",
        ),
        (
            entry(depth={"primry": {"field": "observation/depth"}}),
            r"depth camera 'primry' is no camera of the entry; did you mean 'primary'\?",
        ),
        (
            entry(depth={"primary": {"field": "observation/dept"}}),
            "no field 'observation/dept'; image",
        ),
        (entry(action=[]), "the entry maps no action at all"),
        (
            entry(action={"position": "omit", "rotation": "omit", "gripper": "omit"}),
            "the entry maps no action at all",
        ),
    ],
)
def test_what_the_dataset_lacks(folder: Path, spec: DatasetEntry, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted) as caught:
        open_dataset(folder, entry=spec)
    assert "\n" not in str(caught.value)


def test_what_is_not_recorded_is_masked_and_not_counted(folder: Path) -> None:
    whole, partial = entry(), entry(action={**FIRST, "gripper": "omit"})
    datasets = [open_dataset(folder, entry=spec) for spec in (whole, partial)]
    assert [dataset[0].action_omits for dataset in datasets] == [(), ("gripper",)]
    mixture = Mixture([(dataset, 1.0) for dataset in datasets], seed=0, horizon=2)
    for n in range(8):
        window = mixture.window(n)
        recorded = window["ids"]["dataset"] and mixture.sample(n).dataset == 0
        assert window["action_mask"][0, :6].all()
        assert window["action_mask"][0, 6] == recorded
        assert recorded or (window["action"][:, 6] == 0).all()
    both, alone = robot_statistics(datasets), robot_statistics(datasets[:1])
    slot = slice(6, 7)
    for number in ("mean", "std", "min", "max", "q01", "q99"):
        got = getattr(both["franka_panda"].action, number)[slot]
        np.testing.assert_allclose(got, getattr(alone["franka_panda"].action, number)[slot], atol=1e-6)
