"""HDF5 in the public layouts of robomimic, LIBERO and ALOHA: equal to plain h5py, and clear refusals."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import simplejpeg

from vla_adapt.episodes import DatasetEntry, open_dataset
from vla_adapt.episodes.hdf5.hdf5_store import Hdf5Store
from vla_adapt.episodes.storage.feature_spec import Kind
from vla_adapt.episodes.storage.stored import StoredEpisodes

LENGTHS = (6, 4, 9, 5, 3, 7, 2, 8, 5, 4, 6, 3)
LIBERO_FIELDS = ("actions", "obs/ee_states", "obs/gripper_states", "obs/agentview_rgb", "obs/eye_in_hand_rgb")
ALOHA_FIELDS = ("action", "observations/qpos", "observations/images/cam_high")
CAMERAS = ("cam_high", "cam_left_wrist", "cam_right_wrist")


def write_libero(
    path: Path, instruction: str = "turn on the stove", lengths=LENGTHS, seed: int = 0, width: int = 45
) -> None:
    """As LIBERO's scripts/create_dataset.py; `width` of the simulator state differs between tasks."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_name"] = "Libero_Kitchen_Tabletop_Manipulation"
        problem = {"problem_name": "libero_kitchen", "domain_name": "robosuite"}
        data.attrs["problem_info"] = json.dumps(problem | {"language_instruction": instruction})
        data.attrs["macros_image_convention"] = "opengl"
        data.attrs["bddl_file_name"] = "libero/bddl_files/libero_10/KITCHEN_SCENE3_turn_on_the_stove.bddl"
        data.attrs["env_args"] = json.dumps(
            {"type": 1, "env_kwargs": {"robots": ["Panda"], "control_freq": 20}}
        )
        for i, steps in enumerate(lengths):
            demo = data.create_group(f"demo_{i}")
            obs = demo.create_group("obs")
            for name, size in (("gripper_states", 2), ("joint_states", 7), ("ee_states", 6), ("ee_pos", 3)):
                obs.create_dataset(name, data=rng.normal(size=(steps, size)))
            for name in ("agentview_rgb", "eye_in_hand_rgb"):
                obs.create_dataset(name, data=rng.integers(0, 256, (steps, 16, 12, 3), dtype=np.uint8))
            demo.create_dataset("actions", data=rng.uniform(-1, 1, (steps, 7)))
            demo.create_dataset("states", data=rng.normal(size=(steps, width)))
            demo.create_dataset("robot_states", data=rng.normal(size=(steps, 9)))
            for name in ("rewards", "dones"):
                demo.create_dataset(name, data=(np.arange(steps) == steps - 1).astype(np.uint8))
            demo.attrs["num_samples"] = str(steps)
            demo.attrs["model_file"] = "<mujoco>" + "x" * 5000 + "</mujoco>"
            demo.attrs["init_state"] = demo["states"][0]
        data.attrs["num_demos"] = len(lengths)
        data.attrs["total"] = sum(lengths)


def write_robomimic(path: Path, lengths=LENGTHS, mask: dict[str, list[int]] | None = None) -> None:
    """As robomimic's dataset_states_to_obs.py and split_train_val.py."""
    rng = np.random.default_rng(1)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(lengths)
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {}})
        for i, steps in enumerate(lengths):
            demo = data.create_group(f"demo_{i}")
            demo.create_dataset("actions", data=rng.uniform(-1, 1, (steps, 7)))
            demo.create_dataset("states", data=rng.normal(size=(steps, 32)))
            demo.create_dataset("rewards", data=rng.normal(size=steps))
            demo.create_dataset("dones", data=np.zeros(steps, np.int64))
            for group in ("obs", "next_obs"):
                image = rng.integers(0, 256, (steps, 84, 84, 3), dtype=np.uint8)
                demo.create_dataset(f"{group}/agentview_image", data=image, compression="gzip")
                demo.create_dataset(f"{group}/robot0_eef_pos", data=rng.normal(size=(steps, 3)))
            demo.attrs["num_samples"] = steps
        for name, demos in (mask or {}).items():
            names = np.array([f"demo_{i}".encode() for i in demos], dtype="S")
            file.create_dataset(f"mask/{name}", data=names)


