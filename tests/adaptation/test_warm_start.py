"""Warm starts: first predictions are the other robot's, mapped; a planted problem begins nearly solved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_adapt import cli
from vla_adapt.adaptation.action_adapter import ActionAdapter, Side
from vla_adapt.adaptation.bundle import Bundle
from vla_adapt.adaptation.concatenate import concatenated
from vla_adapt.adaptation.method import activate
from vla_adapt.adaptation.robot_policy import RobotPolicy
from vla_adapt.adaptation.warm_start import compose_output, make_warm_bundle, started_bundle
from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import open_dataset
from vla_adapt.episodes.measuring.statistics import RobotStatistics, robot_statistics
from vla_adapt.episodes.rlds.write import RldsWriter
from vla_adapt.episodes.source import EpisodeData
from vla_adapt.evaluation.open_loop import open_loop
from vla_adapt.policy.heads import HeadConfig, make_head
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.recipe import Recipe
from vla_adapt.training.loop import train
from vla_adapt.training.setting import prepare

MakeRecipe = Callable[..., Recipe]
ARM, JOINTS = Embodiment.load("ur5e"), Embodiment.load("xarm_joint_delta")
LENGTH = 12


def planted_episode(robot: Embodiment, number: int) -> EpisodeData:
    """The arm's action is a function of its state; the other's joints are a linear map of that action."""
    draw = np.random.default_rng(number)
    position = draw.uniform(-0.5, 0.5, (LENGTH, 3))
    quaternion, opening = np.tile([0, 0, 0, 1.0], (LENGTH, 1)), np.full((LENGTH, 1), 0.5)
    moves = np.concatenate([position, -position], axis=1) * 1.8
    gripper = np.where(position[:, :1] > 0, 1.0, -1.0)
    state = np.concatenate([position, quaternion, opening], axis=1)
    action = np.concatenate([moves, gripper], axis=1)
    if robot is JOINTS:
        joints = moves @ np.random.default_rng(99).normal(size=(6, 7)) * 0.02 + 0.01
        action = np.concatenate([joints, (gripper < 0).astype(float)], axis=1)
        state = np.concatenate([state, np.zeros((LENGTH, 7))], axis=1)
    pixels = np.full((LENGTH, 32, 32, 3), 90, np.uint8)
    return EpisodeData(
        action=action.astype(np.float32), images=dict.fromkeys(robot.cameras, pixels), instruction="push",
        state=state.astype(np.float32),
    )  # fmt: skip


@pytest.fixture(scope="module")
def planted_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for robot in (ARM, JOINTS):
        with RldsWriter(tmp_path_factory.mktemp("planted"), f"{robot.name}_planted", robot) as writer:
            for split, numbers in (("train", range(24)), ("val", range(24, 27))):
                for number in numbers:
                    writer.add(split, planted_episode(robot, number))
        folders[robot.name] = writer.path
    return folders


@pytest.fixture
def base(random_base: Path) -> OpenVLA:
    return OpenVLA.from_pretrained(random_base)


@pytest.fixture
def bundle(finished_run: Path) -> Bundle:
    return Bundle.load(finished_run / "bundles" / "ur5e")


def target_statistics(data: dict[str, Path]) -> RobotStatistics:
    return robot_statistics([open_dataset(data[JOINTS.name])])[JOINTS.name]


def test_first_predictions_are_mapped_exactly(
    bundle: Bundle, base: OpenVLA, planted_data: dict[str, Path], tmp_path: Path
):
    measured = target_statistics(planted_data)
    sides = Side.of(ARM, bundle.action_statistics), Side.of(JOINTS, measured.action)
    adapter = ActionAdapter(*sides)
    draw = torch.Generator().manual_seed(0)
    adapter.set_linear(torch.randn(32, 32, generator=draw), torch.randn(32, generator=draw))
    policy = bundle.attach(base)
    started_bundle(bundle, base, adapter, JOINTS, measured).save(tmp_path / "start")
    loaded = Bundle.load(tmp_path / "start")
    assert loaded.action_adapter is not None
    assert torch.equal(loaded.action_adapter.linear.weight, adapter.linear.weight)
    assert bundle.action_adapter is None
    started = loaded.attach(base)
    episode = planted_episode(ARM, 0)
    observation = {"images": {"primary": episode.images["primary"][0]}, "prompt": "push"}
    batch = policy._builder.observation(observation, "ur5e", np.ones(32), np.ones(32, bool))
    activate(base, "ur5e")
    before = policy.head.predict(base, batch)
    activate(base, JOINTS.name)
    after = started.head.predict(base, replace(batch, slot_mask=adapter.target_mask[None]))
    assert torch.allclose(after, adapter(before), atol=1e-5)
    assert after.abs().max() > 0.1


def test_only_a_parallel_head_is_composed(base: OpenVLA):
    head = make_head(HeadConfig(kind="tokens"), base)
    with pytest.raises(ValueError, match="a 'tokens' head has no linear output layer"):
        compose_output(head, np.eye(32), np.zeros(32))


def test_a_run_starts_as_the_bundle_it_is_given(
    finished_run: Path, make_recipe: MakeRecipe, bundle: Bundle, tmp_path: Path
):
    folder = finished_run / "bundles" / "ur5e"
    setting = prepare(make_recipe(str(tmp_path / "r"), warm_start={"ur5e": str(folder)}))
    assert bundle.verify_policy(setting.policy("ur5e")).max_difference < 1e-3
    assert not [p for name, p in setting.learner.named_parameters() if "ur5e" in name and not p.requires_grad]
    fresh = prepare(make_recipe(str(tmp_path / "r")))
    with pytest.raises(ValueError, match="differ by"):
        bundle.verify_policy(fresh.policy("ur5e"))


def test_a_run_with_other_statistics_starts_with_the_same_actions(
    finished_run: Path, make_recipe: MakeRecipe, bundle: Bundle, planted_data: dict[str, Path], tmp_path: Path
):
    changes = {
        "mixture": [{"path": str(planted_data["ur5e"])}],
        "warm_start": {"ur5e": str(finished_run / "bundles" / "ur5e")},
    }
    policy = prepare(make_recipe(str(tmp_path / "r"), **changes)).policy("ur5e")
    assert policy.action_statistics != bundle.action_statistics
    before = bundle.attach(OpenVLA.from_pretrained(policy.model.source))
    observation = {"images": {"primary": np.zeros((32, 32, 3), np.uint8)}, "prompt": "push"}
    rows = np.zeros(32), np.zeros(32, bool)
    chunks = []
    for each in (before, policy):
        chunks.append(each._predict(each._builder.observation(observation, "ur5e", *rows)))
    assert np.allclose(chunks[0], chunks[1], atol=1e-5)


def test_refusals_name_what_does_not_fit(finished_run: Path, make_recipe: MakeRecipe, tmp_path: Path):
    bundles = finished_run / "bundles"

    def start(**changes: object) -> None:
        prepare(
            make_recipe(str(tmp_path / "r"), **{"warm_start": {"ur5e": str(bundles / "ur5e")}, **changes})
        )

    with pytest.raises(ValueError, match=r"a bundle of 'bimanual_panda'; make one of 'ur5e' from it with"):
        start(warm_start={"ur5e": str(bundles / "bimanual_panda")})
    with pytest.raises(ValueError, match="no such robot in the mixture; did you mean 'ur5e'"):
        start(warm_start={"ur5": str(bundles / "ur5e")})
    with pytest.raises(ValueError, match="is not a bundle"):
        start(warm_start={"ur5e": str(bundles)})
    with pytest.raises(
        ValueError, match="has a LoRA of rank 4 and alpha 8, the recipe trains a LoRA of rank 4 and"
    ):
        start(adaptation={"kind": "lora", "rank": 4, "alpha": 16, "targets": "attention"})
    with pytest.raises(ValueError, match="the recipe trains no adapter"):
        start(adaptation={"kind": "head_only"})
    with pytest.raises(ValueError, match="'full' trains one base"):
        start(adaptation={"kind": "full"})
    with pytest.raises(ValueError, match=r"has the head .*horizon=4.* wants .*horizon=2"):
        start(policy={"head": {"kind": "parallel", "horizon": 2, "proprio": True}})
    with pytest.raises(ValueError, match=r"is of base \w{12}, the recipe's is \w{12}"):
        start(base="tiny", policy={"head": {"kind": "parallel", "horizon": 4}, "head_from_base": False})


def test_a_bundle_with_a_shared_adapter_says_why_its_rank_is_larger(
    make_recipe: MakeRecipe, bundle: Bundle, tmp_path: Path
):
    both = {"kind": "lora", "rank": 4, "alpha": 8, "targets": "attention", "shared": {"rank": 2, "alpha": 4}}
    recipe = make_recipe(str(tmp_path / "r"), adaptation=both)
    setting = prepare(recipe)
    bundle.adapter_config, bundle.adapter = concatenated(setting.learner.model, "ur5e")
    bundle.facts, start = {"recipe": recipe.to_text()}, tmp_path / "ur5e"
    bundle.head = setting.policy("ur5e").head
    bundle.save(start)
    words = (
        r"has a LoRA of rank 6 and alpha 6, the recipe trains a LoRA of rank 4 and alpha 8; .*: the bundle "
        r"holds the robot's own adapter \(rank 4\) and the shared one \(rank 2\) side by side, as one of "
        "rank 6"
    )
    with pytest.raises(ValueError, match=words):
        prepare(make_recipe(str(tmp_path / "r"), adaptation=both, warm_start={"ur5e": str(start)}))
    alike = {**both, "rank": 6, "alpha": 6}
    prepare(make_recipe(str(tmp_path / "r"), adaptation=alike, warm_start={"ur5e": str(start)}))


def test_only_data_of_the_two_robots_is_taken(bundle: Bundle, base: OpenVLA, planted_data: dict[str, Path]):
    arm, joints = (open_dataset(planted_data[robot.name]) for robot in (ARM, JOINTS))
    for one, other in ((joints, joints), (arm, arm)):
        with pytest.raises(ValueError, match="the bundle is of 'ur5e'; got data from"):
            make_warm_bundle(bundle, base, [one], [other])


@pytest.mark.slow
def test_a_planted_problem_begins_nearly_solved(
    planted_data: dict[str, Path], random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    """Record two robots whose actions are linked, train one, start the other by the command, train it on."""

    def recipe(robot: Embodiment, steps: int, **more: object) -> Recipe:
        return Recipe.model_validate({
            "name": "planted", "base": str(random_base), "output": str(tmp_path / f"{robot.name}{steps}"),
            "mixture": [{"path": str(planted_data[robot.name])}],
            "policy": {"head": {"kind": "parallel", "horizon": 1, "proprio": True}},
            "adaptation": {"kind": "lora", "rank": 4, "alpha": 8, "targets": "attention"},
            "train": {"steps": steps, "batch_size": 12, "optimizer": {"learning_rate": 3e-3}},
            **more,
        })  # fmt: skip

    arm = train(recipe(ARM, 100)) / "bundles" / "ur5e"
    out = tmp_path / "start"
    words = ["warm-start", arm, "--from", planted_data["ur5e"], "--to", planted_data[JOINTS.name]]
    words += ["--out", out, "--base", random_base, "--paired"]
    monkeypatch.setattr("sys.argv", ["vla-adapt", "adapters", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert "xarm_joint_delta started from ur5e; held-out error of the map 0.0" in capsys.readouterr().out

    held_out = [open_dataset(planted_data[JOINTS.name], split="val")]

    def judged(policy: RobotPolicy) -> tuple[float, float]:
        result = open_loop(policy, held_out)
        return result.error, result.baseline_error

    warm = {"warm_start": {JOINTS.name: str(out)}}
    started, mean = judged(prepare(recipe(JOINTS, 1, **warm)).policy(JOINTS.name))
    fresh, _ = judged(prepare(recipe(JOINTS, 1)).policy(JOINTS.name))
    print(f"open-loop error: warm-started {started:.3f}, fresh {fresh:.3f}, predict-the-mean {mean:.3f}")
    assert started < 0.5 * min(fresh, mean)
    left = Bundle.load(train(recipe(JOINTS, 2, **warm)) / "bundles" / JOINTS.name)
    assert left.action_adapter is not None
    assert left.action_adapter.source.robot == "ur5e"
    assert judged(left.attach(OpenVLA.from_pretrained(random_base)))[0] < 0.5 * fresh
