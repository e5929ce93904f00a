"""Mixture: a pure function of the sample number."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import MemoryDataset, fake_data
from vla_adapt.episodes import mixture as mixture_module
from vla_adapt.episodes.mixture import Mixture


def make(seed: int = 0, weights: tuple[float, float] = (0.75, 0.25)) -> Mixture:
    rng = np.random.default_rng(0)
    parts = []
    for name, lengths, weight in (
        ("franka_panda", (5, 8, 2), weights[0]),
        ("mobile_panda", (7, 4), weights[1]),
    ):
        robot = Embodiment.load(name)
        data = [fake_data(robot, rng, length) for length in lengths]
        parts.append((MemoryDataset(f"{name}_set", robot, data), weight))
    return Mixture(parts, seed, horizon=3)


def test_every_epoch_of_a_dataset_is_a_permutation_and_epochs_differ() -> None:
    mixture = make()
    drawn: dict[int, list[tuple[int, int]]] = {0: [], 1: []}
    for n in range(300):
        sample = mixture.sample(n)
        drawn[sample.dataset].append((sample.episode, sample.step))
    for dataset, lengths in ((0, (5, 8, 2)), (1, (7, 4))):
        everything = sorted((i, t) for i, length in enumerate(lengths) for t in range(length))
        size = len(everything)
        assert mixture.steps[dataset] == size
        epochs = [drawn[dataset][k : k + size] for k in range(0, len(drawn[dataset]) - size + 1, size)]
        assert len(epochs) >= 5
        assert all(sorted(epoch) == everything for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_weights_are_kept() -> None:
    mixture = make(weights=(3.0, 1.0))
    counts = Counter(mixture.sample(n).dataset for n in range(4096))
    assert abs(counts[0] - 3072) <= 3
    assert mixture.robots == ["franka_panda", "mobile_panda"]


def test_pure_function_of_n_and_seed() -> None:
    numbers = list(range(500))
    first, mixture, other = make(), make(), make(seed=1)
    wanted = [first.sample(n) for n in numbers]
    shuffled = np.random.default_rng(1).permutation(numbers)
    got = {int(n): mixture.sample(int(n)) for n in shuffled}
    assert [got[n] for n in numbers] == wanted
    assert [make().sample(n) for n in (499, 250)] == [wanted[499], wanted[250]]
    assert [other.sample(n) for n in numbers] != wanted


def test_windows_are_those_of_the_sample() -> None:
    mixture = make()
    for n in range(40):
        sample, cut = mixture.sample(n), mixture.window(n)
        episode = mixture.datasets[sample.dataset][sample.episode]
        assert cut["ids"] == {
            "dataset": mixture.datasets[sample.dataset].name,
            "episode": episode.episode_id,
            "step": sample.step,
            "sample": n,
        }
        wanted = mixture.action_unifiers[sample.dataset].to_unified(episode.action[sample.step])[0]
        np.testing.assert_array_equal(cut["action"][0], wanted)
        np.testing.assert_array_equal(cut["images"]["primary"], episode.image(sample.step))
        assert cut["robot"] == mixture.datasets[sample.dataset].embodiment.name


def test_kept_episodes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = make()
    wanted = [plain.window(n)["action"] for n in range(60)]
    monkeypatch.setattr(mixture_module, "KEPT_STEPS", 9)
    mixture = make()
    for n in range(60):
        np.testing.assert_array_equal(mixture.window(n)["action"], wanted[n])
        assert sum(len(episode) for episode, _ in mixture._kept.values()) <= 9


def test_refusals() -> None:
    robot = Embodiment.load("franka_panda")
    data = fake_data(robot, np.random.default_rng(0), 3)
    dataset = MemoryDataset("one", robot, [data])
    with pytest.raises(ValueError, match="positive finite number"):
        Mixture([(dataset, 0.0)], 0, 2)
    with pytest.raises(ValueError, match="horizon 0"):
        Mixture([(dataset, 1.0)], 0, 0)
    with pytest.raises(ValueError, match="none: no steps to draw from"):
        Mixture([(MemoryDataset("none", robot, []), 1.0)], 0, 2)
    with pytest.raises(ValueError, match="one: no camera 'top'; it has primary, wrist"):
        Mixture([(dataset, 1.0)], 0, 2, cameras=("top",))
    data.action[1, 0] = np.inf
    with pytest.raises(ValueError, match=r"one: episode 0: step 1: action holds"):
        Mixture([(MemoryDataset("one", robot, [data]), 1.0)], 0, 2).window(0)
