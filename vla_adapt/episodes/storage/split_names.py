"""What to say of a split that a dataset does not have."""

from __future__ import annotations

import re
from collections.abc import Iterable

from vla_adapt.suggest import did_you_mean

# How tfds writes parts of a split: train[:10%], train[5:9].
_SLICE = re.compile(r".*\[.*:.*\]")


def unknown_split(where: object, split: str, known: Iterable[str]) -> ValueError:
    """The error for a `split` that the dataset at `where` lacks; it has those `known`."""
    hint = did_you_mean(split, known)
    if _SLICE.fullmatch(split):
        hint = (
            "slices are not read; `episodes: N` of a mixture takes the first N, its `filter: {ids: ...}` any"
        )
    return ValueError(f"{where}: no split '{split}'; {hint}")
