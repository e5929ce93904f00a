"""Opening what a specification names: parts, filters, held-out episodes, weights, missing datasets."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import episode_facts as facts
from vla_adapt.episodes import fake_data, open_dataset
from vla_adapt.episodes.conversion.convert import convert_dataset
from vla_adapt.episodes.mapping.entry import SIDECAR
from vla_adapt.episodes.measuring.statistics import robot_statistics
from vla_adapt.episodes.mixing import open_mixture as open_mixture_module
from vla_adapt.episodes.mixing.episode_filter import EpisodeFilter
from vla_adapt.episodes.mixing.held_out import is_held_out
from vla_adapt.episodes.mixing.mixture_spec import MixtureSpec, Source, SourceOptions
from vla_adapt.episodes.mixing.open_mixture import open_mixture, open_source, resolve
from vla_adapt.episodes.rlds.write import RldsWriter
from vla_adapt.episodes.source import EpisodeDataset

CAMERAS = ("primary", "wrist")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 train episodes of 3..6 steps and 5 val episodes."""
    robot, rng = Embodiment.load("franka_panda"), np.random.default_rng(1)
    with RldsWriter(tmp_path_factory.mktemp("many"), "many", robot) as writer:
        for split, count in (("train", 40), ("val", 5)):
            for number in range(count):
                writer.add(split, fake_data(robot, rng, 3 + number % 4))
    return writer.path


def names(dataset: EpisodeDataset | None) -> list[str]:
    assert dataset is not None
    return [facts.episode_id(dataset, i) for i in range(len(dataset))]


def test_by_default_the_splits_as_they_are(many: Path) -> None:
    part = open_source(Source(path=str(many)))
    assert part.notes == ()
    assert names(part.train) == names(open_dataset(many))
    assert names(part.held_out) == names(open_dataset(many, split="val"))
    assert open_source(Source(path=str(many), held_out_split="")).held_out is None
    with pytest.raises(
        ValueError, match=r"held_out_split: .*an empty one holds nothing out, `held_out: 0.1`"
    ):
        open_source(Source(path=str(many), held_out_split="vall"))


def test_held_out_by_hash(many: Path) -> None:
    whole = open_dataset(many)
    part = open_source(Source(path=str(many), held_out=0.2))
    out = [name for name in names(whole) if is_held_out(whole.name, name, 0.2)]
    assert 2 <= len(out) <= 16
    assert names(part.held_out) == out
    assert names(part.train) == [name for name in names(whole) if name not in out]
    few = open_source(Source(path=str(many), held_out=0.2, episodes=7))
    assert names(few.train) == names(part.train)[:7]
    assert names(few.held_out) == out, "how many are trained on changes nothing of what is judged"


def test_so_few_episodes_that_the_hash_holds_none_or_all_of_them_out(written: Path) -> None:
    part = open_source(Source(path=str(written), held_out=1e-6))
    assert part.held_out is None
    assert part.notes == (f"{part.train.name}: held_out 1e-06 holds out none of 5 episodes",)
    with pytest.raises(ValueError, match=r"held_out 0\.999999 leaves none of 5 episodes to train on"):
        open_source(Source(path=str(written), held_out=0.999999))


def test_filters_come_first_and_are_told(many: Path) -> None:
    part = open_source(Source(path=str(many), filter=EpisodeFilter(min_steps=5), episodes=9))
    assert part.train.lengths.tolist() == [5, 6, 5, 6, 5, 6, 5, 6, 5]
    assert part.held_out is not None
    assert part.held_out.lengths.tolist() == [5, 6]
    assert part.notes == ("many: the filter leaves out 20 of 40 episodes (20 by min_steps)",)
    chosen = open_source(Source(path=str(many), filter=EpisodeFilter(ids=("train/3",))))
    assert names(chosen.train) == ["train/3"]
    assert len(names(chosen.held_out)) == 5, "names of train episodes say nothing of another split"
    with pytest.raises(ValueError, match="many: asked for the first 21 episodes, it has 20"):
        open_source(Source(path=str(many), filter=EpisodeFilter(min_steps=5), episodes=21))


