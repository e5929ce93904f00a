"""Undo what is wrong with stored images: blue and red swapped, upside down, mirrored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from vla_adapt.episodes.mapping.entry import ImageQuirk


def undo_quirks(
    image: UInt8[np.ndarray, "h w 3"], quirks: Sequence[ImageQuirk]
) -> UInt8[np.ndarray, "h w 3"]:
    """The image as RGB and the right way round; the same array when there is nothing to undo."""
    for quirk in quirks:
        if quirk == "bgr":
            image = image[..., ::-1]
        elif quirk == "flip_vertical":
            image = image[::-1]
        elif quirk == "flip_horizontal":
            image = image[:, ::-1]
        else:
            image = image[::-1, ::-1]
    return np.ascontiguousarray(image) if quirks else image
