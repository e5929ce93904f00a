"""Folders appear whole, replace an older one only then, and leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_adapt.episodes.storage.folder_aside import FolderAside


def test_published_dropped_and_replaced(tmp_path: Path) -> None:
    target = tmp_path / "data" / "new"
    for text in ("first", "second"):
        aside = FolderAside(target, overwrite=True)
        (aside.path / "file").write_text(text)
        aside.publish()
        aside.drop()
        assert (target / "file").read_text() == text
    aside = FolderAside(target, overwrite=True)
    (aside.path / "file").write_text("third")
    aside.drop()
    assert (target / "file").read_text() == "second"
    assert list(target.parent.iterdir()) == [target]
    with pytest.raises(ValueError, match="new exists; choose another folder, or remove it"):
        FolderAside(target)


def test_what_is_there_survives_when_the_new_folder_cannot_take_its_place(tmp_path: Path) -> None:
    target = tmp_path / "data"
    meanwhile = FolderAside(target)
    target.mkdir()
    (target / "file").write_text("of another process")
    with pytest.raises(OSError):
        meanwhile.publish()
    meanwhile.drop()
    assert (target / "file").read_text() == "of another process"
    lost = FolderAside(target, overwrite=True)
    lost.path.rmdir()
    with pytest.raises(OSError):
        lost.publish()
    lost.drop()
    assert (target / "file").read_text() == "of another process"
    assert list(tmp_path.iterdir()) == [target]
