"""What an episode is: recorded arrays going in (`EpisodeData`), one readable episode coming out (`Episode`).

Every format gives the same `Episode`: native (robot-unit) actions and states as arrays, images on demand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import simplejpeg
from jaxtyping import Float, Int64, Shaped, UInt8

from vla_adapt.embodiment import Component, Embodiment
from vla_adapt.episodes.storage.text_runs import every_step

Images = UInt8[np.ndarray, "_ h w 3"] | Sequence[bytes]
# Decodes one image, uint8 [h, w, 3].
PendingImage = Callable[[], np.ndarray]


@dataclass
class EpisodeData:
    """One recorded episode in memory, as a writer takes it.

    Attributes:
        action: [T, D] native action, float.
        images: camera name -> [T, h, w, 3] uint8, or T encoded JPEG strings (stored as they are).
        instruction: the task in words.
        state: [T, P] native proprioception, or None.
        extra: further per-step arrays [T, ...].
        metadata: facts about the whole episode (seed, success, ...): str, bool, int or float values.
        instruction_changes: (step, task in words) from which on another task is given; steps ascend.
    """

    action: Float[np.ndarray, "_ D"]
    images: Mapping[str, Images]
    instruction: str
    state: Float[np.ndarray, "_ P"] | None = None
    extra: Mapping[str, Shaped[np.ndarray, "_ ..."]] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    instruction_changes: Sequence[tuple[int, str]] = ()

    def __post_init__(self) -> None:
        steps = [0, *(step for step, _ in self.instruction_changes), len(self.action)]
        if self.instruction_changes and sorted(set(steps)) != steps:
            raise ValueError(
                f"instruction_changes at steps {steps[1:-1]} of {len(self.action)}; wanted ascending ones, "
                "the first after step 0"
            )

    def __len__(self) -> int:
        return len(self.action)

    @property
    def step_instructions(self) -> list[str]:
        """The task in words of each of the T steps."""
        return every_step([(0, self.instruction), *self.instruction_changes], len(self))

    def episode(self, episode_id: str) -> Episode:
        """The same recording as a readable `Episode`."""
        return Episode(
            episode_id=episode_id,
            instruction=self.instruction,
            instruction_changes=tuple(self.instruction_changes),
            action=np.asarray(self.action, np.float32),
            state=None if self.state is None else np.asarray(self.state, np.float32),
            cameras=tuple(self.images),
            extra_keys=tuple(self.extra),
            read_image=lambda t, camera: _pixels(self.images[camera][t]),
            read_extra=lambda key: np.asarray(self.extra[key]),
            read_metadata=lambda: dict(self.metadata),
        )


@dataclass(frozen=True, kw_only=True)
class Observations:
    """What an episode shows: its words, and images and further arrays read when asked for; no motion.

    `len()` is the number of steps. `instruction` is that of step 0; `instruction_changes` are the later steps
    (ascending) from which on another one is given, with it: few recordings have any. `fetch_image`, where a
    format has it, reads the stored bytes of an image and returns a call that decodes them.
    """

    episode_id: str
    instruction: str
    length: int
    cameras: tuple[str, ...]
    extra_keys: tuple[str, ...]
    read_image: Callable[[int, str], UInt8[np.ndarray, "h w 3"]]
    read_extra: Callable[[str], Shaped[np.ndarray, "T ..."]]
    read_metadata: Callable[[], Mapping[str, Any]] = dict
    depth_cameras: tuple[str, ...] = ()
    read_depth: Callable[[int, str], Float[np.ndarray, "h w"]] | None = None
    fetch_image: Callable[[int, str], PendingImage] | None = None
    instruction_changes: tuple[tuple[int, str], ...] = ()

    def __len__(self) -> int:
        return self.length

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Facts about the whole episode: seed, success, source file, ..."""
        return self.read_metadata()

    @property
    def instructions(self) -> tuple[str, ...]:
        """The different instructions of its steps, each once, in order."""
        return tuple(dict.fromkeys((self.instruction, *(text for _, text in self.instruction_changes))))

    @property
    def told(self) -> str:
        """The instruction, or all in order where it changes: "pick it up; then: put it down"."""
        return "; then: ".join((self.instruction, *(text for _, text in self.instruction_changes)))

    def instruction_at(self, t: int) -> str:
        """The task in words at step `t`."""
        text = self.instruction
        for start, later in self.instruction_changes:
            if start > t:
                break
            text = later
        return text

    def image(self, t: int, camera: str = "primary") -> UInt8[np.ndarray, "h w 3"]:
        """Decode the image of step `t`, uint8 RGB [h, w, 3].

        Raises:
            ValueError: an unknown camera or a step outside the episode.
        """
        self._check_place(t, camera, self.cameras, "camera")
        return self.read_image(t, camera)

    def pending_image(self, t: int, camera: str) -> PendingImage:
        """`image` in two halves: what is read is read now, the returned call decodes it."""
        if camera not in self.cameras or not 0 <= t < self.length:  # cheaper than a call, met per sample
            self._check_place(t, camera, self.cameras, "camera")
        if self.fetch_image is None:
            return partial(self.read_image, t, camera)
        return self.fetch_image(t, camera)

    def depth(self, t: int, camera: str = "primary") -> Float[np.ndarray, "h w"]:
        """Depth of step `t` as float32 [h, w], m; raises as `image`."""
        self._check_place(t, camera, self.depth_cameras, "depth camera")
        assert self.read_depth is not None
        return self.read_depth(t, camera)

    def _check_place(self, t: int, camera: str, known: Sequence[str], what: str) -> None:
        if camera not in known:
            raise ValueError(f"episode {self.episode_id}: no {what} '{camera}'; it has {_listed(known)}")
        if not 0 <= t < len(self):
            raise ValueError(f"episode {self.episode_id}: step {t} asked, it has steps 0..{len(self) - 1}")

    def extra(self, key: str) -> Shaped[np.ndarray, "T ..."]:
        """A further per-step array [T, ...] of the episode.

        Raises:
            ValueError: an unknown key.
        """
        if key not in self.extra_keys:
            raise ValueError(
                f"episode {self.episode_id}: no extra '{key}'; it has {_listed(self.extra_keys)}"
            )
        return self.read_extra(key)


