"""A folder appears whole, or the older one stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_adapt.adaptation.folder import atomic_folder


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
