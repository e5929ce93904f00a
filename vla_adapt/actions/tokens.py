"""OpenVLA's action tokenizer: 256 uniform boundaries over [-1, 1], the last ids of the vocabulary.

Kim et al., "OpenVLA: An Open-Source Vision-Language-Action Model", 2024. 256 boundaries make 255 bins, so the
two lowest ids decode to the same value, exactly as in the original.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike


class ActionTokenizer:
    """Normalized numbers in [-1, 1] to token ids and back.

    Args:
        vocab_size: the text vocabulary *without* padding rows (32000 for openvla-7b): ids are
            `vocab_size - bin`, bin in 1..256.
        bins: number of boundaries.
    """

    def __init__(self, vocab_size: int, bins: int = 256) -> None:
        if not 2 <= bins < vocab_size:
            raise ValueError(f"got vocab_size {vocab_size} and {bins} bins; wanted 2 <= bins < vocab_size")
        self.vocab_size, self.bins = int(vocab_size), int(bins)
        self.boundaries: Float[np.ndarray, " bins"] = np.linspace(-1.0, 1.0, bins)
        self.centers: Float[np.ndarray, " bins-1"] = (self.boundaries[:-1] + self.boundaries[1:]) / 2.0

    @property
    def first_id(self) -> int:
        """Lowest action token id; action tokens are `first_id .. vocab_size - 1`."""
        return self.vocab_size - self.bins

    def encode(self, values: ArrayLike) -> Int[np.ndarray, "*shape"]:
        """Numbers (clipped to [-1, 1]) to token ids, same shape.

        Raises:
            ValueError: NaN.
        """
        array = np.asarray(values)
        if array.dtype.kind != "f":
            array = array.astype(np.float64)
        if np.isnan(array).any():
            count = int(np.isnan(array).sum())
            raise ValueError(f"cannot encode NaN as action tokens ({count} of {array.size} numbers)")
        return np.asarray(self.vocab_size - np.digitize(np.clip(array, -1.0, 1.0), self.boundaries))

    def decode(self, ids: ArrayLike) -> Float[np.ndarray, "*shape"]:
        """Token ids to bin centers, same shape; ids outside the action range fold to the nearest end."""
        bin_index = self.vocab_size - np.asarray(ids, dtype=np.int64) - 1
        return np.asarray(self.centers[np.clip(bin_index, 0, len(self.centers) - 1)])
