"""What is carried and what is told as left behind: splits, 64-bit floats, types, names, nothing silently."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import fake_data, open_dataset
from vla_adapt.episodes.conversion import convert as convert_module
from vla_adapt.episodes.conversion.convert import Conversion, convert_dataset
from vla_adapt.episodes.rlds.write import RldsWriter, _entry_of, _episode_fields
from vla_adapt.episodes.storage.feature_spec import Kind, LeafSpec


def told(*arguments: Any, **options: Any) -> tuple[Conversion, list[str]]:
    """A conversion and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        done = convert_dataset(*arguments, **options)
    return done, [str(one.message) for one in caught]


def test_nothing_is_told_when_nothing_is_left_behind(written: Path, tmp_path: Path) -> None:
    for source, to in ((written, "lerobot"), (tmp_path / "lerobot", "rlds"), (written, "rlds")):
        target = tmp_path / (to if source != written or to == "lerobot" else "again")
        assert told(source, target, to) == (Conversion({"train": 5, "val": 2}, []), [])
    info = json.loads((tmp_path / "lerobot" / "meta" / "info.json").read_text())
    assert info["splits"] == {"train": "0:5", "val": "5:7"}
    assert info["total_episodes"] == 7
    for split in ("train", "val"):
        source = open_dataset(written, split=split)
        for name in ("lerobot", "rlds", "again"):
            other = open_dataset(tmp_path / name, split=split)
            assert other.name == "written"
            assert [episode.episode_id for episode in other] == [episode.episode_id for episode in source]
            for one, two in zip(source, other, strict=True):
                np.testing.assert_array_equal(one.action, two.action)
                np.testing.assert_array_equal(one.image(1), two.image(1))


def test_one_split_when_asked_for(written: Path, tmp_path: Path) -> None:
    done, _ = told(written, tmp_path / "val", "lerobot", splits=["val"])
    assert done == Conversion({"val": 2}, [])
    with pytest.raises(ValueError, match="no split 'vall'"):
        convert_dataset(written, tmp_path / "none", "rlds", splits=["vall"])


def test_filter_keys_that_overlap_and_64_bit_floats(tmp_path: Path) -> None:
    """robomimic: "half" is a part of the rest. Of its 64-bit floats LeRobot keeps all and RLDS half."""
    rng = np.random.default_rng(0)
    actions = [rng.normal(size=(steps, 7)) for steps in (3, 5, 4)]
    with h5py.File(tmp_path / "lift.hdf5", "w") as file:
        for number, action in enumerate(actions):
            file[f"data/demo_{number}/actions"] = action
            file[f"data/demo_{number}/small"] = np.float32(action)
        file["data/demo_1"].attrs["score"] = 0.1  # only this one
        file["mask/half"], file["mask/valid"] = np.array([b"demo_0"]), np.array([b"demo_2"])
    entry = tmp_path / "entry.yaml"
    entry.write_text(
        "{embodiment: franka_panda, cameras: {}, action: [actions], state: [], instruction_text: lift}"
    )
    half = "split 'half': 1 of its 1 episodes are in others too"
    done, caught = told(tmp_path / "lift.hdf5", tmp_path / "lerobot", "lerobot", entry=str(entry))
    assert done == Conversion({"train": 2, "valid": 1}, [half])
    assert caught == [f"lift: left behind in lerobot: {half}"]
    columns = pq.read_table(next((tmp_path / "lerobot").glob("data/*/*.parquet")))
    assert columns.schema.field("actions").type.value_type == pa.float64()
    assert columns.schema.field("small").type.value_type == pa.float32()
    np.testing.assert_array_equal(columns["actions"].to_pylist(), np.concatenate(actions))
    dataset = open_dataset(tmp_path / "lerobot")
    assert [episode.episode_id for episode in dataset] == ["lift.hdf5/demo_0", "lift.hdf5/demo_1"]
    assert [dataset.metadata(i)["score"] for i in range(2)] == [None, 0.1]

    for source, keys in ((tmp_path / "lift.hdf5", [half]), (tmp_path / "lerobot", [])):
        target = tmp_path / f"rlds_{source.stem}"
        own = {"entry": str(entry)} if keys else {}
        done, _ = told(source, target, "rlds", **own)
        assert done.left_behind == [
            *keys,
            "field 'actions': 64-bit floats became 32-bit",
            "episode fact 'score': missing in 2 of 3 episodes, RLDS wants it in all",
        ]
        np.testing.assert_array_equal(open_dataset(target)[1].action, np.float32(actions[1]))
        assert open_dataset(target, split="valid")[0].episode_id == "lift.hdf5/demo_2"

    done, caught = told(tmp_path / "lerobot", tmp_path / "twice", "lerobot")
    assert (done.left_behind, caught) == ([], [])
    again = pq.read_table(next((tmp_path / "twice").glob("data/*/*.parquet")))
    assert again.schema.field("actions").type == columns.schema.field("actions").type
    assert again["actions"] == columns["actions"]


def test_fields_that_some_episodes_lack_are_told(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "lift.hdf5", "w") as file:
        for number in range(2):
            file[f"data/demo_{number}/actions"] = np.zeros((3, 7), np.float32)
        file["data/demo_1/touch"] = np.zeros((3, 2), np.float32)
    (tmp_path / "lift.yaml").write_text(
        "{embodiment: franka_panda, cameras: {}, action: [actions], state: [], instruction_text: lift}"
    )
    done, _ = told(tmp_path / "lift.hdf5", tmp_path / "out", "lerobot", entry=str(tmp_path / "lift.yaml"))
    assert done.left_behind == ["field 'touch': lift.hdf5: data/demo_1 has it, not every episode before"]


