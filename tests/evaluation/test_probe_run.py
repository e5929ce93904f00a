"""The probe of a finished run: which features it sees, what it leaves, what it refuses."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from vla_adapt.episodes import open_dataset
from vla_adapt.evaluation.probe_report import probe_notes, probe_rows
from vla_adapt.evaluation.probe_run import PROBE_PICTURE, RunProbe, collect, probe_run
from vla_adapt.evaluation.run_folder import RunFolder
from vla_adapt.invariance.probe import ProbeConfig, probe
from vla_adapt.policy.openvla import OpenVLA

ROBOTS = ("bimanual_panda", "ur5e")
FOUR = ProbeConfig(folds=4)


@pytest.fixture(scope="module")
def run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A copy, as the probe writes into it."""
    return RunFolder.open(shutil.copytree(finished_run, tmp_path_factory.mktemp("probed") / "run"))


@pytest.fixture(scope="module")
def found(run: RunFolder) -> RunProbe:
    return probe_run(run, windows=12, config=FOUR)


def test_it_probes_both_taps_before_and_after(found: RunProbe):
    for stage in (found.before, found.after):
        assert set(stage) == {"patches", "hidden"}
        for result in stage.values():
            assert (result.robots, result.rows, result.episodes, result.chance) == (ROBOTS, 24, 8, 0.5)
    assert set(found.error) == set(ROBOTS)
    assert found.head_before == "robot", "the untrained base carries no head"


def test_what_it_leaves_can_be_read_again(run: RunFolder, found: RunProbe):
    assert RunProbe.load(run.path) == found
    assert (run.path / PROBE_PICTURE).read_bytes().startswith(b"\x89PNG")
    assert RunProbe.load(run.path / "bundles") is None


def test_rows_and_notes(found: RunProbe):
    rows = probe_rows(found)
    assert [row[:2] for row in rows] == [
        ["patches", "linear"], ["patches", "mlp"], ["hidden", "linear"], ["hidden", "mlp"],
    ]  # fmt: skip
    assert rows[2][2:] == [found.before["hidden"].linear.text, found.after["hidden"].linear.text, "50.0 %"]
    notes = " ".join(probe_notes(found))
    assert "24 windows of 8 episodes" in notes
    assert f"ur5e {found.error['ur5e']:.3f}" in notes


def test_features_are_those_of_the_named_policies(run: RunFolder, two_robot_data: dict[str, Path]):
    """The bare base gives other patches than adapters, and a robot's rows do not depend on the others."""
    data = {robot: [open_dataset(two_robot_data[robot], split="train")] for robot in ROBOTS}
    model = OpenVLA.from_pretrained(run.base).eval()
    served = {robot: bundle.attach(model) for robot, bundle in run.bundles().items()}
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    bare = {robot: replace(policy, adapted=False) for robot, policy in served.items()}
    after, before = collect(served, data, 5), collect(bare, data, 5)
    alone = collect({"ur5e": served["ur5e"]}, data, 5)
    mine = np.array(after.robots) == "ur5e"
    assert np.allclose(after.taps["patches"][mine], alone.taps["patches"], atol=1e-6)
    assert not np.allclose(after.taps["patches"], before.taps["patches"], atol=1e-2)
    told = probe(after.taps["patches"], after.robots, after.episodes, ProbeConfig(folds=3))
    assert told.linear.accuracy == 1.0, "robots whose adapters differ much can be told apart"
    assert after.episodes == before.episodes
    assert len(set(after.episodes)) == 6
    plain = OpenVLA.from_pretrained(run.base).eval()
    clean = collect({robot: replace(policy, model=plain) for robot, policy in bare.items()}, data, 5)
    assert np.allclose(clean.taps["hidden"], before.taps["hidden"], atol=1e-5)


def test_what_it_refuses(run: RunFolder, tmp_path: Path):
    with pytest.raises(ValueError, match=r"'ur5e': the windows are of 4 episode\(s\).*5 folds.*fewer folds"):
        probe_run(run, windows=12)
    with pytest.raises(ValueError, match="wants at least as many"):
        probe_run(run, windows=3, config=FOUR)
    (tmp_path / "bundles").mkdir()
    shutil.copytree(run.path / "bundles" / "ur5e", tmp_path / "bundles" / "ur5e")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(run.recipe))
    with pytest.raises(ValueError, match=r"has one robot \(ur5e\)"):
        probe_run(RunFolder.open(tmp_path), windows=12, config=FOUR)
