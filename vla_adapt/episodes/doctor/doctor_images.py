"""Checks of the sampled images: readable, not blank, not frozen, of one size, red and blue in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vla_adapt.episodes.doctor.doctor_finding import Finding, listed, share
from vla_adapt.episodes.doctor.doctor_frames import Frame, cameras_of
from vla_adapt.episodes.doctor.doctor_survey import Survey

BLACK_MEAN = 6.0
BLANK_SPREAD = 2.0
MOSTLY = 0.5
FROZEN_PAIRS = 3
RENDERED = 0.5  # share of pixels equal to their neighbor from which an image looks rendered, not filmed


class Colors(NamedTuple):
    """Color balance of one camera: means of 0..255, shares of pixels, share of frames with blue above red."""

    camera: str
    frames: int
    red: float
    green: float
    blue: float
    warm: float
    cool: float
    bluer: float
    flat: float

    @property
    def looks_swapped(self) -> bool:
        """Blue where scenes with wood, skin and lamp light have red."""
        bluer = self.blue > 1.03 * self.red and self.bluer >= 0.9
        return bluer and self.cool > 0.1 and self.cool > 1.5 * self.warm


def check_decodable(survey: Survey) -> Iterator[Finding]:
    """Images that cannot be decoded."""
    bad = [problem for problem in survey.problems if problem.part == "image"]
    if bad:
        yield Finding(
            "undecodable_image", "error", survey.name,
            f"{share(len(bad), len(bad) + len(survey.frames), 'sampled images')} cannot be decoded: "
            f"{listed([problem.where for problem in bad])}; {bad[0].message}",
            "repair or drop these episodes; the loader stops at the first such image",
            {"images": len(bad), "where": [problem.where for problem in bad[:20]]},
        )  # fmt: skip


def check_blank(survey: Survey) -> Iterator[Finding]:
    """Black images and images of one color."""
    for camera, frames in cameras_of(survey.frames).items():
        black = [frame for frame in frames if max(frame.mean) < BLACK_MEAN]
        plain = [frame for frame in frames if frame.spread < BLANK_SPREAD and frame not in black]
        for code, what, bad in (("black_images", "black", black), ("plain_images", "of one color", plain)):
            if not bad:
                continue
            yield Finding(
                code, "error" if len(bad) > MOSTLY * len(frames) else "warning", survey.name,
                f"camera '{camera}': {share(len(bad), len(frames), 'sampled images')} are {what}, in "
                f"{_places(bad)}; mean {np.mean([frame.mean for frame in bad]):.1f}, brightness varies by "
                f"{np.mean([frame.spread for frame in bad]):.1f} of 255",
                "a stand-in for a missing camera? leave the camera out of the entry, or drop these episodes",
                {"images": len(bad), "of": len(frames), "camera": camera},
            )  # fmt: skip


def check_frozen(survey: Survey) -> Iterator[Finding]:
    """The same frame again although the robot has moved."""
    for camera, frames in cameras_of(survey.frames).items():
        moved = [frame for frame in frames if frame.moved and frame.spread >= BLANK_SPREAD]
        frozen = [frame for frame in moved if frame.repeats]
        if len(frozen) < FROZEN_PAIRS:
            continue
        yield Finding(
            "frozen_images", "error" if len(frozen) > MOSTLY * len(moved) else "warning", survey.name,
            f"camera '{camera}': {share(len(frozen), len(moved), 'pairs of sampled images')} between which "
            f"the robot moved are the same picture, in {_places(frozen)}",
            "the camera hung or frames were repeated when converting; drop these episodes or convert again",
            {"pairs": len(frozen), "of": len(moved), "camera": camera},
        )  # fmt: skip


def check_image_sizes(survey: Survey) -> Iterator[Finding]:
    """Images of different sizes from one camera; cameras of different sizes are only noted."""
    sizes = {
        camera: sorted({frame.size for frame in frames})
        for camera, frames in cameras_of(survey.frames).items()
    }
    for camera, found in sizes.items():
        if len(found) > 1:
            counts = {
                size: sum(frame.size == size for frame in survey.frames if frame.camera == camera)
                for size in found
            }
            yield Finding(
                "image_sizes", "warning", survey.name,
                f"camera '{camera}' has images of {len(found)} sizes: "
                + ", ".join(f"{h} x {w} ({counts[h, w]} frames)" for h, w in found),
                "different crops or aspect ratios under one name look like different cameras to a policy; "
                "convert them to one size",
                {"camera": camera, "sizes": [list(size) for size in found]},
            )  # fmt: skip
    firsts = {camera: found[0] for camera, found in sizes.items()}
    if len(set(firsts.values())) > 1:
        yield Finding(
            "camera_sizes", "note", survey.name,
            "cameras differ in size: "
            + ", ".join(f"{camera} {h} x {w}" for camera, (h, w) in firsts.items()),
            "nothing, as long as each is resized on its own (the loader does)",
            {"sizes": {camera: list(size) for camera, size in firsts.items()}},
        )  # fmt: skip


def colors_of(frames: Sequence[Frame]) -> list[Colors]:
    """Color balance of each camera, blank images left out."""
    found: list[Colors] = []
    for camera, all_of in cameras_of(frames).items():
        clear = [frame for frame in all_of if frame.spread >= BLANK_SPREAD]
        if clear:
            means = np.array([frame.mean for frame in clear])
            shares = np.array([(frame.warm, frame.cool, frame.flat) for frame in clear]).mean(axis=0)
            bluer = float((means[:, 2] > means[:, 0]).mean())
            red, green, blue = (float(value) for value in means.mean(axis=0))
            warm, cool, flat = (float(value) for value in shares)
            found.append(Colors(camera, len(clear), red, green, blue, warm, cool, bluer, flat))
    return found


def check_channel_order(named: Sequence[tuple[str, Sequence[Colors]]]) -> Iterator[Finding]:
    """Red and blue swapped (BGR), judged by color balance, beside the other cameras of the mixture.

    Args:
        named: (dataset, colors of its cameras) of the whole mixture.
    """
    everything = [(name, colors) for name, cameras in named for colors in cameras]
    for name, colors in everything:
        if not colors.looks_swapped or colors.frames < 4:
            continue
        others = [other for key, other in everything if (key, other.camera) != (name, colors.camera)]
        redder = sum(not other.looks_swapped for other in others)
        rendered = colors.flat > RENDERED
        beside = (
            f"{redder} of the other {len(others)} cameras examined do not"
            if others
            else "no other camera to compare"
        )
        doubt = (
            f"{100 * colors.flat:.0f} % flat pixels: rendered images may well be blue" if rendered else beside
        )
        yield Finding(
            "bgr_images", "note" if rendered else "warning", name,
            f"camera '{colors.camera}' may have red and blue swapped: mean red {colors.red:.0f}, blue "
            f"{colors.blue:.0f}; blue above red in {100 * colors.bluer:.0f} % of {colors.frames} frames; "
            f"{100 * colors.cool:.0f} % of pixels ordered blue > green > red, {100 * colors.warm:.0f} % the "
            f"other way, where filmed rooms (wood, skin, lamp light) lean to red ({doubt})",
            "look at a frame (vla-adapt data inspect): skin blue? then declare image_quirks: "
            f"{{{colors.camera}: [bgr]}} in the entry. This is a guess from color alone: a blue table looks "
            "so too",
            {key: getattr(colors, key) for key in ("camera", "red", "blue", "warm", "cool", "bluer", "flat")}
            | {"redder_cameras": redder, "other_cameras": len(others)},
        )  # fmt: skip


def _places(frames: Sequence[Frame]) -> str:
    names = list(dict.fromkeys(frame.episode for frame in frames))
    return f"{len(names)} episodes ({listed(names)})"
