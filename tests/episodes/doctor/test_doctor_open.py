"""What the doctor finds on disk: damaged files, grippers before clipping, declared zeros, held-out splits."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import DatasetEntry, EpisodeData, open_dataset
from vla_adapt.episodes.doctor.diagnosis import Diagnosis, examine
from vla_adapt.episodes.doctor.doctor_open import open_patients
from vla_adapt.episodes.mapping.entry import read_sidecar
from vla_adapt.episodes.mixing.episode_filter import EpisodeFilter
from vla_adapt.episodes.mixing.mixture_spec import Source
from vla_adapt.episodes.rlds.tfrecord import frame
from vla_adapt.episodes.rlds.write import RldsWriter


def recorded(rng: np.random.Generator, length: int = 30) -> EpisodeData:
    """A WidowX that wanders and opens and closes its hand; 255 = open in the extra `hand`."""
    steps = rng.normal(size=(length, 6)) * 0.01
    poses = np.cumsum(np.concatenate([np.zeros((1, 6)), steps[:-1]]), axis=0) * [1, 1, 1, 0.1, 0.1, 0.1]
    steps[:, 3:] *= 0.1
    hand = (np.arange(length) // 8 % 2 == 0).astype(float)
    measured = np.concatenate([hand[:1], hand[:-1]])
    return EpisodeData(
        action=np.column_stack([steps, hand]).astype(np.float32),
        state=np.column_stack([poses, measured]).astype(np.float32),
        images={"primary": rng.integers(100, 200, (length, 24, 24, 3), dtype=np.uint8)},
        instruction=f"task {rng.integers(1000)}",
        extra={"hand": np.float32(255) * hand.astype(np.float32), "flat": np.zeros((length, 3), np.float32)},
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    with RldsWriter(tmp_path / "data", "wander", Embodiment.load("widowx"), shard_bytes=60_000) as writer:
        for split, count in (("train", 9), ("val", 2)):
            for _ in range(count):
                writer.add(split, recorded(rng))
    return writer.path


def examined(*sources: Source) -> Diagnosis:
    patients = open_patients(sources)
    return examine(patients.datasets, patients.names, images=8, already=patients.findings)


def errors(found: Diagnosis) -> dict[str, str]:
    """Evidence of what is worse than a note, by code."""
    return {finding.code: finding.evidence for finding in found.findings if finding.severity != "note"}


def test_healthy_data_with_its_held_out_split(data: Path) -> None:
    found = examined(Source(path=str(data)))
    assert errors(found) == {}
    assert [(one.name, one.examined) for one in found.examined] == [("wander/train", 9), ("wander/val", 2)]


def test_missing_dataset_and_split_are_findings_beside_the_healthy_one(data: Path, tmp_path: Path) -> None:
    found = examined(
        Source(path=str(data), held_out_split="tset"), Source(path=str(tmp_path / "gone"), held_out_split="")
    )
    assert [one.name for one in found.examined] == ["wander/train"]
    told = {finding.dataset: finding.evidence for finding in found.findings if finding.code == "unreadable"}
    assert set(told) == {f"{data}/tset", f"{tmp_path / 'gone'}/train"}
    assert "no split 'tset'" in told[f"{data}/tset"]


def test_undecodable_images_are_found_though_damage_is_let_through(data: Path) -> None:
    for shard in data.glob("*train*"):
        content, start = shard.read_bytes(), 0
        spoiled = b""
        while start < len(content):
            end = start + 12 + struct.unpack_from("<Q", content, start)[0] + 4
            spoiled += frame(content[start + 12 : end - 4].replace(b"\xff\xd8\xff\xe0", b"junk"))
            start = end
        shard.write_bytes(spoiled)
    found = examined(Source(path=str(data), held_out_split=""))
    assert set(errors(found)) == {"undecodable_image"}
    assert "camera 'primary': image cannot be decoded" in errors(found)["undecodable_image"]


def test_truncated_shard_is_one_finding_and_the_rest_is_examined(data: Path) -> None:
    shard = sorted(data.glob("*train*"))[1]
    shard.write_bytes(shard.read_bytes()[:-500])
    found = examined(Source(path=str(data), held_out_split=""))
    assert set(errors(found)) == {"unreadable"}
    assert shard.name in errors(found)["unreadable"]
    assert 0 < found.examined[0].examined < 9


def test_stored_gripper_is_judged_before_it_is_clipped(data: Path) -> None:
    def entry(open_number: float) -> DatasetEntry:
        hand = {"field": "observation/hand", "open": open_number, "closed": 0}
        return DatasetEntry.model_validate({
            "embodiment": "widowx", "cameras": {"primary": "observation/primary"},
            "action": {
                "position": {"field": "action", "columns": [0, 1, 2]},
                "rotation": {"field": "action", "columns": [3, 4, 5], "rotation": "euler_xyz"},
                "gripper": hand,
            },
        })  # fmt: skip

    def codes(open_number: float) -> dict[str, str]:
        return errors(examine([open_dataset(data, entry=entry(open_number), check=False)], images=0))

    assert codes(255) == {}
    assert set(codes(1)) == {"gripper_scale"}
    assert "(stored field observation/hand)" in codes(1)["gripper_scale"]
    assert "native numbers run from 0 to 255, declared open = 1" in codes(1)["gripper_scale"]
    assert codes(130) == {}  # 255 is clipped to open, and that is only noted


def test_declared_zeros_and_what_is_not_recorded_are_not_dead(data: Path) -> None:
    def entry(rotation: object) -> DatasetEntry:
        return DatasetEntry.model_validate({
            "embodiment": "widowx", "cameras": {"primary": "observation/primary"},
            "action": {
                "position": {"field": "action", "columns": [0, 1, None]},
                "rotation": rotation,
                "gripper": {"field": "action", "columns": [6]},
            },
        })  # fmt: skip

    def found(rotation: object) -> Diagnosis:
        return examine([open_dataset(data, entry=entry(rotation), check=False)], images=0)

    assert errors(found("omit")) == {}
    dead = found({"field": "observation/flat"})
    assert set(errors(dead)) == {"dead_dimension"}
    assert "3 of 7 numbers never change" in errors(dead)["dead_dimension"]
    assert "position" not in errors(dead)["dead_dimension"]


def test_stored_times_against_the_declared_rate(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with RldsWriter(tmp_path, "timed", Embodiment.load("widowx")) as writer:
        for _ in range(5):
            recording = recorded(rng)
            recording.extra = {"timestamp": np.arange(30, dtype=np.float32) / 10}
            writer.add("train", recording)
    dataset = open_dataset(writer.path)
    assert "10 Hz, declared are 5 Hz" in errors(examine([dataset], images=0))["control_rate"]
    entry = dataset.entry.model_copy(update={"rate_hz": 10.0})
    assert set(errors(examine([open_dataset(writer.path, entry=entry)], images=0))) == {"robot_rate"}


def test_a_mixture_may_choose_episodes(data: Path) -> None:
    found = examined(Source.model_validate({"path": str(data), "held_out_split": "", "episodes": 4}))
    assert (found.examined[0].episodes, found.examined[0].examined) == (4, 4)
    chosen = {"path": str(data), "held_out_split": "", "filter": {"ids": ["train/3", "train/5"]}}
    assert examined(Source.model_validate(chosen)).examined[0].episodes == 2


def test_a_camera_that_stands_in_is_noted(data: Path) -> None:
    found = examined(Source(path=str(data), stand_in_cameras={"side": "primary"}))
    assert errors(found) == {}
    notes = [finding for finding in found.findings if finding.code == "camera_stand_in"]
    assert [note.dataset for note in notes] == ["wander/train", "wander/val"]
    assert "it has no camera 'side': images of 'primary' are given for it" in notes[0].evidence


def test_malformed_descriptions_do_not_end_the_examination(data: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(data, tmp_path / "other" / "1.0.0"))
    (other / "dataset_info.json").write_text("[]")
    sources = [Source(path=str(path), held_out_split="") for path in (other, data)]
    patients = open_patients(sources)
    assert [finding.code for finding in patients.findings] == ["unreadable"]
    assert patients.names == ["wander/train"]


def test_every_nth_step_is_judged_at_its_own_rate(data: Path, tmp_path: Path) -> None:
    """Recorded at twice the robot's rate: fine when every second step is read; all steps are examined."""
    sidecar = read_sidecar(data)
    assert sidecar is not None
    entry = tmp_path / "twice.yaml"
    entry.write_text(sidecar.entry.model_copy(update={"rate_hz": 10.0}).model_dump_json())
    for stride, codes, examined in ((1, {"robot_rate"}, 0), (2, set(), 11)):
        source = Source(path=str(data), entry=str(entry), stride=stride)
        patients = open_patients([source])
        found = examine(patients.datasets, patients.names, images=0, strides=patients.strides)
        assert {finding.code for finding in found.findings if "rate" in finding.code} == codes
        assert found.examined[0].steps == 9 * 30
        chosen = open_patients([source.model_copy(update={"filter": EpisodeFilter(max_steps=15)})])
        assert sum(map(len, chosen.datasets)) == examined


def test_a_robot_whose_steps_do_not_join_is_a_finding(two_robot_data: dict[str, Path]) -> None:
    patients = open_patients([Source(path=str(two_robot_data["ur5e"]), stride=2, held_out_split="")])
    assert [finding.code for finding in patients.findings] == ["unreadable"]
    assert "2 steps of action 'position' of ur5e cannot be made one" in patients.findings[0].evidence
