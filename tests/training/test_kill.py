"""`kill -9` at twenty random moments, resumed each time: nothing shows in what the run leaves."""

from __future__ import annotations

import random
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from vla_adapt.recipe import Recipe

KILLS, STEPS, ROBOTS = 20, 70, ("ur5e", "bimanual_panda")


def left(run: Path) -> dict[str, bytes]:
    """All that must be equal, byte for byte: weights, heads, losses, samples."""
    files = [run / "metrics.jsonl", *sorted((run / "samples").iterdir())]
    files += [
        run / "bundles" / robot / f"{part}.safetensors"
        for robot in ROBOTS
        for part in ("adapter_model", "head")
    ]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_change_nothing(make_recipe: Callable[..., Recipe], launcher, tmp_path: Path):
    """Every step is saved, so that about half of the kills come while a checkpoint is written.

    The run also averages weights, learns how to balance robots, validates and keeps the best state.
    """

    def recipe(name: str) -> Recipe:
        train = {
            "steps": STEPS,
            "batch_size": 4,
            "log_every": 3,
            "save_every": 1,
            "log_samples": True,
            "keep": 5,
            "ema": 0.9,
            "balance": "uncertainty",
        }
        method = {"kind": "lora", "rank": 4, "alpha": 8, "dropout": 0.1, "targets": "attention"}
        options = {"every": 4, "windows": 2, "metric": "error"}
        return make_recipe(str(tmp_path / name), train=train, adaptation=method, validation=options)

    whole = launcher(recipe("whole"))
    assert whole.codes == [0, 0], whole.said[0][-3000:]
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    print(f"seed {seed}")  # shown when this fails
    checkpoints = tmp_path / "cut" / "checkpoints"
    reached, while_saving = [0], 0
    for _ in range(KILLS):
        # Some time after the first or second new checkpoint: then this launch has got somewhere.
        wait_for = checkpoints / f"step-{reached[-1] + chance.randint(1, 2):08d}" / "manifest.json"
        victims = chance.choice(([0], [1], [0, 1]))
        cut = launcher(
            recipe("cut"), signal_at=chance.uniform(0, 0.15), wait_for=str(wait_for), victims=victims
        )
        assert all(cut.codes[rank] == -signal.SIGKILL for rank in victims), cut.said
        assert all(cut.codes), "a rank went on alone"
        assert "damaged" not in cut.said[0]
        while_saving += any(checkpoints.glob(".*.writing-*"))
        reached.append(max(int(entry.name.removeprefix("step-")) for entry in checkpoints.glob("step-*")))
        resumed = re.search(r"resuming after step (\d+)", cut.said[0])
        assert (int(resumed[1]) if resumed else 0) == reached[-2], "not the newest checkpoint"
    print(f"steps reached {reached}, {while_saving} kills left a half-written checkpoint")
    last = launcher(recipe("cut"))
    assert last.codes == [0, 0], last.said[0][-3000:]
    one, two = left(tmp_path / "whole"), left(tmp_path / "cut")
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
    kept = [
        [each.name for each in (run / "checkpoints").glob("step-*")]
        for run in (tmp_path / "whole", tmp_path / "cut")
    ]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 1, "a finished run needs none but the best"
