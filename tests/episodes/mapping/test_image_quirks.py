"""Undoing wrong images."""

from __future__ import annotations

import numpy as np
import pytest

from vla_adapt.episodes.mapping.image_quirks import undo_quirks

IMAGE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


@pytest.mark.parametrize(
    ("quirks", "pixel"),
    [
        (("bgr",), IMAGE[0, 0, [2, 1, 0]]),
        (("flip_vertical",), IMAGE[1, 0]),
        (("flip_horizontal",), IMAGE[0, 2]),
        (("rotate_180",), IMAGE[1, 2]),
        (("rotate_180", "bgr"), IMAGE[1, 2, ::-1]),
    ],
)
def test_first_pixel(quirks, pixel: np.ndarray) -> None:
    image = undo_quirks(IMAGE, quirks)
    np.testing.assert_array_equal(image[0, 0], pixel)
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(undo_quirks(image, quirks), IMAGE)


def test_without_quirks_nothing_is_copied() -> None:
    assert undo_quirks(IMAGE, ()) is IMAGE
