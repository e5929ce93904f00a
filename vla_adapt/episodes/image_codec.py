"""Decode stored images bit-identically to TensorFlow's default decoder."""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from jaxtyping import Shaped
from PIL import Image

from vla_adapt.episodes.feature_spec import LeafSpec

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG"


def decode_image(data: bytes, leaf: LeafSpec) -> Shaped[np.ndarray, "h w c"]:
    """Decode a JPEG or PNG to [h, w, channels] of the feature's dtype.

    Args:
        data: the encoded image.
        leaf: its feature; float32 images are PNGs of 4 bytes a pixel, as tfds stores depth.

    Raises:
        ValueError: not an image, damaged, or not of the size the schema declares.
    """
    channels = leaf.shape[-1] if leaf.shape else 3
    try:
        if data[:2] == _JPEG:
            pixels = simplejpeg.decode_jpeg(
                data, "GRAY" if channels == 1 else "RGB", fastdct=True, fastupsample=False
            )
        elif data[:4] == _PNG:
            pixels = _decode_png(data, channels, leaf.dtype)
        else:
            raise ValueError(f"starts with {data[:4].hex() or 'nothing'}, wanted a JPEG or PNG")
    except (OSError, ValueError) as error:
        raise ValueError(f"image cannot be decoded: {error}") from None
    for wanted, got in zip(leaf.shape, pixels.shape, strict=False):
        if wanted not in (-1, got):
            raise ValueError(f"image is {list(pixels.shape)}, the schema says {list(leaf.shape)}")
    return pixels


def _decode_png(data: bytes, channels: int, dtype: str) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        if dtype == "float32":
            return np.ascontiguousarray(np.asarray(image.convert("RGBA"))).view("<f4")
        if dtype == "uint16":
            pixels = np.asarray(image).astype(np.uint16)
            return pixels.reshape(*pixels.shape[:2], -1)
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
        return pixels.reshape(*pixels.shape[:2], channels)
