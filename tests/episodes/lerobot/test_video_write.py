"""Episodes written one after the other into mp4 files, read back by their stretches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from vla_adapt.episodes.lerobot.video import VideoFrames
from vla_adapt.episodes.lerobot.video_write import Mp4Files


def gray(levels: list[int]) -> list[np.ndarray]:
    return [np.full((32, 48, 3), level, np.uint8) for level in levels]


def in_folder(folder: Path) -> Callable[[int], Path]:
    return lambda file: folder / "deep" / f"{file}.mp4"


@pytest.mark.parametrize("rate_hz", [10.0, 12.5, 30.0, 1000 / 33])
@pytest.mark.parametrize("file_bytes", [0, 1 << 20])
def test_stretches(tmp_path: Path, rate_hz: float, file_bytes: int) -> None:
    files = Mp4Files(in_folder(tmp_path), rate_hz, file_bytes)
    episodes = [[10, 60, 110], [200, 20], [90, 130, 170, 210]]
    stretches = [files.add(gray(levels)) for levels in episodes]
    files.close()
    assert [stretch.file for stretch in stretches] == ([0, 1, 2] if not file_bytes else [0, 0, 0])
    reader = VideoFrames()
    for levels, stretch in zip(episodes, stretches, strict=True):
        assert stretch.to_s - stretch.from_s == pytest.approx(len(levels) / rate_hz, rel=1e-5)
        for t, level in enumerate(levels):
            image = reader.frame(
                tmp_path / "deep" / f"{stretch.file}.mp4", stretch.from_s + t / rate_hz, rate_hz
            )
            assert image.shape == (32, 48, 3)
            assert abs(int(image.mean()) - level) <= 3


def test_every_second_frame_is_a_keyframe(tmp_path: Path) -> None:
    files = Mp4Files(in_folder(tmp_path), 10.0, 1 << 20)
    files.add(gray([i * 10 for i in range(9)]))
    files.close()
    files.close()
    with av.open(str(tmp_path / "deep" / "0.mp4")) as container:
        assert [frame.key_frame for frame in container.decode(video=0)] == [i % 2 == 0 for i in range(9)]


def test_refusals(tmp_path: Path) -> None:
    files = Mp4Files(in_folder(tmp_path), 10.0, 1 << 20)
    with pytest.raises(ValueError, match="images are 33 x 48, video needs even sides"):
        files.add([np.zeros((33, 48, 3), np.uint8)])
    files.add(gray([1]))
    with pytest.raises(ValueError, match=r"image is \[16, 48, 3\], the video's first one is \[32, 48, 3\]"):
        files.add([np.zeros((16, 48, 3), np.uint8)])
