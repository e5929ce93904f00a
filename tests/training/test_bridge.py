"""The Bridge recipe on the 50 real Open X-Embodiment episodes of the workplace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vla_adapt.adaptation.bundle import Bundle
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.recipe import Recipe
from vla_adapt.training.loop import train


@pytest.mark.slow
def test_bridge_recipe_trains(shared_dir: Path, random_base: Path, tmp_path: Path):
    data = shared_dir / "data" / "bridge_dataset"
    overrides = [
        f"mixture.0.path={data}",
        f"base={random_base}",
        f"output={tmp_path / 'b'}",
        "train.steps=60",
    ]
    overrides += ["train.batch_size=16", "evaluation.windows=64"]
    folder = train(Recipe.load("bridge_lora", overrides))
    Bundle.load(folder / "bundles" / "widowx").verify(OpenVLA.from_pretrained(random_base))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"]
