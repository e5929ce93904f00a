"""Frames of an episode as JPEG data URIs, made small enough that the page that embeds them stays handy."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

from vla_adapt.episodes.source import Episode

WIDTHS = (320, 224, 160, 112)
QUALITY = 80
BASE64 = 4 / 3


@dataclass
class Thumbnails:
    """Embedded frames: `uris[camera][i]` is step i * stride ("" where it could not be decoded)."""

    stride: int
    width: int
    uris: dict[str, list[str]] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def thumbnails(
    episode: Episode, max_mb: float = 8.0, advance: Callable[[int, int], None] | None = None
) -> Thumbnails:
    """Encode the frames of every camera, as wide as `WIDTHS` and as many as fit into `max_mb` megabytes.

    A frame that cannot be decoded leaves a hole and a line in `problems`.

    Raises:
        ValueError: `max_mb` is not above 0.
    """
    if not 0 < max_mb < math.inf:
        raise ValueError(f"max_mb {max_mb:g}: wanted megabytes above 0")
    width, stride = _plan(episode, max_mb * 1e6)
    found = Thumbnails(stride, width)
    steps = range(0, len(episode), stride)
    total = len(steps) * len(episode.cameras)
    for camera in episode.cameras:
        found.uris[camera] = []
        for step in steps:
            if advance is not None:
                advance(sum(map(len, found.uris.values())), total)
            try:
                image = episode.image(step, camera)
            except ValueError as error:
                found.problems.append(f"step {step} camera '{camera}': {error}")
                found.uris[camera].append("")
                continue
            found.sizes.setdefault(camera, (image.shape[0], image.shape[1]))
            found.uris[camera].append(_uri(encoded(image, width)))
    if advance is not None:
        advance(total, total)
    return found


def encoded(image: UInt8[np.ndarray, "h w 3"], width: int) -> bytes:
    """JPEG of an image, shrunk to `width` if it is wider."""
    if image.shape[1] > width:
        size = (width, max(1, round(image.shape[0] * width / image.shape[1])))
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=QUALITY, colorspace="RGB")


def _plan(episode: Episode, budget: float) -> tuple[int, int]:
    """Widest thumbnails for which all frames fit into the budget; else the smallest and every n-th step."""
    if not len(episode) or not episode.cameras:
        return WIDTHS[0], 1
    needed = 0.0
    for width in WIDTHS:
        needed = sum(_bytes(episode, camera, width) for camera in episode.cameras) * len(episode)
        if needed <= budget:
            return width, 1
    return WIDTHS[-1], int(np.ceil(needed / budget))


def _bytes(episode: Episode, camera: str, width: int) -> float:
    """Mean size of a few embedded frames of a camera."""
    sizes = []
    for step in sorted({0, len(episode) // 2, len(episode) - 1}):
        try:
            sizes.append(BASE64 * len(encoded(episode.image(step, camera), width)))
        except ValueError:
            continue
    return float(np.mean(sizes)) if sizes else 0.0


def _uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
