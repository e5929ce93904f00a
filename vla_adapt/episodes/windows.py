"""Cut a training window from an episode: the observation at one step and the next H unified actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.episodes.source import Episode
from vla_adapt.types import NUM_SLOTS

Window = dict[str, Any]


@dataclass(frozen=True)
class UnifiedMotion:
    """Unified action and proprio (None: no state) of a whole episode: [T, 32] float32, SI units."""

    action: Float[np.ndarray, "T S"]
    action_mask: Bool[np.ndarray, " S"]
    proprio: Float[np.ndarray, "T S"] | None
    proprio_mask: Bool[np.ndarray, " S"]


def unify_motion(
    episode: Episode, unifier: ActionUnifier, proprio_unifier: ActionUnifier | None = None
) -> UnifiedMotion:
    """Convert an episode's action and state; a tool frame takes the gripper's pose from the state.

    Raises:
        ValueError: wrong width, or a non-finite number (names its step).
    """
    for what, values in (("action", episode.action), ("state", episode.state)):
        if values is not None and not np.isfinite(values).all():
            step = int(np.argmax(~np.isfinite(values).all(axis=1)))
            raise ValueError(f"step {step}: {what} holds {values[step].tolist()}, wanted finite numbers")
    pose = None
    if unifier.needs_ee_rotation and episode.state is not None:
        pose = ActionUnifier(unifier.embodiment, kind="proprio").ee_rotations(episode.state)
    action, mask = unifier.to_unified(episode.action, pose)
    action = action.astype(np.float32, copy=False)
    if proprio_unifier is None or episode.state is None:
        return UnifiedMotion(action, mask, None, np.zeros(NUM_SLOTS, bool))
    proprio, proprio_mask = proprio_unifier.to_unified(episode.state)
    return UnifiedMotion(action, mask, proprio.astype(np.float32, copy=False), proprio_mask)


def window(
    episode: Episode,
    t: int,
    horizon: int,
    unifier: ActionUnifier,
    proprio_unifier: ActionUnifier | None = None,
    cameras: Sequence[str] | None = None,
    dataset: str = "",
    motion: UnifiedMotion | None = None,
) -> Window:
    """The observation of step `t` with the actions of steps t .. t + horizon - 1.

    Args:
        episode: where to cut.
        t: step of the observation.
        horizon: H, number of actions.
        unifier: of the episode's embodiment, kind "action".
        proprio_unifier: the same, kind "proprio"; None: no proprioception in the window.
        cameras: which cameras to decode; None: all.
        dataset: its name, for `ids` and errors.
        motion: `unify_motion` of the episode, if the caller has it at hand.

    Returns:
        images {camera: uint8 [h, w, 3]}, proprio [32] float32, proprio_mask [32], action [H, 32] float32 in
        SI units, action_mask [H, 32] bool (False past the episode's end and on slots the robot lacks; zeros
        there), instruction, robot, extra {key: value at t}, ids {dataset, episode, step}.

    Raises:
        ValueError: a camera the episode lacks, a step outside, a non-finite number; names dataset, episode.
    """
    where = f"{dataset or 'dataset'}: episode {episode.episode_id}"
    wanted = episode.cameras if cameras is None else cameras
    for camera in wanted:
        if camera not in episode.cameras:
            raise ValueError(f"{where}: no camera '{camera}'; it has {', '.join(episode.cameras) or 'none'}")
    if not 0 <= t < len(episode):
        raise ValueError(f"{where}: step {t} asked, it has steps 0..{len(episode) - 1}")
    if motion is None:
        try:
            motion = unify_motion(episode, unifier, proprio_unifier)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    action = np.zeros((horizon, NUM_SLOTS), np.float32)
    action_mask = np.zeros((horizon, NUM_SLOTS), bool)
    chunk = motion.action[t : t + horizon]
    action[: len(chunk)] = chunk
    action_mask[: len(chunk)] = motion.action_mask
    proprio = np.zeros(NUM_SLOTS, np.float32) if motion.proprio is None else motion.proprio[t].copy()
    return {
        "images": {camera: episode.image(t, camera) for camera in wanted},
        "proprio": proprio,
        "proprio_mask": motion.proprio_mask.copy(),
        "action": action,
        "action_mask": action_mask,
        "instruction": episode.instruction,
        "robot": unifier.embodiment.name,
        "extra": {key: episode.extra(key)[t] for key in episode.extra_keys},
        "ids": {"dataset": dataset, "episode": episode.episode_id, "step": t},
    }
