"""Record a simulated expert into an RLDS dataset: in parallel, repeatable, resumable, done once.

Seeds (an episode is its seed): below 10,000,000 are for evaluation, 10,000,000 + for training recordings,
20,000,000 + for validation recordings, so nothing is ever judged on an episode it was trained on.
"""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.rlds.write import RldsWriter
from vla_adapt.progress_bar import progress_bar
from vla_adapt.sim.recorder import RecorderPool, load_cached, prepare_cache
from vla_adapt.sim.simulator import load_robosuite
from vla_adapt.sim.tasks import find_task

RECORDER_VERSION = 4  # raise when the same settings would record something else
FIRST_SEED = {"train": 10_000_000, "val": 20_000_000}
SEEDS_PER_RECORDING = 100_000  # recordings with different `seed` share no episode
MAX_SEED = 99
MAX_FAILED_FRACTION = 0.5
MANIFEST = "recording.json"


@dataclass(frozen=True)
class Recording:
    """A finished recording.

    Attributes:
        path: the dataset's folder, for `open_dataset`.
        episodes: kept per split; `steps`: their steps in all splits together.
        failed: expert episodes that failed, were dropped and replaced.
        seconds: wall time spent now; `reused`: whether it was there already.
    """

    path: Path
    episodes: dict[str, int]
    steps: int
    failed: int
    seconds: float
    reused: bool


def record(
    robot: str,
    episodes: Mapping[str, int],
    out_dir: str | Path,
    seed: int = 0,
    noise: bool = True,
    slips: bool = True,
    workers: int = 2,
    image_size: int = 112,
    cameras: tuple[str, ...] = ("primary",),
    overwrite: bool = False,
    quiet: bool = False,
) -> Recording:
    """Record successful expert episodes to `out_dir/<robot>_sim/1.0.0`. The bytes do not depend on `workers`.

    The label of a step is the expert's clean action at that state; with `noise` another one is executed, and
    with `slips` grippers now and then do the opposite too, so that trying again is in the data.
    An interrupted recording resumes; a finished one with the same settings is returned at once.

    Args:
        robot: a simulated embodiment. `episodes`: successful ones per split, e.g. {"train": 50, "val": 5}.
        out_dir: folder that holds datasets. `seed`: 0..99, another seed gives other episodes.
        workers: processes. `overwrite`: replace a dataset of other settings. `quiet`: no progress bar.

    Raises:
        ValueError: bad arguments, simulator missing, other settings already recorded there.
    """
    started = time.perf_counter()
    find_task(robot)
    settings = {
        "recorder_version": RECORDER_VERSION,
        "robot": robot,
        "episodes": dict(episodes),
        "seed": seed,
        "noise": noise,
        "slips": noise and slips,
        "image_size": image_size,
        "cameras": list(cameras),
    }
    writer = RldsWriter(out_dir, f"{robot}_sim", Embodiment.load(robot), overwrite=True)
    cache = Path(out_dir) / f".{robot}_sim.partial"
    finished = _finished(writer.path, settings, overwrite or cache.exists())
    if finished is not None:
        return Recording(writer.path, **finished, seconds=time.perf_counter() - started, reused=True)
    load_robosuite()
    prepare_cache(cache, settings)
    bar = progress_bar(f"recording {robot}", sum(episodes.values()), "episodes", keep=True, shown=not quiet)
    with RecorderPool(settings, cache, workers) as pool, bar as progress:
        kept = {}
        for split, count in episodes.items():
            kept[split] = _successes(pool, split, count, seed, progress.advance)
    failed = sum(len(tried) - len(good) for tried, good in kept.values())
    steps = 0
    with writer:
        for split, (_, good) in kept.items():
            for episode_seed in good:
                data = load_cached(cache, episode_seed)
                steps += len(data)
                writer.add(split, data)
    outcome = {"episodes": dict(episodes), "steps": steps, "failed": failed}
    (writer.path / MANIFEST).write_text(json.dumps({"settings": settings, **outcome}, indent=2))
    shutil.rmtree(cache)
    return Recording(writer.path, **outcome, seconds=time.perf_counter() - started, reused=False)


def episode_seeds(split: str, seed: int) -> Iterator[int]:
    """The seeds of one recording's split, in order of trial.

    Raises:
        ValueError: unknown split, or seed outside 0..99.
    """
    if split not in FIRST_SEED:
        raise ValueError(f"split {split!r} of a simulated recording; known: {', '.join(FIRST_SEED)}")
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"recording seed {seed}, wanted 0..{MAX_SEED}")
    first = FIRST_SEED[split] + seed * SEEDS_PER_RECORDING
    return iter(range(first, first + SEEDS_PER_RECORDING))


def _successes(
    pool: RecorderPool, split: str, count: int, seed: int, advance: Callable[[], None]
) -> tuple[list[int], list[int]]:
    """Try the split's seeds in order until `count` succeeded. Returns the seeds tried and the successes.

    Each round tries as many seeds as successes are missing, so the outcome is the same for any timing.
    """
    seeds, tried, good = episode_seeds(split, seed), [], []
    while len(good) < count:
        batch = list(itertools.islice(seeds, count - len(good)))
        for episode_seed, success in zip(batch, pool.run(batch), strict=True):
            tried.append(episode_seed)
            if success:
                good.append(episode_seed)
                advance()
        if len(tried) >= 20 and len(good) < len(tried) * (1 - MAX_FAILED_FRACTION):
            raise ValueError(
                f"the expert of {pool.robot} failed {len(tried) - len(good)} of {len(tried)} episodes; "
                "not worth recording (is this the pinned robosuite 1.5.2 with mujoco 3.3.7?)"
            )
    return tried, good


def _finished(path: Path, settings: Mapping[str, Any], may_replace: bool) -> dict[str, Any] | None:
    """Facts of a finished recording with these settings, or None if there is none (or it may be replaced)."""
    if not path.exists():
        return None
    manifest = path / MANIFEST
    stored = json.loads(manifest.read_text()) if manifest.exists() else {}
    if stored.pop("settings", None) == settings:
        return stored
    if may_replace:
        return None
    raise ValueError(
        f"{path} holds a recording with other settings; choose another folder, or replace it "
        "(overwrite=True, --overwrite)"
    )
