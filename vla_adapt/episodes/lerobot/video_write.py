"""Encode episodes into mp4 files as LeRobot does: several episodes a file, every second frame a keyframe."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8

# The first that this build of PyAV has -> the codec's name in info.json. Quality is LeRobot's default.
_ENCODERS = {"libsvtav1": "av1", "libx264": "h264", "h264": "h264"}
_OPTIONS = {"g": "2", "crf": "30"}


class Stretch(NamedTuple):
    """Where an episode lies: which file (counted from 0), and from when to when in it."""

    file: int
    from_s: float
    to_s: float


class Mp4Files:
    """One camera's episodes as mp4 files. Lossy: 4:2:0 color, AV1 (else H.264) at constant quality.

    Args:
        path_of: number of a file -> its path.
        rate_hz: frames per second.
        file_bytes: a file this large is full; the next episode begins another.
    """

    def __init__(self, path_of: Callable[[int], Path], rate_hz: float, file_bytes: int):
        self._path_of, self._file_bytes = path_of, file_bytes
        self._rate = Fraction(rate_hz).limit_denominator(1001)
        self._encoder = next(name for name in _ENCODERS if name in av.codecs_available)
        self.codec = _ENCODERS[self._encoder]
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._files = self._frames = self._bytes = 0
        os.environ.setdefault("SVT_LOG", "1")  # errors only; it prints its settings for every file otherwise

    def add(self, images: Iterable[UInt8[np.ndarray, "h w 3"]]) -> Stretch:
        """Append an episode.

        Raises:
            ValueError: a side that is odd (4:2:0 color needs even ones), or not the first image's size.
        """
        if self._container is not None and self._bytes >= self._file_bytes:
            self.close()
        first = 0 if self._container is None else self._frames
        for image in images:
            if self._stream is None:
                self._begin(*image.shape[:2])
            self._encode(image)
        return Stretch(self._files - 1, float(first / self._rate), float(self._frames / self._rate))

    def close(self) -> None:
        """Finish the file being written."""
        container, stream = self._container, self._stream
        self._container = self._stream = None
        if container is not None and stream is not None:
            container.mux(stream.encode())
            container.close()

    def _begin(self, height: int, width: int) -> None:
        if height % 2 or width % 2:
            raise ValueError(f"images are {height} x {width}, video needs even sides; use images='image'")
        path = self._path_of(self._files)
        path.parent.mkdir(parents=True, exist_ok=True)
        container = av.open(str(path), "w")
        stream = container.add_stream(self._encoder, rate=self._rate, options=dict(_OPTIONS))
        assert isinstance(stream, VideoStream)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        self._container, self._stream = container, stream
        self._files += 1
        self._frames = self._bytes = 0

    def _encode(self, image: UInt8[np.ndarray, "h w 3"]) -> None:
        assert self._container is not None
        assert self._stream is not None
        wanted = (self._stream.height, self._stream.width, 3)
        if image.shape != wanted:
            raise ValueError(f"image is {list(image.shape)}, the video's first one is {list(wanted)}")
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts, frame.time_base = self._frames, 1 / self._rate
        packets = self._stream.encode(frame)
        self._bytes += sum(packet.size for packet in packets)
        self._container.mux(packets)
        self._frames += 1
