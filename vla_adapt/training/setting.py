"""From a recipe to everything the loop needs: datasets, statistics, model, heads, helper loss."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from vla_adapt.actions.normalize import Normalizer, Statistics
from vla_adapt.adaptation.bundle import Bundle
from vla_adapt.adaptation.constants import Constants
from vla_adapt.adaptation.folder import atomic_folder
from vla_adapt.adaptation.robot_policy import RobotPolicy, normalizers
from vla_adapt.adaptation.warm_start import start_robot
from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.measuring.statistics import robot_statistics
from vla_adapt.episodes.mixing.mixture import Mixture
from vla_adapt.episodes.mixing.open_mixture import OpenedMixture, open_mixture
from vla_adapt.episodes.recorded_rate import rate_notes
from vla_adapt.episodes.source import EpisodeDataset
from vla_adapt.invariance.objective import InvarianceObjective
from vla_adapt.policy.batch import BatchBuilder
from vla_adapt.policy.heads import ActionHead, load_head, make_head, with_condition
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.policy.sequence_length import check_length
from vla_adapt.policy.tiny import build_tiny_base
from vla_adapt.randomization.visual import Augmentation
from vla_adapt.recipe import Recipe
from vla_adapt.resources import base_dir
from vla_adapt.suggest import did_you_mean
from vla_adapt.training.auxiliary import AuxiliaryLoss, target_statistics
from vla_adapt.training.compatibility import check_compatible
from vla_adapt.training.learner import Learner
from vla_adapt.training.loss_balance import make_balance
from vla_adapt.training.robot_constants import omission_notes, robot_constants


@dataclass
class Robot:
    """One robot of a run; `constants` are what it is sent for components that none of its data records."""

    embodiment: Embodiment
    train: list[EpisodeDataset]
    held_out: list[EpisodeDataset]
    action: Statistics
    proprio: Statistics | None
    constants: Constants

    @property
    def normalizers(self) -> tuple[Normalizer, Normalizer | None]:
        return normalizers(self.embodiment, self.action, self.proprio)


@dataclass
class Setting:
    """All that a run needs, on the CPU.

    Attributes:
        notes: what of the data was left out.
        warm: robot -> the bundle it started from.
        trained: how long it was trained and which weights were chosen, as a phrase, when training has ended.
    """

    recipe: Recipe
    robots: dict[str, Robot]
    mixture: Mixture
    learner: Learner
    builder: BatchBuilder
    base_fingerprint: str
    notes: list[str]
    warm: dict[str, Bundle] = field(default_factory=dict)
    trained: str = ""

    def policy(self, robot: str) -> RobotPolicy:
        """The policy of one robot as it stands."""
        mine = self.robots[robot]
        return RobotPolicy(
            model=self.learner.model, head=self.learner.heads[robot], embodiment=mine.embodiment,  # type: ignore[arg-type]
            action_statistics=mine.action, proprio_statistics=mine.proprio, adapted=self.learner.adapted,
            observation=self.recipe.observation, constants=mine.constants,
        )  # fmt: skip


def prepare(recipe: Recipe) -> Setting:
    """Open the data, measure it, load the base and make what trains.

    Raises:
        ValueError: anything of the recipe that does not fit what is there.
    """
    notes = check_compatible(recipe)
    torch.manual_seed(recipe.seed)
    data = open_mixture(recipe.mixture_spec)
    _check_camera(data, recipe.policy.camera)
    datasets = [part.train for part in data.parts]
    robots = _robots(data, recipe.policy.constants)
    notes += _check_held_out(recipe, robots)
    notes += [note for robot in robots.values() for note in rate_notes(robot.train)]
    for name, robot in robots.items():
        notes += omission_notes(robot.train, robot.constants, recipe.policy.constants.get(name, {}))
    model = _base(recipe)
    for name, robot in robots.items():
        cameras = 1 + len(recipe.policy.more_cameras)
        check_length(recipe.policy.head, model, name, int(robot.action.mask.sum()), cameras)
    learner = make_learner(recipe, model, list(robots), datasets, _shares(data))
    warm = _warm_start(recipe, learner, robots)
    mixture = data.draw(
        recipe.seed, recipe.policy.head.horizon,
        cameras=(recipe.policy.camera,), optional_cameras=recipe.policy.more_cameras,
    )  # fmt: skip
    builder = BatchBuilder.from_pretrained(
        model.source,
        {name: robot.normalizers for name, robot in robots.items()},
        blind=recipe.policy.blind,
        image_key=recipe.policy.camera,
        more_cameras=recipe.policy.more_cameras,
        view=recipe.observation.view,
        augment=_augmentation(recipe),
    )
    return Setting(recipe, robots, mixture, learner, builder, model.fingerprint, [*data.notes, *notes], warm)


def make_learner(
    recipe: Recipe,
    model: OpenVLA,
    robots: list[str],
    datasets: Sequence[EpisodeDataset],
    shares: Mapping[str, float] | None = None,
) -> Learner:
    """What trains, on `model`; the datasets are read for the helper loss only.

    `shares` are what each robot's part of the samples is proportional to (None: equal ones).
    """
    heads = _heads(recipe, model, robots)
    recipe.adaptation.prepare(model, robots)
    for head in heads.values():
        head.requires_grad_(recipe.adaptation.trains_heads)
    if recipe.train.checkpointing:
        model.gradient_checkpointing_enable(towers_only=recipe.train.checkpointing == "towers")
    invariance = _invariance(recipe, model, robots)
    auxiliary = _auxiliary(recipe, model, datasets)
    balance = make_balance(recipe.train.balance, robots, shares)
    return Learner(model, heads, recipe.adaptation.adapts, *auxiliary, invariance, balance)


def _shares(data: OpenedMixture) -> dict[str, float]:
    """Robot -> what its part of the samples is proportional to."""
    shares: dict[str, float] = {}
    for part, share in zip(data.parts, data.shares, strict=True):
        name = part.train.embodiment.name
        shares[name] = shares.get(name, 0.0) + share
    return shares


def _augmentation(recipe: Recipe) -> Augmentation | None:
    if not recipe.augmentation.enabled:
        return None
    if recipe.policy.blind:
        warnings.warn("policy.blind zeroes all pixels, so augmentation has no effect", stacklevel=2)
        return None
    return Augmentation(recipe.augmentation, recipe.seed, recipe.observation.view)


def fresh_learner(setting: Setting) -> Learner:
    """Another learner as `prepare` made it, from the base's files."""
    torch.manual_seed(setting.recipe.seed)
    datasets = [dataset for robot in setting.robots.values() for dataset in robot.train]
    return make_learner(setting.recipe, _base(setting.recipe), list(setting.robots), datasets)


