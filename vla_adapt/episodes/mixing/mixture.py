"""Weighted mixture of datasets as a pure function of the sample number: no buffer, no state, resume anywhere.

Sample n belongs to a dataset by weight (`interleave`), and to a step of it by a fresh order of all its steps
in every epoch of that dataset (`draw_order`), so each dataset is drawn without replacement.
"""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.episodes import episode_facts
from vla_adapt.episodes.mixing.draw_order import DrawOrder
from vla_adapt.episodes.mixing.interleave import Interleave
from vla_adapt.episodes.mixing.motion_store import MotionStore
from vla_adapt.episodes.mixing.stack_windows import stack_images, stack_windows
from vla_adapt.episodes.source import EpisodeDataset, Observations, PendingImage
from vla_adapt.episodes.storage.stored import find_prefetcher
from vla_adapt.episodes.windows import (
    PendingWindow,
    UnifiedMotion,
    Window,
    absent_cameras,
    begin_window,
    unify_motion,
)
from vla_adapt.suggest import did_you_mean
from vla_adapt.types import NUM_SLOTS, Layout

# Episodes at hand in a process, in bytes: their motion, and about this much for all else of one.
KEPT_BYTES, EPISODE_BYTES = 8 << 20, 2048
# Episodes of a dataset, evenly spread, whose recorded motion is part of a mixture's fingerprint.
PROBED_EPISODES = 16


class Sample(NamedTuple):
    """One drawn step: dataset number, episode number, step."""

    dataset: int
    episode: int
    step: int


