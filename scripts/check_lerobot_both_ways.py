"""The Python part of scripts/check_lerobot: our datasets opened by `lerobot`, and its datasets by us.

Verbs: `ours FOLDER` writes, `lerobot FOLDER` opens that and writes its own, `back FOLDER` opens those.
Runs in two environments, ours and lerobot's, whose pins conflict; the folder carries the datasets and, as
.npz files, what each side says they hold.
"""

from __future__ import annotations

import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np

LENGTHS = (7, 12, 5)
STORAGES = ("image", "video")
SIDE = 64
RATE = 10
# Levels by which lerobot's decoder and ours (TensorFlow's) may differ on one JPEG of noise.
DECODERS = 12


def ours(folder: Path) -> None:
    """Write one dataset per way of storing images and a converted one; record what our reader reads back."""
    from vla_adapt.embodiment import Embodiment
    from vla_adapt.episodes import fake_data
    from vla_adapt.episodes.conversion.convert import convert_dataset
    from vla_adapt.episodes.lerobot.lerobot_write import write_lerobot
    from vla_adapt.episodes.rlds.write import RldsWriter

    robot = Embodiment.load("franka_panda")
    rng = np.random.default_rng(0)

    def recordings(**wide: Any) -> list[Any]:
        episodes = [fake_data(robot, rng, length, SIDE) for length in LENGTHS]
        episodes[1].instruction_changes = [(4, "now the other way")]
        for episode in episodes:
            episode.extra = {
                "one": rng.normal(size=(len(episode), 1)).astype(np.float32),
                "plain": rng.integers(0, 9, len(episode)),
                "grid": rng.normal(size=(len(episode), 3, 4)).astype(np.float32),
                "touch": rng.integers(0, 2, len(episode)).astype(bool),
                **{key: rng.normal(size=(len(episode), width)) for key, width in wide.items()},
            }
        return episodes

    for storage in STORAGES:
        episodes = recordings(wide=2)
        write_lerobot(folder / f"ours_{storage}", robot, episodes, fps=RATE, images=storage)
        told(folder, f"ours_{storage}", episodes, ["train"])
    episodes = recordings()  # RLDS has no 64-bit floats
    with RldsWriter(folder / "rlds", "recorded", robot) as writer:
        for episode, split in zip(episodes, ("train", "train", "val"), strict=True):
            writer.add(split, episode)
    convert_dataset(writer.path, folder / "ours_converted", to="lerobot", images="image")
    told(folder, "ours_converted", episodes, ["train", "val"])


def told(folder: Path, name: str, episodes: list[Any], splits: list[str]) -> None:
    """Say what a dataset holds: numbers and words as they were written, frames as our reader decodes them."""
    from vla_adapt.episodes import open_dataset

    opened = [item for split in splits for item in open_dataset(folder / name, split=split)]
    assert [len(item) for item in opened] == list(LENGTHS)
    np.savez(
        folder / f"{name}.npz",
        splits=splits,
        action=np.concatenate([episode.action for episode in episodes]),
        state=np.concatenate([episode.state for episode in episodes if episode.state is not None]),
        task=np.concatenate([episode.step_instructions for episode in episodes]),
        frames=np.stack([item.image(t) for item in opened for t in range(len(item))]),
        **{
            f"extra_{key}": np.concatenate([episode.extra[key] for episode in episodes])
            for key in episodes[0].extra
        },
    )


def lerobot(folder: Path) -> None:
    """Open our datasets with lerobot and compare; write datasets with lerobot."""
    library = import_lerobot()
    for name in sorted(file.stem for file in folder.glob("ours_*.npz")):
        dataset = library(f"check/{name}", root=folder / name, video_backend="pyav")
        wanted = np.load(folder / f"{name}.npz")
        assert len(dataset) == sum(LENGTHS)
        assert dataset.meta.total_episodes == len(LENGTHS)
        assert dataset.meta.stats["action"]["q99"].shape == (7,)
        assert list(dataset.meta.info["splits"]) == wanted["splits"].tolist()
        for i in range(len(dataset)):
            item = dataset[i]
            assert item["task"] == wanted["task"][i]
            compare(item["action"], wanted["action"][i], f"{name} action {i}")
            compare(item["observation.state"], wanted["state"][i], f"{name} state {i}")
            for key in (key for key in wanted if key.startswith("extra_")):
                field = key.removeprefix("extra_")
                got = item[f"observation.{field}" if f"observation.{field}" in item else field]
                value = wanted[key][i].astype(
                    np.asarray(got).dtype
                )  # lerobot gives 64-bit floats as 32-bit ones
                compare(got.reshape(value.shape), value, f"{name} {field} {i}")
            frame = pixels(item["observation.images.primary"]).astype(int)
            apart = np.abs(frame - wanted["frames"][i]).max()
            assert apart <= (DECODERS if name == "ours_converted" else 0), f"{name} frame {i}: {apart} apart"
        print(f"lerobot opens {name}: {len(dataset)} frames equal")
    for storage in STORAGES:
        record(library, folder, storage)


