"""A dataset folder that appears whole or not at all: written aside, then renamed into place."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path


class FolderAside:
    """A hidden folder beside `target`, to be written into and then either published or dropped.

    Raises:
        ValueError: the target exists and is not to be overwritten.
    """

    def __init__(self, target: Path, overwrite: bool = False):
        if target.exists() and not overwrite:
            raise ValueError(
                f"{target} exists; choose another folder, or remove it (in Python: overwrite=True)"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        self.target = target
        self._overwrite = overwrite
        self._work = Path(tempfile.mkdtemp(prefix=f".incomplete-{target.name}-", dir=target.parent))
        self.path = self._work / "new"
        self.path.mkdir()

    def publish(self) -> None:
        """Make the folder appear as `target`; an older one there goes when the new one is in place.

        Raises:
            OSError: it cannot; the older one stays, also one that appeared meanwhile without `overwrite`.
        """
        old = self._work / "old"
        if self._overwrite and self.target.exists():
            self.target.rename(old)
        try:
            self.path.rename(self.target)
        except OSError:
            if old.exists():
                old.rename(self.target)
            raise

    def drop(self) -> None:
        """Delete whatever is still aside; after `publish` that is the older folder."""
        shutil.rmtree(self._work, ignore_errors=True)
