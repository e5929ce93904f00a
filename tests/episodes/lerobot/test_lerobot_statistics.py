"""Statistics of LeRobot datasets: exact but for quantiles, whose error is bounded."""

from __future__ import annotations

import numpy as np
import pytest

from vla_adapt.episodes.lerobot.lerobot_statistics import (
    QUANTILES,
    RunningStatistics,
    image_numbers,
    sampled_steps,
    summary,
)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_merged_statistics_are_those_of_one_pass(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    parts = [
        1000 + rng.normal(size=(length, *shape)) * scale for length, scale in ((5, 1), (1, 9), (300, 0.1))
    ]
    running = RunningStatistics()
    for part in parts:
        running.add(part)
    got, values = running.summary(), np.concatenate(parts)
    wanted = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    for key, value in wanted.items():
        assert got[key].shape == (shape or (1,))
        np.testing.assert_allclose(got[key], np.reshape(value, got[key].shape), rtol=1e-9)
    for name, q in QUANTILES.items():
        np.testing.assert_allclose(got[name].ravel(), np.quantile(values, q, axis=0).ravel(), rtol=1e-6)
    assert got["count"].tolist() == [306]
    alone = summary(parts[2])
    np.testing.assert_allclose(alone["q10"].ravel(), np.quantile(parts[2], 0.1, axis=0).ravel())


def test_quantiles_of_more_rows_than_are_kept() -> None:
    values = np.random.default_rng(1).random((400_000, 2)) ** 3
    running = RunningStatistics()
    for part in np.array_split(values, 37):  # sorted in time: a sample of the first rows would be far off
        running.add(np.sort(part, axis=0))
    got = running.summary()
    for name, q in QUANTILES.items():
        share = (values <= got[name]).mean(axis=0)
        assert np.abs(share - q).max() < 4 * np.sqrt(q * (1 - q) / 100_000)
    assert len(running._sample) == 100_000


def test_images_are_sampled() -> None:
    assert sampled_steps(3) == [0, 1, 2]
    assert len(sampled_steps(1000)) == 16
    assert sampled_steps(1000)[-1] == 999
    image = np.full((480, 640, 3), (0, 51, 255), np.uint8)
    pixels = image_numbers(image)
    assert len(pixels) < 70 * 70
    np.testing.assert_allclose(pixels.mean(axis=0), [0, 0.2, 1])
