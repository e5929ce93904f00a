"""The learner: splitting a batch changes nothing, each robot's loss reaches its own adapter and no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vla_adapt.policy.batch import PolicyBatch
from vla_adapt.recipe import Recipe
from vla_adapt.training.loop import collate
from vla_adapt.training.setting import Setting, prepare


@pytest.fixture
def setting(make_recipe: Callable[..., Recipe], tmp_path: Path) -> Setting:
    return prepare(make_recipe(str(tmp_path)))


def test_groups_are_disjoint_and_complete(setting: Setting):
    groups = setting.learner.groups()
    assert set(groups) == {"ur5e", "bimanual_panda"}
    grouped = [id(parameter) for parameters in groups.values() for parameter in parameters]
    trained = [id(parameter) for parameter in setting.learner.parameters() if parameter.requires_grad]
    assert sorted(grouped) == sorted(trained)
    assert len(set(grouped)) == len(grouped)


def test_what_robots_share_is_a_group_of_its_own(make_recipe: Callable[..., Recipe], tmp_path: Path):
    adaptation = {"kind": "lora", "rank": 4, "alpha": 8, "shared": {"rank": 2, "alpha": 4}}
    setting = prepare(make_recipe(str(tmp_path / "lora"), adaptation=adaptation))
    groups = setting.learner.groups()
    assert set(groups) == {"ur5e", "bimanual_panda", "shared"}
    names = {id(parameter): name for name, parameter in setting.learner.named_parameters()}
    assert all(".lora_" in names[id(p)] and ".shared." in names[id(p)] for p in groups["shared"])
    setting.learner(mixed(setting))["loss"].backward()
    assert all(parameter.grad is not None for parameter in groups["shared"])
    full = prepare(make_recipe(str(tmp_path / "full"), adaptation={"kind": "full"}))
    assert set(full.learner.groups()) == {"shared"}, "all robots train one head then"


def mixed(setting: Setting, samples: int = 16) -> PolicyBatch:
    windows = [setting.mixture.window(n) for n in range(samples)]
    return collate(setting.builder, list(setting.robots), windows)[0]


def test_a_robot_trains_its_own_adapter_only(setting: Setting):
    batch = mixed(setting)
    segments = dict(batch.segments())
    assert set(segments) == {"ur5e", "bimanual_panda"}
    setting.learner(batch.rows(segments["ur5e"]))["loss"].backward()
    groups = setting.learner.groups()
    assert all(parameter.grad is None for parameter in groups["bimanual_panda"])
    assert any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in groups["ur5e"])


def test_mixed_loss_is_the_sample_mean(setting: Setting):
    output = setting.learner(mixed(setting))
    each = output["loss_per_sample"]
    assert len(each) == 16
    assert output["loss"].item() == pytest.approx(each.mean().item(), rel=1e-6)


@pytest.mark.parametrize("balance", ["equal", "uncertainty"])
def test_robots_are_balanced_in_the_total_only(
    make_recipe: Callable[..., Recipe], two_robot_data: dict[str, Path], tmp_path: Path, balance: str
):
    mixture = [
        {"path": str(path), "weight": weight}
        for path, weight in zip(two_robot_data.values(), (3, 1), strict=True)
    ]
    setting = prepare(make_recipe(str(tmp_path), mixture=mixture, train={"balance": balance}))
    batch, learner = mixed(setting), setting.learner
    assert ("balance" in learner.groups()) == (balance == "uncertainty")
    scale = torch.tensor([0.5 / 0.75, 0.5 / 0.25])
    if balance == "uncertainty":
        scale = torch.tensor([2.0, 0.5])
        with torch.no_grad():
            learner.balance.log_scales.copy_(-scale.log())  # type: ignore[union-attr]
    output = learner(batch)
    rows = torch.tensor([list(setting.robots).index(robot) for robot in batch.robots])
    wanted = (output["loss_per_sample"] * scale[rows]).mean()
    if balance == "uncertainty":
        wanted = wanted - scale.log()[rows].mean()
    torch.testing.assert_close(output["loss"], wanted)
    plain = prepare(make_recipe(str(tmp_path), mixture=mixture)).learner(batch)
    assert torch.equal(output["loss_per_sample"], plain["loss_per_sample"])
    assert plain["loss"] != output["loss"]


def test_mixed_pass_equals_each_robot_alone(setting: Setting):
    batch = mixed(setting)
    together = setting.learner(batch)
    for _, rows in batch.segments():
        alone = setting.learner(batch.rows(rows))
        for key in ("loss_per_sample", "prediction"):
            assert torch.allclose(together[key][rows], alone[key], atol=1e-6)


def test_gradients_lie_in_memory_as_their_parameters(make_recipe: Callable[..., Recipe], tmp_path: Path):
    """Else DistributedDataParallel warns, and copies them one by one."""
    setting = prepare(make_recipe(str(tmp_path), adaptation={"kind": "full"}))
    setting.learner(mixed(setting, 4))["loss"].backward()
    got = {
        name: parameter
        for name, parameter in setting.learner.named_parameters()
        if parameter.grad is not None
    }
    assert any("cls_token" in name for name in got)
    wrong = [name for name, p in got.items() if p.grad is not None and p.grad.stride() != p.stride()]
    assert wrong == []


def test_robots_of_one_base_share_a_head_but_not_their_conditions(
    make_recipe: Callable[..., Recipe], tmp_path: Path
):
    head = {"kind": "readout", "horizon": 4, "condition": "token"}
    setting = prepare(make_recipe(str(tmp_path), adaptation={"kind": "full"}, policy={"head": head}))
    groups = setting.learner.groups()
    assert [len(groups[robot]) for robot in ("ur5e", "bimanual_panda")] == [1, 1]
    one, two = setting.learner.heads["ur5e"], setting.learner.heads["bimanual_panda"]
    assert one.fc2.weight is two.fc2.weight
    assert one.condition.vectors is groups["ur5e"][0]
    assert one.condition.vectors is not two.condition.vectors
    assert any(parameter is one.fc2.weight for parameter in groups["shared"])
    setting.learner(mixed(setting))["loss"].backward()
    assert all(groups[robot][0].grad is not None for robot in ("ur5e", "bimanual_panda"))


@pytest.mark.parametrize("method", ["dann", "mmd", "coral"])
@pytest.mark.parametrize("tap", ["patches", "hidden"])
def test_an_invariance_loss_reaches_the_adapters(
    make_recipe: Callable[..., Recipe], tmp_path: Path, method: str, tap: str
):
    chosen = {"method": method, "tap": tap, "schedule": "constant", "conditional": method == "dann"}
    plain = prepare(make_recipe(str(tmp_path / "plain")))
    setting = prepare(make_recipe(str(tmp_path / "aligned"), invariance=chosen))
    batch = mixed(setting)
    outputs = [each.learner(batch, progress=0.5) for each in (plain, setting)]
    assert torch.equal(outputs[0]["loss_per_sample"], outputs[1]["loss_per_sample"])
    assert outputs[1]["invariance/strength"].item() == 1.0
    assert not any(key.startswith("invariance") for key in outputs[0])
    for output in outputs:
        output["loss"].backward()
    groups = [each.learner.groups() for each in (plain, setting)]
    assert ("invariance" in groups[1]) == (method == "dann")
    for robot in ("ur5e", "bimanual_panda"):
        changed = [
            not torch.equal(one.grad, two.grad)
            for one, two in zip(groups[0][robot], groups[1][robot], strict=True)
            if one.grad is not None and two.grad is not None
        ]
        assert any(changed), robot
