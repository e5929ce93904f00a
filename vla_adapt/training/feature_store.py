"""One dataset's backbone features on disk: float16 pieces, each a .npy file that is whole or not there.

A killed run leaves whole pieces behind, and the next one makes the rest; several processes fill one store.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float16

PIECE_BYTES = 64 << 20
_OPEN_PIECES = 256
_HEADER_BYTES = 128  # of a .npy file


class FeatureStore:
    """Rows [vectors, width] of a dataset's steps, episode after episode.

    Args:
        folder: made when something is written.
        rows: steps of the dataset.
        shape: (vectors, width) of each.
        piece_bytes: about how large a file becomes; a store is read with the value it was made with.
    """

    def __init__(self, folder: Path, rows: int, shape: tuple[int, int], piece_bytes: int = PIECE_BYTES):
        self.folder, self.rows, self.shape = folder, rows, shape
        self._row_bytes = 2 * shape[0] * shape[1]
        self._piece = max(1, piece_bytes // self._row_bytes)
        self._open: dict[int, np.ndarray] = {}

    @property
    def total_bytes(self) -> int:
        """Of the whole store."""
        return self.rows * self._row_bytes

    def missing(self) -> list[range]:
        """Rows of the pieces that are not there."""
        pieces = [
            range(start, min(start + self._piece, self.rows)) for start in range(0, self.rows, self._piece)
        ]
        return [piece for piece in pieces if not self._is_whole(piece)]

    def check_space(self) -> None:
        """Raise ValueError when what is missing does not fit on the disk."""
        wanted = sum(len(piece) for piece in self.missing()) * self._row_bytes
        place = self.folder
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        if wanted > free:
            raise _full(self.folder, f"features need {wanted >> 20} MiB, {free >> 20} MiB are free")

    def write(self, piece: range, features: Float[np.ndarray, "N V D"]) -> None:
        """Put one piece, of `missing`, in place.

        Raises:
            ValueError: the disk is full; a feature is not finite in float16. Nothing of the piece is kept.
        """
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(features, dtype="<f2")
        if not np.isfinite(stored).all():
            raise ValueError(
                f"{self.folder}: features of the frozen backbone reach {np.abs(features).max():.3g}, more "
                "than float16 holds; set adaptation.cache=false"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(prefix=".writing-", dir=self.folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                np.save(file, stored)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, self._file(piece))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _full(self.folder, "disk is full") from None
        finally:
            Path(aside).unlink(missing_ok=True)

    def row(self, row: int) -> Float16[np.ndarray, "V D"]:
        """One row, as a view of its file."""
        number, within = divmod(row, self._piece)
        if number not in self._open:
            self._map(number)
        return self._open[number][within]

    def _map(self, number: int) -> None:
        if len(self._open) >= _OPEN_PIECES:
            self._open.clear()
        start = number * self._piece
        file = self._file(range(start, min(start + self._piece, self.rows)))
        self._open[number] = np.load(file, mmap_mode="r").view(np.ndarray)

    def _file(self, piece: range) -> Path:
        return self.folder / f"{piece.start:010d}.npy"

    def _is_whole(self, piece: range) -> bool:
        file = self._file(piece)
        return file.is_file() and file.stat().st_size == _HEADER_BYTES + len(piece) * self._row_bytes

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}}


def _full(folder: Path, what: str) -> ValueError:
    return ValueError(
        f"{folder}: {what}; free some space, set adaptation.cache_dir to a folder on another disk, or "
        "adaptation.cache=false"
    )
