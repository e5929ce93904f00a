"""Validation against numbers computed another way, on any share of the batches, without a trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from vla_adapt.embodiment import Embodiment
from vla_adapt.evaluation.open_loop import cut_windows
from vla_adapt.recipe import Recipe
from vla_adapt.training import validation
from vla_adapt.training.frozen_features import use_features
from vla_adapt.training.ranks import Ranks
from vla_adapt.training.setting import Setting, prepare
from vla_adapt.training.validation import Validator, component_slots
from vla_adapt.training.validation_windows import held_out_places

MakeRecipe = Callable[..., Recipe]
WINDOWS = 6


def opened(make_recipe: MakeRecipe, folder: Path, **changes: Any) -> Setting:
    options = {"every": 1, "windows": WINDOWS}
    return prepare(make_recipe(str(folder), validation=options, **changes))


@pytest.fixture(scope="module")
def setting(make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    made = opened(make_recipe, tmp_path_factory.mktemp("validation"))
    made.learner.train()
    return made


def validator(setting: Setting, ranks: Ranks | None = None) -> Validator:
    accelerator = Accelerator(cpu=True)
    return Validator(accelerator, ranks or Ranks(accelerator), setting)


def test_numbers_are_those_of_the_policy_that_is_served(setting: Setting):
    found = validator(setting)(0.0)
    assert list(found) == list(setting.robots)
    for name, robot in setting.robots.items():
        places = held_out_places(name, robot.held_out, WINDOWS)
        policy = setting.policy(name)
        windows = cut_windows(policy, [(place.dataset, place.episode, place.step) for place in places])
        predicted = policy.predict_windows(windows)
        true, mask = (np.stack([window[key] for window in windows]) for key in ("action", "action_mask"))
        mask = mask & robot.action.mask
        # Recorded numbers beyond the quantiles are clipped in training and validation.
        normalizer = robot.normalizers[0]
        true = normalizer.denormalize(normalizer.normalize(true))
        errors = np.abs(predicted - true)
        for component in robot.embodiment.action:
            slots = list(component.slot_indices)
            (key,) = [key for key in found[name] if key.startswith(f"l1_{component.name}_")]
            wanted = errors[..., slots][mask[..., slots]].mean()
            assert found[name][key] == pytest.approx(wanted, rel=1e-4)
        wanted = (errors / normalizer.half_range)[mask].mean()
        assert found[name]["error"] == pytest.approx(wanted, rel=1e-4)
        assert found[name]["loss"] == pytest.approx(policy.answer_windows(windows).loss_per_sample.mean())
        assert found[name]["samples"] == WINDOWS
    setting.learner.train()


def test_components_have_their_units():
    assert component_slots(Embodiment.load("franka_panda")) == {
        "l1_position_m": [0, 1, 2], "l1_rotation_rad": [3, 4, 5], "l1_gripper_opening": [6],
    }  # fmt: skip
    mobile = component_slots(Embodiment.load("mobile_panda"))
    assert {key for key in mobile if "base" in key} == {
        "l1_base_velocity_m_per_s",
        "l1_base_velocity_rad_per_s",
    }


class OneOf(Ranks):
    """One of two processes, which run one after the other."""

    def __init__(self, rank: int, shares: dict[int, Any]) -> None:
        self.rank, self.world, self._shares = rank, 2, shares

    def everyone(self, value: Any) -> list[Any]:
        self._shares[self.rank] = value
        return [share for _, share in sorted(self._shares.items())]


def test_two_processes_find_the_same_numbers_bit_for_bit(setting: Setting, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vla_adapt.training.validation_windows.ROWS", 5)  # three batches
    alone = validator(setting)(0.0)
    shares: dict[int, Any] = {}
    with pytest.raises(KeyError):  # the other's part is missing
        validator(setting, OneOf(0, shares))(0.0)
    assert validator(setting, OneOf(1, shares))(0.0) == alone
    assert [sorted(share) for _, share in sorted(shares.items())] == [[0, 2], [0, 1]], "equally many passes"


def test_it_leaves_no_trace(setting: Setting):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    before = {name: parameter.clone() for name, parameter in setting.learner.named_parameters()}
    validator(setting)(0.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert setting.learner.training
    assert setting.learner.model.training
    for name, parameter in setting.learner.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


def test_noise_is_the_same_every_time_and_dropout_is_off(make_recipe: MakeRecipe, tmp_path: Path):
    head = {"kind": "flow", "horizon": 2, "dropout": 0.5, "hidden": 16, "flow_layers": 1, "flow_steps": 3}
    setting = opened(make_recipe, tmp_path, policy={"head": head})
    setting.learner.train()
    look = validator(setting)
    torch.manual_seed(1)
    first = look(0.0)
    torch.manual_seed(2)
    assert look(0.0) == first


def test_a_frozen_backbone_is_asked_once(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    setting = opened(
        make_recipe, tmp_path,
        adaptation={"kind": "frozen", "cache_dir": str(tmp_path / "cache")},
        policy={"head": {"kind": "readout", "horizon": 2}},
    )  # fmt: skip
    accelerator = Accelerator(cpu=True)
    assert use_features(accelerator, Ranks(accelerator), setting) is not None
    looks = validator(setting)
    first = looks(0.0)
    monkeypatch.setattr(validation, "look", None)
    monkeypatch.setattr("vla_adapt.training.learner.look", None)
    assert looks(0.0) == first
    with torch.no_grad():
        for head in setting.learner.heads.values():
            head.fc2.bias.add_(0.1)  # type: ignore[union-attr, operator]
    assert looks(0.0)["ur5e"]["loss"] != first["ur5e"]["loss"]


def test_nothing_held_out_is_refused_and_something_is_noted(
    make_recipe: MakeRecipe, two_robot_data: dict[str, Path], tmp_path: Path
):
    parts = [{"path": str(path), "held_out_split": ""} for path in two_robot_data.values()]
    with pytest.raises(
        ValueError,
        match=r"validation\.every is 1, but no robot \(ur5e, bimanual_panda\) has held-out episodes; set ",
    ):
        opened(make_recipe, tmp_path, mixture=parts)
    del parts[0]["held_out_split"]
    setting = opened(make_recipe, tmp_path, mixture=parts)
    assert "no held-out episodes, not validated: bimanual_panda" in setting.notes
    assert list(validator(setting)(0.0)) == ["ur5e"]