def test_facts_that_would_get_one_name_are_refused(tmp_path: Path, robot: Embodiment) -> None:
    rng = np.random.default_rng(0)
    with RldsWriter(tmp_path, "source", robot) as writer:
        data = fake_data(robot, rng, 3)
        fields = _episode_fields(data, robot, "here")
        for name in ("length", "recorded_length"):
            fields[f"episode_metadata/{name}"] = (LeafSpec(Kind.TEXT), [b"long"])
        writer.add_fields("train", fields, _entry_of(data, robot))
    said = r"facts 'length' and 'recorded_length' would both be 'recorded_length' in lerobot; rename one"
    with pytest.raises(ValueError, match=said):
        convert_dataset(writer.path, tmp_path / "lerobot", "lerobot")


def test_facts_keep_their_types_and_what_has_no_place_is_told(tmp_path: Path, robot: Embodiment) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    with RldsWriter(tmp_path, "source", robot) as writer:
        for number in range(2):
            data = fake_data(robot, rng, 3)
            facts = {
                "count": (LeafSpec(Kind.NUMBER, (), "int32"), np.array([number], np.int32)),
                "score": (LeafSpec(Kind.NUMBER, (), "float32"), np.array([0.1], np.float32)),
                "place": (LeafSpec(Kind.NUMBER, (2,), "float32"), np.array([[0.1, 0.2]], np.float32)),
                "length": (LeafSpec(Kind.TEXT), [b"long"]),
                "goal": (
                    LeafSpec(Kind.IMAGE, (4, 6, 3), "uint8", "png"),
                    [convert_module.encode_png(pixels)],
                ),
            }
            fields = _episode_fields(data, robot, "here")
            fields |= {f"episode_metadata/{name}": value for name, value in facts.items()}
            writer.add_fields("train", fields, _entry_of(data, robot))
    done, caught = told(writer.path, tmp_path / "lerobot", "lerobot")
    (lost,) = done.left_behind
    assert lost == "episode fact 'goal': LeRobot has no place for images of episodes"
    assert len(caught) == 1
    (file,) = (tmp_path / "lerobot").glob("meta/episodes/*/*.parquet")
    schema = pq.read_schema(file)
    kinds = {
        name: schema.field(f"metadata/{name}").type for name in ("count", "score", "place", "recorded_length")
    }
    assert kinds == {
        "count": pa.int32(),
        "score": pa.float32(),
        "place": pa.list_(pa.float32()),
        "recorded_length": pa.string(),
    }
    assert told(tmp_path / "lerobot", tmp_path / "back", "rlds")[0].left_behind == []
    assert told(writer.path, tmp_path / "rlds", "rlds")[0].left_behind == []
    source, back, again = (open_dataset(path) for path in (writer.path, tmp_path / "back", tmp_path / "rlds"))
    leaves = [dataset.store.fact_leaves for dataset in (source, back)]  # type: ignore[attr-defined]
    for name in ("count", "score", "place"):
        assert leaves[0][name] == leaves[1][name]
        assert source.metadata(1)[name] == back.metadata(1)[name]
    np.testing.assert_array_equal(again.metadata(1)["goal"], pixels)


def test_episodes_named_by_a_fact_that_is_called_otherwise(tmp_path: Path, robot: Embodiment) -> None:
    rng = np.random.default_rng(0)
    with RldsWriter(tmp_path, "source", robot) as writer:
        for number in (17, 4):
            data = fake_data(robot, rng, 3)
            data.metadata = {"episode_index": number}
            own = _entry_of(data, robot).model_copy(update={"episode_id": "episode_metadata/episode_index"})
            writer.add_fields("train", _episode_fields(data, robot, "here"), own)
    for source, target, to in ((writer.path, "there", "lerobot"), (tmp_path / "there", "back", "rlds")):
        assert told(source, tmp_path / target, to)[1] == []
        assert [episode.episode_id for episode in open_dataset(tmp_path / target)] == ["17", "4"]


def test_splits_of_lerobot(tmp_path: Path, lerobot_by_hand: Callable[..., Any]) -> None:
    """Episode 2 lies in no split, the names of the motors in no other format."""

    def edit(info: dict[str, Any]) -> None:
        info["splits"] = {"train": "0:1", "my-val": "1:2"}
        info["features"]["action"]["names"] = None

    made = lerobot_by_hand("v3.0", "image", edit=edit)
    options: dict[str, Any] = {"embodiment": "franka_panda"}
    done, _ = told(made.path, tmp_path / "lerobot", "lerobot", **options)
    assert done == Conversion({"train": 1, "my-val": 1}, ["episodes in no split of train, my-val: 1"])
    with pytest.raises(ValueError, match="split 'my-val': RLDS wants letters, digits and underscores"):
        convert_dataset(made.path, tmp_path / "rlds", "rlds", **options)
    assert told(made.path, tmp_path / "rlds", "rlds", splits=["train"], **options)[0].episodes == {"train": 1}
    assert open_dataset(tmp_path / "rlds").name == "by_hand"


@pytest.mark.parametrize("to", ["lerobot", "rlds"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_conversion_leaves_nothing(
    written: Path, tmp_path: Path, to: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When one split is done (RLDS), or its images are half way (LeRobot looks at some twice)."""
    seen = []
    get = convert_module._Pictures.__getitem__

    def interrupted(pictures: Any, step: Any) -> Any:
        seen.append(step)
        if len(seen) > 70:
            raise error
        return get(pictures, step)

    monkeypatch.setattr(convert_module._Pictures, "__getitem__", interrupted)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error):
        convert_dataset(written, tmp_path / "new", to)  # type: ignore[arg-type]
    left = [
        path for path in sorted(tmp_path.rglob("*")) if path not in before and ".vla_adapt" not in str(path)
    ]
    assert left == []
