"""Single frames out of mp4 files by their time, through PyAV, with the open files kept per process.

PyAV and not torchcodec: the latter does not import next to a CPU build of torch (it wants CUDA libraries).
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.frame import VideoFrame
from jaxtyping import UInt8

KEPT_FILES = 16
TOLERANCE_S = 1e-4
# How far ahead it is cheaper to decode on than to seek; LeRobot writes a keyframe every 2 frames.
_DECODE_ON = 8
# A seek may land after the frame asked (reordered frames): then back up this much, at last to the start.
_BACK_UP_S = (0.0, 1.0, 10.0, float("inf"))


class VideoFrames:
    """Frames of many video files by time; keeps the most recently used files open.

    Safe to use from threads, after a fork and after pickling: handles never cross to another process.

    Args:
        kept_files: how many files stay open.
        tolerance_s: a frame this near is taken without looking at the next one.
    """

    def __init__(self, kept_files: int = KEPT_FILES, tolerance_s: float = TOLERANCE_S):
        self._kept_files, self._tolerance_s = kept_files, tolerance_s
        self._start_process()

    def frame(self, path: Path, time_s: float, rate_hz: float) -> UInt8[np.ndarray, "h w 3"]:
        """The frame of `path` shown at `time_s`, RGB.

        Args:
            path: an mp4 file.
            time_s: seconds from the start of the file.
            rate_hz: frames per second; the frame found is less than half a frame from `time_s`.

        Raises:
            ValueError: no such file, damaged, or no frame at that time; names the file.
        """
        if self._process != os.getpid():
            # A forked child must not touch decoders of its parent, not even to close them.
            self._inherited.append(self._open)
            self._start_process(self._inherited)
        with self._lock:
            video = self._file(path)
            try:
                found = video.nearest(time_s, self._tolerance_s, 1 / rate_hz)
            except (FFmpegError, OSError) as error:
                self._open.pop(path).close()
                raise ValueError(f"{path}: damaged at {time_s:.3f} s ({_reason(error)})") from None
            if found is None or abs(_time(found) - time_s) > 0.5 / rate_hz:
                near = "none" if found is None else f"the nearest is at {_time(found):.4f} s"
                raise ValueError(f"{path}: no frame at {time_s:.4f} s ({near}); it is too short or damaged")
            return found.to_ndarray(format="rgb24", threads=1)

    def _file(self, path: Path) -> _OpenVideo:
        video = self._open.get(path)
        if video is None:
            video = self._open[path] = _OpenVideo(path)
        self._open.move_to_end(path)
        while len(self._open) > self._kept_files:
            self._open.popitem(last=False)[1].close()
        return video

    def _start_process(self, inherited: list[Any] | None = None) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._open: OrderedDict[Path, _OpenVideo] = OrderedDict()
        self._inherited: list[Any] = [] if inherited is None else inherited

    def __getstate__(self) -> dict[str, Any]:
        return {"kept_files": self._kept_files, "tolerance_s": self._tolerance_s}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


class _OpenVideo:
    """One open file, standing after the frame decoded last, which is kept."""

    def __init__(self, path: Path):
        if not path.is_file():
            raise ValueError(f"{path}: video file is missing; copy the dataset again")
        try:
            self._container = av.open(str(path))
            self._stream = self._container.streams.video[0]
        except (FFmpegError, OSError, IndexError) as error:
            raise ValueError(f"{path}: not a readable video ({_reason(error)}); copy it again") from None
        # One process decodes on one core; and a fork would wait for threads that it does not have.
        self._stream.codec_context.thread_count = 1
        self._frames: Iterator[VideoFrame] = iter(())
        self._last: VideoFrame | None = None

    def close(self) -> None:
        self._container.close()

    def nearest(self, time_s: float, tolerance_s: float, period_s: float) -> VideoFrame | None:
        """The frame nearest to `time_s`; None if the file has no frame."""
        if self._last is not None:
            ahead = time_s - _time(self._last)
            if -tolerance_s <= ahead <= _DECODE_ON * period_s:
                found = self._decode_until(time_s, tolerance_s)
                if found is not None:
                    return found
        found = None
        for back_up_s in _BACK_UP_S:
            self._seek(max(time_s - back_up_s, 0.0))
            found = self._decode_until(time_s, tolerance_s)
            if found is not None and _time(found) - time_s <= period_s / 2:
                break
        return found

    def _seek(self, time_s: float) -> None:
        base = self._stream.time_base
        assert base is not None
        self._container.seek(round(time_s / base), stream=self._stream, backward=True)
        self._frames, self._last = self._container.decode(self._stream), None

    def _decode_until(self, time_s: float, tolerance_s: float) -> VideoFrame | None:
        """Decode to the frame at `time_s`, or to the first beyond it; the nearer one of it and its elder."""
        elder = self._last
        if elder is not None and abs(_time(elder) - time_s) <= tolerance_s:
            return elder
        for frame in self._frames:
            if frame.pts is None:
                continue
            self._last = frame
            if _time(frame) >= time_s - tolerance_s:
                if elder is not None and time_s - _time(elder) < _time(frame) - time_s:
                    return elder
                return frame
            elder = frame
        self._last = None  # the file's end: only a seek leads on
        return elder


def _time(frame: VideoFrame) -> float:
    assert frame.pts is not None
    assert frame.time_base is not None
    return float(frame.pts * frame.time_base)


def _reason(error: Exception) -> str:
    return str(error).split("\n")[0] or type(error).__name__
