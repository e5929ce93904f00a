"""Cut a training window from an episode: the observation at one step and the next H unified actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.source import Episode, Observations, PendingImage
from vla_adapt.types import NUM_SLOTS

Window = dict[str, Any]


@dataclass(frozen=True)
class UnifiedMotion:
    """Unified action and proprio (None: no state) of a whole episode: [T, 32] float32, SI units."""

    action: Float[np.ndarray, "T S"]
    action_mask: Bool[np.ndarray, " S"]
    proprio: Float[np.ndarray, "T S"] | None
    proprio_mask: Bool[np.ndarray, " S"]

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers."""
        return self.action.nbytes + (0 if self.proprio is None else self.proprio.nbytes)


def unify_motion(
    episode: Episode, unifier: ActionUnifier, proprio_unifier: ActionUnifier | None = None
) -> UnifiedMotion:
    """Convert an episode's action and state; a tool frame takes the gripper's pose from the state.

    Slots of components that the episode's dataset does not record are zero and masked.

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
    if episode.action_omits:
        mask = unifier.mask_without(episode.action_omits)
        action[:, ~mask] = 0.0
    if proprio_unifier is None or episode.state is None:
        return UnifiedMotion(action, mask, None, np.zeros(NUM_SLOTS, bool))
    proprio, proprio_mask = proprio_unifier.to_unified(episode.state)
    proprio = proprio.astype(np.float32, copy=False)
    if episode.state_omits:
        proprio_mask = proprio_unifier.mask_without(episode.state_omits)
        proprio[:, ~proprio_mask] = 0.0
    return UnifiedMotion(action, mask, proprio, proprio_mask)


def window(
    episode: Observations,
    t: int,
    horizon: int,
    unifier: ActionUnifier,
    proprio_unifier: ActionUnifier | None = None,
    cameras: Sequence[str] | None = None,
    dataset: str = "",
    motion: UnifiedMotion | None = None,
    optional_cameras: Sequence[str] = (),
    history: int = 1,
) -> Window:
    """The observation of step `t` with the actions of steps t .. t + horizon - 1.

    A policy reads the camera `policy.camera` of a recipe, which every dataset must have, and `more_cameras`
    where they are; none reads a history yet (see `policy.batch.BatchBuilder.windows`).

    Args:
        episode: where to cut.
        t: step of the observation.
        horizon: H, number of actions.
        unifier: of the episode's embodiment, kind "action".
        proprio_unifier: the same, kind "proprio"; None: no proprioception in the window.
        cameras: which cameras to decode; None: all.
        dataset: its name, for `ids` and errors.
        motion: `unify_motion` of the episode, if the caller has it at hand; `episode` may lack it then.
        optional_cameras: decoded too where the episode has them, else a zero image of the size of the first
            camera there is. One that the embodiment declares as required is not optional.
        history: K, steps observed: t - K + 1 .. t.

    Returns:
        images {camera: uint8 [h, w, 3]}, image_mask {camera: bool} (False: the episode lacks it),
        proprio [32] float32, proprio_mask [32], action [H, 32] float32 in SI units, action_mask [H, 32] bool
        (False past the episode's end and on slots the robot lacks; zeros there), instruction (at t), robot,
        extra {key: value at t}, ids {dataset, episode, step}.

        With history > 1 images are [K, h, w, 3] and proprio is [K, 32], oldest first, and history_mask [K] is
        False before the episode's first step, which is repeated there, as Octo does.

    Raises:
        ValueError: a camera the episode lacks, a step outside, a non-finite number, images of different sizes
            in one history; names dataset, episode.
    """
    return (
        begin_window(
            episode, t, horizon, unifier, proprio_unifier, cameras, dataset, motion, optional_cameras, history
        )
        .decode()
        .finish()
    )


class PendingWindow:
    """A window whose images are read but not decoded yet; `cut` is all of it but them.

    For a batch each of `begin_window`, `decode` and `finish` is done for all windows before the next one:
    the processor's caches are the decoder's while it works.
    """

    __slots__ = ("_absent", "_frames", "_history", "_pending", "cut")

    def __init__(
        self,
        cut: Window,
        pending: Mapping[str, list[PendingImage]],
        absent: Sequence[str],
        history: int,
    ) -> None:
        self.cut, self._pending, self._absent, self._history = cut, pending, absent, history
        self._frames: dict[str, list[np.ndarray]] = {}

    def decode(self) -> PendingWindow:
        """Decode the images; what `finish` puts together."""
        for camera, images in self._pending.items():
            self._frames[camera] = [image() for image in images]
        return self

    def finish(self) -> Window:
        """The window."""
        looks = {
            camera: frames[0] if self._history == 1 else self._stacked(camera, frames)
            for camera, frames in self._frames.items()
        }
        mask = dict.fromkeys(looks, True)
        for camera in self._absent:
            looks[camera] = np.zeros_like(next(iter(looks.values())))
            mask[camera] = False
        self.cut["images"], self.cut["image_mask"] = looks, mask
        return self.cut

    def _stacked(self, camera: str, frames: list[np.ndarray]) -> UInt8[np.ndarray, "K h w 3"]:
        """The images of the last K steps."""
        dataset, episode, t = (self.cut["ids"][key] for key in ("dataset", "episode", "step"))
        for step, frame in enumerate(frames, start=t - len(frames) + 1):
            if frame.shape != frames[-1].shape:
                sizes = f"{list(frame.shape)} at step {step} and {list(frames[-1].shape)} at step {t}"
                where = _where(dataset, episode)
                raise ValueError(f"{where}: camera '{camera}' gives {sizes}; draw it without history")
        return np.stack([frames[0]] * (self._history - len(frames)) + frames)


def begin_window(
    episode: Observations,
    t: int,
    horizon: int,
    unifier: ActionUnifier,
    proprio_unifier: ActionUnifier | None = None,
    cameras: Sequence[str] | None = None,
    dataset: str = "",
    motion: UnifiedMotion | None = None,
    optional_cameras: Sequence[str] = (),
    history: int = 1,
) -> PendingWindow:
    """`window` in steps: all that is read is read now."""
    if history < 1:
        raise ValueError(f"{_where(dataset, episode.episode_id)}: history {history}: wanted at least 1 step")
    if not 0 <= t < episode.length:
        where = _where(dataset, episode.episode_id)
        raise ValueError(f"{where}: step {t} asked, it has steps 0..{episode.length - 1}")
    if motion is None:
        assert isinstance(episode, Episode), f"{dataset}: neither recorded nor unified motion given"
        try:
            motion = unify_motion(episode, unifier, proprio_unifier)
        except ValueError as error:
            raise ValueError(f"{_where(dataset, episode.episode_id)}: {error}") from None
    wanted = episode.cameras if cameras is None else cameras
    absent: Sequence[str] = ()
    if optional_cameras or not set(episode.cameras).issuperset(wanted):
        absent = absent_cameras(
            episode.cameras, wanted, optional_cameras, unifier.embodiment, _where(dataset, episode.episode_id)
        )
    steps = range(max(0, t - history + 1), t + 1)
    pending = {
        camera: [episode.pending_image(step, camera) for step in steps]
        for camera in (dict.fromkeys((*wanted, *optional_cameras)) if optional_cameras else wanted)
        if camera not in absent
    }
    if absent and not pending:
        missing = ", ".join(absent)
        raise ValueError(
            f"{_where(dataset, episode.episode_id)}: it has none of the cameras {missing}; ask for one it has"
        )
    cut = {
        **_state(motion, t, history),
        **_chunk(motion, t, horizon),
        "instruction": episode.instruction_at(t),
        "robot": unifier.embodiment.name,
        "extra": {key: episode.extra(key)[t] for key in episode.extra_keys},
        "ids": {"dataset": dataset, "episode": episode.episode_id, "step": t},
    }
    return PendingWindow(cut, pending, absent, history)


def _where(dataset: str, episode_id: str) -> str:
    return f"{dataset or 'dataset'}: episode {episode_id}"


def absent_cameras(
    present: Sequence[str], wanted: Sequence[str], optional: Sequence[str], robot: Embodiment, where: str
) -> list[str]:
    """The optional cameras that are not `present`.

    Raises:
        ValueError: one that is wanted, or that the robot declares as required, is not; starts with `where`.
    """
    declared: list[str] = []
    if optional:
        declared = [name for name in optional if name in robot.cameras and robot.cameras[name].required]
    for camera in (*wanted, *declared):
        if camera not in present:
            raise ValueError(f"{where}: no camera '{camera}'; it has {', '.join(present) or 'none'}")
    return [camera for camera in dict.fromkeys(optional) if camera not in present]


def _chunk(motion: UnifiedMotion, t: int, horizon: int) -> dict[str, np.ndarray]:
    """action [H, 32] and action_mask [H, 32] from step t on."""
    rest = motion.action[t : t + horizon]
    if len(rest) == horizon:
        return {"action": rest.copy(), "action_mask": motion.action_mask[None].repeat(horizon, axis=0)}
    action = np.zeros((horizon, NUM_SLOTS), np.float32)
    mask = np.zeros((horizon, NUM_SLOTS), bool)
    action[: len(rest)] = rest
    mask[: len(rest)] = motion.action_mask
    return {"action": action, "action_mask": mask}


def _state(motion: UnifiedMotion, t: int, history: int) -> dict[str, np.ndarray]:
    """proprio [32] and its mask; with history [K, 32] and history_mask [K] besides."""
    mask = motion.proprio_mask.copy()
    if history == 1:
        now = np.zeros(NUM_SLOTS, np.float32) if motion.proprio is None else motion.proprio[t].copy()
        return {"proprio": now, "proprio_mask": mask}
    steps = np.arange(t - history + 1, t + 1)
    proprio = np.zeros((history, NUM_SLOTS), np.float32)
    if motion.proprio is not None:
        proprio[:] = motion.proprio[np.maximum(steps, 0)]
    return {"proprio": proprio, "proprio_mask": mask, "history_mask": steps >= 0}
