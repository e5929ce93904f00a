"""Windows of any robots, or live observations, to one batch of tensors for the policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from vla_adapt.actions.normalize import Normalizer
from vla_adapt.policy.preprocess import ImagePreprocessor, PixelChange
from vla_adapt.policy.prompt import PromptTokenizer
from vla_adapt.suggest import did_you_mean

# (sample numbers, the camera, their images [B, 3, size, size] in [0, 1]) -> changed images
Augment = Callable[[Sequence[int], str, torch.Tensor], torch.Tensor]
# (dataset, episode, step) numbers of samples -> what a frozen backbone saw in them [B, N, D]
Summaries = Callable[[Sequence[tuple[int, int, int]]], torch.Tensor]


@dataclass
class PolicyBatch:
    """What heads read. Actions and proprio are normalized to [-1, 1]; masked entries are zero.

    `slot_mask` says which slots the row's robot has; `action_mask` also leaves out steps past the episode.
    Rows of one robot are neighbors. With several cameras their six channels follow each other in
    `pixel_values`, and `camera_mask` says which images are really there (None: all of them). A batch with a
    `summary` (what a frozen backbone saw, see `policy.summary_head`) holds neither pixels nor text.
    """

    input_ids: Int[torch.Tensor, "B T"]
    attention_mask: Bool[torch.Tensor, "B T"]
    pixel_values: Float[torch.Tensor, "B channels h w"]
    proprio: Float[torch.Tensor, "B 32"]
    proprio_mask: Bool[torch.Tensor, "B 32"]
    slot_mask: Bool[torch.Tensor, "B 32"]
    action: Float[torch.Tensor, "B H 32"] | None = None
    action_mask: Bool[torch.Tensor, "B H 32"] | None = None
    camera_mask: Bool[torch.Tensor, "B C"] | None = None
    summary: Float[torch.Tensor, "B N D"] | None = None
    extra: dict[str, torch.Tensor] = field(default_factory=dict)
    robots: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.input_ids)

    def _map(self, change: Any, robots: list[str]) -> PolicyBatch:
        tensors = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **tensors, extra={k: change(v) for k, v in self.extra.items()}, robots=robots)

    def to(self, device: torch.device | str) -> PolicyBatch:
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True), self.robots)

    def pin_memory(self) -> PolicyBatch:
        """The same batch in page-locked memory (`DataLoader(pin_memory=True)` calls this)."""
        return self._map(lambda tensor: tensor.pin_memory(), self.robots)

    def segments(self) -> list[tuple[str, slice]]:
        """Each robot's rows, in order.

        Raises:
            ValueError: rows of one robot are not neighbors.
        """
        found: list[tuple[str, slice]] = []
        start = 0
        for robot, group in groupby(self.robots):
            stop = start + len(list(group))
            found.append((robot, slice(start, stop)))
            start = stop
        if len({robot for robot, _ in found}) < len(found):
            raise ValueError(f"rows of one robot must be neighbors in a batch, got {', '.join(self.robots)}")
        return found

    def rows(self, part: slice) -> PolicyBatch:
        """Some neighboring rows, as views; text is not trimmed."""
        return self._map(lambda tensor: tensor[part], self.robots[part])

    def select(self, rows: Sequence[int] | torch.Tensor) -> PolicyBatch:
        """Some rows, in the given order (indices, or a bool mask); text is not trimmed."""
        index = torch.as_tensor(rows, device=self.input_ids.device)
        index = index.nonzero()[:, 0] if index.dtype == torch.bool else index.long()
        return self._map(lambda tensor: tensor[index], [self.robots[row] for row in index.tolist()])


class BatchBuilder:
    """Normalizes, preprocesses and collates; pass its bound `windows` as a data loader's `collate`.

    Args:
        preprocessor: of the base checkpoint.
        tokenizer: of the base checkpoint.
        normalizers: robot -> (action normalizer, proprio normalizer or None when there is no proprio).
        blind: zero all pixel values, the control that shows whether vision is used.
        image_key: which camera the policy sees.
        more_cameras: others that it sees too, where there are images of them.
        view: done to every image, e.g. `randomization.visual.CenterCrop`.
        augment: done in its place to the images of windows, by their sample numbers, e.g.
            `randomization.visual.Augmentation`; for training only.

    Attributes:
        summaries: where set, read for windows in place of images and text.
    """

    def __init__(
        self,
        preprocessor: ImagePreprocessor,
        tokenizer: PromptTokenizer,
        normalizers: Mapping[str, tuple[Normalizer, Normalizer | None]],
        blind: bool = False,
        image_key: str = "primary",
        view: PixelChange | None = None,
        augment: Augment | None = None,
        more_cameras: Sequence[str] = (),
    ):
        self.preprocessor = preprocessor
        self.tokenizer = tokenizer
        self.normalizers = dict(normalizers)
        self.blind = blind
        self.image_key = image_key
        self.view = view
        self.augment = augment
        self.more_cameras = tuple(more_cameras)
        self.summaries: Summaries | None = None

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        normalizers: Mapping[str, tuple[Normalizer, Normalizer | None]],
        blind: bool = False,
        image_key: str = "primary",
        view: PixelChange | None = None,
        augment: Augment | None = None,
        more_cameras: Sequence[str] = (),
    ) -> BatchBuilder:
        """Take image and text processing from a base checkpoint folder."""
        preprocessor = ImagePreprocessor.from_pretrained(directory)
        tokenizer = PromptTokenizer.from_pretrained(directory)
        return cls(preprocessor, tokenizer, normalizers, blind, image_key, view, augment, more_cameras)

    def windows(self, windows: Sequence[Mapping[str, Any]]) -> PolicyBatch:
        """Windows in unified SI units (see `episodes.windows.window`) to a training batch.

        `extra` holds what all windows have, as float32 for floating numbers. No policy reads history yet.

        Raises:
            ValueError: the camera is missing or masked, windows with history, a robot without statistics.
        """
        batch = self._states(
            [window["robot"] for window in windows],
            [window.get("proprio") for window in windows],
            [window.get("proprio_mask") for window in windows],
        )
        if self.summaries is not None:
            batch.summary = self.summaries([window["drawn"] for window in windows])
            batch.camera_mask = self._summarized_cameras(batch.summary)
        else:
            samples = [] if self.augment is None else [window["ids"]["sample"] for window in windows]
            texts = [window["instruction"] for window in windows]
            self._show(batch, [self._seen(window) for window in windows], texts, samples)
        values = np.stack([window["action"] for window in windows])
        masks = np.stack([window["action_mask"] for window in windows])
        for robot, rows in _rows_by_robot(batch.robots):
            values[rows], masks[rows] = _normalized(self._normalizer(robot)[0], values[rows], masks[rows])
        batch.action, batch.action_mask = torch.from_numpy(values), torch.from_numpy(masks)
        batch.extra = _collate_extra([window.get("extra") or {} for window in windows])
        return batch

    def observations(
        self,
        observations: Sequence[Mapping[str, Any]],
        robots: Sequence[str],
        proprio: Float[np.ndarray, "B 32"] | None = None,
        proprio_mask: Bool[np.ndarray, "B 32"] | None = None,
    ) -> PolicyBatch:
        """Live observations `{"images": {camera: uint8}, "prompt": str}` to a batch without actions.

        Args:
            observations: one per row; their native `state` is not read here.
            robots: robot of each row.
            proprio: unified SI values of each row's state.
            proprio_mask: slots of each row's state.
        """
        for observation in observations:
            missing = [key for key in ("images", "prompt") if key not in observation]
            if missing:
                got = ", ".join(sorted(observation)) or "nothing"
                raise ValueError(f"observation lacks {missing[0]!r}; wanted images and prompt, got {got}")
        none = [None] * len(observations)
        batch = self._states(
            list(robots),
            none if proprio is None else list(proprio),
            none if proprio_mask is None else list(proprio_mask),
        )
        images = [observation["images"] for observation in observations]
        self._show(batch, images, [observation["prompt"] for observation in observations])
        return batch

    def observation(
        self,
        observation: Mapping[str, Any],
        robot: str,
        proprio: Float[np.ndarray, " 32"] | None = None,
        proprio_mask: Bool[np.ndarray, " 32"] | None = None,
    ) -> PolicyBatch:
        """One live observation as a batch of one."""
        rows = None if proprio is None else np.asarray(proprio)[None]
        masks = None if proprio_mask is None else np.asarray(proprio_mask)[None]
        return self.observations([observation], [robot], rows, masks)

    def _normalizer(self, robot: str) -> tuple[Normalizer, Normalizer | None]:
        if robot not in self.normalizers:
            raise ValueError(f"no statistics for robot {robot!r}; {did_you_mean(robot, self.normalizers)}")
        return self.normalizers[robot]

    def _show(
        self,
        batch: PolicyBatch,
        images: list[Mapping[str, np.ndarray]],
        instructions: list[str],
        samples: Sequence[int] = (),
    ) -> None:
        """Give a batch its images and texts; `samples`: numbers of the rows, to augment them."""
        batch.pixel_values, batch.camera_mask = self._pixels(images, samples)
        batch.input_ids, batch.attention_mask = self.tokenizer(instructions)

    def _states(
        self,
        robots: list[str],
        proprio: Sequence[np.ndarray | None],
        proprio_mask: Sequence[np.ndarray | None],
    ) -> PolicyBatch:
        """A batch without images and text."""
        values = np.zeros((len(robots), 32))
        masks = np.zeros((len(robots), 32), dtype=bool)
        slots = np.stack([np.asarray(self._normalizer(robot)[0].mask, dtype=bool) for robot in robots])
        for row, (state, given) in enumerate(zip(proprio, proprio_mask, strict=True)):
            if state is not None:
                values[row], masks[row] = state, True if given is None else given
        for robot, rows in _rows_by_robot(robots):
            normalizer = self._normalizer(robot)[1]
            if normalizer is None:
                values[rows], masks[rows] = 0.0, False
            else:
                values[rows], masks[rows] = _normalized(normalizer, values[rows], masks[rows])
        return PolicyBatch(
            input_ids=torch.zeros(len(robots), 0, dtype=torch.long),
            attention_mask=torch.zeros(len(robots), 0, dtype=torch.bool),
            pixel_values=torch.zeros(len(robots), 0, 0, 0),
            proprio=torch.from_numpy(values.astype(np.float32)),
            proprio_mask=torch.from_numpy(masks),
            slot_mask=torch.from_numpy(slots),
            robots=robots,
        )

    def _pixels(
        self, images: list[Mapping[str, np.ndarray]], samples: Sequence[int]
    ) -> tuple[Float[torch.Tensor, "B channels h w"], Bool[torch.Tensor, "B C"] | None]:
        """Channels of all cameras, and which images are there (None: one camera)."""
        planes = [
            self.preprocessor([self._image(row) for row in images], self._change(self.image_key, samples))
        ]
        there = np.ones((len(images), 1 + len(self.more_cameras)), dtype=bool)
        for place, camera in enumerate(self.more_cameras, start=1):
            there[:, place] = [camera in row for row in images]
            frames = [row.get(camera, np.zeros_like(row[self.image_key])) for row in images]
            planes.append(self.preprocessor(frames, self._change(camera, samples)))
        pixels = torch.cat(planes, dim=1) if self.more_cameras else planes[0]
        if self.blind:
            pixels.zero_()
        return pixels, torch.from_numpy(there) if self.more_cameras else None

    def _change(self, camera: str, samples: Sequence[int]) -> PixelChange | None:
        """What is done to the images of a camera: training's augmentation, else the view."""
        if self.augment is None or not samples:
            return self.view
        return partial(self.augment, samples, camera)

    def _seen(self, window: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
        """The images of a window that are there; a masked one would train the policy on blackness."""
        if "history_mask" in window:
            frames = len(window["history_mask"])
            raise ValueError(
                f"a window holds {frames} steps of history, the policy reads one: draw history=1"
            )
        if not window.get("image_mask", {}).get(self.image_key, True):
            raise ValueError(
                f"{_place(window)}: no image of camera {self.image_key!r}, which the policy reads; "
                "do not make it an optional camera of the mixture"
            )
        there = window.get("image_mask", {})
        return {camera: image for camera, image in window["images"].items() if there.get(camera, True)}

    def _summarized_cameras(self, summary: Float[torch.Tensor, "B N D"]) -> Bool[torch.Tensor, "B C"] | None:
        """Which images are there (None: one camera): the cells of a camera that is not are exactly zero."""
        cells = summary[:, :-1].unflatten(1, (1 + len(self.more_cameras), -1))
        return cells.flatten(2).any(dim=2) if self.more_cameras else None

    def _image(self, cameras: Mapping[str, np.ndarray]) -> np.ndarray:
        if self.image_key not in cameras:
            present = ", ".join(sorted(cameras)) or "none"
            raise ValueError(f"observation lacks camera {self.image_key!r}; cameras there: {present}")
        return cameras[self.image_key]


def _rows_by_robot(robots: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Each robot with its rows."""
    return [
        (robot, [row for row, each in enumerate(robots) if each == robot]) for robot in dict.fromkeys(robots)
    ]


def _normalized(
    normalizer: Normalizer, values: Float[np.ndarray, "N *steps 32"], masks: Bool[np.ndarray, "N *steps 32"]
) -> tuple[np.ndarray, np.ndarray]:
    """Values in [-1, 1], zero where they do not count, and which do: masked ones and other slots do not."""
    masks = masks & np.asarray(normalizer.mask, dtype=bool)
    values = normalizer.normalize(np.where(masks, values, 0.0))
    return np.where(masks, values, 0.0), masks


def _place(window: Mapping[str, Any]) -> str:
    """Where a window is from, for errors."""
    ids = window.get("ids", {})
    return f"{ids.get('dataset', 'dataset')}: episode {ids.get('episode')} step {ids.get('step')}"


def _collate_extra(extras: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    keys = set(extras[0]).intersection(*extras) if extras else set()
    collated = {}
    for key in sorted(keys):
        arrays = [np.asarray(extra[key]) for extra in extras]
        if arrays[0].dtype.kind not in "fiub" or any(array.shape != arrays[0].shape for array in arrays):
            continue
        stacked = np.stack(arrays)
        collated[key] = torch.from_numpy(stacked.astype(np.float32) if stacked.dtype.kind == "f" else stacked)
    return collated
