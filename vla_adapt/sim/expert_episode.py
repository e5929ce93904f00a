"""One recorded episode of a simulated expert: what it saw and would do, while something else is executed."""

from __future__ import annotations

import numpy as np
import simplejpeg
from jaxtyping import Bool, UInt8

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.source import EpisodeData
from vla_adapt.sim.experts import make_expert
from vla_adapt.sim.noise import ActionNoise
from vla_adapt.sim.worlds import World

NOISE_STREAM = 2
STEPS_AFTER_SUCCESS = 4  # so that the end of a lift is in the data
JPEG_QUALITY = 95


def expert_episode(world: World, seed: int, noise: bool = True, slips: bool = True) -> EpisodeData:
    """Let the expert do the episode of that seed. `metadata["success"]` tells whether it managed."""
    world.reset(seed)
    expert = make_expert(world)
    disturb = None
    if noise:
        rng = np.random.default_rng([NOISE_STREAM, seed])
        slip_chance = world.task.slip_chance if slips else 0.0
        disturb = ActionNoise(moving_dimensions(world.embodiment), rng, world.task.noise_scale, slip_chance)
    images: dict[str, list[bytes]] = {camera: [] for camera in world.cameras}
    actions, states, poses = [], [], []
    success_at = None
    while world.steps < world.max_steps and (
        success_at is None or world.steps < success_at + STEPS_AFTER_SUCCESS
    ):
        action = expert()
        for camera, encoded in images.items():
            encoded.append(_jpeg(world.render(camera)))
        actions.append(action)
        states.append(world.observe_state())
        poses.append(world.object_pose())
        world.step(action if disturb is None else disturb(world.obeyed(action)))
        if success_at is None and world.success():
            success_at = world.steps
    return EpisodeData(
        action=np.asarray(actions, np.float32),
        images=images,
        instruction=world.prompt,
        state=np.asarray(states, np.float32),
        extra={"object_pose": np.asarray(poses, np.float32)},
        metadata={"seed": seed, "success": success_at is not None, "noise": noise},
    )


def moving_dimensions(embodiment: Embodiment) -> Bool[np.ndarray, " D"]:
    """Which native action numbers move something other than a gripper."""
    return np.concatenate([np.full(part.native_size, part.gripper is None) for part in embodiment.action])


def _jpeg(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Encoded without color subsampling, which would smear small objects."""
    return simplejpeg.encode_jpeg(image, quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="444")
