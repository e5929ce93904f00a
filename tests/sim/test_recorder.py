import numpy as np
import pytest

from vla_adapt.episodes.source import EpisodeData
from vla_adapt.sim.recorder import RecorderPool, load_cached, prepare_cache, save_cached

SETTINGS = {"robot": "franka_panda", "seed": 0, "episodes": {"train": 2}}


def recorded(success=True):
    return EpisodeData(
        action=np.arange(6, dtype=np.float32).reshape(3, 2),
        images={"primary": [b"one", b"two", b"three"], "wrist": [b"a", b"b", b"c"]},
        instruction="lift it",
        state=np.ones((3, 4), np.float32),
        extra={"object_pose": np.zeros((3, 3), np.float32)},
        metadata={"seed": 5, "success": success},
    )


def test_a_cached_episode_comes_back_as_it_was(tmp_path):
    save_cached(tmp_path, 5, recorded())
    back, data = load_cached(tmp_path, 5), recorded()
    np.testing.assert_array_equal(back.action, data.action)
    np.testing.assert_array_equal(back.state, data.state)
    np.testing.assert_array_equal(back.extra["object_pose"], data.extra["object_pose"])
    assert back.images == data.images
    assert (back.instruction, back.metadata) == (data.instruction, data.metadata)
    assert [file.name for file in tmp_path.iterdir()] == ["5.npz"]


def test_a_failed_episode_is_remembered_without_its_images(tmp_path):
    save_cached(tmp_path, 5, recorded(success=False))
    back = load_cached(tmp_path, 5)
    assert back.images == {}
    assert back.metadata["success"] is False


def test_the_cache_survives_more_episodes_but_not_other_settings(tmp_path):
    cache = tmp_path / "cache"
    prepare_cache(cache, SETTINGS)
    save_cached(cache, 5, recorded())
    prepare_cache(cache, SETTINGS | {"episodes": {"train": 9}})
    assert (cache / "5.npz").exists()
    prepare_cache(cache, SETTINGS | {"seed": 1})
    assert not (cache / "5.npz").exists()


def test_a_pool_answers_from_the_cache_in_the_order_asked(tmp_path):
    for seed in range(6):
        save_cached(tmp_path, seed, recorded(success=seed % 2 == 0))
    with RecorderPool(SETTINGS, tmp_path, workers=3) as pool:
        assert list(pool.run([4, 1, 0, 3])) == [True, False, True, False]


def test_no_workers_is_refused(tmp_path):
    with pytest.raises(ValueError, match="0 recording workers"):
        RecorderPool(SETTINGS, tmp_path, workers=0)
