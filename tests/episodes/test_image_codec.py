"""Decoding equals TensorFlow's default."""

from __future__ import annotations

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from vla_adapt.episodes.feature_spec import Kind, LeafSpec
from vla_adapt.episodes.image_codec import decode_image

RGB = LeafSpec(Kind.IMAGE, (40, 60, 3), "uint8", "jpeg")


def picture(channels: int = 3) -> np.ndarray:
    y, x = np.mgrid[:40, :60]
    planes = [np.sin(x / (3 + i)) * np.cos(y / (5 + i)) * 120 + 128 for i in range(channels)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("subsampling", ["444", "422", "420"])
@pytest.mark.parametrize("quality", [30, 95])
def test_jpeg_equals_tensorflow(subsampling: str, quality: int) -> None:
    tf = pytest.importorskip("tensorflow")
    data = simplejpeg.encode_jpeg(picture(), quality, "RGB", subsampling)
    wanted = tf.io.decode_image(data, channels=3).numpy()
    np.testing.assert_array_equal(decode_image(data, RGB), wanted)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_is_exact(channels: int) -> None:
    pixels = picture(channels)
    leaf = LeafSpec(Kind.IMAGE, (40, 60, channels), "uint8", "png")
    np.testing.assert_array_equal(decode_image(png(pixels), leaf), pixels)


def test_wide_pixels() -> None:
    depth = np.random.default_rng(0).normal(size=(5, 6, 1)).astype(np.float32)
    stored = png(depth.view(np.uint8).reshape(5, 6, 4))
    leaf = LeafSpec(Kind.IMAGE, (5, 6, 1), "float32", "png")
    np.testing.assert_array_equal(decode_image(stored, leaf), depth)
    millimeters = np.arange(30, dtype=np.uint16).reshape(5, 6) * 2000
    leaf = LeafSpec(Kind.IMAGE, (5, 6, 1), "uint16", "png")
    np.testing.assert_array_equal(decode_image(png(millimeters), leaf)[..., 0], millimeters)


def test_refusals() -> None:
    data = simplejpeg.encode_jpeg(picture(), 90, "RGB")
    with pytest.raises(ValueError, match="cannot be decoded: starts with 00000000"):
        decode_image(bytes(100), RGB)
    with pytest.raises(ValueError, match="starts with nothing"):
        decode_image(b"", RGB)
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode_image(data[: len(data) // 2], RGB)
    with pytest.raises(ValueError, match=r"image is \[40, 60, 3\], the schema says \[64, 64, 3\]"):
        decode_image(data, LeafSpec(Kind.IMAGE, (64, 64, 3), "uint8", "jpeg"))