def test_images_to_judge_on_are_never_scaled(many: Path) -> None:
    """Stored as JPEG of 32 x 32, so that a quarter is 8 x 8."""
    for source in (
        Source(path=str(many), image_scale=8, held_out=0.2, filter=EpisodeFilter(min_steps=4)),
        Source(path=str(many), image_scale=8),
    ):
        plain = open_source(source.model_copy(update={"image_scale": None}))
        part = open_source(source)
        assert part.train[0].image(0).shape == (8, 8, 3)
        assert names(part.train) == names(plain.train)
        assert names(part.held_out) == names(plain.held_out)
        assert part.held_out is not None
        assert plain.held_out is not None
        assert part.notes == plain.notes
        np.testing.assert_array_equal(part.held_out[1].image(0), plain.held_out[1].image(0))
    opened = open_mixture(MixtureSpec(sources=[Source(path=str(many), image_scale=8)]), full_size=True)
    assert opened.parts[0].train[0].image(0).shape == (32, 32, 3)


def test_options_of_reading_reach_the_dataset(many: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(many, tmp_path / "many" / "1.0.0"))
    shutil.rmtree(data / ".vla_adapt_index", ignore_errors=True)
    source = Source(path=str(data), cache_dir=str(tmp_path / "cache"), held_out_split="")
    careful = source.model_copy(update={"verify_images": True})
    open_source(careful)
    assert not (data / ".vla_adapt_index").exists()
    shard = next(data.glob("*-train.tfrecord-*"))
    state, content = shard.stat(), bytearray(shard.read_bytes())
    content[content.index(b"\xff\xd8\xff") + 40] += 1  # another picture, but a sound JPEG
    shard.write_bytes(content)
    os.utime(shard, ns=(state.st_mtime_ns, state.st_mtime_ns))  # so the index holds: the disk has rotted
    train = open_source(careful).train
    with pytest.raises(ValueError, match="CRC of the image is wrong"):
        [train[i].image(t, camera) for i in range(40) for t in range(train.lengths[i]) for camera in CAMERAS]
    os.utime(shard)
    with pytest.raises(ValueError, match="CRC"):
        open_source(source)
    assert len(open_source(source.model_copy(update={"verify_crc": False})).train) == 40


def test_episode_weights_from_a_file(many: Path, tmp_path: Path) -> None:
    """Episode 0 has three times the weight of the others, episode 1 none and is left out."""
    file = tmp_path / "scores.json"
    file.write_text(json.dumps({"*": 1, "train/0": 3, "train/1": 0, "val/0": 5}))
    opened = open_mixture(MixtureSpec(sources=[Source(path=str(many), episode_weights=str(file))]))
    assert opened.notes == [
        f"many: 1 names in {file} are no episodes to train on",
        "many: 1 episodes of weight 0 are left out",
    ]
    (part,) = opened.parts
    names = [facts.episode_id(part.train, i) for i in range(len(part.train))]
    assert names == [f"train/{i}" for i in range(40) if i != 1]
    assert part.steps == part.train.lengths.sum()
    assert part.episode_weights is not None
    lengths, rates = part.train.lengths, part.episode_weights * part.steps
    assert part.episode_weights.tolist() == [3.0] + [1.0] * 38
    rates /= part.episode_weights @ lengths
    mixture = opened.draw(seed=4, horizon=2)
    draws = 50 * part.steps
    counts = Counter((sample.episode, sample.step) for sample in map(mixture.sample, range(draws)))
    for episode, length in enumerate(lengths):
        for step in range(length):
            assert abs(counts[episode, step] - 50 * rates[episode]) <= 2