def _check_camera(data: OpenedMixture, camera: str) -> None:
    """By the first episode of every dataset, so that a run does not stop in its middle."""
    for part in data.parts:
        for dataset in (part.train, *([] if part.held_out is None else [part.held_out])):
            there = dataset[0].cameras
            if camera not in there:
                raise ValueError(
                    f"{dataset.name}: no camera '{camera}', which the policy shall see; it has "
                    f"{', '.join(there) or 'none'}: set policy.camera to one that all datasets have, or let "
                    f"another stand in where it is missing (stand_in_cameras: {{{camera}: "
                    f"{next(iter(there), '...')}}} beside the dataset's path, or in the mixture's defaults)"
                )


def _robots(data: OpenedMixture, constants: Mapping[str, Constants]) -> dict[str, Robot]:
    robots: dict[str, Robot] = {}
    measured = robot_statistics([part.train for part in data.parts])
    for name, statistics in measured.items():
        mine = [part for part in data.parts if part.train.embodiment.name == name]
        train = [part.train for part in mine]
        sent = robot_constants(train[0].embodiment, statistics.action.mask, train, constants.get(name, {}))
        held_out = [part.held_out for part in mine if part.held_out is not None]
        robots[name] = Robot(
            train[0].embodiment, train, held_out, statistics.action, statistics.proprio, sent
        )
    for name in constants:
        if name not in robots:
            raise ValueError(f"policy.constants: no robot '{name}' in this run; {did_you_mean(name, robots)}")
    return robots


