import itertools
import json

import numpy as np
import pytest

from vla_adapt.episodes import open_dataset
from vla_adapt.sim import record as record_module
from vla_adapt.sim.record import MANIFEST, MAX_SEED, _finished, _successes, episode_seeds, record
from vla_adapt.sim.recorder import RecorderPool


class FakePool(RecorderPool):
    """No processes. Seeds that end in 3 or 7 fail."""

    robot = "franka_panda"

    def __init__(self):
        self.asked = []

    def run(self, seeds):
        self.asked += seeds
        return (seed % 10 not in (3, 7) for seed in seeds)


def test_training_validation_and_evaluation_seeds_never_meet():
    train = [set(itertools.islice(episode_seeds("train", seed), 50)) for seed in (0, 1, MAX_SEED)]
    val = [set(itertools.islice(episode_seeds("val", seed), 50)) for seed in (0, 1, MAX_SEED)]
    for one, other in itertools.combinations(train + val, 2):
        assert not one & other
    assert min(min(seeds) for seeds in train + val) >= 10_000_000


def test_the_seeds_of_one_recording_end_before_the_next():
    *_, last = episode_seeds("train", 0)
    assert last < next(episode_seeds("train", 1))
    *_, last = episode_seeds("train", MAX_SEED)
    assert last < next(episode_seeds("val", 0))


@pytest.mark.parametrize(
    ("split", "seed", "message"), [("test", 0, "known: train, val"), ("val", 100, "wanted 0..99")]
)
def test_bad_splits_and_seeds_are_refused(split, seed, message):
    with pytest.raises(ValueError, match=message):
        episode_seeds(split, seed)


def test_failed_episodes_are_replaced_by_the_next_seeds():
    pool, ticks = FakePool(), []
    tried, good = _successes(pool, "train", 10, 0, lambda: ticks.append(1))
    first = 10_000_000
    assert [seed - first for seed in good] == [0, 1, 2, 4, 5, 6, 8, 9, 10, 11]
    assert [seed - first for seed in tried] == list(range(12)) == [seed - first for seed in pool.asked]
    assert len(ticks) == 10


def test_an_expert_that_mostly_fails_stops_the_recording():
    pool = FakePool()
    pool.run = lambda seeds: (seed % 10 == 3 for seed in seeds)
    with pytest.raises(ValueError, match=r"expert of franka_panda failed 1[0-9] of 20 episodes"):
        _successes(pool, "train", 20, 0, lambda: None)


def test_a_finished_recording_is_reused_only_with_the_same_settings(tmp_path):
    path, settings = tmp_path / "1.0.0", {"robot": "ur5e", "seed": 0}
    assert _finished(path, settings, may_replace=False) is None
    path.mkdir()
    (path / MANIFEST).write_text(json.dumps({"settings": settings, "steps": 12}))
    assert _finished(path, settings, may_replace=False) == {"steps": 12}
    assert _finished(path, settings | {"seed": 1}, may_replace=True) is None
    with pytest.raises(ValueError, match="other settings; choose another folder, or replace it"):
        _finished(path, settings | {"seed": 1}, may_replace=False)


@pytest.mark.slow
def test_a_recording_is_the_same_for_any_number_of_workers_and_is_reused(tmp_path, monkeypatch):
    pytest.importorskip("robosuite")
    counts = {"train": 2, "val": 1}
    folders = [
        record("franka_panda", counts, tmp_path / str(workers), workers=workers, quiet=True)
        for workers in (1, 2)
    ]
    one, two = ({file.name: file.read_bytes() for file in done.path.glob("*.tfrecord*")} for done in folders)
    assert len(one) == 2
    assert one == two
    assert not folders[0].reused
    assert folders[0].episodes == counts
    dataset = open_dataset(folders[0].path, split="train")
    assert len(dataset) == 2
    assert dataset.embodiment.name == "franka_panda"
    episode = dataset[0]
    assert episode.image(0).shape == (112, 112, 3)
    assert episode.state.shape == (len(episode), 8)
    assert episode.extra("object_pose").shape == (
        len(episode),
        3,
    )
    assert np.abs(episode.action).max() <= 1.0
    monkeypatch.setattr(record_module, "load_robosuite", lambda: pytest.fail("recorded again"))
    assert record("franka_panda", counts, tmp_path / "1", quiet=True).reused
    with pytest.raises(ValueError, match="other settings"):
        record("franka_panda", counts, tmp_path / "1", noise=False, quiet=True)
