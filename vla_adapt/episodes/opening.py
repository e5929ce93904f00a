"""Open a stored dataset: find its folder, its entry, its embodiment, and index it."""

from __future__ import annotations

from pathlib import Path

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.entry import SIDECAR, DatasetEntry, read_sidecar
from vla_adapt.episodes.feature_spec import STEPS
from vla_adapt.episodes.index import open_index
from vla_adapt.episodes.mapped import MappedDataset
from vla_adapt.episodes.oxe import CATALOGUE
from vla_adapt.episodes.rlds import RldsStore
from vla_adapt.episodes.shards import RldsFolder, find_version_folder
from vla_adapt.suggest import did_you_mean


def open_dataset(
    path: str | Path,
    embodiment: str | Path | Embodiment | None = None,
    split: str = "train",
    entry: DatasetEntry | str | None = None,
    cache_dir: str | Path | None = None,
    verify_crc: bool = True,
    check: bool = True,
) -> MappedDataset:
    """Open one split of a stored dataset.

    Args:
        path: the version folder (holding features.json), its parent, or a data folder with one dataset.
        embodiment: the robot, if not the one the entry names.
        split: which split.
        entry: how fields map onto the robot: an entry, or a name of `oxe.CATALOGUE`. Default: the folder's
            own `vla_adapt.json`, else the catalogue's entry of the dataset's name.
        cache_dir: where to keep the step index; default beside the dataset, else the user's cache.
        verify_crc: check record CRCs when the index is built.
        check: refuse NaN in actions and states at once.

    Raises:
        ValueError: anything missing, damaged or of the wrong shape; one line that names it.
    """
    folder = RldsFolder.read(find_version_folder(Path(path)))
    entry, recorded = _find_entry(folder, entry)
    if isinstance(embodiment, Embodiment):
        robot = embodiment
    elif embodiment is not None or recorded is None:
        robot = Embodiment.load(embodiment if embodiment is not None else entry.embodiment)
    else:
        robot = recorded
    index = open_index(folder, split, cache_dir, verify_crc)
    return MappedDataset(RldsStore(folder, split, index), entry, robot, check)


def _find_entry(
    folder: RldsFolder, entry: DatasetEntry | str | None
) -> tuple[DatasetEntry, Embodiment | None]:
    """The entry, and the embodiment stored beside the data when the entry is the data's own."""
    if isinstance(entry, str):
        if entry not in CATALOGUE:
            raise ValueError(f"no catalogue entry '{entry}'; {did_you_mean(entry, CATALOGUE)}")
        return CATALOGUE[entry], None
    if entry is not None:
        return entry, None
    sidecar = read_sidecar(folder.path)
    if sidecar is not None:
        where = f"{folder.path / SIDECAR}: embodiment"
        return sidecar.entry, Embodiment.from_text(sidecar.embodiment_yaml, where=where)
    if folder.name in CATALOGUE:
        return CATALOGUE[folder.name], None
    fields = ", ".join(sorted(path.removeprefix(STEPS) for path in folder.leaves))
    raise ValueError(
        f"{folder.path}: dataset '{folder.name}' has no {SIDECAR} and is not in the catalogue; pass "
        f"entry=DatasetEntry(embodiment=..., cameras=..., action=..., state=..., instruction=...) naming its "
        f"fields: {fields}"
    )
