"""Launches through `accelerate launch`: one and two processes, and what goes wrong said in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env

from vla_adapt.recipe import Recipe
from vla_adapt.training import launch as launching
from vla_adapt.training.fsdp_launch import check_fsdp_options
from vla_adapt.training.launch_command import asked_processes

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "recipes" / "launch"


def losses(folder: Path) -> dict[tuple[int, str], float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {(row["step"], row["robot"]): row["loss"] for row in rows}


def launch(recipe: Recipe, folder: Path, config: str = "cpu-2") -> subprocess.CompletedProcess[str]:
    """Two processes, as a file of `recipes/launch` starts them."""
    file = folder.with_suffix(".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{config}.yaml"),
        str(ROOT / "scripts" / "finetune.py"), str(file),
    ]  # fmt: skip
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("config", "way"), [("cpu-2", "DDP"), ("cpu-2-fsdp", "FSDP2")])
def test_two_processes_give_the_losses_of_one(
    make_recipe: Callable[..., Recipe], tmp_path: Path, finished_run: Path, config: str, way: str
):
    result = launch(make_recipe(str(tmp_path / "two")), tmp_path / "two", config)
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"2 process(es) on cpu ({way})" in result.stdout
    one, two = losses(finished_run), losses(tmp_path / "two")
    assert one.keys() == two.keys()
    assert max(abs(one[key] - two[key]) for key in one) < 1e-5


@pytest.mark.slow
def test_a_recipe_that_cannot_run_ends_all_processes_with_one_line(
    make_recipe: Callable[..., Recipe], tmp_path: Path
):
    recipe = make_recipe(str(tmp_path / "r"), mixture=[{"path": str(tmp_path / "nowhere")}])
    result = launch(recipe, tmp_path / "r")
    assert result.returncode != 0
    said = [line for line in result.stderr.splitlines() if line.startswith("finetune: ")]
    assert len(said) == 1, result.stderr[-3000:]
    assert "nowhere" in said[0]
    assert "exitcode  : 2" in result.stderr


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Accelerator:
    """What every silent fallback ends as: one process on the CPU."""
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(launching, "Accelerator", lambda **options: accelerator)
    monkeypatch.setattr(launching, "launcher_command", list)
    for variable in ("WORLD_SIZE", *(name for name in os.environ if name.startswith("ACCELERATE_"))):
        monkeypatch.delenv(variable, raising=False)
    return accelerator


def test_a_launch_that_would_train_alone_is_refused(alone: Accelerator, monkeypatch: pytest.MonkeyPatch):
    assert launching.start_accelerator("fp32") is alone
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="launched 2 processes, Accelerate joined 1"):
        launching.start_accelerator("fp32")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert launching.start_accelerator("fp32") is alone


def test_a_launcher_that_started_fewer_than_told_is_refused(
    alone: Accelerator, monkeypatch: pytest.MonkeyPatch
):
    command = ["python", "/bin/accelerate", "launch", "--cpu", "--num_processes", "2", "scripts/finetune.py"]
    monkeypatch.setattr(launching, "launcher_command", lambda: command)
    with pytest.raises(
        ValueError, match=r"told to launch 2 processes and started one; .*--multi_gpu --num_processes 2"
    ):
        launching.start_accelerator("fp32")
    command[5] = "1"
    assert launching.start_accelerator("fp32") is alone


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("USE_FSDP", "true", r"asks for FSDP \(ACCELERATE_USE_FSDP\) over one process"),
        ("USE_DEEPSPEED", "true", r"asks for ZeRO-2 .*: DeepSpeed is not supported: .*fsdp\.yaml"),
        ("USE_MEGATRON_LM", "true", "asks for Megatron-LM"),
        ("DYNAMO_BACKEND", "INDUCTOR", r"asks for torch.compile .*=INDUCTOR\): not supported"),
    ],
)
def test_a_way_that_is_not_there_is_refused(
    alone: Accelerator, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
):
    monkeypatch.setenv(f"ACCELERATE_{variable}", value)
    with pytest.raises(ValueError, match=message):
        launching.start_accelerator("fp32")
    monkeypatch.setenv(f"ACCELERATE_{variable}", "NO" if variable == "DYNAMO_BACKEND" else "false")
    assert launching.start_accelerator("fp32") is alone


def test_the_way_is_the_launchs(alone: Accelerator, monkeypatch: pytest.MonkeyPatch):
    assert [launching.launched_way(alone.num_processes), launching.launched_way(2)] == ["1 process", "DDP"]
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert launching.launched_way(2) == "FSDP2"


WAYS = {
    "cpu-2": (DistributedType.MULTI_GPU, 2), "gpu-1": (DistributedType.NO, 1),
    "gpu-8": (DistributedType.MULTI_GPU, 8), "fsdp": (DistributedType.FSDP, 16),
    "cpu-2-fsdp": (DistributedType.FSDP, 2),
}  # fmt: skip


def test_there_are_no_other_launch_configs():
    assert {file.stem for file in CONFIGS.glob("*.yaml")} == set(WAYS)


@pytest.mark.parametrize("name", WAYS)
def test_launch_configs_are_what_accelerate_reads(name: str, monkeypatch: pytest.MonkeyPatch):
    file = CONFIGS / f"{name}.yaml"
    config = load_config_from_file(str(file))
    assert (config.distributed_type, config.num_processes) == WAYS[name]
    arguments = launch_command_parser().parse_args(
        ["--config_file", str(file), "scripts/finetune.py", "quickstart"]
    )
    arguments, _, _ = _validate_launch_command(arguments)
    assert arguments.use_fsdp == ("fsdp" in name)
    assert arguments.num_processes == WAYS[name][1]
    if "fsdp" in name:
        monkeypatch.setattr("accelerate.utils.launch.is_port_in_use", lambda port: False)  # here, just now
        for variable, setting in prepare_multi_gpu_env(arguments).items():
            if variable.startswith("FSDP_"):
                monkeypatch.setenv(variable, setting)
        check_fsdp_options()
    command = [
        *["python", "-m", "accelerate.commands.launch", "--config_file"],
        str(file),
        "scripts/finetune.py",
        "x",
    ]
    assert asked_processes(command) == WAYS[name][1]


def test_the_slurm_script_is_a_script():
    assert subprocess.run(["bash", "-n", str(CONFIGS / "slurm.sh")], check=False).returncode == 0
    empty = subprocess.run([str(CONFIGS / "slurm.sh")], capture_output=True, text=True, check=False)
    assert empty.returncode == 2
    assert "usage: sbatch" in empty.stderr
