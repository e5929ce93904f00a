"""Files of episode weights: three formats, one meaning, mistakes named by line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import MemoryDataset, fake_data
from vla_adapt.episodes.mixing.episode_weights import read_episode_weights, weights_of

FORMATS = {
    "w.json": '{"0": 2, "1": 0.5, "*": 1}',
    "w.jsonl": '{"episode": "0", "weight": 2, "why": "fast"}\n\n{"episode": 1, "weight": 0.5}\n'
    '{"episode": "*", "weight": 1}\n',
    "w.csv": "weight,episode,note\n2,0,\n0.5,1,slow\n1,*,\n",
}


@pytest.fixture
def dataset(robot: Embodiment) -> MemoryDataset:
    rng = np.random.default_rng(0)
    return MemoryDataset("three", robot, [fake_data(robot, rng, 4) for _ in range(3)])


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name: str, dataset: MemoryDataset, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FORMATS[name])
    weights = read_episode_weights(tmp_path / name)
    assert weights == {"0": 2.0, "1": 0.5, "*": 1.0}
    found, strangers = weights_of(dataset, weights, "w")
    assert found.tolist() == [2.0, 0.5, 1.0]
    assert strangers == 0


def test_names_of_other_episodes_are_counted(dataset: MemoryDataset) -> None:
    found, strangers = weights_of(dataset, {"0": 1.0, "1": 0.0, "2": 3.0, "7": 1.0, "val/2": 1.0}, "w")
    assert found.tolist() == [1.0, 0.0, 3.0]
    assert strangers == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("w.txt", "", "wanted a .json, .jsonl or .csv file"),
        ("w.json", '{"0": 1, "0": 2}', "entry: episode '0' is given twice"),
        ("w.json", '[["0", 1]]', "wanted one JSON object"),
        ("w.json", '{"0": 1', "not valid JSON"),
        ("w.json", '{"0": -1}', "weight -1 of episode '0', wanted a number >= 0"),
        ("w.json", '{"0": NaN}', "weight nan of episode '0'"),
        ("w.json", '{"0": true}', "weight True of episode '0'"),
        ("w.jsonl", '{"episode": "0", "weight": 1}\n{"episode": "1"}', "line 2: got"),
        ("w.jsonl", "3", "line 1: got 3"),
        ("w.csv", "episode,score\n0,1\n", r"columns \['episode', 'score'\], wanted 'episode' and 'weight'"),
        ("w.csv", "episode,weight\n0,much\n", "line 2: weight 'much' of episode '0'"),
        ("w.csv", "episode,weight\n0\n", "line 2: weight None of episode '0'"),
    ],
)
def test_mistakes_in_the_file(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_episode_weights(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mistakes_against_the_dataset(dataset: MemoryDataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file of episode weights"):
        read_episode_weights(tmp_path / "w.json")
    with pytest.raises(ValueError, match="scores: no weight for 2 of 3 episodes of three, first '1'"):
        weights_of(dataset, {"0": 1.0, "9": 1.0}, "scores")
    with pytest.raises(ValueError, match="scores: all episodes of three have weight 0"):
        weights_of(dataset, {"*": 0.0}, "scores")
