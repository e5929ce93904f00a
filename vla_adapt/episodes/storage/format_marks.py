"""Which format a folder holds, told by its files alone: no library of any format is needed to ask."""

from __future__ import annotations

import re
from pathlib import Path

LEROBOT_INFO = Path("meta") / "info.json"
HDF5_ENDINGS = (".hdf5", ".h5")


def is_lerobot(path: Path) -> bool:
    """Whether `path` is the folder of a LeRobot dataset."""
    return (path / LEROBOT_INFO).is_file()


def hdf5_files(path: Path) -> list[Path]:
    """The file itself, or the HDF5 files of a folder in natural order; [] when there are none."""
    if path.is_dir():
        files = [file for file in path.iterdir() if _is_hdf5(file) and not file.name.startswith(".")]
        return sorted(files, key=lambda file: natural_key(file.name))
    return [path] if _is_hdf5(path) else []


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sorting key that puts demo_2 before demo_10."""
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name))


def _is_hdf5(file: Path) -> bool:
    return file.suffix.lower() in HDF5_ENDINGS and file.is_file()
