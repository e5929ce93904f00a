"""Mixture: a pure function of the sample number."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import MemoryDataset, fake_data, open_dataset
from vla_adapt.episodes.conversion.convert import convert_dataset
from vla_adapt.episodes.mapping.entry import SIDECAR
from vla_adapt.episodes.mixing import mixture as mixture_module
from vla_adapt.episodes.mixing.mixture import Mixture
from vla_adapt.episodes.rlds.write import RldsWriter


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


class Lengths(MemoryDataset):
    """Episodes of given lengths with nothing in them."""

    def __init__(self, name: str, lengths: list[int]):
        robot = Embodiment.load("franka_panda")
        super().__init__(name, robot, [fake_data(robot, np.random.default_rng(0), 1, image_size=2)])
        self.given = np.asarray(lengths, np.int64)

    @property
    def lengths(self) -> np.ndarray:
        return self.given


def test_the_order_of_samples_stays_what_it_was() -> None:
    """A changed order would change the results of every recipe: say so in the changelog, then change this."""
    parts = [(Lengths("a", [70] * 3), 0.75), (Lengths("b", [*range(1, 700)]), 0.25)]
    mixture = Mixture([*parts, (Lengths("c", [1000] * 100), 2.0)], 5, 3)
    rows = np.array([mixture.sample(n) for n in [*range(5000), *range(10**6, 10**6 + 2000)]], "<i8")
    assert rows[:3].tolist() == [[2, 27, 870], [2, 87, 919], [0, 0, 8]]
    assert hashlib.sha256(rows.tobytes()).hexdigest()[:16] == "ae282fe52a9098f3"


def test_episode_weights_and_blocks_reach_their_dataset() -> None:
    parts = [(Lengths("a", [4, 6]), 1.0), (Lengths("b", [5, 5]), 1.0)]
    weights = [None, np.array([0.0, 1.0])]
    for open_blocks in (None, 2):
        mixture = Mixture(parts, 0, 1, episode_weights=weights, open_blocks=open_blocks)
        assert mixture.steps == [10, 5]
        drawn = Counter(mixture.sample(n) for n in range(1 << 16))
        assert {(sample.dataset, sample.episode) for sample in drawn} == {(0, 0), (0, 1), (1, 1)}
        assert max(drawn.values()) <= (1 << 15) / 5 + 1


def test_fingerprint_tells_what_is_drawn() -> None:
    robot = Embodiment.load("franka_panda")
    data = [fake_data(robot, np.random.default_rng(0), length) for length in (3, 4)]
    parts = [(MemoryDataset("one", robot, data), 1.0), (MemoryDataset("two", robot, data), 1.0)]
    weights = [None, np.array([1.0, 2.0])]
    renamed = [(MemoryDataset("three", robot, data), 1.0), parts[1]]
    fewer = [(MemoryDataset("one", robot, data[:1]), 1.0), parts[1]]
    prints = [
        Mixture(parts, 0, 2).fingerprint(),
        Mixture(parts, 1, 2).fingerprint(),
        Mixture([parts[0], (parts[1][0], 2.0)], 0, 2).fingerprint(),
        Mixture(renamed, 0, 2).fingerprint(),
        Mixture(fewer, 0, 2).fingerprint(),
        Mixture(parts, 0, 2, episode_weights=weights).fingerprint(),
        Mixture(parts, 0, 2, open_blocks=4).fingerprint(),
    ]
    assert len(set(prints)) == len(prints)
    assert Mixture(parts, 0, 5).fingerprint() == prints[0], "the horizon changes no sample"


def test_without_images_the_same_samples_are_drawn_and_nothing_is_decoded() -> None:
    mixture = make()
    bare = mixture.without_images()
    for n in range(10):
        full, cut = mixture.window(n), bare.window(n)
        assert cut["images"] == {}
        assert full["images"]
        assert cut["drawn"] == full["drawn"] == mixture.sample(n)
        assert np.array_equal(cut["action"], full["action"])
    assert bare.fingerprint() == mixture.fingerprint()


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
    monkeypatch.setattr(mixture_module, "KEPT_BYTES", 8000)
    mixture = make()
    for n in range(60):
        np.testing.assert_array_equal(mixture.window(n)["action"], wanted[n])
        sizes = [mixture_module.EPISODE_BYTES + motion.nbytes for _, motion in mixture._kept.values()]
        assert sum(sizes) == mixture._kept_bytes <= 8000


def test_an_episode_is_converted_once_however_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    converted = []
    unify = mixture_module.unify_motion
    monkeypatch.setattr(mixture_module, "unify_motion", lambda *a: converted.append(a[0]) or unify(*a))
    monkeypatch.setattr(mixture_module, "KEPT_BYTES", 0)
    first = make()
    wanted = [make().window(n) for n in range(0, 100, 10)]
    converted.clear()
    for n in range(100):
        cut = first.window(n)
        if n % 10 == 0:
            same(cut, wanted[n // 10])
    assert len(converted) == 5


def test_windows_of_several_samples_are_those_of_each() -> None:
    mixture = make()
    for n, cut in zip((7, 3, 90), mixture.windows((7, 3, 90)), strict=True):
        same(cut, mixture.window(n))


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    assert (a["ids"], a["instruction"], a["robot"]) == (b["ids"], b["instruction"], b["robot"])
    for key in ("action", "action_mask", "proprio", "proprio_mask"):
        np.testing.assert_array_equal(a[key], b[key])
        assert a[key].dtype == b[key].dtype
    for camera in a["images"]:
        np.testing.assert_array_equal(a["images"][camera], b["images"][camera])


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
    other = robot.model_copy(update={"rate_hz": 50.0})
    with pytest.raises(ValueError, match="two: its embodiment 'franka_panda' differs from that of one"):
        Mixture([(dataset, 1.0), (MemoryDataset("two", other, [data]), 1.0)], 0, 2)
    data.action[1, 0] = np.inf
    with pytest.raises(ValueError, match=r"one: episode 0: step 1: action holds"):
        Mixture([(MemoryDataset("one", robot, [data]), 1.0)], 0, 2).window(0)


def with_cameras(robot: str, *cameras: str) -> MemoryDataset:
    embodiment = Embodiment.load(robot)
    data = fake_data(embodiment, np.random.default_rng(0), 6)
    data.images = dict.fromkeys(cameras, data.images["primary"])
    return MemoryDataset("+".join(cameras), embodiment, [data])


def test_optional_cameras_are_masked_where_a_dataset_lacks_them() -> None:
    parts = [
        (with_cameras("franka_panda", "primary", "wrist"), 1.0),
        (with_cameras("franka_panda", "primary"), 1.0),
    ]
    mixture = Mixture(parts, 0, horizon=2, optional_cameras=("wrist",))
    masks = {}
    for n in range(8):
        cut = mixture.window(n)
        assert list(cut["images"]) == ["primary", "wrist"]
        assert cut["images"]["wrist"].any() == cut["image_mask"]["wrist"]
        masks[cut["ids"]["dataset"]] = cut["image_mask"]
    assert masks == {
        "primary+wrist": {"primary": True, "wrist": True},
        "primary": {"primary": True, "wrist": False},
    }
    with pytest.raises(ValueError, match="primary: no camera 'wrist'; it has primary"):
        Mixture(parts, 0, 2, cameras=("primary", "wrist"))
    with pytest.raises(ValueError, match="no dataset has the optional camera 'wirst'; did you mean 'wrist'"):
        Mixture(parts, 0, 2, optional_cameras=("wirst",))


def test_history_reaches_the_windows() -> None:
    dataset = with_cameras("franka_panda", "primary")
    mixture = Mixture([(dataset, 1.0)], 0, 2, history=3)
    for n in range(6):
        cut, step = mixture.window(n), mixture.sample(n).step
        assert cut["history_mask"].tolist() == [step >= 2, step >= 1, True]
        np.testing.assert_array_equal(cut["images"]["primary"][-1], dataset[0].image(step))
    with pytest.raises(ValueError, match="history 0: wanted at least 1 step"):
        Mixture([(dataset, 1.0)], 0, 2, history=0)


def test_a_renamed_folder_is_the_same_mixture_and_other_data_of_the_same_lengths_is_not(
    tmp_path: Path,
) -> None:
    robot = Embodiment.load("franka_panda")
    prints = []
    for seed, folder in ((0, "here"), (1, "there")):
        rng = np.random.default_rng(seed)
        with RldsWriter(tmp_path / folder, "same_name", robot) as writer:
            for length in (3, 4, 5):
                writer.add("train", fake_data(robot, rng, length, image_size=8))
        convert_dataset(writer.path, tmp_path / f"{folder}_lerobot", "lerobot")
        shutil.copytree(tmp_path / f"{folder}_lerobot", tmp_path / f"{folder}_renamed")
        (tmp_path / f"{folder}_renamed" / SIDECAR).unlink()
        shutil.copytree(tmp_path / f"{folder}_renamed", tmp_path / f"{folder}_again")
        (tmp_path / folder / "same_name").rename(tmp_path / folder / "other")
        own = [tmp_path / folder / "other", tmp_path / f"{folder}_lerobot"]
        foreign = [tmp_path / f"{folder}_renamed", tmp_path / f"{folder}_again"]
        for group in (own, foreign):
            opened = [open_dataset(path, embodiment=robot) for path in group]
            found = {Mixture([(dataset, 1.0)], 0, 2).fingerprint() for dataset in opened}
            assert len(found) == 1, "wherever it lies"
            prints.append(found.pop())
    assert len(set(prints)) == 4


@pytest.mark.parametrize("history", [1, 3])
def test_a_window_has_the_instruction_of_its_step(history: int) -> None:
    robot = Embodiment.load("franka_panda")
    data = [fake_data(robot, np.random.default_rng(0), 6) for _ in range(2)]
    data[0].instruction_changes = [(2, "put it down"), (5, "go home")]
    mixture = Mixture([(MemoryDataset("m", robot, data), 1)], seed=0, horizon=3, history=history)
    words = [one.step_instructions for one in data]
    windows = mixture.windows(range(12))
    assert len({(window["drawn"].episode, window["drawn"].step) for window in windows}) == 12
    for window in windows:
        assert window["instruction"] == words[window["drawn"].episode][window["ids"]["step"]]
