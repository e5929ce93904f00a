"""Drive simulated robots through a running server and count successes."""

from __future__ import annotations

import json
import multiprocessing
import os
import urllib.request
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler

import numpy as np
from PIL import Image

from vla_adapt.evaluation.interval import rate_text, wilson
from vla_adapt.serving.client import Client, RobotServerError, is_local
from vla_adapt.serving.protocol import parse_error
from vla_adapt.sim.make_world import make_world
from vla_adapt.sim.rollout import rollout


@dataclass
class ClosedLoopResult:
    """Successes of one policy on one robot over the episodes of a seed range."""

    robot: str
    label: str
    episodes: int
    successes: int
    seed: int
    outcomes: list[bool] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.successes, self.episodes)

    def text(self) -> str:
        return rate_text(self.successes, self.episodes)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"interval_95": list(self.interval)}

    @staticmethod
    def from_dict(content: dict) -> ClosedLoopResult:
        return ClosedLoopResult(**{key: value for key, value in content.items() if key != "interval_95"})


@dataclass(frozen=True)
class Trial:
    """One share of the episodes, for one worker process."""

    robot: str
    url: str
    token: str | None
    seeds: tuple[int, ...]
    execute: int
    frames_dir: str | None


def run_trial(trial: Trial) -> list[tuple[int, bool, int, float]]:
    """(seed, success, steps, seconds) of each episode; runs in a process of its own."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    world = make_world(trial.robot, seed=trial.seeds[0])
    outcomes = []
    try:
        with Client(trial.url, robot=trial.robot, token=trial.token) as client:
            for seed in trial.seeds:
                keep = trial.frames_dir is not None and seed == trial.seeds[0]
                result = rollout(world, client.act, seed=seed, execute=trial.execute, keep_frames=keep)
                if keep:
                    _save_frames(result.frames, Path(str(trial.frames_dir)) / f"{trial.robot}.png")
                outcomes.append((seed, bool(result.success), int(result.steps), float(result.seconds)))
    finally:
        world.close()
    return outcomes


def closed_loop(
    robot: str,
    url: str,
    episodes: int = 20,
    seed: int = 9001,
    execute: int = 4,
    workers: int = 2,
    label: str = "",
    token: str | None = None,
    frames_dir: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ClosedLoopResult:
    """Run episodes `seed .. seed+episodes-1` of `robot` against the server at `url`.

    The outcome does not depend on `workers`: every episode has its own seed.

    Args:
        execute: how many actions of each chunk are executed before the next observation is sent.
        frames_dir: where to leave a strip of camera frames of the first episode.
        progress: called with (episodes done, successes).

    Raises:
        ValueError: the server is not there, refuses or fails, or the robot is not simulated.
    """
    try:
        Client(url, robot=robot, token=token).close()  # told before worlds are built, which takes seconds
        seeds = range(seed, seed + episodes)
        found = _outcomes(robot, url, seeds, execute, workers, token, frames_dir, progress)
    except RobotServerError as error:
        raise ValueError(f"{robot}: {error}") from error
    return ClosedLoopResult(
        robot=robot, label=label, episodes=episodes, successes=sum(won for _, won, _, _ in found), seed=seed,
        outcomes=[outcome[1] for outcome in found], steps=[outcome[2] for outcome in found],
        seconds=sum(outcome[3] for outcome in found),
    )  # fmt: skip


def _outcomes(
    robot: str,
    url: str,
    seeds: range,
    execute: int,
    workers: int,
    token: str | None,
    frames_dir: str | Path | None,
    progress: Callable[[int, int], None] | None,
) -> list[tuple[int, bool, int, float]]:
    """`run_trial` of all seeds, in their order, by worker processes."""
    frames = str(frames_dir) if frames_dir else None
    workers = max(1, min(workers, len(seeds)))
    trials = [
        Trial(robot, url, token, tuple(seeds[share::workers]), execute, frames if share == 0 else None)
        for share in range(workers)
    ]
    found: list[tuple[int, bool, int, float]] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for future in as_completed([pool.submit(run_trial, trial) for trial in trials]):
            found += future.result()
            if progress:
                progress(len(found), sum(outcome[1] for outcome in found))
    return sorted(found)


def served_robots(url: str, token: str | None = None) -> list[str]:
    """Names of the robots the server at `url` serves (`GET /v1/robots`).

    Raises:
        ValueError: nobody answers there, or not as our server does, or it wants (another) token.
    """
    request = urllib.request.Request(f"{url.rstrip('/')}/v1/robots")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    proxies = ProxyHandler({}) if is_local(url) else ProxyHandler()
    try:
        with urllib.request.build_opener(proxies).open(request, timeout=10) as reply:
            return list(json.load(reply)["robots"])
    except HTTPError as error:
        code, message = parse_error(error.read().decode("utf-8", "replace"))
        raise ValueError(f"the server at {url} refuses ({code}: {message})") from error
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"no policy server answers at {url} ({error}); start it with vla-adapt serve"
        ) from error


def save_results(results: list[ClosedLoopResult], file: str | Path) -> None:
    """Write results as JSON."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(json.dumps([result.to_dict() for result in results], indent=1) + "\n")


def load_results(file: str | Path) -> list[ClosedLoopResult]:
    """Read what `save_results` wrote."""
    return [ClosedLoopResult.from_dict(content) for content in json.loads(Path(file).read_text())]


def _save_frames(frames: list[np.ndarray], file: Path, count: int = 8) -> None:
    """A strip of `count` frames, evenly spaced over the episode."""
    if not frames:
        return
    picked = [frames[index] for index in np.linspace(0, len(frames) - 1, count).round().astype(int)]
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(picked, axis=1)).save(file)