def write_aloha(
    path: Path, number: int, compress: bool, steps: int = 5, rng: np.random.Generator | None = None
) -> dict[str, list[bytes]]:
    """As ALOHA's record_episodes.py: one file per episode; returns the unpadded JPEGs by camera."""
    rng = rng or np.random.default_rng(number)
    jpegs: dict[str, list[bytes]] = {}
    with h5py.File(path / f"episode_{number}.hdf5", "w", rdcc_nbytes=1024**2 * 2) as root:
        root.attrs["sim"] = False
        root.attrs["compress"] = compress
        images = root.create_group("observations").create_group("images")
        frames = {name: rng.integers(0, 256, (steps, 24, 32, 3), dtype=np.uint8) for name in CAMERAS}
        for name in CAMERAS:
            if not compress:
                images.create_dataset(name, data=frames[name], chunks=(1, 24, 32, 3))
                continue
            quality = iter((30, 95, 60, 40, 80) * steps)
            jpegs[name] = [simplejpeg.encode_jpeg(frame, next(quality)) for frame in frames[name]]
        if compress:
            longest = max(len(jpeg) for camera in jpegs.values() for jpeg in camera)
            for name, rows in jpegs.items():
                padded = np.zeros((steps, longest), np.uint8)
                for row, jpeg in zip(padded, rows, strict=True):
                    row[: len(jpeg)] = np.frombuffer(jpeg, np.uint8)
                images.create_dataset(name, data=padded, chunks=(1, longest))
            sizes = [[len(jpeg) for jpeg in jpegs[name]] for name in CAMERAS]
            root.create_dataset("compress_len", data=np.array(sizes, np.float32))
        for name in ("observations/qpos", "observations/qvel", "observations/effort", "action"):
            root.create_dataset(name, data=rng.normal(size=(steps, 14)).astype(np.float32))
        root.create_dataset("base_action", data=rng.normal(size=(steps, 2)).astype(np.float32))
    return jpegs


@pytest.fixture
def libero(tmp_path: Path) -> Path:
    write_libero(tmp_path / "turn_on_the_stove_demo.hdf5")
    return tmp_path / "turn_on_the_stove_demo.hdf5"


@pytest.fixture
def aloha(tmp_path: Path) -> Path:
    folder = tmp_path / "aloha_cups"
    folder.mkdir()
    for number in range(12):
        write_aloha(folder, number, compress=False, steps=number + 1)
    return folder


def test_libero_equals_plain_h5py(libero: Path) -> None:
    store = Hdf5Store(libero, required=LIBERO_FIELDS)
    assert isinstance(store, StoredEpisodes)
    assert (store.name, store.split) == ("turn_on_the_stove_demo", "train")
    np.testing.assert_array_equal(store.lengths, LENGTHS)
    with h5py.File(libero) as file:
        for i, steps in enumerate(LENGTHS):
            demo = file[f"data/demo_{i}"]
            for field in ("actions", "obs/ee_states", "obs/joint_states", "states", "dones", "rewards"):
                wanted = demo[field][:]
                got = store.numbers(field, i)
                assert got.dtype == (np.float32 if wanted.dtype == np.float64 else wanted.dtype)
                np.testing.assert_array_equal(got, wanted.astype(got.dtype))
            for field in ("obs/agentview_rgb", "obs/eye_in_hand_rgb"):
                for t in range(steps):
                    np.testing.assert_array_equal(store.image(field, i, t), demo[field][t])
        everything = np.concatenate([file[f"data/demo_{i}/actions"][:] for i in range(len(LENGTHS))])
    np.testing.assert_array_equal(store.column("actions"), everything.astype(np.float32))
    assert store.fields["obs/agentview_rgb"].kind is Kind.IMAGE
    assert store.fields["obs/agentview_rgb"].shape == (16, 12, 3)
    assert str(store.fields["actions"]) == "number float32[7]"