def test_episodes_of_weight_0_do_not_count_in_statistics(many: Path, tmp_path: Path) -> None:
    """Nor does a cached summary of all of them stand in for that of the others."""
    file, source = tmp_path / "scores.json", Source(path=str(many))
    everything = robot_statistics([open_source(source).train])
    file.write_text(json.dumps({"*": 1, **{f"train/{i}": 0 for i in range(0, 40, 2)}}))
    part = open_source(source.model_copy(update={"episode_weights": str(file)}))
    (found,) = robot_statistics([part.train]).values()
    (plain,) = robot_statistics([part.train], cache=False).values()
    rows = np.concatenate([part.train[i].action for i in range(len(part.train))])
    assert found.action.count == plain.action.count == len(rows)
    assert all(one.action.count == int(open_dataset(many).lengths.sum()) for one in everything.values())
    np.testing.assert_array_equal(found.action.mean, plain.action.mean)


def test_balance_by_steps(many: Path, written: Path) -> None:
    sources = [Source(path=str(many), weight=2.0), Source(path=str(written))]
    steps = [int(open_dataset(path).lengths.sum()) for path in (many, written)]
    opened = open_mixture(MixtureSpec(sources=sources, balance="size"))
    assert opened.shares == [2.0 * steps[0], steps[1]]
    assert open_mixture(MixtureSpec(sources=sources)).shares == [2.0, 1.0]
    even = open_mixture(MixtureSpec(sources=sources, balance="dataset"))
    assert even.shares == [1.0, 1.0]
    assert any("their weights have no effect" in note for note in even.notes)


def test_order_in_shards_draws_the_same_steps(many: Path) -> None:
    source = Source(path=str(many))
    plain = open_mixture(MixtureSpec(sources=[source])).draw(0, 2)
    blocks = open_mixture(MixtureSpec(sources=[source], order="shards", open_blocks=4)).draw(0, 2)
    epoch = plain.steps[0]
    one, two = ([mixture.sample(n) for n in range(epoch)] for mixture in (plain, blocks))
    assert sorted(one) == sorted(two)
    assert one != two
    assert plain.fingerprint() != blocks.fingerprint()


@pytest.fixture
def oxe_folder(tmp_path: Path, many: Path) -> tuple[Path, Path]:
    """A folder with two of three datasets, and the mixture that names them."""
    for name in ("first", "third"):
        (tmp_path / name).mkdir()
    mixture = tmp_path / "three.yaml"
    mixture.write_text(
        "title: three\nbalance: size\ndatasets: [{dataset: first, weight: 2}, {dataset: second, weight: 1}, "
        "{dataset: third, weight: 0.5, filter: {min_steps: 3}, stride: 2}, {dataset: first, weight: 9}]\n"
    )
    return tmp_path, mixture


def test_missing_datasets_of_a_named_mixture(oxe_folder: tuple[Path, Path]) -> None:
    folder, mixture = oxe_folder
    shutil.rmtree(folder / "third")
    spec = MixtureSpec(named=str(mixture), folder=str(folder))
    with pytest.raises(ValueError, match=r"2 of 3 datasets are not in .*: second, third; download"):
        resolve(spec)
    skipping = spec.model_copy(update={"missing": "skip"})
    assert [source.path for source in resolve(skipping)[0]] == [f"{folder}/first"]
    assert "left out: second, third" in resolve(skipping)[2][0]
    shutil.rmtree(folder / "first")
    with pytest.raises(ValueError, match="3 of 3 datasets are not in"):
        resolve(skipping)