class Mixture:
    """Weighted datasets of one or several embodiments.

    Args:
        parts: (dataset, weight) pairs; only ratios of weights matter.
        seed: of the order.
        horizon: H, actions per window.
        layout: of the unified vectors.
        cameras: which cameras to decode.
        proprio: put the robot's state into the windows.
        episode_weights: for each dataset the weights [E] of its episodes, or None.
        open_blocks: order in which few blocks of episodes are open at a time (see `block_order`); None:
            every epoch is a permutation of the whole dataset.
        optional_cameras: decoded too where a dataset has them, else masked (see `window`).
        history: K, steps of observation per window (see `window`).

    Raises:
        ValueError: a weight that is not positive, an empty dataset, a camera a dataset lacks, an optional one
            that all lack, two different robots of one name.
    """

    def __init__(
        self,
        parts: Sequence[tuple[EpisodeDataset, float | int]],
        seed: int,
        horizon: int,
        layout: Layout = "slots",
        cameras: Sequence[str] = ("primary",),
        proprio: bool = True,
        episode_weights: Sequence[np.ndarray | None] | None = None,
        open_blocks: int | None = None,
        optional_cameras: Sequence[str] = (),
        history: int = 1,
    ):
        self.datasets = [dataset for dataset, _ in parts]
        self.seed, self.horizon, self.cameras = seed, horizon, tuple(cameras)
        if horizon < 1:
            raise ValueError(f"horizon {horizon}: wanted at least 1 action per window")
        if history < 1:
            raise ValueError(f"history {history}: wanted at least 1 step of observation per window")
        self.optional_cameras, self.history = tuple(optional_cameras), history
        self._kept: OrderedDict[tuple[int, int], tuple[Observations, UnifiedMotion]] = OrderedDict()
        self._kept_bytes = 0
        self._interleave = Interleave([weight for _, weight in parts], seed)
        self._weights = list(episode_weights or [None] * len(self.datasets))
        self._orders = [
            DrawOrder(dataset.lengths, weights, (seed, number), open_blocks)
            for number, (dataset, weights) in enumerate(zip(self.datasets, self._weights, strict=True))
        ]
        self._open_blocks = open_blocks
        for dataset, order in zip(self.datasets, self._orders, strict=True):
            if not order.steps:
                raise ValueError(f"{dataset.name}: no steps to draw from; leave it out of the mixture")
        self._check_cameras()
        self._identities: list[bytes | None] = [None] * len(self.datasets)
        episode_facts.by_robot(self.datasets)
        robots = [dataset.embodiment for dataset in self.datasets]
        self.action_unifiers = [ActionUnifier(robot, layout) for robot in robots]
        self.proprio_unifiers = [
            ActionUnifier(robot, layout, kind="proprio") if proprio and robot.proprio else None
            for robot in robots
        ]
        self._motions = MotionStore(
            [dataset.lengths for dataset in self.datasets],
            list(zip(self.action_unifiers, self.proprio_unifiers, strict=True)),
        )

    @property
    def robots(self) -> list[str]:
        """Names of the embodiments, each once, in the order of the datasets."""
        return list(dict.fromkeys(dataset.embodiment.name for dataset in self.datasets))

    @property
    def steps(self) -> list[int]:
        """Number of steps of each dataset that can be drawn: its epoch."""
        return [order.steps for order in self._orders]

    def fingerprint(self) -> str:
        """16 hexadecimal digits; mixtures that draw the same samples have the same.

        It covers seed, shares and order, and of every dataset lasting name, lengths, episode weights and what
        a few of its episodes recorded: not where it lies or what its folder is called.
        """
        digest = hashlib.sha256(repr((self.seed, self._open_blocks)).encode())
        digest.update(self._interleave.counts.tobytes())
        for number, (dataset, weights) in enumerate(zip(self.datasets, self._weights, strict=True)):
            digest.update(f"\n{len(dataset)} ".encode() + self._identity(number))
            digest.update(np.asarray(dataset.lengths, "<i8").tobytes())
            digest.update(b"" if weights is None else np.asarray(weights, "<f8").tobytes())
        return digest.hexdigest()[:16]

    def _identity(self, number: int) -> bytes:
        """What tells a dataset from others of the same lengths; read once."""
        if self._identities[number] is None:
            dataset = self.datasets[number]
            probes = np.unique(np.linspace(0, len(dataset) - 1, PROBED_EPISODES).astype(int)).tolist()
            digest = hashlib.sha256(episode_facts.stable_name(dataset, 0).dataset.encode())
            for index in probes:
                digest.update(hashlib.sha256(episode_facts.recorded_motion(dataset, index)).digest())
            self._identities[number] = digest.digest()
        return self._identities[number] or b""

    def sample(self, n: int) -> Sample:
        """Where sample number `n` lies."""
        dataset, occurrence = self._interleave.turn(n)
        return Sample(dataset, *self._orders[dataset].at(occurrence))

    def window(self, n: int) -> Window:
        """The window of sample number `n`; `ids` also holds "sample": n, and `drawn` is `sample(n)`."""
        return self._begin(n).decode().finish()

    def windows(self, numbers: Iterable[int]) -> list[Window]:
        """The windows of several samples: all are read, then all are decoded."""
        begun = [self._begin(n) for n in numbers]
        for window in begun:
            window.decode()
        return [window.finish() for window in begun]

    def stacked(self, numbers: Sequence[int]) -> dict[str, Any]:
        """What `stack_windows(windows(numbers))` is, where it is simple without a window for each sample."""
        if self.history > 1 or self.optional_cameras:
            return stack_windows(self.windows(numbers))
        drawn = [
            (dataset, step, *self._episode(dataset, i)) for dataset, i, step in map(self.sample, numbers)
        ]
        if any(episode.extra_keys for _, _, episode, _ in drawn):
            return stack_windows(self.windows(numbers))
        action = np.zeros((len(numbers), self.horizon, NUM_SLOTS), np.float32)
        action_mask = np.zeros(action.shape, bool)
        proprio = np.zeros((len(numbers), NUM_SLOTS), np.float32)
        proprio_mask = np.zeros(proprio.shape, bool)
        pending: dict[str, list[PendingImage]] = {camera: [] for camera in self.cameras}
        for row, (_, step, episode, motion) in enumerate(drawn):
            for camera, images in pending.items():
                images.append(episode.pending_image(step, camera))
            chunk = motion.action[step : step + self.horizon]
            action[row, : len(chunk)], action_mask[row, : len(chunk)] = chunk, motion.action_mask
            if motion.proprio is not None:
                proprio[row] = motion.proprio[step]
            proprio_mask[row] = motion.proprio_mask
        frames = {camera: [image() for image in images] for camera, images in pending.items()}
        return {
            "images": {camera: stack_images(images) for camera, images in frames.items()},
            "image_mask": {camera: torch.ones(len(numbers), dtype=torch.bool) for camera in frames},
            "action": torch.from_numpy(action),
            "action_mask": torch.from_numpy(action_mask),
            "proprio": torch.from_numpy(proprio),
            "proprio_mask": torch.from_numpy(proprio_mask),
            "instruction": [episode.instruction_at(step) for _, step, episode, _ in drawn],
            "robot": [self.action_unifiers[dataset].embodiment.name for dataset, *_ in drawn],
            "extra": {},
            "sample": torch.tensor(numbers),
        }

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Say which samples come next: images of them that are remote are fetched in the background."""
        fetch = [find_prefetcher(dataset) for dataset in self.datasets]
        if not any(fetch):
            return
        for number, index, step in map(self.sample, numbers):
            ask = fetch[number]
            if ask is None:
                continue
            for seen in range(max(0, step - self.history + 1), step + 1):
                for camera in (*self.cameras, *self.optional_cameras):
                    ask(index, seen, camera)

    def _begin(self, n: int) -> PendingWindow:
        drawn = self.sample(n)
        number, index, step = drawn
        episode, motion = self._episode(number, index)
        begun = begin_window(
            episode,
            step,
            self.horizon,
            self.action_unifiers[number],
            self.proprio_unifiers[number],
            self.cameras,
            self.datasets[number].name,
            motion,
            self.optional_cameras,
            self.history,
        )
        begun.cut["ids"]["sample"], begun.cut["drawn"] = n, drawn
        return begun

    def without_images(self) -> Mixture:
        """The same samples, their windows without images: nothing is decoded."""
        blind = copy.copy(self)
        blind.cameras = blind.optional_cameras = ()
        return blind

    def _check_cameras(self) -> None:
        """By the first episode of every dataset, so that a run does not stop in its middle."""
        present = [episode_facts.observations(dataset, 0).cameras for dataset in self.datasets]
        for dataset, names in zip(self.datasets, present, strict=True):
            absent_cameras(names, self.cameras, self.optional_cameras, dataset.embodiment, dataset.name)
        there = sorted({name for names in present for name in names})
        for camera in self.optional_cameras:
            if camera not in there:
                near = did_you_mean(camera, there)
                raise ValueError(f"no dataset has the optional camera '{camera}'; {near}")

    def _episode(self, number: int, index: int) -> tuple[Observations, UnifiedMotion]:
        """An episode with its unified motion, kept while there is room (least recently used goes first)."""
        found = self._kept.get((number, index))
        if found is not None:
            self._kept.move_to_end((number, index))
            return found
        motion = self._motions.get(number, index)
        if motion is None:
            episode, motion = self._convert(number, index)
        else:
            episode = episode_facts.observations(self.datasets[number], index)
        self._kept[number, index] = episode, motion
        self._kept_bytes += EPISODE_BYTES + motion.nbytes
        while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
            _, (_, oldest) = self._kept.popitem(last=False)
            self._kept_bytes -= EPISODE_BYTES + oldest.nbytes
        return episode, motion

    def _convert(self, number: int, index: int) -> tuple[Observations, UnifiedMotion]:
        dataset = self.datasets[number]
        episode = dataset[index]
        try:
            motion = unify_motion(episode, self.action_unifiers[number], self.proprio_unifiers[number])
        except ValueError as error:
            raise ValueError(f"{dataset.name}: episode {episode.episode_id}: {error}") from None
        self._motions.put(number, index, motion)
        return episode, motion

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": OrderedDict(), "_kept_bytes": 0}
