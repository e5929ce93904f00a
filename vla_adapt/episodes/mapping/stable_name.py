"""Names of datasets and episodes that copies, renamed folders and conversions keep, as held-out sets need."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from vla_adapt.episodes.mapping.entry import SIDECAR

_HDF5_FILE = re.compile(r"^[^/]*\.(hdf5|h5)/", re.IGNORECASE)


class StableName(NamedTuple):
    """Name of a dataset ("" when it has none but its folder's) and of an episode in it."""

    dataset: str
    episode: str


def stable_name(dataset: str, episode_id: str, recorded_steps: int) -> StableName:
    """The lasting name of an episode.

    In a dataset without a name (LeRobot and HDF5 as others write them) the episode's recorded length belongs
    to it, so that not all such datasets hold out the same numbers, and the name of an HDF5 file does not.

    Args:
        dataset: its own name, "" if it has none.
        episode_id: the episode's.
        recorded_steps: its length before transforms.
    """
    if dataset:
        return StableName(dataset, episode_id)
    return StableName("", f"{_HDF5_FILE.sub('', episode_id)} {recorded_steps}")


def recorded_name(folder: Path) -> str | None:
    """The dataset's name that its `vla_adapt.json` states; None: it states none, or there is no such file."""
    try:
        name = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) else None
