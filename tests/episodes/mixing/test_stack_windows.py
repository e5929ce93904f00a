"""Windows as a batch of tensors: what they were made of, and frames of one size are not copied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vla_adapt.episodes import open_dataset
from vla_adapt.episodes.mixing.frame_blocks import Block, frames_into
from vla_adapt.episodes.mixing.loader import make_loader
from vla_adapt.episodes.mixing.mixture import Mixture
from vla_adapt.episodes.mixing.stack_windows import stack_windows
from vla_adapt.episodes.windows import Window


@pytest.fixture
def mixture(written: Path) -> Mixture:
    return Mixture([(open_dataset(written), 1.0)], 3, horizon=4)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_holds_what_its_windows_hold(mixture: Mixture, workers: int) -> None:
    loader = make_loader(mixture, 5, steps=8, num_workers=workers, collate=stack_windows)
    for step, batch in enumerate(loader):
        windows = mixture.windows(range(5 * step, 5 * step + 5))
        assert batch["sample"].tolist() == list(range(5 * step, 5 * step + 5))
        assert batch["instruction"] == [window["instruction"] for window in windows]
        assert batch["robot"] == [window["robot"] for window in windows]
        for key in ("action", "action_mask", "proprio", "proprio_mask"):
            assert_rows(batch[key], [window[key] for window in windows])
        assert_rows(batch["images"]["primary"], [window["images"]["primary"] for window in windows])
        assert batch["image_mask"]["primary"].all()


@pytest.mark.parametrize("options", [{}, {"history": 2}, {"proprio": False}, {"cameras": ()}])
def test_a_mixture_stacks_without_windows(
    two_robot_data: dict[str, Path], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two robots, chunks beyond the ends of episodes; with history it goes the long way."""
    parts = [(open_dataset(folder), 1.0) for folder in two_robot_data.values()]
    mixture = Mixture(parts, 3, horizon=4, **options)
    numbers = range(5, 45)
    wanted = stack_windows(mixture.windows(numbers))
    if "history" not in options:
        monkeypatch.delattr(Mixture, "windows")
    assert_equal(mixture.stacked(numbers), wanted)
    assert len(set(wanted["robot"])) == 2
    assert not wanted["action_mask"][:, -1].any(dim=1).all()


def test_a_mixture_stacks_extra_numbers(mixture: Mixture) -> None:
    got = mixture.stacked(range(6))
    assert_equal(got, stack_windows(mixture.windows(range(6))))
    assert set(got["extra"]) == {"object_pose", "count", "touch", "wide"}


def assert_equal(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    elif isinstance(a, list) and a and isinstance(a[0], torch.Tensor):
        for one, other in zip(a, b, strict=True):
            assert_equal(one, other)
    else:
        assert a == b


def test_history_and_cameras_that_are_not_there(written: Path) -> None:
    mixture = Mixture([(open_dataset(written), 1.0)], 3, horizon=2, history=3)
    windows = mixture.windows(range(4))
    windows[1]["image_mask"] = {"primary": False}
    batch = stack_windows(windows)
    assert batch["images"]["primary"].shape[:2] == (4, 3)
    assert_rows(batch["history_mask"], [window["history_mask"] for window in windows])
    assert batch["image_mask"]["primary"].tolist() == [True, False, True, True]


def test_frames_of_several_sizes_stay_apart(mixture: Mixture) -> None:
    windows = mixture.windows(range(3))
    windows[1]["images"] = {"primary": np.full((7, 9, 3), 4, np.uint8)}
    images = stack_windows(windows)["images"]["primary"]
    assert [list(image.shape) for image in images][1] == [7, 9, 3]
    assert_rows(images, [window["images"]["primary"] for window in windows])


def test_extra_numbers_that_all_have(mixture: Mixture) -> None:
    windows = mixture.windows(range(3))
    for i, window in enumerate(windows):
        window["extra"] = {"force": np.full(2, i, np.float32), "why": "x", "ragged": np.zeros(i + 1)}
    windows[2]["extra"]["alone"] = 1.0
    extra = stack_windows(windows)["extra"]
    assert {key: value.tolist() for key, value in extra.items()} == {"force": [[0, 0], [1, 1], [2, 2]]}


def test_frames_of_a_block_are_not_copied(mixture: Mixture) -> None:
    block = Block(0, memoryview(bytearray(1 << 20)))
    with frames_into(block):
        windows = mixture.windows(range(4))
        images = stack_windows(windows)["images"]["primary"]
    assert_rows(images, [window["images"]["primary"] for window in windows])
    windows[2]["images"]["primary"][3, 1] = 77
    assert (images[2, 3, 1] == 77).all()


@pytest.mark.parametrize("change", ["order", "elsewhere", "twice", "columns first"])
def test_frames_that_do_not_lie_evenly_are_copied(mixture: Mixture, change: str) -> None:
    block = Block(0, memoryview(bytearray(1 << 20)))
    with frames_into(block):
        windows = mixture.windows(range(4))
        frames = [window["images"]["primary"] for window in windows]
        if change == "order":
            frames.reverse()
        elif change == "elsewhere":
            frames[2] = frames[2].copy()
        elif change == "twice":
            frames = [frames[0]] * 4
        else:
            frames = [np.asfortranarray(frame) for frame in frames]
        images = stack_windows([with_image(*pair) for pair in zip(windows, frames, strict=True)])["images"]
    assert images["primary"].is_contiguous()
    assert_rows(images["primary"], frames)


def with_image(window: Window, frame: np.ndarray) -> Window:
    return {**window, "images": {"primary": frame}}


def assert_rows(got: Any, wanted: list[np.ndarray]) -> None:
    assert len(got) == len(wanted)
    for row, value in zip(got, wanted, strict=True):
        assert row.dtype == torch.from_numpy(np.asarray(value)).dtype
        np.testing.assert_array_equal(row.numpy(), value)
