"""Episodes without steps are survived everywhere: opening, statistics, mixture, doctor, page, conversion."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import fake_data, open_dataset
from vla_adapt.episodes.conversion.convert import convert_dataset
from vla_adapt.episodes.doctor.diagnosis import examine
from vla_adapt.episodes.doctor.doctor_open import open_patients
from vla_adapt.episodes.inspection.inspect_page import write_page
from vla_adapt.episodes.mapping.entry import DatasetEntry
from vla_adapt.episodes.mapping.mapped import MappedDataset
from vla_adapt.episodes.measuring.statistics import robot_statistics
from vla_adapt.episodes.mixing.mixture import Mixture
from vla_adapt.episodes.mixing.mixture_spec import MixtureSpec, Source
from vla_adapt.episodes.mixing.open_mixture import open_mixture
from vla_adapt.episodes.rlds.write import RldsWriter, _entry_of, _episode_fields

# The first one and one within.
LENGTHS = (0, 6, 0, 5)
EMPTY = (0, 2)


def rlds(folder: Path) -> Path:
    robot, rng = Embodiment.load("franka_panda"), np.random.default_rng(0)
    with RldsWriter(folder, "recorded", robot) as writer:
        for length in LENGTHS:
            data = fake_data(robot, rng, max(length, 1), image_size=16)
            fields = _episode_fields(data, robot, "here")
            cut = {
                key: (leaf, values[:length] if key.startswith("steps/") else values)
                for key, (leaf, values) in fields.items()
            }
            writer.add_fields("train", cut, _entry_of(data, robot))
    return writer.path


def hdf5(folder: Path) -> Path:
    rng = np.random.default_rng(1)
    with h5py.File(folder / "recorded.hdf5", "w") as file:
        for i, steps in enumerate(LENGTHS):
            demo = file.create_group(f"data/demo_{i}")
            demo["action"] = rng.uniform(-1, 1, (steps, 7))
            demo["observation/state"] = rng.normal(size=(steps, 8))
            demo["observation/primary"] = rng.integers(0, 256, (steps, 16, 16, 3), dtype=np.uint8)
            demo.attrs["language_instruction"] = "push"
    return folder / "recorded.hdf5"


def lerobot(folder: Path) -> Path:
    """A converted dataset with episodes 0 and 2 put in; lerobot itself does not write empty ones."""
    convert_dataset(rlds(folder / "source"), folder / "recorded", "lerobot")
    meta = folder / "recorded" / "meta"
    info = json.loads((meta / "info.json").read_text())
    info |= {"total_episodes": 4, "splits": {"train": "0:4"}}
    (meta / "info.json").write_text(json.dumps(info))
    (file,) = meta.glob("episodes/*/*.parquet")
    rows = pq.read_table(file).to_pylist()
    rows = [{**rows[0], "length": 0}, rows[0], {**rows[1], "length": 0}, rows[1]]
    pq.write_table(pa.Table.from_pylist([{**row, "episode_index": i} for i, row in enumerate(rows)]), file)
    (data,) = (folder / "recorded").glob("data/*/*.parquet")
    table = pq.read_table(data)
    index = pa.array(np.repeat(range(4), LENGTHS))
    place = table.column_names.index("episode_index")
    pq.write_table(table.set_column(place, "episode_index", index), data)
    return folder / "recorded"


def entry(form: str, between: str) -> DatasetEntry:
    """The default fields, whole or component by component, one of them a turn between stored orientations."""
    action, state = "action", f"observation{between}state"
    components: dict[str, Any] = {
        "position": {"field": action, "columns": [0, 1, 2]},
        "rotation": {
            "field": action,
            "columns": [3, 4, 5],
            "measured": {"field": state, "columns": [3, 4, 5, 6], "rotation": "quaternion_xyzw"},
            "rotation": "euler_xyz",
        },
        "gripper": {"field": action, "columns": [6], "open": 1, "closed": -1, "relative": 0.1},
    }
    camera = "observation/primary" if between == "/" else "observation.images.primary"
    return DatasetEntry.model_validate(
        {
            "embodiment": "franka_panda",
            "cameras": {"primary": camera},
            "action": action if form == "fields" else components,
            "state": state,
            "instruction": "language_instruction" if between == "/" else "task",
            "transforms": [] if form == "fields" else ["drop_first_step"],
        }
    )


@pytest.fixture(
    params=[f"{kind}-{form}" for kind in ("rlds", "hdf5", "lerobot") for form in ("fields", "components")]
)
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> MappedDataset:
    kind, form = request.param.split("-")
    write: Callable[[Path], Path] = {"rlds": rlds, "hdf5": hdf5, "lerobot": lerobot}[kind]
    return open_dataset(write(tmp_path), entry=entry(form, "." if kind == "lerobot" else "/"))


def test_everything_that_reads_episodes(dataset: MappedDataset, tmp_path: Path) -> None:
    dropped = len(dataset.entry.transforms)
    assert dataset.lengths.tolist() == [max(length - dropped, 0) for length in LENGTHS]
    for episode, length in zip(dataset, dataset.lengths, strict=True):
        assert episode.action.shape == (length, 7)
        assert episode.state is not None
        assert episode.state.shape == (length, 8)
        assert bool(episode.instruction) >= bool(length)
    statistics = robot_statistics([dataset], cache=False)["franka_panda"]
    assert statistics.action.count == dataset.lengths.sum()
    mixture = Mixture([(dataset, 1.0)], 0, 2)
    assert {mixture.sample(n).episode for n in range(50)} == {1, 3}
    assert mixture.window(3)["images"]["primary"].shape == (16, 16, 3)
    assert len(mixture.fingerprint()) == 16
    weights = np.array([5.0, 1.0, 0.0, 1.0])
    weighted = Mixture([(dataset, 1.0)], 0, 2, episode_weights=[weights])
    assert {weighted.sample(n).episode for n in range(50)} == {1, 3}
    write_page(dataset, 2, tmp_path / "page.html")
    assert "0 steps" in (tmp_path / "page.html").read_text()


def test_a_process_that_inherits_nothing_reads_the_same(dataset: MappedDataset) -> None:
    there = Mixture([(dataset, 1.0)], 0, 2)
    copy = pickle.loads(pickle.dumps(there))
    for n in range(4):
        here, again = there.window(n), copy.window(n)
        np.testing.assert_array_equal(here["images"]["primary"], again["images"]["primary"])
        np.testing.assert_array_equal(here["action"], again["action"])


def test_the_doctor_finds_them(dataset: MappedDataset) -> None:
    found = {finding.code: finding for finding in examine([dataset]).findings}
    assert found["empty_episodes"].numbers["episodes"] == [dataset.episode_id(i) for i in EMPTY]
    assert not {"unreadable", "empty_instruction"} & found.keys()


def test_skipping_damage_keeps_them(dataset: MappedDataset) -> None:
    again = open_dataset(dataset.path, entry=dataset.entry, on_error="skip")
    assert again.lengths.tolist() == dataset.lengths.tolist()
    assert again.skipped == []


@pytest.mark.parametrize("write", [rlds, hdf5, lerobot])
def test_rlds_keeps_them_and_lerobot_says_that_it_does_not(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    own = entry("fields", "." if write is lerobot else "/")
    file = tmp_path / "entry.yaml"
    file.write_text(own.model_dump_json())
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in")
    with pytest.warns(UserWarning, match="64-bit floats") if write is hdf5 else nullcontext():
        assert convert_dataset(path, tmp_path / "kept", "rlds", entry=str(file)).episodes == {"train": 4}
    assert open_dataset(tmp_path / "kept").lengths.tolist() == list(LENGTHS)
    with pytest.warns(UserWarning, match="episodes without steps: "):
        done = convert_dataset(tmp_path / "kept", tmp_path / "dropped", "lerobot")
    source, dropped = open_dataset(path, entry=own), open_dataset(tmp_path / "dropped")
    assert done.episodes == {"train": 2}
    assert [episode.episode_id for episode in dropped] == [source.episode_id(i) for i in (1, 3)]
    for number, episode in zip((1, 3), dropped, strict=True):
        np.testing.assert_array_equal(episode.action, source[number].action)


def test_nothing_but_empty_episodes(tmp_path: Path) -> None:
    robot = Embodiment.load("franka_panda")
    data = fake_data(robot, np.random.default_rng(0), 1)
    with RldsWriter(tmp_path, "nothing", robot) as writer:
        fields = _episode_fields(data, robot, "here")
        empty = {
            key: (leaf, values[:0] if key.startswith("steps/") else values)
            for key, (leaf, values) in fields.items()
        }
        writer.add_fields("train", empty, _entry_of(data, robot))
    dataset = open_dataset(writer.path)
    with pytest.raises(ValueError, match="nothing: no steps to draw from"):
        Mixture([(dataset, 1.0)], 0, 2)
    nothing = {"path": str(writer.path), "held_out_split": ""}
    for balance in ("none", "size", "robot", "dataset"):
        with pytest.raises(ValueError, match="nothing: no steps to draw from"):
            open_mixture(MixtureSpec.model_validate({"sources": [nothing], "balance": balance}))
    with pytest.raises(ValueError, match="nothing: no steps to compute statistics from"):
        robot_statistics([dataset], cache=False)
    (patient,) = open_patients([Source(path=str(writer.path), held_out_split="")]).datasets
    assert [finding.code for finding in examine([patient]).findings] == ["empty_episodes"]


def test_hdf5_files_whose_first_holds_no_steps(tmp_path: Path) -> None:
    """ALOHA's way, a file an episode: what a step holds is told by the first file with one."""
    rng = np.random.default_rng(2)
    jpeg = np.frombuffer(b"\xff\xd8\xff\xe0" + bytes(60), np.uint8)
    for number, steps in enumerate((0, 3)):
        with h5py.File(tmp_path / f"episode_{number}.hdf5", "w") as file:
            file["action"] = rng.normal(size=(steps, 14))
            file["observations/images/cam_high"] = (
                np.tile(jpeg, (steps, 1)) if steps else np.zeros((0, 64), np.uint8)
            )
            file["wide"] = rng.normal(size=(steps, 90))
    own = DatasetEntry(
        embodiment="aloha", cameras={"primary": "observations/images/cam_high"}, action=("action",), state=(),
        extra={"wide": "wide"}, instruction_text="fold",
    )  # fmt: skip
    dataset = open_dataset(tmp_path, entry=own)
    assert dataset.lengths.tolist() == [0, 3]
    assert [episode.extra("wide").shape for episode in dataset] == [(0, 90), (3, 90)]
    assert dataset.store.column("wide").shape == (3, 90)
