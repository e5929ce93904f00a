"""The checkpoints of a run on disk: whole or not at all, verified before use; the newest and the best stay.

RUN/checkpoints/step-00000500/   the files of one checkpoint and `manifest.json`: size and SHA-256 of each
RUN/checkpoints/latest           name of the newest; moves last
RUN/checkpoints/best             step and metric of the best by validation, when there is one
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from vla_adapt.adaptation.folder import atomic_folder, replace_text, sweep, sync

CHECKPOINTS = "checkpoints"
MANIFEST, LATEST, BEST = "manifest.json", "latest", "best"
_FORMAT = 1
_PREFIX = "step-"

Facts = Mapping[str, Any]  # of a file: size in bytes, sha256


class Best(NamedTuple):
    """The best checkpoint so far and its metric, of which less is better."""

    step: int
    metric: float


class CheckpointFolder:
    """`checkpoints/` of one run folder. One process writes; `keep` newest checkpoints stay, and the best."""

    def __init__(self, run: Path, keep: int) -> None:
        self.root = run / CHECKPOINTS
        self._keep = keep

    def path(self, step: int) -> Path:
        """Where the checkpoint after `step` steps is, or would be."""
        return self.root / f"{_PREFIX}{step:08d}"

    def steps(self) -> list[int]:
        """Steps of which there is a checkpoint, whole or not, newest first."""
        names = [
            entry.name.removeprefix(_PREFIX) for entry in self.root.glob(f"{_PREFIX}*") if entry.is_dir()
        ]
        return sorted((int(name) for name in names if name.isdigit()), reverse=True)

    def sweep(self) -> None:
        """Remove what a killed run left half written, or half removed."""
        for folder in (self.root.parent, self.root):
            sweep(folder)

    @contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """Yield an empty folder; when the block succeeds it becomes the checkpoint of `step`."""
        with atomic_folder(self.path(step)) as aside:
            yield aside

    def publish(self, step: int, metric: float | None = None) -> None:
        """Point at the checkpoint of `step`, now in place, then remove those that are no longer wanted."""
        best = self.best()
        if metric is not None and (best is None or metric < best.metric):
            best = Best(step, metric)
            replace_text(self.root / BEST, json.dumps(best._asdict()) + "\n")
        replace_text(self.root / LATEST, self.path(step).name + "\n")
        # Those beyond `step` are damaged ones that the run fell back from: neither counted nor removed.
        older = [other for other in self.steps() if other <= step][self._keep :]
        for other in older:
            if best is None or other != best.step:
                _remove(self.path(other))

    def rewind(self, step: int, metric: float | None) -> None:
        """Go on from the checkpoint of `step`, saved with `metric`: forget a best one after it.

        It is published once more, in case a kill came between its writing and that.
        """
        best = self.best()
        if best is not None and best.step > step:
            (self.root / BEST).unlink()
        if metric is not None:
            self.publish(step, metric)

    def best(self) -> Best | None:
        """The best checkpoint by the metric given to `publish`, if it is still there."""
        try:
            best = Best(**json.loads((self.root / BEST).read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return best if self.path(best.step).is_dir() else None

    def newest_whole(self) -> tuple[int | None, list[str]]:
        """The newest checkpoint whose every byte is what was written, and what is wrong with newer ones."""
        faults: list[str] = []
        for step in self.steps():
            fault = self.fault(step)
            if not fault:
                return step, faults
            faults.append(f"{self.path(step).name}: {fault}")
        return None, faults

    def fault(self, step: int) -> str:
        """What is wrong with a checkpoint; empty when it is whole."""
        folder = self.path(step)
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            if manifest["format"] != _FORMAT:
                return f"is of format {manifest['format']}, this version reads {_FORMAT}"
            files: dict[str, Facts] = manifest["files"]
            for name, wanted in files.items():
                if not (folder / name).is_file():
                    return f"{name} is missing"
                got = file_facts(folder / name)
                if got["size"] != wanted["size"]:
                    return f"{name} has {got['size']} of {wanted['size']} bytes"
                if got != wanted:
                    return f"{name} is damaged: other bytes than were written"
        except FileNotFoundError:
            return f"{MANIFEST} is missing"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{MANIFEST} cannot be read ({error})"
        return ""

    def drop(self, keep_best: bool = False) -> None:
        """Remove all checkpoints, or all but the best."""
        best = self.best() if keep_best else None
        if best is None:
            if self.root.is_dir():
                _remove(self.root)
            return
        replace_text(self.root / LATEST, self.path(best.step).name + "\n")
        for step in self.steps():
            if step != best.step:
                _remove(self.path(step))


def _remove(folder: Path) -> None:
    """By renaming first: a kill in the middle leaves no torn checkpoint, only something to sweep."""
    gone = folder.with_name(f".{folder.name}.old-removed")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def file_facts(file: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"size": file.stat().st_size, "sha256": digest}


def written_facts(folder: Path, names: list[str]) -> dict[str, Facts]:
    """Facts of files just written, once they are on disk."""
    for name in names:
        sync(folder / name)
    return {name: file_facts(folder / name) for name in names}


def write_manifest(folder: Path, files: Mapping[str, Facts]) -> None:
    """Make `folder` a checkpoint of these files."""
    (folder / MANIFEST).write_text(
        json.dumps({"format": _FORMAT, "files": dict(sorted(files.items()))}, indent=1)
    )
