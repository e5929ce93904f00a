"""What plans know of data: read from it, or assumed and said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.recipe import Recipe
from vla_adapt.training.loop import collate
from vla_adapt.training.plan_data import ASSUMED_TEXT, look_at_data, plan_batch
from vla_adapt.training.setting import prepare

MakeRecipe = Callable[..., Recipe]


def test_a_planned_batch_has_the_shapes_of_the_first_real_one(
    make_recipe: MakeRecipe, random_base: Path, tmp_path: Path
):
    recipe = make_recipe(str(tmp_path))
    data = look_at_data(recipe, random_base)
    planned = plan_batch(recipe, data, OpenVLA.without_weights(random_base), 8)
    setting = prepare(recipe)
    real, _ = collate(setting.builder, list(setting.robots), [setting.mixture.window(n) for n in range(8)])
    assert planned.robots == real.robots
    for name, value in vars(real).items():
        if isinstance(value, torch.Tensor):
            assert getattr(planned, name).shape == value.shape, name
            assert getattr(planned, name).dtype == value.dtype, name
    assert torch.equal(planned.slot_mask, real.slot_mask)
    assert (data.samples, data.notes) == (42, [])


def test_cameras_and_helper_targets_are_in_the_batch(
    make_recipe: MakeRecipe, random_base: Path, tmp_path: Path
):
    head = {"kind": "parallel", "horizon": 4, "proprio": True}
    recipe = make_recipe(str(tmp_path), policy={"head": head, "more_cameras": ["wrist"]})
    batch = plan_batch(recipe, look_at_data(recipe, random_base), OpenVLA.without_weights(random_base), 2)
    assert batch.pixel_values.shape == (2, 12, 84, 84)


def test_data_that_is_not_there_is_assumed_and_said(
    make_recipe: MakeRecipe, random_base: Path, tmp_path: Path
):
    sources = [{"path": str(tmp_path / "a"), "embodiment": "mobile_panda"}, {"path": str(tmp_path / "b")}]
    data = look_at_data(make_recipe(str(tmp_path), mixture=sources), random_base)
    assert list(data.masks) == ["mobile_panda", "robot_1"]
    assert np.flatnonzero(data.masks["robot_1"]).tolist() == list(range(7))
    assert (data.text_tokens, data.samples) == (ASSUMED_TEXT, None)
    assert "none of the data is here: 2 robot(s), prompts of 32 tokens" in data.notes[0]
    assert data.batch_robots(3) == ["mobile_panda", "mobile_panda", "robot_1"]


def test_half_of_the_data_is_a_mistake(
    make_recipe: MakeRecipe, random_base: Path, tmp_path: Path, two_robot_data: dict[str, Path]
):
    sources = [{"path": str(two_robot_data["ur5e"])}, {"path": str(tmp_path / "b")}]
    with pytest.raises(ValueError, match="b"):
        look_at_data(make_recipe(str(tmp_path), mixture=sources), random_base)


def test_without_a_tokenizer_the_text_length_is_assumed(make_recipe: MakeRecipe, tmp_path: Path):
    data = look_at_data(make_recipe(str(tmp_path)), tmp_path)
    assert data.text_tokens == ASSUMED_TEXT
    assert "tokenizer is not here" in data.notes[0]
