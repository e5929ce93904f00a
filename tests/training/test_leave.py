"""What a run leaves: own and shared adapter as one; robots whose data lacks a state or a component."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_adapt.adaptation.bank import Bank
from vla_adapt.adaptation.bundle import Bundle
from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import fake_data
from vla_adapt.episodes.rlds.write import RldsWriter
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.recipe import Recipe
from vla_adapt.serving.protocol import ObservationError
from vla_adapt.serving.service import PolicyService
from vla_adapt.training.loop import train
from vla_adapt.training.setting import prepare

MakeRecipe = Callable[..., Recipe]
ENTRY = """
embodiment: ur5e
cameras: {{primary: observation/primary, wrist: observation/wrist}}
action:
  position: {{field: action, columns: [0, 1, 2]}}
  rotation: {{field: action, columns: [3, 4, 5]}}
  gripper: {gripper}
state: {state}
transforms: {transforms}
"""


def source(
    root: Path, name: str, seed: int, state: bool, gripper: bool, transforms: str = "[]"
) -> dict[str, str]:
    """A dataset of the UR5e that records a state and a gripper, or not, and the entry that says so.

    Of the first episode of each split `transforms` may leave nothing.
    """
    robot, rng = Embodiment.load("ur5e"), np.random.default_rng(seed)
    with RldsWriter(root, name, robot) as writer:
        for split, count in (("train", 2), ("val", 1)):
            for number in range(count + 1):
                data = fake_data(robot, rng, length=6 if number else 1)
                writer.add(split, data if state else replace(data, state=None))
    entry = root / f"{name}.yaml"
    field = "{field: action, columns: [6], open: -1, closed: 1}" if gripper else "omit"
    stored = "observation/state" if state else "[]"
    entry.write_text(ENTRY.format(gripper=field, state=stored, transforms=transforms))
    return {"path": str(writer.path), "entry": str(entry)}


def policy(**changes: Any) -> dict[str, Any]:
    return {"head": {"kind": "parallel", "horizon": 4, "proprio": True}, **changes}


@pytest.fixture(scope="module")
def lacking_run(make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on data without state and without gripper, of whose first episodes no step is kept."""
    root = tmp_path_factory.mktemp("lacking")
    mixture = [source(root, "lacking", 0, False, False, "[drop_first_step]")]
    constants = {"ur5e": {"gripper": [-0.5]}}
    return train(make_recipe(str(root / "run"), mixture=mixture, policy=policy(constants=constants)))


def ask(bank: Bank, request: dict[str, Any]) -> np.ndarray:
    service = PolicyService(bank)
    try:
        return asyncio.run(service.answer(lambda: ("ur5e", request)))["actions"]
    finally:
        service.close()


def test_a_robot_without_recorded_state_is_trained_verified_and_served(lacking_run: Path, random_base: Path):
    bundle = Bundle.load(lacking_run / "bundles" / "ur5e")
    assert bundle.proprio_statistics is None
    assert bundle.golden is not None
    assert bundle.golden.state is None
    bundle.verify(OpenVLA.from_pretrained(random_base))
    bank = Bank.open(OpenVLA.from_pretrained(random_base), lacking_run / "bundles")
    card = bank.robots()["ur5e"]
    assert (card["state_required"], card["state_dim"]) == (False, None)
    request = bundle.golden.observation("primary")
    assert "state" not in request
    actions = ask(bank, request)
    assert actions.shape == (4, 7)
    np.testing.assert_array_equal(actions, ask(bank, request | {"state": np.ones(3)}), "a state is not read")
    assert "robot state | not read: its data records none" in bundle.card


def test_what_was_not_trained_is_sent_as_the_constant(lacking_run: Path, random_base: Path):
    bundle = Bundle.load(lacking_run / "bundles" / "ur5e")
    assert not bundle.action_statistics.mask[6]
    bank = Bank.open(OpenVLA.from_pretrained(random_base), lacking_run / "bundles")
    assert bundle.golden is not None
    actions = ask(bank, bundle.golden.observation("primary"))
    np.testing.assert_array_equal(actions[:, 6], -0.5)
    assert np.abs(actions[:, :6]).max() > 0
    assert bank.robots()["ur5e"]["constants"] == {"gripper": [-0.5]}
    assert "gripper = [-0.5] (not trained)" in bundle.card
    slots = json.loads((lacking_run / "open_loop.json").read_text())[0]["slots"]
    assert [row["slot"] for row in slots] == [row["slot"] for row in slots if "gripper" not in row["slot"]]


def test_a_bundle_that_lost_its_constants_moves_nothing(lacking_run: Path, random_base: Path):
    bundle = replace(Bundle.load(lacking_run / "bundles" / "ur5e"), constants={})
    with pytest.raises(ValueError, match="'gripper' is in none of its training data"):
        bundle.attach(OpenVLA.from_pretrained(random_base))


