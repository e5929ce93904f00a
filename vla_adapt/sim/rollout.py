"""Let a policy drive a simulated robot, and see whether it succeeds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from vla_adapt.sim.worlds import World

Act = Callable[[dict[str, Any]], Float[np.ndarray, "H D"]]


@dataclass(frozen=True)
class RolloutResult:
    """One attempt.

    Attributes:
        success: judged by the simulator.
        steps: control steps used. `seed`: the episode. `prompt`: the instruction given.
        seconds: wall time; `policy_seconds` of it in the policy.
        frames: primary images, if asked for: one per policy call, and the last.
    """

    success: bool
    steps: int
    seconds: float
    policy_seconds: float
    seed: int
    prompt: str
    frames: list[UInt8[np.ndarray, "h w 3"]] = field(default_factory=list, repr=False)


def rollout(world: World, act: Act, seed: int, execute: int = 4, keep_frames: bool = True) -> RolloutResult:
    """Reset `world` to `seed` and let `act` drive until success or the world's step limit.

    Args:
        act: observation (`images`, `state`, `prompt`, as `World.observe`) to native actions [H, D].
        execute: how many of the H actions are executed before asking again.
        keep_frames: keep the primary images for a report.

    Raises:
        ValueError: `act` returned something that is not [H, D] of this robot, or non-finite.
    """
    if execute < 1:
        raise ValueError(f"execute is {execute}, wanted at least 1 action per policy call")
    start, thinking, frames, success = time.perf_counter(), 0.0, [], False
    world.reset(seed)
    while not success and world.steps < world.max_steps:
        observation = world.observe()
        if keep_frames:
            frames.append(observation["images"]["primary"])
        asked = time.perf_counter()
        actions = np.asarray(act(observation))
        thinking += time.perf_counter() - asked
        if actions.ndim != 2 or not len(actions):
            raise ValueError(f"the policy returned shape {list(actions.shape)}, wanted actions [H, D]")
        for action in actions[: min(execute, world.max_steps - world.steps)]:
            world.step(action)
            success = world.success()
            if success:
                break
    if keep_frames:
        frames.append(world.render("primary"))
    elapsed = time.perf_counter() - start
    return RolloutResult(success, world.steps, elapsed, thinking, seed, world.prompt, frames)
