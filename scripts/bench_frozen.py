#!/usr/bin/env python
"""How much faster an epoch of the frozen mode is when it reads kept features instead of images.

    python scripts/bench_frozen.py [--quick] [--json FILE] [--head readout|flow] [--batch N]

The tiny base, two robots, episodes of 256x256 JPEG frames. An epoch is what `training.loop` does with every
sample once: loading, forward, backward, clipping, optimizer, metrics. Both kinds take turns in one process
without loader processes; the ratio is of CPU seconds, which a busy machine distorts less, that of wall
seconds is printed beside. `limit` is the ratio that would be left if the cached epoch were nothing but the
head's forward, backward and optimizer on batches that lie in memory. `fill_s` is the one-time making of the
features. Cached epochs are short: of each turn's 5 the median counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from accelerate import Accelerator

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.mixing.loader import make_loader
from vla_adapt.episodes.rlds.write import RldsWriter
from vla_adapt.episodes.source import EpisodeData, fake_data
from vla_adapt.policy.batch import PolicyBatch
from vla_adapt.recipe import Recipe
from vla_adapt.training.frozen_features import use_features
from vla_adapt.training.loop import collate
from vla_adapt.training.meter import Meter
from vla_adapt.training.optimizer import clip_per_robot, make_optimizer
from vla_adapt.training.ranks import Ranks
from vla_adapt.training.setting import Setting, prepare

ROBOTS = ("ur5e", "franka_panda")
SIZE, STEPS = 256, 64
CACHED_EPOCHS = 5  # in each turn


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    asked.add_argument(
        "--quick", action="store_true", help="less data, fewer turns: under a minute on two cores"
    )
    asked.add_argument("--json", type=Path, help="write the numbers there")
    asked.add_argument("--head", choices=("readout", "flow"), default="readout")
    asked.add_argument("--batch", type=int, default=128)
    given = asked.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        report = measure(Path(folder), given.head, given.batch, *((8, 1) if given.quick else (16, 3)))
    print(
        f"{report['samples']} samples, {given.head} head, batches of {given.batch}: an epoch takes "
        f"{report['uncached_epoch_s']:.2f} s of CPU reading images, {report['cached_epoch_s']:.3f} s reading "
        f"features: {report['ratio']:.0f} times less (wall {report['wall_ratio']:.0f}; "
        f"{report['limit']:.0f} if there were the head's arithmetic alone); making them once "
        f"{report['fill_s']:.2f} s, {report['features_mb']:.1f} MB"
    )
    if given.json:
        given.json.write_text(json.dumps(report, indent=1))


def measure(folder: Path, head: str, batch: int, episodes: int, turns: int) -> dict[str, Any]:
    """Epochs of both kinds in turn, after one of each to warm up."""
    paths = [record(folder, robot, seed, episodes) for seed, robot in enumerate(ROBOTS)]
    accelerator = Accelerator(cpu=True)
    settings = [prepare(recipe(paths, folder, head, batch, cache)) for cache in (False, True)]
    _, fill, _ = timed(lambda: use_features(accelerator, Ranks(accelerator), settings[1]))
    steps = 2 * episodes * STEPS // batch
    kept = [loaded for loaded, _ in batches(settings[1], batch, steps)]
    runs = [
        (1, lambda: epoch(settings[0], batches(settings[0], batch, steps), steps)),
        (CACHED_EPOCHS, lambda: epoch(settings[1], batches(settings[1], batch, steps), steps)),
        (CACHED_EPOCHS, lambda: epoch(settings[1], [(each, []) for each in kept], steps, metrics=False)),
    ]
    times: list[list[tuple[float, float]]] = [[], [], []]
    for turn in range(turns + 1):
        for number, (count, run) in enumerate(runs):
            each = [timed(run)[1:] for _ in range(count)]
            times[number] += each if turn else []
    uncached, cached, alone = ([statistics.median(c) for c in zip(*each, strict=True)] for each in times)
    return {
        "samples": steps * batch, "head": head, "batch": batch, "uncached_epoch_s": uncached[0],
        "cached_epoch_s": cached[0], "ratio": uncached[0] / cached[0], "wall_ratio": uncached[1] / cached[1],
        "head_s": alone[0], "limit": uncached[0] / alone[0], "fill_s": fill,
        "features_mb": sum(f.stat().st_size for f in (folder / "cache").rglob("*.npy")) / 1e6,
    }  # fmt: skip


def timed(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, CPU seconds, wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = run()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def batches(setting: Setting, batch: int, steps: int) -> Iterable[tuple[PolicyBatch, Any]]:
    """Every sample once, as `training.loop` loads it."""
    rows = partial(collate, setting.builder, list(setting.robots))
    return make_loader(setting.mixture, batch, steps=steps, collate=rows)


def epoch(
    setting: Setting, loader: Iterable[tuple[PolicyBatch, Any]], steps: int, metrics: bool = True
) -> None:
    """Train on every sample once."""
    learner = setting.learner.train()
    optimizer, schedule = make_optimizer(setting.recipe.train.optimizer, learner.groups(), steps)
    groups = learner.groups().values()
    meter = Meter({name: robot.normalizers[0] for name, robot in setting.robots.items()})
    for loaded, _ in loader:
        output = learner(loaded)
        output["loss"].backward()
        clip_per_robot(groups, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if metrics:
            meter.add(output, loaded)


def recipe(paths: list[Path], folder: Path, head: str, batch: int, cache: bool) -> Recipe:
    """Frozen tiny base, fresh head."""
    return Recipe.model_validate(
        {
            "name": "bench", "output": str(folder / "run"),
            "mixture": [{"path": str(path)} for path in paths],
            "policy": {"head": {"kind": head}, "head_from_base": False}, "train": {"batch_size": batch},
            "adaptation": {"kind": "frozen", "cache": cache, "cache_dir": str(folder / "cache")},
        }
    )  # fmt: skip


def record(folder: Path, robot: str, seed: int, episodes: int) -> Path:
    """A dataset of `episodes` episodes with JPEG frames as a camera gives them."""
    embodiment, rng = Embodiment.load(robot), np.random.default_rng(seed)
    with RldsWriter(folder, f"{robot}_frames", embodiment) as writer:
        for number in range(episodes + 1):
            data = fake_data(embodiment, rng, length=STEPS, image_size=8)
            frames = {camera: [photograph(rng) for _ in range(STEPS)] for camera in data.images}
            writer.add(
                "train" if number else "val", EpisodeData(data.action, frames, data.instruction, data.state)
            )
    return writer.path


def photograph(rng: np.random.Generator) -> bytes:
    """A JPEG of about 20 kB: smooth areas, edges and grain."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    image = np.repeat((120 + 80 * np.sin(4 * x + 3 * y))[..., None], 3, axis=2)
    for _ in range(12):
        (cx, cy), radius = rng.uniform(0, 1, 2), rng.uniform(0.05, 0.3)
        image[(abs(x - cx) < radius) & (abs(y - cy) < radius / 2)] = rng.uniform(0, 255, 3)
    image += rng.normal(0, 6, image.shape)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image.clip(0, 255).astype(np.uint8)), quality=80)


if __name__ == "__main__":
    main()
