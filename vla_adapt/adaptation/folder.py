"""Folders and small files that appear whole or not at all: written aside, synced, then renamed into place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def atomic_folder(target: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`; when the block succeeds it becomes `target`.

    An older `target` is replaced only after the new one is complete on disk. When the block fails (full disk,
    killed process, bad input) the older one stays untouched. Files get the permissions of newly made ones:
    safetensors writes for the owner alone, and a server under another user must be able to read a bundle.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.writing-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                file.chmod(aside.stat().st_mode & 0o666)
                sync(file)
        sync(aside)
        _swap(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def replace_text(file: Path, text: str) -> None:
    """Write a small file; a reader, or a restart after a kill, sees the older text or the new one."""
    aside = file.with_name(f".{file.name}.writing-{os.getpid()}")
    try:
        aside.write_text(text)
        sync(aside)
        os.replace(aside, file)
        sync(file.parent)
    finally:
        aside.unlink(missing_ok=True)


def claim_folder(target: str | Path, marker: str, overwrite: bool) -> None:
    """Refuse to write over what is there, unless asked to and it is one of ours (it holds `marker`).

    Raises:
        ValueError: `target` exists and `overwrite` is False, or it holds something else than `marker` says.
    """
    target = Path(target)
    if not target.exists():
        return
    if not overwrite:
        raise ValueError(f"{target} exists; choose another folder, or pass --overwrite to replace it")
    if not target.is_dir() or (any(target.iterdir()) and not (target / marker).is_file()):
        raise ValueError(f"{target} holds no {marker}, so it is not replaced; choose another folder")


@contextmanager
def told_disk_errors(target: str | Path) -> Iterator[None]:
    """Turn a full disk, a read-only folder and the like, met while writing `target`, into a ValueError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot write {target}: {reason}; nothing was left behind") from error


def sweep(folder: Path) -> None:
    """Clear away what killed writers left aside in `folder`; nobody may be writing there.

    An older folder whose place is empty, as the kill came before the newer one took it, is put back.
    """
    for old in sorted(folder.glob(".*.old-*"), key=lambda left: left.stat().st_mtime, reverse=True):
        name, _, writer = old.name.removeprefix(".").rpartition(".old-")
        if writer.isdigit() and not (folder / name).exists():
            os.rename(old, folder / name)
            sync(folder)
    for pattern in (".*.writing-*", ".*.old-*"):
        for left in folder.glob(pattern):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until the file, or the names in the folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(aside: Path, target: Path) -> None:
    """Rename `target` to one side and `aside` into its place; `sweep` puts right a kill in between."""
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    replaces = target.exists()
    if replaces:
        _remove(old, target)  # left by an earlier process of the same number
    try:
        if replaces:
            os.rename(target, old)
        os.rename(aside, target)
    except BaseException:  # also Ctrl-C
        if old.exists() and not target.exists():
            os.rename(old, target)
        raise
    sync(target.parent)
    _remove(old, target)


def _remove(old: Path, target: Path) -> None:
    """By renaming first: what has a writer's number in its name is always whole, and may be put back."""
    gone = target.with_name(f".{target.name}.old-removed-{os.getpid()}")
    shutil.rmtree(gone, ignore_errors=True)
    if old.exists():
        os.rename(old, gone)
        shutil.rmtree(gone, ignore_errors=True)