def record(library: Any, folder: Path, storage: str) -> None:
    """Write a dataset with lerobot; record what was added and what lerobot reads back."""
    features = {
        "action": {"dtype": "float32", "shape": (7,), "names": [f"a{i}" for i in range(7)]},
        "observation.state": {"dtype": "float32", "shape": (8,), "names": [f"s{i}" for i in range(8)]},
        "observation.images.top": {
            "dtype": storage, "shape": (SIDE, SIDE, 3), "names": ["height", "width", "channels"]
        },
        "next.done": {"dtype": "bool", "shape": (1,), "names": None},
    }  # fmt: skip
    rng = np.random.default_rng(1)
    root = folder / f"theirs_{storage}"
    dataset = library.create(
        f"check/theirs_{storage}", RATE, features, root=root, use_videos=storage == "video", vcodec="h264"
    )
    added: dict[str, list[Any]] = {"action": [], "state": [], "task": []}
    for number, length in enumerate(LENGTHS):
        for t in range(length):
            task = f"task {number} {'early' if t < 3 or number != 1 else 'late'}"
            action, state = rng.normal(size=7).astype(np.float32), rng.normal(size=8).astype(np.float32)
            frame = {
                "action": action,
                "observation.state": state,
                "observation.images.top": rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8),
                "next.done": np.array([t == length - 1]),
                "task": task,
            }
            for key, value in (("action", action), ("state", state), ("task", task)):
                added[key].append(value)
            dataset.add_frame(frame)
        dataset.save_episode()
    dataset.finalize()
    read = library(f"check/theirs_{storage}", root=root, video_backend="pyav")
    frames = np.stack([pixels(read[i]["observation.images.top"]) for i in range(len(read))])
    np.savez(folder / f"theirs_{storage}.npz", frames=frames, **{k: np.array(v) for k, v in added.items()})


def back(folder: Path) -> None:
    """Open lerobot's datasets with our reader, in a shuffled order, and compare."""
    from vla_adapt.episodes import open_dataset

    for storage in STORAGES:
        wanted = np.load(folder / f"theirs_{storage}.npz")
        dataset = open_dataset(folder / f"theirs_{storage}", embodiment="franka_panda")
        assert dataset.lengths.tolist() == list(LENGTHS)
        ends = np.cumsum(LENGTHS)
        for i, episode in enumerate(dataset):
            rows = slice(ends[i] - LENGTHS[i], ends[i])
            compare(episode.action, wanted["action"][rows], f"theirs_{storage} action of {i}")
            compare(episode.state, wanted["state"][rows], f"theirs_{storage} state of {i}")
            assert list(dataset.store.texts("task", i)) == wanted["task"][rows].tolist()
        places = [(i, t) for i, length in enumerate(LENGTHS) for t in range(length)]
        for place in np.random.default_rng(2).permutation(len(places)):
            i, t = places[place]
            compare(dataset[i].image(t), wanted["frames"][place], f"theirs_{storage} frame {t} of {i}")
        print(f"we open theirs_{storage}: {len(places)} frames equal")


def compare(got: Any, wanted: Any, what: str) -> None:
    """Equal numbers or a failure that says what differs."""
    np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted), err_msg=what)


def pixels(image: Any) -> np.ndarray:
    """lerobot's float [3, h, w] in [0, 1] as uint8 [h, w, 3]."""
    return np.round(image.numpy().transpose(1, 2, 0) * 255).astype(np.uint8)


def import_lerobot() -> Any:
    """`LeRobotDataset`, with a stand-in for torchvision, whose wheels need CUDA libraries.

    lerobot uses it to turn PIL images into tensors and, in 0.4, to read videos through PyAV; the stand-in
    does the same with PyAV itself.
    """
    import av
    import torch

    class ToTensor:
        def __call__(self, image: Any) -> Any:
            return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255

    class VideoReader:
        def __init__(self, path: str, stream: str):
            self.container = av.open(path)
            self._frames = self.container.decode(video=0)

        def seek(self, time_s: float, keyframes_only: bool) -> None:
            self.container.seek(int(time_s * av.time_base), backward=True)
            self._frames = self.container.decode(video=0)

        def __iter__(self) -> Any:
            for frame in self._frames:
                array = frame.to_ndarray(format="rgb24")
                yield {"pts": frame.time, "data": torch.from_numpy(array).permute(2, 0, 1)}

    try:
        import torchvision  # noqa: F401  # type: ignore[import-not-found]
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        stand_in: Any = types.ModuleType("torchvision")
        stand_in.__spec__ = ModuleSpec("torchvision", None)
        transforms: Any = types.ModuleType("torchvision.transforms")
        transforms.ToTensor = ToTensor
        stand_in.transforms = transforms
        stand_in.io = types.SimpleNamespace(VideoReader=VideoReader)
        stand_in.set_video_backend = lambda name: None
        sys.modules |= {"torchvision": stand_in, "torchvision.transforms": transforms}
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset


if __name__ == "__main__":
    {"ours": ours, "lerobot": lerobot, "back": back}[sys.argv[1]](Path(sys.argv[2]))