def test_an_untrained_component_is_refused_before_the_first_step(make_recipe: MakeRecipe, tmp_path: Path):
    mixture = [source(tmp_path, "lacking", 0, state=True, gripper=False)]
    with pytest.raises(ValueError, match=r"'ur5e': .* 'gripper' is in none .*policy\.constants"):
        prepare(make_recipe(str(tmp_path / "run"), mixture=mixture))
    constants = {"ur5e": {"gripper": [1.0]}, "ur5": {"gripper": [1.0]}}
    with pytest.raises(ValueError, match=r"constants: no robot 'ur5' in this run; did you mean 'ur5e'"):
        prepare(make_recipe(str(tmp_path / "run"), mixture=mixture, policy=policy(constants=constants)))


def test_one_dataset_that_records_it_is_enough(make_recipe: MakeRecipe, tmp_path: Path, random_base: Path):
    """Data with and without state and gripper in one mixture: nothing is constant, the state is needed."""
    mixture = [
        source(tmp_path, "lacking", 0, state=False, gripper=False),
        source(tmp_path, "whole", 1, state=True, gripper=True),
    ]
    run = train(make_recipe(str(tmp_path / "run"), mixture=mixture))
    bundle = Bundle.load(run / "bundles" / "ur5e")
    assert bundle.action_statistics.mask[:7].all()
    assert bundle.golden is not None
    assert bundle.golden.state is not None
    bank = Bank(OpenVLA.from_pretrained(random_base), [bundle])
    request = bundle.golden.observation("primary")
    ask(bank, request)
    with pytest.raises(ObservationError, match="no 'state'; this robot needs its 8 proprio values"):
        ask(bank, {key: value for key, value in request.items() if key != "state"})


def test_a_head_without_proprio_needs_no_state(make_recipe: MakeRecipe, tmp_path: Path, random_base: Path):
    head = {"kind": "parallel", "horizon": 4, "proprio": False}
    mixture = [source(tmp_path, "whole", 1, state=True, gripper=True)]
    run = train(make_recipe(str(tmp_path / "run"), mixture=mixture, policy={"head": head}))
    bundle = Bundle.load(run / "bundles" / "ur5e")
    assert bundle.proprio_statistics is not None, "measured all the same"
    assert bundle.golden is not None
    assert bundle.golden.state is None
    assert Bank(OpenVLA.from_pretrained(random_base), [bundle]).robots()["ur5e"]["state_required"] is False


def test_a_state_component_that_no_data_records_is_masked_when_served(
    make_recipe: MakeRecipe, tmp_path: Path
):
    given = source(tmp_path, "whole", 1, state=True, gripper=True)
    entry = Path(given["entry"])
    state = "{position: {field: observation/state, columns: [0, 1, 2]}, orientation: omit, gripper: omit}"
    entry.write_text(entry.read_text().replace("state: observation/state", f"state: {state}"))
    setting = prepare(make_recipe(str(tmp_path / "run"), mixture=[given]))
    trained = setting.builder.windows([setting.mixture.window(0)]).proprio_mask
    assert trained.sum() == 3
    served = setting.policy("ur5e")
    image = setting.robots["ur5e"].train[0][0].image(0)
    ask = {"images": {"primary": image}, "prompt": "go"}
    first = np.array([0.1, 0.2, 0.3, 0, 0, 0, 1, 0.5], np.float32)
    turned = np.array([0.1, 0.2, 0.3, 0, 1, 0, 0, 1.0], np.float32)
    moved = np.array([0.3, 0.4, 0.5, 0, 0, 0, 1, 0.5], np.float32)
    answers = [served.act(ask | {"state": state}) for state in (first, turned, moved)]
    np.testing.assert_array_equal(answers[0], answers[1])
    assert not np.array_equal(answers[0], answers[2])


def test_own_and_shared_adapter_are_left_as_one(make_recipe: MakeRecipe, tmp_path: Path, random_base: Path):
    adaptation = {"kind": "lora", "rank": 4, "alpha": 8, "shared": {"rank": 2, "alpha": 8}}
    run = train(make_recipe(str(tmp_path / "run"), adaptation=adaptation))
    base = OpenVLA.from_pretrained(random_base)
    for robot in ("ur5e", "bimanual_panda"):
        bundle = Bundle.load(run / "bundles" / robot)
        assert bundle.adapter_config is not None
        assert bundle.adapter_config.r == 6
        assert bundle.verify(base).max_difference < 1e-4


def test_a_policy_of_two_cameras_is_left_and_served(
    make_recipe: MakeRecipe, tmp_path: Path, random_base: Path
):
    policy = {"head": {"kind": "parallel", "horizon": 4}, "more_cameras": ["wrist"]}
    run = train(make_recipe(str(tmp_path / "run"), policy=policy))
    bundle = Bundle.load(run / "bundles" / "ur5e")
    assert bundle.observation.more_cameras == ("wrist",)
    assert bundle.golden is not None
    assert set(bundle.golden.more_images) == {"wrist"}
    base = OpenVLA.from_pretrained(random_base)
    assert bundle.verify(base).max_difference < 1e-4
    observation = bundle.golden.observation("primary")
    policy_now = bundle.attach(base)
    seen = policy_now.act(observation)
    observation["images"] = {"primary": observation["images"]["primary"]}
    assert np.abs(policy_now.act(observation) - seen).max() > 1e-6, "the wrist image matters"
