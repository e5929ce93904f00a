"""Finding the folder of a dataset below the one named."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from vla_adapt.episodes.rlds.version_folder import find_remote_version_folder, find_version_folder


def make(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "features.json").write_text("{}")


def found(path: Path) -> tuple[Path, Path]:
    remote = find_remote_version_folder(fsspec.filesystem("file"), str(path), f"file://{path}")
    return find_version_folder(path), Path(remote)


@pytest.mark.parametrize("place", ["1.0.0", "viola/1.0.0", "viola/half/1.0.0"])
def test_the_only_one_is_found_from_above(tmp_path: Path, place: str) -> None:
    wanted = tmp_path / "data" / place
    make(wanted, tmp_path / "data" / ".incomplete" / "2.0.0" if "/" in place else tmp_path / "other")
    (tmp_path / "data" / ".incomplete").mkdir(exist_ok=True)
    assert find_version_folder(wanted) == wanted
    assert find_version_folder(wanted.parent) == wanted
    assert find_remote_version_folder(fsspec.filesystem("file"), str(wanted), "x") == str(wanted)


def test_several_versions_are_not_guessed(tmp_path: Path) -> None:
    make(tmp_path / "viola" / "0.1.0", tmp_path / "viola" / "0.2.0")
    for path in (tmp_path / "viola", tmp_path):
        with pytest.raises(ValueError, match=r"holds several versions; name one of .*0\.1\.0, .*0\.2\.0"):
            found(path)
    with pytest.raises(ValueError, match=r"file://.*: holds several versions"):
        find_remote_version_folder(fsspec.filesystem("file"), str(tmp_path), f"file://{tmp_path}")


def test_several_datasets_are_listed(tmp_path: Path) -> None:
    make(tmp_path / "viola" / "0.1.0", tmp_path / "kuka" / "0.1.0")
    with pytest.raises(ValueError, match=r"several datasets; name one of .*kuka/0\.1\.0, .*viola/0\.1\.0"):
        find_version_folder(tmp_path)


def test_one_dataset_is_found_both_ways(tmp_path: Path) -> None:
    make(tmp_path / "viola" / "0.1.0")
    assert found(tmp_path) == (tmp_path / "viola" / "0.1.0",) * 2


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "bridge_dataset").mkdir()
    with pytest.raises(ValueError, match=r"no such dataset folder; did you mean 'bridge_dataset'\?"):
        find_version_folder(tmp_path / "bridge_datset")
    for find in (find_version_folder, lambda path: found(path)[1]):
        with pytest.raises(ValueError, match=r"no features\.json here or below"):
            find(tmp_path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("hello")
    with pytest.raises(ValueError, match=r"README\.md is a file of no known format; wanted a dataset folder"):
        find_version_folder(tmp_path / "README.md")


def test_other_formats_are_named_where_only_rlds_is_read(tmp_path: Path) -> None:
    files = fsspec.filesystem("file")
    (tmp_path / "lr" / "meta").mkdir(parents=True)
    (tmp_path / "lr" / "meta" / "info.json").write_text("{}")
    (tmp_path / "mimic").mkdir()
    (tmp_path / "mimic" / "demo.HDF5").touch()
    for path, what in (("lr", "a LeRobot dataset"), ("mimic", "HDF5 data"), ("mimic/demo.HDF5", "HDF5 data")):
        with pytest.raises(ValueError, match=f"s3://x is {what}: of remote datasets only RLDS is read; copy"):
            find_remote_version_folder(files, str(tmp_path / path), "s3://x")
