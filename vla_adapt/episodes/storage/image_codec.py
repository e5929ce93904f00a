"""Decode stored images bit-identically to TensorFlow's default decoder."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import simplejpeg
from jaxtyping import Shaped
from PIL import Image

from vla_adapt.episodes.mixing.frame_blocks import current_block
from vla_adapt.episodes.storage.feature_spec import LeafSpec

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG"
_PNG_DEPTH = 24  # the byte of a PNG that says how many bits a channel has
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
# ffmpeg's names of 16-bit big-endian pixels -> channels
_WIDE_FORMATS = {"gray16be": 1, "ya16be": 2, "rgb48be": 3, "rgba64be": 4}


def decode_image(data: bytes, leaf: LeafSpec, smallest: int | None = None) -> Shaped[np.ndarray, "h w c"]:
    """Decode a JPEG or PNG to [h, w, channels] of the feature's dtype.

    Args:
        data: the encoded image.
        leaf: its feature; float32 images are PNGs of 4 bytes a pixel, as tfds stores depth.
        smallest: decode a JPEG at the smallest of the scales 1/8 .. 8/8 that leaves both sides at least this
            many pixels. Not TensorFlow's pixels; None: full size.

    Raises:
        ValueError: not an image, damaged, or not of the size the schema declares.
    """
    channels = leaf.shape[-1] if leaf.shape else 3
    try:
        if data[:2] == _JPEG:
            return _decode_jpeg(data, channels, leaf, smallest)
        if data[:4] != _PNG:
            raise ValueError(f"starts with {data[:4].hex() or 'nothing'}, wanted a JPEG or PNG")
        pixels = _decode_png(data, channels, leaf.dtype)
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"image cannot be decoded: {error}") from None
    check_shape(pixels.shape, leaf)
    return pixels


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) of a JPEG or PNG by its header.

    Raises:
        ValueError: it has none.
    """
    if data[:4] == _PNG and len(data) >= 24:
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    return int(height), int(width)


def _decode_jpeg(data: bytes, channels: int, leaf: LeafSpec, smallest: int | None) -> np.ndarray:
    if channels == -1:
        channels = 1 if simplejpeg.decode_jpeg_header(data)[2] == "Gray" else 3
    color = "GRAY" if channels == 1 else "RGB"
    if smallest is None:
        pixels = _pixels(data, color)
        check_shape(pixels.shape, leaf)
        return pixels
    height, width = image_size(data)
    check_shape((height, width), leaf)
    wanted = min(smallest, height, width)
    return _pixels(data, color, min_height=wanted, min_width=wanted, min_factor=1)


def _pixels(data: bytes, color: str, **scale: Any) -> np.ndarray:
    """A decoded JPEG, in the current block of frame memory if it has room for it."""
    block = current_block()
    if block is not None:
        try:
            pixels = simplejpeg.decode_jpeg(
                data, color, fastdct=True, fastupsample=False, buffer=block.room(), **scale
            )
        except ValueError:  # no room, or damaged: the call below says so
            pass
        else:
            block.keep(pixels)
            return pixels
    return simplejpeg.decode_jpeg(data, color, fastdct=True, fastupsample=False, **scale)


def _decode_png(data: bytes, channels: int, dtype: str) -> np.ndarray:
    wide = len(data) > _PNG_DEPTH and data[_PNG_DEPTH] == 16
    if wide:
        pixels = _decode_wide_png(data)
        if dtype != "uint16":
            pixels = (pixels >> 8).astype(np.uint8)
        return pixels
    with Image.open(io.BytesIO(data)) as image:
        if dtype == "float32":
            return np.ascontiguousarray(np.asarray(image.convert("RGBA"))).view("<f4")
        mode = _MODES.get(channels, image.mode)
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        # libpng widens 8 bits to 16 so that white stays white.
        return pixels.astype(np.uint16) * 257 if dtype == "uint16" else pixels


def _decode_wide_png(data: bytes) -> np.ndarray:
    """A PNG of 16 bits a channel; Pillow keeps 8 of them."""
    import av
    import av.error

    decoder = av.CodecContext.create("png", "r")
    try:
        frames = decoder.decode(av.Packet(data))  # type: ignore[attr-defined]
    except av.error.FFmpegError as error:
        raise ValueError(str(error)) from None
    frame = frames[0]
    channels = _WIDE_FORMATS[frame.format.name]
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8)  # type: ignore[arg-type]
    pixels = rows.reshape(frame.height, plane.line_size)[:, : frame.width * channels * 2].copy().view(">u2")
    return pixels.astype(np.uint16).reshape(frame.height, frame.width, channels)


def check_shape(shape: tuple[int, ...], leaf: LeafSpec) -> None:
    """Refuse an image of a size that its feature does not declare."""
    if shape == leaf.shape:
        return
    for wanted, got in zip(leaf.shape, shape, strict=False):
        if wanted not in (-1, got):
            raise ValueError(f"image is {list(shape)}, the schema says {list(leaf.shape)}")
