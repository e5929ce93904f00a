"""A folder appears whole, or the older one stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import SafetensorError

from vla_adapt.adaptation.folder import atomic_folder, claim_folder, told_disk_errors


def test_replaces_whole(tmp_path: Path):
    target = tmp_path / "bundle"
    for text in ("one", "two"):
        with atomic_folder(target) as aside:
            (aside / "file").write_text(text)
    assert (target / "file").read_text() == "two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


def test_failure_leaves_the_older_one(tmp_path: Path):
    target = tmp_path / "bundle"
    with atomic_folder(target) as aside:
        (aside / "file").write_text("one")
    with pytest.raises(OSError, match="disk full"), atomic_folder(target) as aside:  # noqa: PT012
        (aside / "file").write_text("tw")
        raise OSError("disk full")
    assert (target / "file").read_text() == "one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


def test_files_are_as_readable_as_the_folder(tmp_path: Path):
    with atomic_folder(tmp_path / "bundle") as aside:
        (aside / "private").write_text("weights")
        (aside / "private").chmod(0o600)
    folder = (tmp_path / "bundle").stat().st_mode
    assert (tmp_path / "bundle" / "private").stat().st_mode & 0o777 == folder & 0o666


def test_a_folder_is_replaced_only_when_asked_and_of_the_same_kind(tmp_path: Path):
    target = tmp_path / "t"
    claim_folder(target, "bundle.json", overwrite=False)
    target.mkdir()
    claim_folder(target, "bundle.json", overwrite=True)  # empty: nothing to lose
    with pytest.raises(ValueError, match="exists; choose another folder, or pass --overwrite"):
        claim_folder(target, "bundle.json", overwrite=False)
    (target / "diary").write_text("mine")
    with pytest.raises(ValueError, match=r"holds no bundle\.json, so it is not replaced"):
        claim_folder(target, "bundle.json", overwrite=True)
    with pytest.raises(ValueError, match="so it is not replaced"):
        claim_folder(target / "diary", "bundle.json", overwrite=True)
    (target / "bundle.json").write_text("{}")
    claim_folder(target, "bundle.json", overwrite=True)


@pytest.mark.parametrize("error", [OSError(28, "No space left"), SafetensorError("I/O error: full")])
def test_disk_errors_become_one_line(error: Exception):
    words = r"cannot write out: .*(No space|full).*nothing was left behind"
    with pytest.raises(ValueError, match=words), told_disk_errors("out"):
        raise error
