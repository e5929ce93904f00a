"""Check for episodes with red and blue swapped among others of the same camera that have them in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from vla_adapt.episodes.doctor.doctor_finding import Finding, is_a_part, listed, share
from vla_adapt.episodes.doctor.doctor_frames import GRID, Frame, cameras_of
from vla_adapt.episodes.doctor.doctor_images import BLANK_SPREAD, RENDERED, colors_of
from vla_adapt.episodes.doctor.doctor_survey import Survey

# Two scenes are one with red and blue swapped, where swapping makes them alike to this (root mean square
# over all fields, of 255), and leaves at most this share of the difference.
ALIKE, LEAVES = 20.0, 0.5


def check_some_swapped(survey: Survey) -> Iterator[Finding]:
    """Episodes of a camera with red and blue swapped, unlike its others.

    Proven where swapping makes one the scene of another: the same scene in both orders can only be an error.
    Of scenes that turn up in one order only, color alone speaks, as in `check_channel_order`: it is noted.
    """
    for camera, frames in cameras_of(survey.frames).items():
        if any(colors.looks_swapped for colors in colors_of(frames)):
            continue  # told of the whole camera
        of_episode = _by_episode(frames)
        names, scenes = list(of_episode), [_scene(mine) for mine in of_episode.values()]
        proven = [names[i] for i in _swapped(np.array(scenes))] if scenes else []
        blue = [name for name, mine in of_episode.items() if any(c.looks_swapped for c in colors_of(mine))]
        rendered = any(colors.flat > RENDERED for colors in colors_of(frames))
        if is_a_part(proven, len(names)):
            yield _finding(survey, camera, proven, len(names), proven=True)
        elif is_a_part(blue, len(names)) and not rendered:
            yield _finding(survey, camera, blue, len(names), proven=False)


def _finding(survey: Survey, camera: str, odd: list[str], judged: int, proven: bool) -> Finding:
    what = (
        "show the scene of others with red and blue swapped" if proven else "lean to blue, the others do not"
    )
    doubt = "" if proven else "; a guess from color alone: a blue table looks so too"
    return Finding(
        "bgr_images", "warning" if proven else "note", survey.name,
        f"camera '{camera}': {share(len(odd), judged, 'episodes looked at')} {what}: {listed(odd)}",
        "look at a frame of each kind (vla-adapt data inspect); if red and blue are swapped, keep those "
        f"apart as a dataset with `image_quirks: {{{camera}: [bgr]}}`, or convert them again{doubt}",
        {"camera": camera, "episodes": odd[:50], "judged": judged},
    )  # fmt: skip


def _by_episode(frames: Sequence[Frame]) -> dict[str, list[Frame]]:
    """Frames by episode, blank ones left out."""
    found: dict[str, list[Frame]] = {}
    for frame in frames:
        if frame.spread >= BLANK_SPREAD:
            found.setdefault(frame.episode, []).append(frame)
    return found


def _scene(frames: Sequence[Frame]) -> Float[np.ndarray, "G 3"]:
    """Mean color of each field."""
    return np.mean([frame.grid for frame in frames], axis=0).reshape(GRID * GRID, 3)


def _swapped(scenes: Float[np.ndarray, "E G 3"]) -> list[int]:
    """Of scenes that are another one with red and blue swapped, those that are bluer than that."""
    found: list[int] = []
    blueness = (scenes[..., 2] - scenes[..., 0]).mean(axis=1)
    for number, scene in enumerate(scenes):
        as_is, turned = (
            np.sqrt(((one - scenes) ** 2).mean(axis=(1, 2))) for one in (scene, scene[..., ::-1])
        )
        opposite = (turned < ALIKE) & (turned < LEAVES * as_is) & (blueness < blueness[number])
        if opposite.any():
            found.append(number)
    return found
