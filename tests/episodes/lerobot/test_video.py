"""Frames by time: any order and keyframe distance, no seek when reading on, few open files, clear errors."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from vla_adapt.episodes.lerobot import video
from vla_adapt.episodes.lerobot.video import VideoFrames

RATE = 10.0


def write(path: Path, count: int, keyframe_every: int = 2, codec: str = "libx264rgb") -> np.ndarray:
    """Lossless frames of noise."""
    frames = np.random.default_rng(count).integers(0, 256, (count, 16, 24, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = 16, 24, "rgb24"
        stream.options = {"qp": "0", "g": str(keyframe_every), "bf": "3"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return frames


@pytest.mark.parametrize("keyframe_every", [1, 2, 7, 250])
def test_every_frame_in_every_order(tmp_path: Path, keyframe_every: int) -> None:
    frames = write(tmp_path / "a.mp4", 40, keyframe_every)
    reader = VideoFrames()
    order = [
        *range(40),
        *range(39, -1, -3),
        *np.random.default_rng(0).integers(0, 40, 60).tolist(),
        5,
        5,
        39,
        39,
    ]
    for i in order:
        np.testing.assert_array_equal(reader.frame(tmp_path / "a.mp4", i / RATE, RATE), frames[i])


def test_the_nearest_frame_within_half_a_frame(tmp_path: Path) -> None:
    frames = write(tmp_path / "a.mp4", 12)
    reader = VideoFrames()
    for time_s, wanted in ((0.34, 3), (0.26, 3), (0.51, 5), (-0.04, 0), (1.14, 11), (0.4 - 5e-5, 4)):
        np.testing.assert_array_equal(reader.frame(tmp_path / "a.mp4", time_s, RATE), frames[wanted])
    for time_s in (1.2, 7.0, -0.06):
        with pytest.raises(ValueError, match=rf"a\.mp4: no frame at {time_s:.4f} s \(the nearest is at "):
            reader.frame(tmp_path / "a.mp4", time_s, RATE)
    np.testing.assert_array_equal(reader.frame(tmp_path / "a.mp4", 0.2, RATE), frames[2])


def test_reading_on_does_not_seek(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = write(tmp_path / "a.mp4", 30, keyframe_every=250)
    seeks: list[float] = []
    seek = video._OpenVideo._seek
    monkeypatch.setattr(
        video._OpenVideo, "_seek", lambda self, time_s: (seeks.append(time_s), seek(self, time_s))
    )
    reader = VideoFrames()
    for i in (0, 1, 2, 2, 3, 5, 6, 12):
        np.testing.assert_array_equal(reader.frame(tmp_path / "a.mp4", i / RATE, RATE), frames[i])
    assert seeks == [0.0]
    reader.frame(tmp_path / "a.mp4", 0.4, RATE)
    reader.frame(tmp_path / "a.mp4", 2.9, RATE)
    assert seeks == [0.0, 0.4, 2.9]


def test_few_files_stay_open(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.mp4" for i in range(5)]
    frames = [write(path, 3 + i) for i, path in enumerate(paths)]
    reader = VideoFrames(kept_files=2)
    for i in [0, 1, 2, 3, 4, 0, 4, 1]:
        np.testing.assert_array_equal(reader.frame(paths[i], 0.2, RATE), frames[i][2])
    assert list(reader._open) == [paths[4], paths[1]]


def test_missing_not_a_video_and_cut_off(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", 30)
    reader = VideoFrames()
    with pytest.raises(ValueError, match=r"gone\.mp4: video file is missing; copy the dataset again"):
        reader.frame(tmp_path / "gone.mp4", 0.0, RATE)
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.mp4: not a readable video"):
        reader.frame(tmp_path / "text.mp4", 0.0, RATE)
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"cut\.mp4: not a readable video"):
        reader.frame(tmp_path / "cut.mp4", 0.0, RATE)


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    frames = write(tmp_path / "a.mp4", 30, keyframe_every=1)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    start = data.find(b"mdat")
    middle = start + (len(data) - start) // 2
    data[middle : middle + 8000] = bytes(8000)
    (tmp_path / "a.mp4").write_bytes(data)
    reader = VideoFrames()
    np.testing.assert_array_equal(reader.frame(tmp_path / "a.mp4", 0.1, RATE), frames[1])
    with pytest.raises(ValueError, match=r"a\.mp4: (damaged at|no frame at)"):
        [reader.frame(tmp_path / "a.mp4", i / RATE, RATE) for i in range(30)]