@dataclass(frozen=True, kw_only=True)
class Episode(Observations):
    """One episode: numbers in memory, images decoded when asked for.

    `action` [T, D] and `state` [T, P] are float32 in the robot's own units. `action_omits` and `state_omits`
    name components of the embodiment that were not recorded: their numbers mean nothing and their slots are
    masked.
    """

    length: int = field(init=False)
    action: Float[np.ndarray, "T D"]
    state: Float[np.ndarray, "T P"] | None
    action_omits: tuple[str, ...] = ()
    state_omits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", len(self.action))


@runtime_checkable
class EpisodeDataset(Protocol):
    """A sequence of episodes of one embodiment. `lengths` [len] are their numbers of steps."""

    @property
    def name(self) -> str: ...

    @property
    def embodiment(self) -> Embodiment: ...

    @property
    def lengths(self) -> Int64[np.ndarray, " E"]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Episode: ...


class MemoryDataset:
    """Episodes held in memory, as an `EpisodeDataset`."""

    def __init__(self, name: str, embodiment: Embodiment, episodes: Sequence[EpisodeData]):
        self.name = name
        self.embodiment = embodiment
        self._episodes = [data.episode(str(i)) for i, data in enumerate(episodes)]

    @property
    def lengths(self) -> Int64[np.ndarray, " E"]:
        return np.array([len(episode) for episode in self._episodes], np.int64)

    def __len__(self) -> int:
        return len(self._episodes)

    def __getitem__(self, index: int) -> Episode:
        return self._episodes[index]


def fake_data(
    embodiment: Embodiment, rng: np.random.Generator, length: int = 8, image_size: int = 32
) -> EpisodeData:
    """A random but well-formed recording of `embodiment` (actions in [-1, 1], unit quaternions)."""
    cameras = list(embodiment.cameras) or ["primary"]
    action = [_fake_component(part, rng, length) for part in embodiment.action]
    state = [_fake_component(part, rng, length) for part in embodiment.proprio]
    return EpisodeData(
        action=np.concatenate(action, axis=1).astype(np.float32),
        state=np.concatenate(state, axis=1).astype(np.float32) if state else None,
        images={
            camera: rng.integers(0, 256, (length, image_size, image_size, 3), dtype=np.uint8)
            for camera in cameras
        },
        instruction=f"pick up object {int(rng.integers(100))}",
        metadata={"seed": int(rng.integers(1 << 30)), "success": True},
    )


def fake_episode(
    embodiment: Embodiment, rng: np.random.Generator, length: int = 8, image_size: int = 32
) -> Episode:
    """`fake_data` as a readable episode."""
    return fake_data(embodiment, rng, length, image_size).episode("fake")


def _fake_component(component: Component, rng: np.random.Generator, length: int) -> np.ndarray:
    width = component.native_size
    if (component.rotation or "").startswith("quaternion"):
        quaternion = rng.normal(size=(length, 4))
        return quaternion / np.linalg.norm(quaternion, axis=1, keepdims=True)
    low, high = -1.0, 1.0
    if component.gripper is not None:
        low, high = sorted((component.gripper.open, component.gripper.closed))
    return rng.uniform(low, high, size=(length, width))


def _pixels(image: np.ndarray | bytes) -> np.ndarray:
    if isinstance(image, bytes):
        return simplejpeg.decode_jpeg(image, fastdct=True, fastupsample=False)
    return image


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"
