"""The images the doctor looks at: a few frames of some episodes, each boiled down to a few numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from vla_adapt.episodes.source import Episode

PER_EPISODE = 4
# Largest difference of any pixel that still counts as the same frame: video codecs repeat with small errors.
SAME_PIXELS = 2
GRID = 4


class Frame(NamedTuple):
    """One sampled image.

    Attributes:
        episode, camera, step: where it is from.
        size: height, width.
        mean: of red, green and blue, 0..255.
        spread: standard deviation of the brightness, 0..255.
        warm, cool: share of colored pixels with red > green > blue, and with blue > green > red.
        flat: share of pixels exactly equal to their neighbor; high in rendered images.
        grid: means of red, green and blue in `GRID` x `GRID` fields of the image, row by row.
        repeats: the same pixels as the frame sampled before it in its episode.
        moved: the robot moved clearly between the two.
    """

    episode: str
    camera: str
    step: int
    size: tuple[int, int]
    mean: tuple[float, float, float]
    spread: float
    warm: float
    cool: float
    flat: float
    grid: tuple[float, ...]
    repeats: bool
    moved: bool


def spread_over(count: int, most: int | None) -> list[int]:
    """At most `most` numbers of 0..count-1, evenly spread, ends included."""
    if most is None or most >= count:
        return list(range(count))
    return sorted({round(i) for i in np.linspace(0, count - 1, most)}) if most > 0 else []


def frames_of(
    episode: Episode,
    moved: Callable[[int, int], bool],
    failed: Callable[[str, int, str], None],
) -> list[Frame]:
    """Look at `PER_EPISODE` frames of every camera of an episode.

    Args:
        episode: to look at.
        moved: whether the robot moved clearly between two steps.
        failed: told (camera, step, message) of every image that cannot be decoded.
    """
    frames: list[Frame] = []
    steps = spread_over(len(episode), PER_EPISODE)
    for camera in episode.cameras:
        before: tuple[int, np.ndarray] | None = None
        for step in steps:
            try:
                image = episode.image(step, camera)
            except ValueError as error:
                failed(camera, step, str(error))
                continue
            repeats = before is not None and same_picture(before[1], image)
            went = before is not None and moved(before[0], step)
            frames.append(describe_frame(image, episode.episode_id, camera, step, repeats, went))
            before = step, image
    return frames


def same_picture(before: UInt8[np.ndarray, "_ _ 3"], after: UInt8[np.ndarray, "_ _ 3"]) -> bool:
    """Whether two images show the same pixels, up to a codec's error."""
    if before.shape != after.shape:
        return False
    return int(np.abs(before.astype(np.int16) - after.astype(np.int16)).max(initial=0)) <= SAME_PIXELS


def describe_frame(
    image: UInt8[np.ndarray, "h w 3"],
    episode: str = "",
    camera: str = "primary",
    step: int = 0,
    repeats: bool = False,
    moved: bool = False,
) -> Frame:
    """Boil an image down to the numbers the checks want."""
    pixels = image.astype(np.float32)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    brightest = pixels.max(axis=-1)
    colored = (brightest - pixels.min(axis=-1)) > 0.2 * (brightest + 1)
    neighbors: Bool[np.ndarray, "h w"] = (image[:, 1:] == image[:, :-1]).all(axis=-1)
    mean: Float[np.ndarray, " 3"] = pixels.mean(axis=(0, 1))
    return Frame(
        episode=episode,
        camera=camera,
        step=step,
        size=(image.shape[0], image.shape[1]),
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        spread=float(pixels.mean(axis=-1).std()),
        warm=float((colored & (red > green) & (green > blue)).mean()),
        cool=float((colored & (blue > green) & (green > red)).mean()),
        flat=float(neighbors.mean()) if neighbors.size else 1.0,
        grid=tuple(_grid(pixels).ravel().tolist()),
        repeats=repeats,
        moved=moved,
    )


def cameras_of(frames: Sequence[Frame]) -> dict[str, list[Frame]]:
    """Frames by camera."""
    by_camera: dict[str, list[Frame]] = {}
    for frame in frames:
        by_camera.setdefault(frame.camera, []).append(frame)
    return by_camera


def _grid(pixels: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "g g 3"]:
    """Mean color of each field; images smaller than the grid are one color all over."""
    height, width = pixels.shape[0] // GRID, pixels.shape[1] // GRID
    if not height or not width:
        return np.broadcast_to(pixels.mean(axis=(0, 1)), (GRID, GRID, 3))
    cut = pixels[: GRID * height, : GRID * width].reshape(GRID, height, GRID, width, 3)
    return cut.mean(axis=(1, 3))