def test_libero_instruction_and_metadata(libero: Path) -> None:
    store = Hdf5Store(libero)
    assert store.fields["language_instruction"].kind is Kind.TEXT
    assert store.texts("language_instruction", 2) == ["turn on the stove"] * LENGTHS[2]
    facts = store.metadata(10)
    assert facts["episode"] == "turn_on_the_stove_demo.hdf5/demo_10"
    assert facts["num_samples"] == str(LENGTHS[10])
    assert facts["macros_image_convention"] == "opengl"
    assert json.loads(facts["env_args"])["env_kwargs"]["control_freq"] == 20
    with h5py.File(libero) as file:
        np.testing.assert_array_equal(facts["init_state"], file["data/demo_10/states"][0])
    assert {"episode", "file", "model_file", "problem_info"} <= set(facts)


@pytest.mark.parametrize(
    ("problem", "bddl", "wanted"),
    [
        ('{"language_instruction": "\\"open the drawer\\""}', "x.bddl", "open the drawer"),
        ('{"language_instruction": ["open", "the", "drawer"]}', "x.bddl", "open the drawer"),
        ("{}", "a/b/KITCHEN_SCENE10_close_the_top_drawer.bddl", "close the top drawer"),
        ("not json", "LIVING_ROOM_SCENE2_put_the_cup_down.bddl", "put the cup down"),
        (
            None,
            "libero_goal/open_the_middle_drawer_of_the_cabinet.bddl",
            "open the middle drawer of the cabinet",
        ),
    ],
)
def test_instruction_of_libero_variants(libero: Path, problem: str | None, bddl: str, wanted: str) -> None:
    with h5py.File(libero, "a") as file:
        del file["data"].attrs["problem_info"]
        if problem is not None:
            file["data"].attrs["problem_info"] = problem
        file["data"].attrs["bddl_file_name"] = bddl
    assert Hdf5Store(libero).texts("language_instruction", 0)[0] == wanted


def test_a_folder_of_libero_tasks_is_one_dataset(tmp_path: Path) -> None:
    for i, instruction in enumerate(("open the door", "close the door")):
        write_libero(tmp_path / f"task_{i}.hdf5", instruction, lengths=(3, 4), seed=i, width=45 + i)
    store = Hdf5Store(tmp_path, required=LIBERO_FIELDS)
    assert store.lengths.tolist() == [3, 4, 3, 4]
    assert [store.texts("language_instruction", i)[0] for i in (1, 2)] == ["open the door", "close the door"]
    assert store.metadata(3)["episode"] == "task_1.hdf5/demo_1"
    assert "states" not in store.fields, "its width differs between the files"
    assert store.fields["robot_states"].shape == (9,)


def test_robomimic_masks_are_splits(tmp_path: Path) -> None:
    path = tmp_path / "image.hdf5"
    write_robomimic(path, mask={"train": [0, 2, 10], "valid": [11, 1], "none": []})
    train, valid, everything = (Hdf5Store(path, split) for split in ("train", "valid", "all"))
    assert train.lengths.tolist() == [LENGTHS[i] for i in (0, 2, 10)]
    assert valid.lengths.tolist() == [LENGTHS[11], LENGTHS[1]]
    np.testing.assert_array_equal(everything.lengths, LENGTHS)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(
            train.image("obs/agentview_image", 2, 4), file["data/demo_10/obs/agentview_image"][4]
        )
        wanted = np.concatenate([file[f"data/demo_{i}/actions"][:] for i in (11, 1)]).astype(np.float32)
        np.testing.assert_array_equal(valid.column("actions"), wanted)
        np.testing.assert_array_equal(
            valid.column("rewards"),
            np.concatenate([file[f"data/demo_{i}/rewards"][:] for i in (11, 1)], dtype=np.float32),
        )
    assert "language_instruction" not in train.fields
    with pytest.raises(ValueError, match=r"image\.hdf5: no split 'vaild'; did you mean 'valid'\?"):
        Hdf5Store(path, "vaild")
    with pytest.raises(ValueError, match=r"split 'none' is empty; choose one of all, none, train, valid"):
        Hdf5Store(path, "none")