def test_sources_of_a_named_mixture(oxe_folder: tuple[Path, Path]) -> None:
    folder, mixture = oxe_folder
    spec = MixtureSpec.model_validate(
        {
            "named": str(mixture), "folder": f"{folder}/", "missing": "skip",
            "defaults": {"held_out": 0.1, "filter": {"has_instruction": True}},
            "sources": [{"path": "mine"}],
        }
    )  # fmt: skip
    sources, balance, _ = resolve(spec)
    assert balance == "size"
    first, third, mine = sources
    assert (first.path, first.entry, first.weight, first.held_out) == (f"{folder}/first", "first", 2.0, 0.1)
    assert first.filter == EpisodeFilter(has_instruction=True)
    assert third.filter == EpisodeFilter(has_instruction=True, min_steps=3)
    assert (first.stride, third.stride, third.held_out) == (1, 2, 0.1)
    assert (mine.path, mine.entry, mine.held_out) == ("mine", None, None)
    assert resolve(spec.model_copy(update={"balance": "robot"}))[1] == "robot"
    for defaults, held_out, split in (
        ({}, 0.05, None),
        ({"held_out_split": "test"}, None, "test"),
        ({"held_out_split": ""}, None, None),
    ):
        other = MixtureSpec.model_validate({**spec.model_dump(), "defaults": defaults, "sources": []})
        assert {(source.held_out, source.judged_split) for source in resolve(other)[0]} == {(held_out, split)}


def held_out_of(path: Path) -> list[str]:
    return names(open_source(Source(path=str(path), held_out=0.3)).held_out)


def test_the_same_episodes_are_held_out_in_a_copy_of_another_name_and_after_conversion(
    many: Path, tmp_path: Path
) -> None:
    out = held_out_of(many)
    whole = open_dataset(many)
    assert out == [name for name in names(whole) if is_held_out("many", name, 0.3)], (
        "as it always was for RLDS"
    )
    shutil.copytree(many, tmp_path / "elsewhere" / "2.0.0")
    convert_dataset(many, tmp_path / "lerobot", "lerobot")
    shutil.copytree(tmp_path / "lerobot", tmp_path / "renamed")
    convert_dataset(tmp_path / "renamed", tmp_path / "back", "rlds")
    for name in ("elsewhere", "lerobot", "renamed", "back"):
        assert held_out_of(tmp_path / name) == out, name
        assert open_dataset(tmp_path / name).name == "many"


def test_data_without_a_name_of_its_own_goes_by_its_episodes(many: Path, tmp_path: Path) -> None:
    """LeRobot as others write it: no description of ours beside it."""
    convert_dataset(many, tmp_path / "one", "lerobot")
    entry, sets = tmp_path / "entry.yaml", []
    entry.write_text(open_dataset(tmp_path / "one").entry.model_dump_json())
    (tmp_path / "one" / SIDECAR).unlink()
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    convert_dataset(tmp_path / "two", tmp_path / "three", "rlds", entry=str(entry))
    for name in ("one", "two", "three"):
        part = open_source(
            Source(path=str(tmp_path / name), held_out=0.3, entry=str(entry) if name != "three" else None)
        )
        sets.append(names(part.held_out))
    assert 4 <= len(sets[0]) <= 20
    assert sets[0] == sets[1] == sets[2]


def test_hdf5_files_may_be_renamed(tmp_path: Path) -> None:
    entry = tmp_path / "entry.yaml"
    entry.write_text(
        "{embodiment: franka_panda, cameras: {}, action: [actions], state: [], instruction_text: lift}"
    )
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "lift.hdf5", "w") as file:
        for number in range(40):
            file[f"data/demo_{number}/actions"] = rng.normal(size=(3 + number % 7, 7))
    shutil.copy(tmp_path / "lift.hdf5", tmp_path / "other.hdf5")
    sets = []
    for name in ("lift", "other"):
        part = open_source(Source(path=str(tmp_path / f"{name}.hdf5"), entry=str(entry), held_out=0.3))
        sets.append([name.partition("/")[2] for name in names(part.held_out)])
    assert 4 <= len(sets[0]) <= 20
    assert sets[0] == sets[1]


