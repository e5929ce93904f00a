"""Launch configs as a plan reads them: those of the repository, and those that a run would refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from vla_adapt.training.launch_file import Layout, read_layout
from vla_adapt.training.parallelism import DDP, FSDP2

LAUNCH = Path(__file__).resolve().parents[2] / "recipes" / "launch"
WANTED = {
    "cpu-2": Layout(2, DDP),
    "cpu-2-fsdp": Layout(2, FSDP2),
    "fsdp": Layout(16, FSDP2, machines=2),
    "gpu-1": Layout(),
    "gpu-8": Layout(8, DDP),
}


def test_the_repositorys_own():
    assert {file.stem: read_layout(file) for file in LAUNCH.glob("*.yaml")} == WANTED
    assert read_layout(LAUNCH / "fsdp.yaml").per_machine == 8
    assert read_layout(LAUNCH / "fsdp.yaml", processes=4) == Layout(4, FSDP2, machines=2)
    assert read_layout(LAUNCH / "gpu-8.yaml", processes=1) == Layout.of(1) == Layout()


def changed(folder: Path, name: str, **changes: Any) -> Path:
    file = folder / "launch.yaml"
    tree = yaml.safe_load((LAUNCH / f"{name}.yaml").read_text())
    file.write_text(yaml.safe_dump(tree | changes))
    return file


def test_blocks_may_stay_gathered(tmp_path: Path):
    options = {"fsdp_version": 2, "fsdp_reshard_after_forward": False}
    assert not read_layout(changed(tmp_path, "fsdp", fsdp_config=options)).gather_twice


@pytest.mark.parametrize(("stage", "way"), [(2, "ZeRO-2"), (3, "ZeRO-3")])
def test_deepspeed_is_named_for_the_refusal(tmp_path: Path, stage: int, way: str):
    file = changed(tmp_path, "gpu-8", distributed_type="DEEPSPEED", deepspeed_config={"zero_stage": stage})
    assert read_layout(file).way == way


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_processes": 1, "num_machines": 1}, "over one process, which has nobody to share with"),
        ({"num_processes": 15}, "15 processes do not spread over 2 machines evenly"),
        ({"fsdp_config": {"fsdp_version": 1}}, "FSDP_VERSION=1: only FSDP2"),
        ({"distributed_type": "MULTI_CPU"}, r"MULTI_CPU; wanted NO, MULTI_GPU \(on CPUs, too\) or FSDP"),
        ({"distributed_type": "NO"}, "NO starts one process, not 16"),
        ({"dynamo_config": {"dynamo_backend": "INDUCTOR"}}, "asks for torch.compile"),
        ({"num_procs": 2}, "no launch config of Accelerate"),
    ],
)
def test_what_a_run_would_refuse_is_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        read_layout(changed(tmp_path, "fsdp", **changes))


def test_other_files_are_none(tmp_path: Path):
    (tmp_path / "text.yaml").write_text("just words")
    for file in (tmp_path / "nowhere.yaml", tmp_path / "text.yaml", LAUNCH / "slurm.sh", LAUNCH):
        with pytest.raises(ValueError, match="no launch config of Accelerate, such as "):
            read_layout(file)