def _check_held_out(recipe: Recipe, robots: Mapping[str, Robot]) -> list[str]:
    """Raise ValueError when there is nothing to validate on; a note where some robots have nothing."""
    if not recipe.validation.every:
        return []
    without = [n for n, robot in robots.items() if not sum(int(d.lengths.sum()) for d in robot.held_out)]
    if len(without) == len(robots):
        raise ValueError(
            f"validation.every is {recipe.validation.every}, but no robot ({', '.join(robots)}) has held-out "
            "episodes; set held_out or held_out_split of a dataset, or validation.every=0"
        )
    return [f"no held-out episodes, not validated: {', '.join(without)}"] if without else []


def _base(recipe: Recipe) -> OpenVLA:
    folder = base_dir(recipe.base)
    if recipe.base == "tiny-random":
        folder = Path(recipe.output).expanduser() / "initial_base"
        if not folder.is_dir():
            with atomic_folder(folder) as aside:
                build_tiny_base(aside, seed=recipe.seed)
    dtype = torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
    return OpenVLA.from_pretrained(folder, dtype=dtype)


def _heads(recipe: Recipe, model: OpenVLA, robots: list[str]) -> dict[str, ActionHead]:
    if recipe.policy.head_from_base and (model.source / "head.json").is_file():
        first = with_condition(load_head(model.source, model), recipe.policy.head, model)
    else:
        first = make_head(recipe.policy.head, model)
    if recipe.adaptation.changes_base:
        return {robot: _own_condition(first) for robot in robots}
    return {robot: copy.deepcopy(first) for robot in robots}


def _own_condition(head: ActionHead) -> ActionHead:
    """`head` itself, or where it has a condition one that shares all weights with it but that."""
    if head.condition is None:
        return head
    twin = copy.copy(head)
    twin._modules = {**head._modules, "condition": copy.deepcopy(head.condition)}
    return twin


def _warm_start(recipe: Recipe, learner: Learner, robots: dict[str, Robot]) -> dict[str, Bundle]:
    unknown = sorted(recipe.warm_start.keys() - robots.keys())
    if unknown:
        raise ValueError(
            f"warm_start.{unknown[0]}: no such robot in the mixture; {did_you_mean(unknown[0], robots)}"
        )
    warm = {}
    for name, folder in recipe.warm_start.items():
        warm[name] = Bundle.load(Path(folder).expanduser())
        lora = getattr(learner.model, "peft_config", {}).get(name)
        head, robot = learner.heads[name], robots[name]
        assert isinstance(head, ActionHead)
        start_robot(warm[name], learner.model, head, robot.embodiment, robot.normalizers[0], lora)
    return warm


def _invariance(recipe: Recipe, model: OpenVLA, robots: list[str]) -> InvarianceObjective | None:
    config = recipe.invariance
    if not config.active:
        return None
    return InvarianceObjective(config, model.config.hidden_size, robots, seed=recipe.seed)


def _auxiliary(
    recipe: Recipe, model: OpenVLA, datasets: Sequence[EpisodeDataset]
) -> tuple[AuxiliaryLoss | None, float, str]:
    config = recipe.auxiliary
    if not config.weight:
        return None, 0.0, ""
    targets = [dataset[index].extra(config.key) for dataset in datasets for index in range(len(dataset))]
    mean, std = target_statistics(torch.as_tensor(np.concatenate(targets), dtype=torch.float32))
    return AuxiliaryLoss(model.config.hidden_size, mean, std), config.weight, config.key