def test_aloha_folder_in_order_of_numbers(aloha: Path) -> None:
    store = Hdf5Store(aloha, required=ALOHA_FIELDS)
    assert store.lengths.tolist() == list(range(1, 13))
    assert store.name == "aloha_cups"
    for i in (0, 2, 10, 11):
        with h5py.File(aloha / f"episode_{i}.hdf5") as file:
            for field in ("action", "observations/qpos", "observations/qvel", "base_action"):
                np.testing.assert_array_equal(store.numbers(field, i), file[field][:])
            for camera in CAMERAS:
                field = f"observations/images/{camera}"
                np.testing.assert_array_equal(store.image(field, i, i), file[field][i])
    assert store.metadata(2)["episode"] == "episode_2.hdf5"
    assert store.metadata(2)["sim"] is False


def test_aloha_compressed_rows_decode_as_the_unpadded_jpeg(tmp_path: Path) -> None:
    jpegs = write_aloha(tmp_path, 0, compress=True)
    store = Hdf5Store(tmp_path / "episode_0.hdf5", required=ALOHA_FIELDS)
    assert store.fields["observations/images/cam_high"].kind is Kind.IMAGE
    assert store.metadata(0)["compress"] is True
    for camera, rows in jpegs.items():
        for t, jpeg in enumerate(rows):
            wanted = simplejpeg.decode_jpeg(jpeg, fastdct=True, fastupsample=False)
            np.testing.assert_array_equal(store.image(f"observations/images/{camera}", 0, t), wanted)


