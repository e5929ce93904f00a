"""HDF5 files held open for reading: bounded in number, opened anew in every process, errors in one line."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vla_adapt.episodes.hdf5.hdf5_layout import all_attributes, nesting

# Every open data set may keep up to 1 MB of decompressed chunks.
MAX_OPEN_FILES = 16
MAX_OPEN_DATASETS = 32


def open_hdf5(path: Path) -> h5py.File:
    """Open one file for reading.

    Raises:
        ValueError: it is not there, truncated or no HDF5 file.
    """
    try:
        return h5py.File(path, "r")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; copy the dataset again") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as HDF5 ({error}); copy it again") from None


class OpenFiles:
    """Data sets of some HDF5 files by file number and path, least recently used ones closed first.

    Safe to use after fork and pickling (the child opens its own handles) and from several threads.
    """

    def __init__(self, paths: Sequence[Path]):
        self.paths = list(paths)
        self._reset()

    def read(self, file: int, name: str, rows: Any = ...) -> Any:
        """Rows of the data set `name` as h5py gives them.

        Raises:
            ValueError: the file, the data set or its bytes are damaged or gone; names file and data set.
        """
        self._own()
        with self._lock:
            try:
                return self._dataset(file, name)[rows]
            except (KeyError, OSError, RuntimeError) as error:
                reason = str(error.args[0] if error.args else error).split("\n")[0]
                raise ValueError(f"{self.paths[file]}: '{name}' cannot be read ({reason})") from None

    def dtype(self, file: int, name: str) -> np.dtype:
        """Of the data set `name`."""
        self._own()
        with self._lock:
            return self._dataset(file, name).dtype

    def holds(self, file: int, name: str) -> bool:
        """Whether there is a data set `name`."""
        self._own()
        with self._lock:
            return isinstance(self._file(file).get(name), h5py.Dataset)

    def attribute(self, file: int, group: str, name: str) -> Any:
        """An attribute of a group or of the nearest group around it that has it; None when none has."""
        self._own()
        with self._lock:
            handle = self._file(file)
            found = (handle[place].attrs.get(name) for place in nesting(group))
            return next((value for value in found if value is not None), None)

    def attributes(self, file: int, group: str) -> dict[str, Any]:
        """All attributes of a group, over those of the groups it lies in."""
        self._own()
        with self._lock:
            return all_attributes(self._file(file), group)

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["paths"])

    def _own(self) -> None:
        """After a fork, leave the parent's handles (and its lock, which a thread may hold) alone."""
        if self._process != os.getpid():
            for handle in self._files.values():
                handle.close()
            self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._files: OrderedDict[int, h5py.File] = OrderedDict()
        self._datasets: OrderedDict[tuple[int, str], h5py.Dataset] = OrderedDict()

    def _file(self, file: int) -> h5py.File:
        if file not in self._files:
            self._files[file] = open_hdf5(self.paths[file])
            if len(self._files) > MAX_OPEN_FILES:
                oldest, handle = self._files.popitem(last=False)
                for key in [key for key in self._datasets if key[0] == oldest]:
                    del self._datasets[key]
                handle.close()
        self._files.move_to_end(file)
        return self._files[file]

    def _dataset(self, file: int, name: str) -> h5py.Dataset:
        handle = self._file(file)
        key = file, name
        if key not in self._datasets:
            found = handle[name]
            if not isinstance(found, h5py.Dataset):
                raise KeyError(f"it is a {type(found).__name__}, wanted a Dataset")
            self._datasets[key] = found
            if len(self._datasets) > MAX_OPEN_DATASETS:
                self._datasets.popitem(last=False)
        self._datasets.move_to_end(key)
        return self._datasets[key]
