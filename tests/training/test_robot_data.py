"""What each robot was trained on and with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vla_adapt.episodes.provenance import provenance
from vla_adapt.recipe import Recipe
from vla_adapt.training import robot_data
from vla_adapt.training.robot_data import data_lines, trained_with
from vla_adapt.training.setting import prepare


def test_data_and_parameters(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    adaptation = {"kind": "lora", "rank": 4, "alpha": 8, "shared": {"rank": 2, "alpha": 8}}
    setting = prepare(make_recipe(str(tmp_path), adaptation=adaptation))
    own = {name: sum(p.numel() for p in group) for name, group in setting.learner.groups().items()}
    told = trained_with(setting)
    assert told["ur5e"]["parameters"] == own["ur5e"] + own["shared"]
    (line,) = told["ur5e"]["data"]
    assert line == {
        "name": "ur5e_fake", "episodes": 3, "steps": 21, "held_out_episodes": 1, "license": "unknown",
        "source": "", "rate_hz": 20.0, "stand_in_cameras": {},
    }  # fmt: skip
    monkeypatch.setattr(robot_data, "provenance", lambda dataset: ("mit", provenance(dataset)[1]))
    assert data_lines(setting.robots["ur5e"])[0].license == "mit"
