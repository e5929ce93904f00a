"""What a run leaves behind: one bundle per robot, drawn episodes, a new base when the base itself trained."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from vla_adapt.adaptation.bundle import Bundle, Golden, golden_tolerance
from vla_adapt.adaptation.card import NOT_MEASURED, CardFacts, model_card
from vla_adapt.adaptation.concatenate import concatenated
from vla_adapt.adaptation.constants import Constants
from vla_adapt.adaptation.environment_facts import read_starts
from vla_adapt.adaptation.folder import atomic_folder
from vla_adapt.adaptation.licenses import base_license, base_on_hub
from vla_adapt.adaptation.original_statistics import norm_stats_entry
from vla_adapt.episodes.episode_facts import first_with_steps
from vla_adapt.episodes.recorded_rate import pooled_rate_hz
from vla_adapt.evaluation.drawn_episodes import predict_episodes, save_episodes
from vla_adapt.evaluation.open_loop import OpenLoopResult
from vla_adapt.policy.checkpoint import fingerprint
from vla_adapt.policy.heads import ActionHead, save_head
from vla_adapt.training.robot_data import data_lines
from vla_adapt.training.setting import Robot, Setting


def leave_bundles(setting: Setting, folder: Path, results: list[OpenLoopResult]) -> None:
    """Write `bundles/<robot>` for every robot, after `model/` when the run trained the base itself."""
    base = setting.base_fingerprint
    if setting.recipe.adaptation.changes_base:
        base = _leave_model(setting, folder / "model")
    held_out, starts = {result.robot: result for result in results}, read_starts(folder)
    for name in setting.robots:
        bundle = _bundle(setting, name, base, held_out.get(name), starts)
        bundle.with_golden(_golden(setting, name)).save(folder / "bundles" / name)


def leave_drawn(setting: Setting, file: Path) -> None:
    """Keep predictions over some held-out episodes of every robot, for the report."""
    asked = setting.recipe.evaluation
    drawn = [
        episode
        for name, robot in setting.robots.items()
        if robot.held_out and asked.drawn_episodes
        for episode in predict_episodes(
            setting.policy(name), robot.held_out, asked.drawn_episodes, asked.drawn_windows
        )
    ]
    save_episodes(drawn, file)


def _bundle(
    setting: Setting, name: str, base: str, result: OpenLoopResult | None, starts: list[dict[str, Any]]
) -> Bundle:
    recipe, robot, learner = setting.recipe, setting.robots[name], setting.learner
    head = learner.heads[name]
    assert isinstance(head, ActionHead)
    config, adapter = concatenated(learner.model, name) if learner.adapted else (None, {})
    bundle = Bundle(
        embodiment=robot.embodiment,
        action_statistics=robot.action,
        proprio_statistics=robot.proprio,
        observation=recipe.observation,
        base_fingerprint=base,
        head=head,
        adapter_config=config,
        adapter=adapter,
        action_adapter=setting.warm[name].action_adapter if name in setting.warm else None,
        constants=robot.constants,
        rate_hz=pooled_rate_hz(robot.train),
        facts=_facts(setting, robot, result, starts),
    )
    bundle.card = model_card(robot.embodiment, _card_facts(setting, bundle, robot, head, result))
    return bundle


def _card_facts(
    setting: Setting, bundle: Bundle, robot: Robot, head: ActionHead, result: OpenLoopResult | None
) -> CardFacts:
    recipe, source = setting.recipe, setting.learner.model.source
    error = (
        NOT_MEASURED
        if result is None
        else f"{result.error:.3f} (predict-the-mean {result.baseline_error:.3f})"
    )
    return CardFacts(
        recipe=recipe.name,
        base=bundle.base_fingerprint[:12],
        adaptation=json.dumps(recipe.adaptation.model_dump()),
        head=f"{head.config.kind}, horizon {head.horizon}",
        image=str(recipe.observation),
        state=_read_state(robot, head),
        constants=_told(bundle.constants),
        data=data_lines(robot),
        steps=setting.trained or recipe.train.steps,
        held_out=error,
        statistics=robot.action,
        errors=[] if result is None else result.slots,
        horizon=head.horizon,
        rate_hz=bundle.rate_hz,
        adapted=bundle.adapter_config is not None,
        license=recipe.card.license,
        base_model=None if recipe.adaptation.changes_base else base_on_hub(source, recipe.card),
        base_license=base_license(source, recipe.card),
    )


def _read_state(robot: Robot, head: ActionHead) -> str:
    if robot.proprio is None:
        return "not read: its data records none"
    return "read" if head.config.proprio else "not read"


def _told(constants: Constants) -> str:
    """For the card: components that no data records, and what is sent for them."""
    told = [f"{name} = {list(numbers)} (not trained)" for name, numbers in constants.items()]
    return ", ".join(told) or "none"


def _facts(
    setting: Setting, robot: Robot, result: OpenLoopResult | None, starts: list[dict[str, Any]]
) -> dict[str, Any]:
    lines = data_lines(robot)
    return {
        "recipe_name": setting.recipe.name,
        "recipe": setting.recipe.to_text(),
        "data": ", ".join(str(line) for line in lines),
        "datasets": [asdict(line) for line in lines],
        "held_out": None
        if result is None
        else {"error": result.error, "baseline_error": result.baseline_error},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": starts,
    }


def _golden(setting: Setting, name: str) -> Golden:
    """The first held-out (else the first training) step and what the policy answers to it."""
    robot = setting.robots[name]
    episode = first_with_steps([*robot.held_out, *robot.train])
    policy = setting.policy(name)
    image, state = episode.image(0, policy.camera), _state(robot) if policy.reads_state else None
    more = {c: episode.image(0, c) for c in policy.observation.more_cameras if c in episode.cameras}
    tolerance = golden_tolerance(policy.head, rounded=setting.recipe.train.precision == "bf16")
    return Golden.record(policy, image, state, episode.instruction, tolerance, more)


def _state(robot: Robot) -> np.ndarray:
    """The first recorded state; a robot may have data with and without."""
    for dataset in (*robot.held_out, *robot.train):
        for index in np.flatnonzero(dataset.lengths)[:1]:
            state = dataset[int(index)].state
            if state is not None:
                return np.asarray(state[0])
    raise AssertionError(f"{robot.embodiment.name}: statistics of a state that no dataset has")


def _leave_model(setting: Setting, folder: Path) -> str:
    """Save the trained base (original layout, head and statistics beside it) and return its fingerprint."""
    model = setting.learner.model
    model.config.norm_stats.update(
        {name: norm_stats_entry(robot.action) for name, robot in setting.robots.items()}
    )
    first = next(iter(setting.learner.heads.values()))
    assert isinstance(first, ActionHead)
    with atomic_folder(folder) as aside:
        model.save_pretrained(aside)
        save_head(first, aside)
    return fingerprint(folder)
