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
