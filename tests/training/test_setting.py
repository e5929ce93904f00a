"""From a recipe to the run: augmented training images, plain ones wherever the policy is judged or served."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vla_adapt.adaptation.bank import Bank
from vla_adapt.adaptation.bundle import Bundle
from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import fake_data, open_dataset
from vla_adapt.episodes.mixing.loader import make_loader
from vla_adapt.episodes.rlds.write import RldsWriter
from vla_adapt.policy.batch import BatchBuilder
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.randomization.visual import Augmentation, AugmentationConfig, CenterCrop
from vla_adapt.recipe import Recipe
from vla_adapt.training import loop
from vla_adapt.training.robot_data import data_lines
from vla_adapt.training.setting import Setting, prepare

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(scope="module")
def augmented(make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return prepare(make_recipe(str(tmp_path_factory.mktemp("augmented")), augmentation={}))


@pytest.fixture(scope="module")
def plain(make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return prepare(make_recipe(str(tmp_path_factory.mktemp("plain"))))


def test_presence_switches_the_augmentation_on(make_recipe: MakeRecipe):
    assert not make_recipe("r").augmentation.enabled
    assert make_recipe("r", augmentation={}).augmentation == AugmentationConfig()
    assert make_recipe("r", augmentation={"enabled": True}).augmentation == AugmentationConfig()
    assert not make_recipe("r", augmentation={"enabled": False, "hue": 0.1}).augmentation.enabled


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("augmentation.enabled=true", (True, 0.9)),
        ("augmentation.crop_area=0.8", (True, 0.8)),
        ("augmentation.crop_area=0", (True, 1.0)),
        ("policy.center_crop=true", (False, 0.9)),
        ("policy.center_crop=0.5", (False, 0.5)),
        ("policy.center_crop=false", (False, 1.0)),
    ],
)
def test_recipes_say_how_images_are_cropped(override: str, wanted: tuple[bool, float]):
    recipe = Recipe.load("quickstart", [override])
    assert (recipe.augmentation.enabled, recipe.observation.center_crop) == wanted
    both = Recipe.load("quickstart", ["augmentation.enabled=true", "policy.center_crop=1"])
    assert both.observation.center_crop == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("augmentation.brightnes=0.1", "unknown key 'brightnes' in augmentation; did you mean 'brightness'"),
        ("augmentation.crop_area=[0.9, 1.5]", r"augmentation.crop_area: got \[0.9, 1.5\]"),
        ("policy.center_crop=0", "policy.center_crop: got 0"),
        ("augmentaton.enabled=true", "did you mean 'augmentation'"),
    ],
)
def test_mistakes_in_recipes_are_named(override: str, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        Recipe.load("quickstart", [override])
    assert "\n" not in str(caught.value)


def test_only_training_images_are_augmented(augmented: Setting, plain: Setting):
    windows = [item for item in map(plain.mixture.window, range(16)) if item["robot"] == "ur5e"]
    before, after = (setting.builder.windows(windows) for setting in (plain, augmented))
    for name in ("input_ids", "proprio", "action", "action_mask"):
        assert torch.equal(getattr(before, name), getattr(after, name))
    assert not torch.allclose(before.pixel_values, after.pixel_values, atol=0.1)
    assert plain.builder.augment is None
    assert plain.builder.view is None
    judging = augmented.policy("ur5e")._builder
    assert judging.augment is None
    images = [item["images"]["primary"] for item in windows]
    wanted = plain.builder.preprocessor(images, CenterCrop(0.9))
    assert torch.equal(judging.windows(windows).pixel_values, wanted)
    assert torch.equal(
        augmented.builder.observation(_observation(windows[0]), "ur5e").pixel_values, wanted[:1]
    )


def _observation(window: dict[str, Any]) -> dict[str, Any]:
    return {"images": window["images"], "prompt": window["instruction"]}


def test_a_center_crop_without_augmentation_is_trained_on_too(
    make_recipe: MakeRecipe, tmp_path: Path, plain: Setting
):
    policy = {"head": {"kind": "parallel", "horizon": 4, "proprio": True}, "center_crop": 0.7}
    setting = prepare(make_recipe(str(tmp_path), policy=policy))
    windows = [item for item in map(plain.mixture.window, range(4)) if item["robot"] == "ur5e"]
    images = [item["images"]["primary"] for item in windows]
    wanted = plain.builder.preprocessor(images, CenterCrop(0.7))
    assert torch.equal(setting.builder.windows(windows).pixel_values, wanted)
    still = {"crop_area": 0, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    setting = prepare(make_recipe(str(tmp_path), policy=policy, augmentation=still))
    assert isinstance(setting.builder.augment, Augmentation)
    assert torch.equal(setting.builder.windows(windows).pixel_values, wanted)


def test_a_run_chooses_its_camera(make_recipe: MakeRecipe, tmp_path: Path, random_base: Path):
    """Data of a wrist camera alone, of a robot that declares a primary one."""
    robot, rng = Embodiment.load("ur5e"), np.random.default_rng(0)
    with RldsWriter(tmp_path, "wrist_only", robot) as writer:
        for split in ("train", "val"):
            data = fake_data(robot, rng, length=6)
            writer.add(split, replace(data, images={"wrist": data.images["wrist"]}))
    mixture = [{"path": str(writer.path)}]
    head = {"kind": "parallel", "horizon": 4, "proprio": True}
    with pytest.raises(
        ValueError, match=r"wrist_only: no camera 'primary', .* it has wrist: set policy\.camera"
    ):
        prepare(make_recipe(str(tmp_path / "no"), mixture=mixture, policy={"head": head}))
    served = prepare(make_recipe(
        str(tmp_path / "stand_in"), mixture=[{**mixture[0], "stand_in_cameras": {"primary": "wrist"}}],
        policy={"head": head},
    ))  # fmt: skip
    assert "wrist_only: it has no camera 'primary'; its camera 'wrist' stands in" in served.notes
    assert data_lines(served.robots["ur5e"])[0].stand_in_cameras == {"primary": "wrist"}
    window = served.mixture.window(0)
    image = open_dataset(writer.path)[0].image(window["ids"]["step"], "wrist")
    np.testing.assert_array_equal(window["images"]["primary"], image)
    run = loop.train(
        make_recipe(str(tmp_path / "run"), mixture=mixture, policy={"head": head, "camera": "wrist"})
    )
    bundle = Bundle.load(run / "bundles" / "ur5e")
    assert bundle.golden is not None
    np.testing.assert_array_equal(
        bundle.golden.image, open_dataset(writer.path, split="val")[0].image(0, "wrist")
    )
    bank = Bank(OpenVLA.from_pretrained(random_base), [bundle])
    assert {name for name, rule in bank.robots()["ur5e"]["cameras"].items() if rule["required"]} == {"wrist"}


def test_a_blind_policy_is_not_augmented(make_recipe: MakeRecipe, tmp_path: Path):
    policy = {"head": {"kind": "parallel", "horizon": 4, "proprio": True}, "blind": True}
    with pytest.warns(UserWarning, match="augmentation has no effect"):
        setting = prepare(make_recipe(str(tmp_path), policy=policy, augmentation={}))
    assert setting.builder.augment is None


Rows = dict[int, torch.Tensor]


def _rows(builder: BatchBuilder, robots: Sequence[str], windows: list[dict[str, Any]]) -> Rows:
    """Pixels by sample number, through the batches of the loop; runs in loader processes."""
    batch, ids = loop.collate(builder, robots, windows)
    return {each.sample: batch.pixel_values[row] for row, each in enumerate(ids)}


def drawn(
    setting: Setting, batch: int, rank: int, world: int, steps: range, workers: int, threads: int = 1
) -> Rows:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        loader = make_loader(
            setting.mixture, batch, rank, world, start_step=steps.start, steps=len(steps),
            num_workers=workers, collate=partial(_rows, setting.builder, list(setting.robots)),
        )  # fmt: skip
        return {number: pixels.clone() for rows in loader for number, pixels in rows.items()}
    finally:
        torch.set_num_threads(before)


def test_any_rank_worker_and_restart_sees_the_same_pixels(augmented: Setting):
    whole = drawn(augmented, batch=6, rank=0, world=1, steps=range(4), workers=0, threads=2)
    assert sorted(whole) == list(range(24))
    parts: Rows = {}
    for rank, workers in ((0, 1), (1, 2)):
        parts |= drawn(augmented, batch=6, rank=rank, world=2, steps=range(4), workers=workers)
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[number], whole[number]) for number in whole)
    later = drawn(augmented, batch=6, rank=0, world=1, steps=range(2, 4), workers=0)
    assert sorted(later) == list(range(12, 24))
    assert all(torch.equal(later[number], whole[number]) for number in later)


def test_an_augmented_run_resumes_and_its_bundle_verifies(
    make_recipe: MakeRecipe,
    tmp_path: Path,
    random_base: Path,
    finished_run: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    schedule = {"steps": 3, "batch_size": 8, "log_every": 1, "save_every": 1, "workers": 1}
    changes = {"train": schedule, "augmentation": {"enabled": True}}
    whole = loop.train(make_recipe(str(tmp_path / "whole"), **changes))
    assert not np.allclose(_losses(whole), _losses(finished_run), rtol=1e-6)
    genuine = loop._check_finite

    def die(output: Any, ids: Any, robots: Any, step: int) -> None:
        if step == 2:
            raise KeyboardInterrupt
        genuine(output, ids, robots, step)

    monkeypatch.setattr(loop, "_check_finite", die)
    with pytest.raises(KeyboardInterrupt):
        loop.train(make_recipe(str(tmp_path / "cut"), **changes))
    monkeypatch.setattr(loop, "_check_finite", genuine)
    schedule["workers"] = 0
    cut = loop.train(make_recipe(str(tmp_path / "cut"), **changes))
    assert _losses(cut) == _losses(whole)
    for robot in ("ur5e", "bimanual_panda"):
        one, two = (load_file(run / "bundles" / robot / "adapter_model.safetensors") for run in (whole, cut))
        assert all(torch.equal(one[key], two[key]) for key in one)
        bundle = Bundle.load(cut / "bundles" / robot)
        assert bundle.observation.center_crop == 0.9
        assert "| image | `primary`, middle 0.9 of its area |" in bundle.card
        bundle.verify(OpenVLA.from_pretrained(random_base))


def test_augmentation_that_is_off_changes_nothing(
    make_recipe: MakeRecipe, tmp_path: Path, finished_run: Path
):
    schedule = {"steps": 3, "batch_size": 8, "log_every": 1}
    off = loop.train(make_recipe(str(tmp_path / "off"), train=schedule, augmentation={"enabled": False}))
    assert _losses(off) == _losses(finished_run)


def _losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_robots_of_one_name_are_refused(make_recipe: MakeRecipe, tmp_path: Path):
    ur5e = Embodiment.load("ur5e")
    other = ur5e.model_copy(update={"proprio": ur5e.proprio[:-1]})
    paths = []
    for robot in (ur5e, other):
        name = f"set{len(paths)}"
        with RldsWriter(tmp_path / "data", name, robot) as writer:
            for split in ("train", "val"):
                writer.add(split, fake_data(robot, np.random.default_rng(0), length=4))
        paths.append({"path": str(writer.path)})
    with pytest.raises(ValueError, match="its embodiment 'ur5e' differs from that of set0"):
        prepare(make_recipe(str(tmp_path / "run"), mixture=paths))


def test_an_invariance_loss_wants_two_robots(
    make_recipe: MakeRecipe, two_robot_data: dict[str, Path], tmp_path: Path
):
    alone = [{"path": str(two_robot_data["ur5e"])}]
    with pytest.raises(ValueError, match=r"invariance 'mmd' got 1 robot\(s\) \(ur5e\), wanted two or more"):
        prepare(make_recipe(str(tmp_path), mixture=alone, invariance={"method": "mmd"}))


def test_a_head_too_long_for_a_robot_is_refused(make_recipe: MakeRecipe, tmp_path: Path):
    head = {"kind": "tokens", "horizon": 256, "proprio": False}
    with pytest.raises(ValueError, match=r"the tokens head of '\w+' needs about .* positions"):
        prepare(make_recipe(str(tmp_path), policy={"head": head}))
