"""The rate of a robot's data: one where its datasets agree, none where they do not, and notes about both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import MemoryDataset, fake_data, open_dataset
from vla_adapt.episodes.lerobot.lerobot_write import write_lerobot
from vla_adapt.episodes.recorded_rate import pooled_rate_hz, rate_notes, rates_differ
from vla_adapt.episodes.rlds.write import RldsWriter
from vla_adapt.episodes.source import EpisodeDataset
from vla_adapt.episodes.subset import EpisodeSubset

WIDOWX = Embodiment.load("widowx")  # 5 Hz


@pytest.fixture(scope="module")
def at_rates(tmp_path_factory: pytest.TempPathFactory) -> dict[float, EpisodeDataset]:
    """Rate -> a dataset of one robot, stored at it; 50 Hz says so only by LeRobot's fps."""
    folder, rng, found = tmp_path_factory.mktemp("rates"), np.random.default_rng(0), {}
    with RldsWriter(folder, "plain", WIDOWX) as writer:
        for _ in range(3):
            writer.add("train", fake_data(WIDOWX, rng, 9))
    found[5.0] = open_dataset(writer.path)
    for rate in (5.5, 20.0):
        entry = found[5.0].entry.model_copy(update={"rate_hz": rate})
        found[rate] = open_dataset(writer.path, entry=entry)
    write_lerobot(folder / "fast", WIDOWX, [fake_data(WIDOWX, rng, 9)], fps=50)
    entry = open_dataset(folder / "fast").entry.model_copy(update={"rate_hz": None})
    found[50.0] = open_dataset(folder / "fast", entry=entry)
    return found


def test_where_rates_agree_that_of_most_steps_counts(at_rates: dict[float, EpisodeDataset]) -> None:
    part = EpisodeSubset(at_rates[5.5], [0])
    assert pooled_rate_hz([at_rates[5.0]]) == 5.0
    assert pooled_rate_hz([part, at_rates[5.0]]) == 5.0
    assert pooled_rate_hz([at_rates[20.0], EpisodeSubset(at_rates[20.0], [1])]) == 20.0
    assert pooled_rate_hz([at_rates[50.0]]) == 50.0
    assert (
        pooled_rate_hz([MemoryDataset("memory", WIDOWX, [fake_data(WIDOWX, np.random.default_rng(0))])])
        == 5.0
    )


def test_left_out_episodes_do_not_change_it(tmp_path: Path) -> None:
    """50 Hz is known by LeRobot's fps alone."""
    robot, rng = Embodiment.load("widowx"), np.random.default_rng(0)
    write_lerobot(tmp_path / "fast", robot, [fake_data(robot, rng, 6) for _ in range(3)], fps=50)
    (file,) = (tmp_path / "fast").glob("data/*/*.parquet")
    table = pq.read_table(file)
    action = table["action"].to_pylist()
    action[7][2] = np.nan
    column = pa.array(action, type=table.schema.field("action").type)
    pq.write_table(table.set_column(table.column_names.index("action"), "action", column), file)
    entry = open_dataset(tmp_path / "fast", check=False).entry.model_copy(update={"rate_hz": None})
    with pytest.warns(UserWarning, match="skipped 1 damaged"):
        kept = open_dataset(tmp_path / "fast", entry=entry, on_error="skip")
    assert (len(kept), pooled_rate_hz([kept])) == (2, 50.0)


def test_where_they_differ_there_is_none(at_rates: dict[float, EpisodeDataset]) -> None:
    assert pooled_rate_hz([at_rates[5.0], EpisodeSubset(at_rates[20.0], [0])]) is None


def test_notes(at_rates: dict[float, EpisodeDataset]) -> None:
    assert rate_notes([at_rates[5.0], at_rates[5.5]]) == []
    (other,) = rate_notes([at_rates[20.0]])
    assert "recorded at 20 Hz, the robot declares 5 Hz" in other
    (several,) = rate_notes([at_rates[5.0], at_rates[20.0]])
    assert "plain 5 Hz, plain 20 Hz" in several
    assert "its bundle names no rate" in several


@pytest.mark.parametrize(
    ("one", "other", "differ"), [(10.0, 11.0, False), (10.0, 12.0, True), (12.0, 10.0, True)]
)
def test_a_tenth_is_the_same_a_fifth_is_not(one: float, other: float, differ: bool) -> None:
    assert rates_differ(one, other) is differ
