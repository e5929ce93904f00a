"""Open a stored dataset of any format: find its folder, its entry, its embodiment, and index it.

Readers of HDF5 and LeRobot are imported when such a dataset is met: their libraries are heavy (h5py 10 MB,
pyarrow 26 MB, PyAV 16 MB of memory), and processes that read RLDS, one per worker, do without.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.mapping.entry import SIDECAR, DatasetEntry, read_sidecar
from vla_adapt.episodes.mapping.mapped import MappedDataset
from vla_adapt.episodes.mapping.stable_name import recorded_name
from vla_adapt.episodes.oxe import CATALOGUE, find_entry
from vla_adapt.episodes.rlds.rlds_store import RldsStore
from vla_adapt.episodes.rlds.shards import RldsFolder
from vla_adapt.episodes.storage.byte_source import is_url
from vla_adapt.episodes.storage.damage import OnError
from vla_adapt.episodes.storage.feature_spec import STEPS
from vla_adapt.episodes.storage.format_marks import hdf5_files, is_lerobot
from vla_adapt.episodes.storage.stored import StoredEpisodes

# An entry, and the embodiment stored beside the data, if any.
Found = tuple[DatasetEntry, Embodiment | None]


def open_dataset(
    path: str | Path,
    embodiment: str | Path | Embodiment | None = None,
    split: str = "train",
    entry: DatasetEntry | str | Path | None = None,
    cache_dir: str | Path | None = None,
    verify_crc: bool = True,
    check: bool = True,
    on_error: OnError = "error",
    verify_images: bool = False,
    image_scale: int | None = None,
    stand_in_cameras: Mapping[str, str] | None = None,
) -> MappedDataset:
    """Open one split of a stored dataset: RLDS (features.json), LeRobot (meta/info.json) or HDF5.

    Args:
        path: RLDS: the version folder (holding features.json), its parent, or a data folder with one
            dataset, also as a URL of any fsspec filesystem ("gs://bucket/dataset"), read by ranges and not
            copied. LeRobot: the folder holding meta/. HDF5: a file, or a folder of them.
        embodiment: the robot, if not the one the entry names.
        split: which split.
        entry: how fields map onto the robot: an entry, a name of `oxe.CATALOGUE`, or a YAML file of one.
            Default: the folder's own `vla_adapt.json`, else the catalogue's entry of the dataset's name, else
            (LeRobot with an `embodiment`) LeRobot's usual field names.
        cache_dir: where to keep the step index; default beside the dataset, else the user's cache.
        verify_crc: check record CRCs when the index is built (RLDS).
        check: refuse NaN in actions and states at once.
        on_error: "error": refuse damaged data; "skip": leave damaged episodes out, say so in one warning and
            list them in `.skipped`: broken records (RLDS), files (LeRobot), files and episodes (HDF5) and,
            with `check`, NaN; an image that cannot be read is then replaced by its neighbor in time, see
            `MappedDataset`.
        verify_images: check a CRC of every image when it is read (RLDS, and LeRobot's images but not videos,
            which reads them all once to note their CRCs). A warning says where it has no effect.
        image_scale: decode JPEGs at the smallest DCT scale that leaves both sides at least this many pixels:
            faster, but not TensorFlow's pixels, so never for evaluation. None: full size. A warning says
            where it has no effect: videos, raw pixels.
        stand_in_cameras: camera name -> another camera, whose images are given for it where the dataset lacks
            the first; see `DatasetEntry.stand_in_cameras` for what became of it.

    Raises:
        ValueError: anything missing, damaged or of the wrong shape; one line that names it.
    """
    given = find_entry(entry) if isinstance(entry, str | Path) else entry
    local, name = None if is_url(path) else Path(path), ""
    if local is not None and hdf5_files(local):
        store, found = _open_hdf5(local, split, given, cache_dir, on_error, verify_images, image_scale)
    elif local is not None and is_lerobot(local):
        told = embodiment.name if isinstance(embodiment, Embodiment) else embodiment
        store, found = _open_lerobot(
            local, told, split, given, cache_dir, on_error, verify_images, image_scale
        )
    else:
        rlds = RldsFolder.open(path, cache_dir)
        known = _own_entry(rlds.path, rlds.name, given)
        if known is None:  # before the index is built: without an entry nothing can be done with it
            raise _no_entry(rlds.origin, rlds.name, (f.removeprefix(STEPS) for f in rlds.leaves))
        store = RldsStore.open(rlds, split, cache_dir, verify_crc, on_error, verify_images, image_scale)
        found, name = known, rlds.name
    own_entry, recorded = found
    own_entry = own_entry.with_stand_ins(stand_in_cameras or {})
    stated = recorded_name(store.path if store.path.is_dir() else store.path.parent)
    robot = _robot(own_entry, embodiment, recorded)
    return MappedDataset(store, own_entry, robot, check, on_error, name if stated is None else stated)


def split_episodes(
    path: str | Path, entry: DatasetEntry | str | Path | None = None
) -> tuple[dict[str, Int64[np.ndarray, " _"]], int]:
    """The splits of a stored dataset of any format that hold episodes.

    Args:
        path, entry: as of `open_dataset`.

    Returns:
        Every split -> its episodes' numbers among all recorded ones, and how many those are. Splits may
        overlap (HDF5's "all" holds every episode), and episodes lie in none.

    Raises:
        ValueError: as `open_dataset`.
    """
    given = find_entry(entry) if isinstance(entry, str | Path) else entry
    local = None if is_url(path) else Path(path)
    found: Mapping[str, Sequence[int] | np.ndarray]
    if local is not None and hdf5_files(local):
        from vla_adapt.episodes.hdf5.hdf5_store import Hdf5Store

        store = Hdf5Store(local, "all", _hdf5_entry(local, given)[0].stored_fields)
        found, total = store.splits, len(store.lengths)
    elif local is not None and is_lerobot(local):
        from vla_adapt.episodes.lerobot.lerobot_store import LeRobotFolder

        folder = LeRobotFolder.read(local)
        found, total = folder.splits, len(folder.lengths)
    else:
        shards = RldsFolder.open(path).splits
        counts = {name: sum(count for _, count in files) for name, files in shards.items()}
        ends = dict(zip(counts, itertools.accumulate(counts.values()), strict=True))
        found, total = (
            {name: range(ends[name] - counts[name], ends[name]) for name in ends},
            sum(counts.values()),
        )
    return {name: np.array(numbers, np.int64) for name, numbers in found.items() if len(numbers)}, total


def _hdf5_entry(path: Path, given: DatasetEntry | None) -> Found:
    from vla_adapt.episodes.hdf5.hdf5_store import Hdf5Store

    found = _own_entry(path if path.is_dir() else path.parent, path.stem, given)
    if found is None:
        raise _no_entry(str(path), path.stem, Hdf5Store.names(path))
    return Hdf5Store.with_episode_names(found[0]), found[1]


def _open_hdf5(
    path: Path,
    split: str,
    given: DatasetEntry | None,
    cache_dir: str | Path | None,
    on_error: OnError,
    verify_images: bool,
    image_scale: int | None,
) -> tuple[StoredEpisodes, Found]:
    from vla_adapt.episodes.hdf5.hdf5_store import Hdf5Store

    entry, recorded = _hdf5_entry(path, given)
    store = Hdf5Store(path, split, entry.stored_fields, cache_dir, on_error, image_scale)
    _warn_idle(store, entry, verify_images, image_scale)
    return store, (entry, recorded)


def _open_lerobot(
    path: Path,
    robot: str | Path | None,
    split: str,
    given: DatasetEntry | None,
    cache_dir: str | Path | None,
    on_error: OnError,
    verify_images: bool,
    image_scale: int | None,
) -> tuple[StoredEpisodes, Found]:
    from vla_adapt.episodes.lerobot.lerobot_store import LEROBOT_REMEDY, conventional_entry, open_lerobot

    found = _own_entry(path, "", given)
    if found is None and robot is None:
        raise ValueError(f"{path}: LeRobot dataset without {SIDECAR}; {LEROBOT_REMEDY}")
    store = open_lerobot(path, split, cache_dir, on_error, verify_images, image_scale)
    return store, found or (conventional_entry(store, str(robot)), None)


def _warn_idle(
    store: StoredEpisodes, entry: DatasetEntry, verify_images: bool, image_scale: int | None
) -> None:
    """Say which options have no effect on an HDF5 dataset."""
    if verify_images:
        warnings.warn(
            f"{store.path}: verify_images has no effect on HDF5, whose checksums (fletcher32) are its own",
            stacklevel=3,
        )
    cameras = {field: store.fields.get(field) for field in entry.cameras.values()}
    raw = [field for field, leaf in cameras.items() if leaf is not None and not leaf.encoding]
    if image_scale is not None and raw:
        told = f"image_scale has no effect on raw pixels ({', '.join(raw)})"
        warnings.warn(f"{store.path}: {told}", stacklevel=3)


def _own_entry(folder: Path, name: str, given: DatasetEntry | None) -> Found | None:
    """The entry to use, and the embodiment stored beside the data when the entry is the data's own."""
    if given is not None:
        return given, None
    sidecar = read_sidecar(folder)
    if sidecar is not None:
        where = f"{folder / SIDECAR}: embodiment"
        return sidecar.entry, Embodiment.from_text(sidecar.embodiment_yaml, where=where)
    return (CATALOGUE[name], None) if name in CATALOGUE else None


def _robot(
    entry: DatasetEntry, wanted: str | Path | Embodiment | None, recorded: Embodiment | None
) -> Embodiment:
    """The caller's robot, else the one stored beside the data, else the one the entry names."""
    if isinstance(wanted, Embodiment):
        return wanted
    if wanted is not None:
        return Embodiment.load(wanted)
    robot = recorded or Embodiment.load(entry.embodiment)
    return robot if entry.robot is None else robot.model_copy(update={"name": entry.robot})


def _no_entry(path: str, name: str, fields: Iterable[str]) -> ValueError:
    return ValueError(
        f"{path}: dataset '{name}' has no {SIDECAR} and is not in the catalogue; pass "
        f"entry=DatasetEntry(embodiment=..., cameras=..., action=..., state=..., instruction=...) or a YAML "
        f"file of these keys, naming its fields: {', '.join(sorted(fields))}"
    )
