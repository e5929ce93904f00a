"""Decoding equals TensorFlow's default."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from vla_adapt.episodes.mixing.frame_blocks import Block, frames_into
from vla_adapt.episodes.storage.feature_spec import Kind, LeafSpec
from vla_adapt.episodes.storage.image_codec import decode_image

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


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_png_equals_tensorflow(channels: int, dtype: str) -> None:
    """Also where the file has other bits a channel than the schema says."""
    tf = pytest.importorskip("tensorflow")
    leaf = LeafSpec(Kind.IMAGE, (40, 60, channels), dtype, "png")
    pixels = picture(channels)
    for stored in (pixels, pixels.astype(np.uint16) * 250 + 3):
        data = tf.io.encode_png(stored).numpy()
        wanted = tf.io.decode_image(data, channels=channels, dtype=dtype).numpy()
        got = decode_image(data, leaf)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, wanted)


def wide_png(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, written by hand."""
    height, width, channels = pixels.shape
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    out = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        out += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return out


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_are_kept(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 1 << 16, (5, 7, channels), dtype=np.uint16)
    leaf = LeafSpec(Kind.IMAGE, (5, 7, channels), "uint16", "png")
    np.testing.assert_array_equal(decode_image(wide_png(pixels), leaf), pixels)
    with pytest.raises(ValueError, match="image cannot be decoded"):
        decode_image(wide_png(pixels)[:40], leaf)


def test_channels_as_stored_when_the_schema_leaves_them_open() -> None:
    leaf = LeafSpec(Kind.IMAGE, (-1, -1, -1), "uint8", "")
    assert decode_image(png(picture(4)), leaf).shape == (40, 60, 4)
    assert decode_image(simplejpeg.encode_jpeg(picture(), 90, "RGB"), leaf).shape == (40, 60, 3)
    assert decode_image(simplejpeg.encode_jpeg(picture(1), 90, "GRAY"), leaf).shape == (40, 60, 1)


@pytest.mark.parametrize(
    ("smallest", "wanted"), [(40, (40, 60)), (29, (30, 45)), (20, (20, 30)), (1, (5, 8))]
)
def test_reduced_scale_is_the_smallest_that_is_large_enough(smallest: int, wanted: tuple[int, int]) -> None:
    """40 x 60 at 8/8, 6/8, 4/8 and 1/8."""
    data = simplejpeg.encode_jpeg(picture(), 95, "RGB")
    small = decode_image(data, RGB, smallest)
    assert small.shape == (*wanted, 3)
    resized = np.asarray(Image.fromarray(decode_image(data, RGB)).resize(wanted[::-1], Image.Resampling.BOX))
    assert np.abs(small.astype(int) - resized).mean() < 20


def test_reduced_scale_never_enlarges_and_leaves_png_alone() -> None:
    data = simplejpeg.encode_jpeg(picture(), 95, "RGB")
    np.testing.assert_array_equal(decode_image(data, RGB, 500), decode_image(data, RGB))
    np.testing.assert_array_equal(decode_image(png(picture()), RGB, 10), picture())
    with pytest.raises(ValueError, match=r"image is \[40, 60\], the schema says \[64, 64, 3\]"):
        decode_image(data, LeafSpec(Kind.IMAGE, (64, 64, 3), "uint8", "jpeg"), 10)


@pytest.mark.parametrize("smallest", [None, 20])
def test_into_a_block_of_memory(smallest: int | None) -> None:
    """The same pixels, in the block as long as it has room; damage and wrong sizes are told as ever."""
    block, data = Block(0, memoryview(bytearray(16_000))), simplejpeg.encode_jpeg(picture(), 90, "RGB")
    wanted = decode_image(data, RGB, smallest)
    with frames_into(block):
        frames = [decode_image(data, RGB, smallest) for _ in range(12)]
        with pytest.raises(ValueError, match="cannot be decoded"):
            decode_image(data[: len(data) // 2], RGB, smallest)
        with pytest.raises(ValueError, match=r"image is .*, the schema says \[64, 64, 3\]"):
            decode_image(data, LeafSpec(Kind.IMAGE, (64, 64, 3), "uint8", "jpeg"), smallest)
    inside = [np.shares_memory(frame, np.frombuffer(block.memory, np.uint8)) for frame in frames]
    assert inside == [i < (16_000 - 16) // (64 * -(-wanted.nbytes // 64)) for i in range(12)]
    for frame in frames:
        np.testing.assert_array_equal(frame, wanted)


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
