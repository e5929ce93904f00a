"""Checkpoints on disk: whole or passed over, the newest and the best kept, whatever a kill interrupts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from vla_adapt.training.checkpoint_folder import (
    BEST,
    LATEST,
    MANIFEST,
    CheckpointFolder,
    write_manifest,
    written_facts,
)

KilledAt = Callable[[int, Callable[[], object]], bool]


def save(folder: CheckpointFolder, step: int, metric: float | None = None) -> None:
    with folder.writing(step) as aside:
        for name in ("weights", "optimizer"):
            (aside / name).write_text(f"{name} after {step} steps")
        write_manifest(aside, written_facts(aside, ["weights", "optimizer"]))
    folder.publish(step, metric)


def test_keeps_the_newest_and_the_best(tmp_path: Path):
    folder = CheckpointFolder(tmp_path, keep=2)
    assert folder.newest_whole() == (None, [])
    for step, metric in ((5, 3.0), (10, 1.0), (15, 2.0), (20, None), (25, 1.5)):
        save(folder, step, metric)
    assert folder.steps() == [25, 20, 10]
    assert folder.best() == (10, 1.0)
    assert (folder.root / LATEST).read_text() == "step-00000025\n"
    assert folder.newest_whole() == (25, [])
    folder.drop(keep_best=True)
    assert folder.steps() == [10]
    assert (folder.root / LATEST).read_text() == "step-00000010\n"
    folder.drop()
    assert list(tmp_path.iterdir()) == []


def truncate(folder: Path) -> None:
    os.truncate(folder / "weights", 3)


def flip(folder: Path) -> None:
    text = bytearray((folder / "optimizer").read_bytes())
    text[2] ^= 1
    (folder / "optimizer").write_bytes(text)


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (truncate, "weights has 3 of 22 bytes"),
        (flip, "optimizer is damaged: other bytes than were written"),
        (lambda folder: (folder / "optimizer").unlink(), "optimizer is missing"),
        (lambda folder: (folder / MANIFEST).unlink(), "manifest.json is missing"),
        (lambda folder: os.truncate(folder / MANIFEST, 30), "manifest.json cannot be read"),
        (
            lambda folder: (folder / MANIFEST).write_text('{"format": 9}'),
            "is of format 9, this version reads 1",
        ),
        (lambda folder: (folder / MANIFEST).write_text("[]"), "manifest.json cannot be read"),
    ],
)
def test_a_damaged_one_is_passed_over_and_named(tmp_path: Path, damage: Callable[[Path], object], fault: str):
    folder = CheckpointFolder(tmp_path, keep=3)
    save(folder, 5)
    save(folder, 10)
    damage(folder.path(10))
    step, faults = folder.newest_whole()
    assert step == 5
    assert len(faults) == 1
    assert faults[0].startswith(f"step-00000010: {fault}")


def test_a_damaged_one_takes_no_whole_one_s_place(tmp_path: Path):
    folder = CheckpointFolder(tmp_path, keep=2)
    for step in (5, 10):
        save(folder, step)
    flip(folder.path(10))
    for step in (6, 7, 8):
        save(folder, step)
    assert folder.steps() == [10, 8, 7]
    assert folder.newest_whole()[0] == 8
    save(folder, 10)
    assert folder.newest_whole() == (10, [])
    assert folder.steps() == [10, 8]


@pytest.mark.slow
def test_a_kill_at_any_moment_of_a_save_loses_nothing(tmp_path: Path, killed_at: KilledAt):
    """One process per file operation of a save that also prunes; each is killed before that operation."""
    moment = 0
    while True:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        folder = CheckpointFolder(tmp_path / "run", keep=1)
        save(folder, 5, metric=1.0)
        save(folder, 10)
        died = killed_at(moment, partial(save, folder, 15, metric=0.5))
        folder.sweep()
        newest, faults = folder.newest_whole()
        assert newest in (10, 15)
        assert not faults, "what is in place is whole"
        assert folder.best() in ((5, 1.0), (15, 0.5))
        if not died:
            break
        save(folder, 15, metric=0.5)
        assert folder.steps() == [15]
        assert not [entry for entry in folder.root.iterdir() if entry.name.startswith(".")]
        moment += 1
    assert moment > 12, "fewer file operations than a save has"
    assert (folder.root / BEST).exists()