def test_damage_that_is_skipped_is_noted(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the train and of the held-out split; where the list gets long it is cut and says so."""
    shutil.copytree(many, tmp_path / "many" / "1.0.0")
    for split, keep in (("train", 0.3), ("val", 0.5)):
        (shard,) = (tmp_path / "many" / "1.0.0").glob(f"*-{split}.tfrecord-*")
        data = shard.read_bytes()
        shard.write_bytes(data[: int(len(data) * keep)])
    source = Source(path=str(tmp_path / "many"), on_error="skip")
    with pytest.warns(UserWarning, match="skipped"):
        opened = open_mixture(MixtureSpec(sources=[source]))
    lost = 40 - len(opened.parts[0].train)
    assert 20 < lost < 40
    first, why, judged, also = opened.notes
    assert first == f"many/train: {lost} of 40 episodes are damaged and left out:"
    assert why.startswith(f"many/train: {tmp_path}/many/1.0.0/many-train.tfrecord-00000-of-00001: record ")
    assert judged.startswith("many/val: ")
    assert "many-val.tfrecord-00000-of-00001: record" in also
    assert tuple(opened.notes) == opened.parts[0].notes
    monkeypatch.setattr(open_mixture_module, "_LISTED", 0)
    with pytest.warns(UserWarning, match="skipped"):
        cut = open_source(source).notes
    assert cut[1] == "many/train: and 1 more; data doctor lists them"


@pytest.fixture(scope="module")
def wrist_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of a robot that declares a primary camera, recorded by the one on its wrist."""
    robot, rng = Embodiment.load("ur5e"), np.random.default_rng(2)
    with RldsWriter(tmp_path_factory.mktemp("wrist"), "wrist_only", robot) as writer:
        for split in ("train", "train", "val"):
            data = fake_data(robot, rng, 5)
            writer.add(split, replace(data, images={"wrist": data.images["wrist"]}))
    return writer.path


def test_a_camera_that_stands_in(many: Path, wrist_only: Path) -> None:
    given = {"primary": "wrist"}
    sources = [Source(path=str(path), stand_in_cameras=given) for path in (many, wrist_only)]
    opened = open_mixture(MixtureSpec(sources=sources))
    assert opened.notes == ["wrist_only: it has no camera 'primary'; its camera 'wrist' stands in"]
    part = opened.parts[1]
    for dataset in (part.train, part.held_out):
        assert dataset is not None
        assert dataset[0].cameras == ("wrist", "primary")
        np.testing.assert_array_equal(dataset[0].image(3, "primary"), dataset[0].image(3, "wrist"))
    cut = [opened.draw(0, 2, cameras=("primary",)).window(n) for n in range(8)]
    assert {window["ids"]["dataset"] for window in cut} == {"many", "wrist_only"}
    both = opened.draw(0, 2, cameras=(), optional_cameras=("primary", "wrist"))
    assert all(
        window["image_mask"] == {"primary": True, "wrist": True} for window in map(both.window, range(8))
    )
    with pytest.raises(ValueError, match="wrist_only: no camera 'primary'; it has wrist"):
        open_mixture(MixtureSpec(sources=[Source(path=str(wrist_only))])).draw(0, 2)


def test_a_stand_in_that_nobody_needs_or_has_is_told(many: Path, wrist_only: Path) -> None:
    idle = "stand_in_cameras: no dataset lacks camera 'primary' and has '{}', so it has no effect"
    for path, other in ((many, "wrist"), (wrist_only, "wirst")):
        source = Source(path=str(path), stand_in_cameras={"primary": other})
        assert open_mixture(MixtureSpec(sources=[source])).notes == [idle.format(other)]


def test_stand_ins_of_a_named_mixture_and_of_a_recipe(wrist_only: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "title: mine\nbalance: size\nstand_in_cameras: {primary: wrist}\n"
        "datasets: [{dataset: bridge_dataset, weight: 1}]\n"
    )
    (tmp_path / "bridge_dataset").mkdir()
    for defaults, wanted in (({}, {"primary": "wrist"}), ({"primary": "side"}, {"primary": "side"})):
        spec = MixtureSpec(
            named=str(file), folder=str(tmp_path), defaults=SourceOptions(stand_in_cameras=defaults)
        )
        assert resolve(spec)[0][0].stand_in_cameras == wanted
