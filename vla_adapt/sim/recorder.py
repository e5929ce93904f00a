"""Processes that record episodes side by side, each with its own simulator, leaving one file per episode.

Run as `python -m vla_adapt.sim.recorder SETTINGS_JSON CACHE`: reads seeds, one per line, and answers each
with "SEED ok" or "SEED failed" once its file is there. Plain processes rather than multiprocessing, which
would load the caller's main module (and torch with it) into each of them.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from vla_adapt.episodes.source import EpisodeData
from vla_adapt.sim.expert_episode import expert_episode
from vla_adapt.sim.make_world import make_world
from vla_adapt.sim.worlds import World

SETTINGS_FILE = "settings.json"


class RecorderPool:
    """`workers` recording processes; `run(seeds)` records those not in the cache yet, in any order."""

    def __init__(self, settings: Mapping[str, Any], cache: Path, workers: int):
        if workers < 1:
            raise ValueError(f"{workers} recording workers, wanted 1 or more")
        self.robot = settings["robot"]
        self._cache = cache
        self._command = [sys.executable, "-m", "vla_adapt.sim.recorder", json.dumps(settings), str(cache)]
        self._threads = ThreadPoolExecutor(workers)
        self._idle: queue.SimpleQueue[subprocess.Popen[str] | None] = queue.SimpleQueue()
        self._processes: list[subprocess.Popen[str]] = []
        for _ in range(workers):
            self._idle.put(None)  # started when first needed

    def run(self, seeds: Sequence[int]) -> Iterator[bool]:
        """Record these seeds; yields, in their order, whether the expert succeeded."""
        return self._threads.map(self._record, seeds)

    def _record(self, seed: int) -> bool:
        file = episode_file(self._cache, seed)
        if not file.exists():
            process = self._idle.get() or self._start()
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(f"{seed}\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            except BrokenPipeError:
                answer = ""
            self._idle.put(process)
            if answer.split() not in ([str(seed), "ok"], [str(seed), "failed"]):
                raise RuntimeError(
                    f"recording {self.robot} episode {seed} failed; see the error printed above"
                )
        return bool(load_cached(self._cache, seed).metadata["success"])

    def _start(self) -> subprocess.Popen[str]:
        package_root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(part for part in (package_root, os.environ.get("PYTHONPATH")) if part)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._processes.append(process)
        return process

    def __enter__(self) -> RecorderPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            for process in self._processes:
                process.terminate()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.communicate()


def prepare_cache(cache: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder of per-episode files; empty it if begun with other settings (counts may differ)."""
    text = json.dumps({key: value for key, value in settings.items() if key != "episodes"}, sort_keys=True)
    note = cache / SETTINGS_FILE
    if cache.exists() and not (note.exists() and note.read_text() == text):
        shutil.rmtree(cache)
    cache.mkdir(parents=True, exist_ok=True)
    note.write_text(text)


def episode_file(cache: Path, seed: int) -> Path:
    """Where the episode of a seed is kept until the dataset is written."""
    return cache / f"{seed}.npz"


def save_cached(cache: Path, seed: int, data: EpisodeData) -> None:
    """Write one episode; the file appears complete or not at all. A failed one keeps no images."""
    assert data.state is not None
    images = data.images if data.metadata["success"] else {}
    flat = {f"image/{camera}/{t:04d}": np.frombuffer(jpeg, np.uint8) for camera, jpegs in images.items()
            for t, jpeg in enumerate(jpegs)}  # fmt: skip
    extra = {f"extra/{key}": values for key, values in data.extra.items()}
    facts = json.dumps({"instruction": data.instruction, "metadata": dict(data.metadata)})
    temporary = episode_file(cache, seed).with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, action=data.action, state=data.state, facts=np.array(facts), **flat, **extra)
    temporary.replace(episode_file(cache, seed))


def load_cached(cache: Path, seed: int) -> EpisodeData:
    """Read one episode back."""
    with np.load(episode_file(cache, seed)) as stored:
        images: dict[str, list[bytes]] = {}
        for key in sorted(key for key in stored.files if key.startswith("image/")):
            images.setdefault(key.split("/")[1], []).append(stored[key].tobytes())
        facts = json.loads(str(stored["facts"]))
        extra = {key.removeprefix("extra/"): stored[key] for key in stored.files if key.startswith("extra/")}
        return EpisodeData(
            action=stored["action"], state=stored["state"], images=images, extra=extra, **facts
        )


def _work(settings: Mapping[str, Any], cache: Path) -> None:
    world: World | None = None
    for line in itertools.takewhile(str.strip, sys.stdin):
        seed = int(line)
        world = world or make_world(settings["robot"], seed, settings["image_size"], settings["cameras"])
        data = expert_episode(world, seed, settings["noise"], settings["slips"])
        save_cached(cache, seed, data)
        print(seed, "ok" if data.metadata["success"] else "failed", flush=True)
    if world is not None:
        world.close()


if __name__ == "__main__":
    _work(json.loads(sys.argv[1]), Path(sys.argv[2]))
