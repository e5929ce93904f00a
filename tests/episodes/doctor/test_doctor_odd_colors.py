"""Scenes in both color orders are an error, blue scenes among others only worth a note."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.doctor.doctor_finding import Finding
from vla_adapt.episodes.doctor.doctor_frames import Frame, describe_frame
from vla_adapt.episodes.doctor.doctor_odd_colors import check_some_swapped
from vla_adapt.episodes.doctor.doctor_survey import Survey, survey
from vla_adapt.episodes.source import MemoryDataset


@pytest.fixture(scope="module")
def empty() -> Survey:
    return survey(MemoryDataset("lab", Embodiment.load("widowx"), []))


def room(rng: np.random.Generator) -> np.ndarray:
    """A picture of large patches of its own, red leading."""
    patches = np.array([170, 130, 85]) + rng.normal(size=(4, 4, 1)) * 40 + rng.normal(size=(4, 4, 3)) * 5
    return patches.repeat(8, axis=0).repeat(8, axis=1)


def frames(pictures: list[np.ndarray], rng: np.random.Generator) -> list[Frame]:
    """Three noisy frames of each, an episode each."""
    return [
        describe_frame((one + rng.normal(size=one.shape) * 6).clip(0, 255).astype(np.uint8), str(i), step=t)
        for i, one in enumerate(pictures)
        for t in range(3)
    ]


def found(empty: Survey, pictures: list[np.ndarray]) -> list[Finding]:
    return list(check_some_swapped(replace(empty, frames=frames(pictures, np.random.default_rng(1)))))


def test_a_scene_in_both_orders_is_an_error(empty: Survey) -> None:
    rng = np.random.default_rng(0)
    kitchen, office = room(rng), room(rng)
    pictures = [kitchen, office, kitchen[..., ::-1], office, kitchen, office[..., ::-1], office, kitchen]
    (finding,) = found(empty, pictures)
    assert (finding.code, finding.severity) == ("bgr_images", "warning")
    assert finding.numbers == {"camera": "primary", "episodes": ["2", "5"], "judged": 8}
    assert "2 of 8 episodes looked at (25 %) show the scene of others" in finding.evidence


def test_a_blue_scene_of_its_own_is_noted(empty: Survey) -> None:
    """It may be another laboratory with BGR images, or a blue table."""
    rng = np.random.default_rng(0)
    kitchen, office = room(rng), 255 - room(rng)[::-1]
    (finding,) = found(empty, [kitchen, kitchen, office, kitchen, office, kitchen, kitchen, kitchen])
    assert (finding.code, finding.severity) == ("bgr_images", "note")
    assert finding.numbers["episodes"] == ["2", "4"]
    assert "a blue table looks so too" in finding.advice


def test_silent_where_colors_are_alike(empty: Survey) -> None:
    rng = np.random.default_rng(0)
    assert found(empty, [room(rng) for _ in range(10)]) == []
    assert found(empty, [np.full((32, 32, 3), 90.0)] * 6) == []
    assert found(empty, []) == []


def test_one_alone_is_an_accident(empty: Survey) -> None:
    kitchen = room(np.random.default_rng(0))
    assert found(empty, [kitchen, kitchen[..., ::-1], kitchen, kitchen]) == []
