"""Write recordings as a LeRobot v3.0 dataset that `lerobot` itself opens."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.lerobot.lerobot_features import CAMERA, TASK
from vla_adapt.episodes.lerobot.lerobot_writer import ImageStorage, LeRobotEpisode, LeRobotWriter
from vla_adapt.episodes.mapping.entry import DatasetEntry
from vla_adapt.episodes.source import EpisodeData


def write_lerobot(
    folder: str | Path,
    embodiment: Embodiment,
    episodes: Iterable[EpisodeData],
    fps: float | int | None = None,
    images: ImageStorage = "video",
    overwrite: bool = False,
) -> int:
    """Write recordings as a LeRobot v3.0 dataset that `open_dataset(folder)` and `lerobot` open.

    Args:
        folder: where; it appears when all episodes are written, and not at all after an error.
        embodiment: the robot; actions and states are checked against it.
        episodes: taken one at a time.
        fps: default the embodiment's control rate.
        images: "video" is lossy (AV1, 4:2:0 color); "image" keeps JPEG and PNG bytes, and arrays exactly.
        overwrite: replace an existing dataset.

    Returns:
        Number of episodes written.

    Raises:
        ValueError: the folder exists, an action or state that does not fit the embodiment, episodes that
            differ in their fields or shapes.
    """
    iterator = iter(episodes)
    first = next(iterator, None)
    if first is None:
        raise ValueError(f"{folder}: no episode was given, nothing to write")
    entry = DatasetEntry(
        embodiment=embodiment.name,
        cameras={camera: f"{CAMERA}{camera}" for camera in first.images},
        action=("action",),
        state=() if first.state is None else ("observation.state",),
        instruction=TASK,
        rate_hz=None if fps in (None, embodiment.rate_hz) else fps,
        extra={key: f"observation.{key}" for key in first.extra},
    )
    rate_hz = fps or embodiment.rate_hz
    with LeRobotWriter(folder, embodiment, entry, rate_hz, images, overwrite=overwrite) as writer:
        writer.add(_as_lerobot(first, embodiment))
        for data in iterator:
            writer.add(_as_lerobot(data, embodiment))
    return writer.episodes


def _as_lerobot(data: EpisodeData, embodiment: Embodiment) -> LeRobotEpisode:
    embodiment.check_action(data.action)
    numbers = {"action": np.asarray(data.action, np.float32)}
    if data.state is not None:
        embodiment.check_proprio(data.state)
        numbers["observation.state"] = np.asarray(data.state, np.float32)
    for key, values in data.extra.items():
        name = f"observation.{key}"
        if name in numbers:
            raise ValueError(f"extra '{key}' has the name of the state; rename it")
        numbers[name] = np.asarray(values)
    return LeRobotEpisode(
        tasks=data.step_instructions,
        numbers=numbers,
        images={f"{CAMERA}{camera}": list(images) for camera, images in data.images.items()},
        facts=dict(data.metadata),
    )
