"""A folder appears whole, or the older one stays."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from safetensors import SafetensorError

from vla_adapt.adaptation.folder import atomic_folder, claim_folder, sweep, told_disk_errors


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


def write(target: Path, text: str) -> None:
    with atomic_folder(target) as aside:
        for name in ("first", "second"):
            (aside / name).write_text(text)


def texts(folder: Path) -> set[str]:
    """Of a folder that `write` made whole."""
    assert {file.name for file in folder.iterdir()} == {"first", "second"}
    return {file.read_text() for file in folder.iterdir()}


def test_a_kill_at_any_step_loses_nothing(
    tmp_path: Path, killed_at: Callable[[int, Callable[[], object]], bool]
):
    """Above all between the two renames, when the older folder is the only copy and lies to one side."""
    seen: list[set[str]] = []
    operation, put_back, died = 0, 0, True
    while died:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        target = tmp_path / "run" / "model"
        write(target, "older")
        died = killed_at(operation, partial(write, target, "newer"))
        put_back += not target.exists()
        sweep(target.parent)
        seen.append(texts(target))
        assert [entry.name for entry in target.parent.iterdir()] == ["model"]
        operation += 1
    assert put_back == 1, "kills between the two renames"
    assert seen == sorted(seen, reverse=True), "older, and from one step on newer"
    assert seen[0] == {"older"}
    assert seen[-1] == {"newer"}
    assert operation > 10


def test_sweep_puts_back_the_newest_and_never_what_was_being_removed(tmp_path: Path):
    for number, text in ((7, "old"), (5, "newest"), (6, "older still")):
        write(tmp_path / f".model.old-{number}", text)
        age = {"newest": 3, "old": 2, "older still": 1}[text]
        os.utime(tmp_path / f".model.old-{number}", (age, age))
    for name in (".gone.old-removed", ".gone.old-removed-7", ".gone.writing-7"):
        write(tmp_path / name, "half")
    (tmp_path / ".latest.writing-7").write_text("half")
    sweep(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    assert texts(tmp_path / "model") == {"newest"}


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_a_failed_swap_puts_the_older_one_back_itself(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    target, genuine = tmp_path / "model", os.rename
    write(target, "older")

    def rename(one: Path, other: Path) -> None:
        if ".writing-" in str(one):
            raise error
        genuine(one, other)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(type(error)):
        write(target, "newer")
    assert texts(target) == {"older"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


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
