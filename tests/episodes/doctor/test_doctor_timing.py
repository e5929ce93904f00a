"""Rates beside one another: a dataset's and its robot's, and those of all datasets of one robot."""

from __future__ import annotations

import numpy as np
import pytest

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import fake_data, open_dataset
from vla_adapt.episodes.doctor.diagnosis import examine
from vla_adapt.episodes.doctor.doctor_finding import Finding
from vla_adapt.episodes.doctor.doctor_timing import RobotRate, check_pooled_rates
from vla_adapt.episodes.lerobot.lerobot_write import write_lerobot
from vla_adapt.episodes.mapping.mapped import MappedDataset

WIDOWX = Embodiment.load("widowx")  # 5 Hz
CODES = ("robot_rate", "pooled_rates", "control_rate")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[int, MappedDataset]:
    """LeRobot datasets of one robot by their frames per second."""
    folder, rng, found = tmp_path_factory.mktemp("rates"), np.random.default_rng(0), {}
    for rate in (5, 50):
        episodes = [fake_data(WIDOWX, rng, 30) for _ in range(2)]
        write_lerobot(folder / f"at_{rate}", WIDOWX, episodes, fps=rate, images="image")
        found[rate] = open_dataset(folder / f"at_{rate}")
    return found


def of_rates(*datasets: MappedDataset) -> list[Finding]:
    return [finding for finding in examine(datasets, images=0).findings if finding.code in CODES]


def test_a_rate_that_is_not_the_robots(recorded: dict[int, MappedDataset]) -> None:
    assert of_rates(recorded[5]) == []
    (found,) = of_rates(recorded[50])
    assert (found.code, found.severity, found.dataset) == ("robot_rate", "warning", "at_50")
    assert found.numbers == {"recorded_hz": 50.0, "robot_hz": 5.0}
    assert "takes 10 times as long" in found.evidence


def test_the_rate_of_the_files_counts_where_the_entry_names_none(recorded: dict[int, MappedDataset]) -> None:
    entry = recorded[50].entry.model_copy(update={"rate_hz": None})
    (found,) = of_rates(open_dataset(recorded[50].store.path, entry=entry))
    assert found.numbers["recorded_hz"] == 50


def test_datasets_of_one_robot_at_different_rates(recorded: dict[int, MappedDataset]) -> None:
    found = {finding.code: finding for finding in of_rates(recorded[50], recorded[5])}
    assert set(found) == {"robot_rate", "pooled_rates"}
    pooled = found["pooled_rates"]
    assert "2 datasets train one adapter, 'widowx'" in pooled.evidence
    assert "at_5 5 Hz, at_50 50 Hz" in pooled.evidence
    assert pooled.numbers == {"robot": "widowx", "rates_hz": {"at_5": 5.0, "at_50": 50.0}}


def test_a_stride_that_makes_the_rates_agree(recorded: dict[int, MappedDataset]) -> None:
    both = [recorded[50], recorded[5]]
    codes = {finding.code for finding in examine(both, images=0, strides=[10, 1]).findings}
    assert codes.isdisjoint(CODES)


def test_other_robots_and_nearly_equal_rates_are_fine() -> None:
    rates = [RobotRate("a", "ur5e", 10.0), RobotRate("b", "ur5e", 11.0), RobotRate("c", "xarm6", 50.0)]
    assert list(check_pooled_rates(rates)) == []
    (found,) = check_pooled_rates([*rates, RobotRate("d", "ur5e", 3.0)])
    assert found.dataset == "d, b"
