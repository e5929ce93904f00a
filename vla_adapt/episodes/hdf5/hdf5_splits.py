"""Which episodes of HDF5 files are in which split: robomimic's filter keys, and "train" where it is none."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from vla_adapt.episodes.hdf5.hdf5_layout import DEFAULT_SPLIT, EVERYTHING
from vla_adapt.episodes.hdf5.hdf5_scan import Contents

# Filter keys of episodes to judge on: never trained on where a file names only them.
HELD_OUT_KEYS = ("valid", "val", "validation", "test")


def episodes_by_split(contents: Contents) -> dict[str, Int64[np.ndarray, " _"]]:
    """Episode numbers of every split.

    "all" is every episode. "train" is what the filter key says; of a file that has no such key, all episodes
    but those of its held-out keys.
    """
    splits = {EVERYTHING: np.arange(len(contents.file))}
    splits |= {key: np.array(numbers, np.int64) for key, numbers in contents.masks.items()}
    splits[DEFAULT_SPLIT] = _train(contents)
    return splits


def _train(contents: Contents) -> Int64[np.ndarray, " _"]:
    file = np.array(contents.file, np.int64)
    named = np.array(contents.masks.get(DEFAULT_SPLIT, []), np.int64)
    held_out = [number for key in HELD_OUT_KEYS for number in contents.masks.get(key, [])]
    rest = np.setdiff1d(np.flatnonzero(~np.isin(file, file[named])), held_out)
    return np.concatenate([named, rest]) if len(rest) else named
