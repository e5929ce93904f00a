"""Shards: the numbers of whole learners; resumed on any number of processes, any way; bundles as ever."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.recipe import Recipe
from vla_adapt.training import loop

MakeRecipe = Callable[..., Recipe]
HERE = Path(__file__).parent
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
ROBOTS = ("ur5e", "bimanual_panda")
# Ranks that neither two nor three processes can divide: the last of three has no row of the shared adapter.
METHOD = {"kind": "lora", "rank": 3, "targets": "all_linear", "shared": {"rank": 2}}


@pytest.mark.slow
def test_gradients_are_the_mean_over_ranks(make_recipe: MakeRecipe, launcher, tmp_path: Path):
    """Of DDP and of shards, for different learners (`gradient_checks.LEARNERS`)."""
    recipe = make_recipe(str(tmp_path / "r"), train={"steps": 1, "batch_size": 2, "checkpointing": True})
    launch = launcher(recipe, before=f"{HERE / 'gradient_checks.py'}:instead", environment=FSDP)
    assert launch.codes == [0, 0], launch.said
    assert launch.said[0].count("tensors moved") == 12


@pytest.fixture(scope="module")
def recipe_of(make_recipe: MakeRecipe, two_robot_data: dict[str, Path], random_base: Path):
    """A run in which one robot is missing in some steps, and in more of one process's share."""
    mixture = [
        {"path": str(two_robot_data[robot]), "weight": weight}
        for robot, weight in zip(ROBOTS, (0.9, 0.1), strict=True)
    ]
    train = {
        "steps": 6, "batch_size": 6, "log_every": 1, "save_every": 2, "keep": 5, "log_samples": True,
        "optimizer": {"clip_norm": 0.05, "warmup_steps": 0, "learning_rate": 1e-3, "weight_decay": 0.1},
    }  # fmt: skip

    def recipe(folder: Path, **more: Any) -> Recipe:
        return make_recipe(str(folder), adaptation=METHOD, mixture=mixture, train=train | more)

    return recipe


@pytest.fixture(scope="module")
def one(recipe_of: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on one process, never interrupted."""
    run = loop.train(recipe_of(tmp_path_factory.mktemp("runs") / "one"))
    assert any({row[2] for row in rows} == {"ur5e_fake"} for rows in samples(run).values())
    return run


@pytest.mark.slow
def test_killed_and_resumed_on_any_number_of_processes_any_way(
    one: Path, recipe_of: Callable[..., Recipe], random_base: Path, launcher, tmp_path: Path
):
    cut, kept = tmp_path / "cut", tmp_path / "kept"
    recipe = recipe_of(cut, checkpointing=True)
    second = cut / "checkpoints" / "step-00000002" / "manifest.json"
    whole = launcher(recipe_of(tmp_path / "whole", checkpointing=True), environment=FSDP)
    assert whole.codes == [0, 0], whole.said
    killed = launcher(recipe, environment=FSDP, signal_at=0.0, wait_for=str(second), victims=[1])
    assert killed.codes[1] == -signal.SIGKILL
    assert killed.codes[0] not in (0, -signal.SIGKILL), "it went on alone, or hung"
    shutil.copytree(cut, kept)
    for world, way in ((1, "1 process"), (2, "FSDP2"), (2, "DDP"), (3, "FSDP2")):
        shutil.rmtree(cut)
        shutil.copytree(kept, cut)
        if world == 1:
            loop.train(recipe)
        else:
            launch = launcher(recipe, world=world, environment=FSDP if way == "FSDP2" else {})
            assert launch.codes == [0] * world, launch.said
            assert "resuming after step" in launch.said[0]
            assert f"{world} process(es) on cpu ({way})" in launch.said[0]
        assert_same(one, cut)
        if (world, way) == (2, "FSDP2"):
            assert left(cut) == left(tmp_path / "whole"), "bit for bit as if it had not been killed"
    assert_plain_peft(random_base, one, cut)


@pytest.mark.slow
def test_one_process_stopped_goes_on_in_shards(
    one: Path, recipe_of: Callable[..., Recipe], launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    steps = iter((0, 0, signal.SIGTERM))
    monkeypatch.setattr(loop.StopSignal, "agreed", lambda _: next(steps))
    recipe = recipe_of(tmp_path)
    with pytest.raises(loop.Stopped, match="SIGTERM after step 3"):
        loop.train(recipe)
    launch = launcher(recipe, environment=FSDP)
    assert launch.codes == [0, 0], launch.said
    assert "resuming after step 3" in launch.said[0]
    assert "2 process(es) on cpu (FSDP2)" in launch.said[0]
    assert_same(one, tmp_path)


def samples(run: Path) -> dict[int, list[list[str]]]:
    """Step -> number, dataset, episode and step of its samples, sorted, of all processes together."""
    rows = [line.split("\t") for file in run.glob("samples/*") for line in file.read_text().splitlines()]
    steps = sorted({int(row[0]) for row in rows})
    return {step: sorted(row for row in rows if int(row[0]) == step) for step in steps}


def left(run: Path) -> dict[str, bytes]:
    files = [run / "metrics.jsonl", *run.glob("samples/*"), *run.glob("bundles/*/*.safetensors")]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same(one: Path, two: Path) -> None:
    """Weights move by about 3e-3; Adam makes much of a gradient near zero, and so of its rounding."""
    assert samples(one) == samples(two)
    assert losses(one) == pytest.approx(losses(two), abs=1e-5)
    for robot in ROBOTS:
        for part in ("adapter_model", "head"):
            left, right = (load_file(run / "bundles" / robot / f"{part}.safetensors") for run in (one, two))
            assert left.keys() == right.keys()
            for name in left:
                assert torch.allclose(left[name], right[name], atol=1e-4), (robot, name)


def assert_plain_peft(base: Path, one: Path, two: Path) -> None:
    """Both runs' bundles load with nothing of ours but the base, and give the same logits."""
    draw = torch.Generator().manual_seed(0)
    inputs = {
        "input_ids": torch.randint(3, 100, (2, 9), generator=draw),
        "pixel_values": torch.randn(2, 6, 84, 84, generator=draw),
    }
    logits = [OpenVLA.from_pretrained(base)(**inputs).logits]
    for run in (one, two):
        model: Any = PeftModel.from_pretrained(OpenVLA.from_pretrained(base), run / "bundles" / "ur5e")  # type: ignore[arg-type]
        logits.append(model(**inputs).logits)
    assert (logits[1] - logits[0]).abs().max() > 1e-3, "the adapter changes nothing"
    assert torch.allclose(logits[1], logits[2], atol=1e-4)