def test_options_work_on_encoded_rows_or_say_that_they_do_not(tmp_path: Path) -> None:
    for name, compress in (("raw", False), ("jpeg", True)):
        (tmp_path / name).mkdir()
        write_aloha(tmp_path / name, 0, compress)
    entry = DatasetEntry(
        embodiment="aloha",
        cameras={"primary": "observations/images/cam_high"},
        state=(),
        instruction="",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = open_dataset(tmp_path / "jpeg", entry=entry, image_scale=12)
    assert small[0].image(2).shape == (12, 16, 3)
    with pytest.warns(UserWarning, match=r"image_scale has no effect on raw pixels \(.*/cam_high\)"):
        full = open_dataset(tmp_path / "raw", entry=entry, image_scale=12)
    assert full[0].image(2).shape == (24, 32, 3)
    with pytest.warns(UserWarning, match="verify_images has no effect on HDF5"):
        open_dataset(tmp_path / "raw", entry=entry, verify_images=True)


def test_a_cut_jpeg_row_names_file_field_and_row(tmp_path: Path) -> None:
    write_aloha(tmp_path, 0, compress=True)
    with h5py.File(tmp_path / "episode_0.hdf5", "a") as file:
        file["observations/images/cam_high"][3, 100:] = 0
    store = Hdf5Store(tmp_path, required=ALOHA_FIELDS)
    store.image("observations/images/cam_high", 0, 2)
    with pytest.raises(ValueError, match=r"cannot be decoded.*episode_0\.hdf5.*cam_high' row 3") as caught:
        store.image("observations/images/cam_high", 0, 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["variable", "fixed"])
def test_encoded_rows_of_other_writers(tmp_path: Path, kind: str) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    jpegs = [simplejpeg.encode_jpeg(frame) for frame in frames]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["actions"] = np.zeros((4, 7))
        if kind == "variable":
            dataset = file.create_dataset("rgb", (4,), h5py.vlen_dtype(np.uint8))
            for t, jpeg in enumerate(jpegs):
                dataset[t] = np.frombuffer(jpeg, np.uint8)
        else:
            file["rgb"] = np.array(jpegs, dtype="S")
    store = Hdf5Store(tmp_path / "a.h5", required=("actions", "rgb"))
    for t, jpeg in enumerate(jpegs):
        np.testing.assert_array_equal(
            store.image("rgb", 0, t), simplejpeg.decode_jpeg(jpeg, fastdct=True, fastupsample=False)
        )


def test_groups_at_the_top_gray_images_and_stored_words(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "any.h5", "w") as file:
        file["version"] = 3
        file.create_group("notes")
        for i, steps in enumerate((3, 2)):
            group = file.create_group(f"traj_{i}")
            group["control/u"] = rng.normal(size=(steps, 7)).astype(">f4")
            group["gray"] = rng.integers(0, 256, (steps, 5, 6, 1), dtype=np.uint8)
            group["said"] = [f"word {i} {t}" for t in range(steps)]
            group["task"] = f"task {i}"
            group["depth"] = rng.integers(0, 5000, (steps, 5, 6), dtype=np.uint16)
            group["camera_matrix"] = np.eye(4)
            group.attrs["author"] = f"person {i}"
    store = Hdf5Store(tmp_path / "any.h5", required=("control/u", "gray"))
    with h5py.File(tmp_path / "any.h5") as file:
        for i, steps in enumerate((3, 2)):
            np.testing.assert_array_equal(store.numbers("control/u", i), file[f"traj_{i}/control/u"][:])
            assert store.numbers("control/u", i).dtype.isnative
            np.testing.assert_array_equal(store.numbers("depth", i), file[f"traj_{i}/depth"][:])
            for t in range(steps):
                gray = file[f"traj_{i}/gray"][t]
                np.testing.assert_array_equal(store.image("gray", i, t), np.dstack([gray] * 3))
    assert store.texts("said", 0) == ["word 0 0", "word 0 1", "word 0 2"]
    assert store.texts("task", 1) == ["task 1", "task 1"]
    assert store.texts("author", 1) == ["person 1", "person 1"]
    assert "camera_matrix" not in store.fields
    assert "version" not in store.fields


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \.hdf5 or \.h5 file there"):
        Hdf5Store(tmp_path)


def libero_entry(**changes: object) -> DatasetEntry:
    given: dict[str, object] = {
        "embodiment": "franka_panda",
        "cameras": {"primary": "obs/agentview_rgb", "wrist": "obs/eye_in_hand_rgb"},
        "image_quirks": {"primary": ("rotate_180",)},
        "action": "actions",
        "state": None,
    }
    return DatasetEntry.model_validate(given | changes)


def test_opened_as_episodes_of_a_robot(libero: Path, tmp_path: Path) -> None:
    dataset = open_dataset(libero, entry=libero_entry(extra={"reward": "rewards"}))
    assert len(dataset) == len(LENGTHS)
    episode = dataset[10]
    assert episode.instruction == "turn on the stove"
    assert episode.episode_id == "turn_on_the_stove_demo.hdf5/demo_10"
    with h5py.File(libero) as file:
        demo = file["data/demo_10"]
        np.testing.assert_array_equal(episode.action, demo["actions"][:].astype(np.float32))
        np.testing.assert_array_equal(episode.image(3), demo["obs/agentview_rgb"][3][::-1, ::-1])
        np.testing.assert_array_equal(episode.image(3, "wrist"), demo["obs/eye_in_hand_rgb"][3])
        np.testing.assert_array_equal(episode.extra("reward"), demo["rewards"][:])


def test_bgr_rows_and_a_constant_instruction(tmp_path: Path) -> None:
    """cv2.imencode took RGB frames for BGR: a decoder gives the channels exchanged."""
    jpegs = write_aloha(tmp_path, 0, compress=True)
    entry = DatasetEntry.model_validate(
        {
            "embodiment": "bimanual_panda",
            "cameras": {"primary": "observations/images/cam_high"},
            "image_quirks": {"primary": ["bgr"]},
            "state": None,
            "instruction_text": "put the cup into the bowl",
        }
    )
    episode = open_dataset(tmp_path, entry=entry)[0]
    stored = simplejpeg.decode_jpeg(jpegs["cam_high"][1], fastdct=True, fastupsample=False)
    np.testing.assert_array_equal(episode.image(1), stored[..., ::-1])
    assert episode.instruction == "put the cup into the bowl"


def test_nan_names_file_demo_step_and_field(libero: Path) -> None:
    with h5py.File(libero, "a") as file:
        file["data/demo_4/actions"][1, 3] = np.nan
    with pytest.raises(
        ValueError, match=r"turn_on_the_stove_demo\.hdf5/demo_4 step 1: action field 'actions' is not finite"
    ) as caught:
        open_dataset(libero, entry=libero_entry())
    assert "\n" not in str(caught.value)


def test_a_camera_of_the_wrong_dtype_or_missing_in_one_demo(libero: Path) -> None:
    with h5py.File(libero, "a") as file:
        del file["data/demo_6/obs/agentview_rgb"]
    with pytest.raises(ValueError, match=r"data/demo_6 has no data set 'obs/agentview_rgb'"):
        open_dataset(libero, entry=libero_entry())
    with h5py.File(libero, "a") as file:
        for i in range(len(LENGTHS)):
            frames = np.zeros((LENGTHS[i], 16, 12, 3), np.float32)
            file["data"][f"demo_{i}"]["obs"].pop("agentview_rgb", None)
            file[f"data/demo_{i}/obs/agentview_rgb"] = frames
    with pytest.raises(
        ValueError, match=r"'obs/agentview_rgb' is number float32\[16, 12, 3\], wanted image; image f"
    ):
        open_dataset(libero, entry=libero_entry())


def test_without_an_entry_the_error_lists_the_fields(libero: Path, aloha: Path) -> None:
    with pytest.raises(
        ValueError, match=r"not in the catalogue; pass entry=.*actions, dones, obs/agentview_rgb"
    ):
        open_dataset(libero)
    with pytest.raises(ValueError, match=r"pass entry=.*action, base_action, observations/effort"):
        open_dataset(aloha)


def test_episodes_to_judge_on_are_not_trained_on(tmp_path: Path) -> None:
    """split_train_val.py may have been run with only the second key kept."""
    write_robomimic(tmp_path / "lift.hdf5", mask={"valid": [3, 7]})
    trained = Hdf5Store(tmp_path / "lift.hdf5", "train")
    judged = Hdf5Store(tmp_path / "lift.hdf5", "valid")
    both = [store.metadata(i)["episode"] for store in (trained, judged) for i in range(len(store.lengths))]
    assert sorted(both) == sorted(f"lift.hdf5/demo_{i}" for i in range(len(LENGTHS)))
    assert len(judged.lengths) == 2
    np.testing.assert_array_equal(
        trained.column("actions"), np.concatenate([trained.numbers("actions", i) for i in range(10)])
    )
    write_robomimic(tmp_path / "none.hdf5", mask={"test": list(range(len(LENGTHS)))})
    with pytest.raises(ValueError, match="split 'train' is empty; choose one of all, test, train"):
        Hdf5Store(tmp_path / "none.hdf5", "train")


def test_what_is_left_out_of_a_file_and_for_nan_is_listed_together(libero: Path, tmp_path: Path) -> None:
    file = tmp_path / "damaged.hdf5"
    shutil.copy(libero, file)
    with h5py.File(file, "r+") as opened:
        opened["data/demo_1/actions"][2, 3] = np.nan  # type: ignore[index]
        del opened["data/demo_4/obs/ee_states"]
    entry = DatasetEntry(
        embodiment="franka_panda", cameras={"primary": "obs/agentview_rgb"}, action=("actions",), state=(),
        extra={"pose": "obs/ee_states"},
    )  # fmt: skip
    for check, lines in ((False, 1), (True, 2)):
        with pytest.warns(UserWarning, match="skipped 1 damaged"):
            dataset = open_dataset(file, entry=entry, on_error="skip", check=check)
        assert (len(dataset.skipped), dataset.lost) == (lines, lines)
        assert "demo_4 has no data set 'obs/ee_states'" in dataset.skipped[0]
        assert len(dataset) == len(LENGTHS) - lines
    assert "demo_1 step 2" in dataset.skipped[1]
