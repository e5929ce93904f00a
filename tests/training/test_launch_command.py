"""What launchers were told, from their command lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vla_adapt.training.launch_command import asked_processes, launcher_command


@pytest.mark.parametrize(
    ("command", "processes"),
    [
        (
            "python /bin/accelerate launch --cpu --num_processes 2 scripts/finetune.py quickstart --set a=3",
            2,
        ),
        ("python -m accelerate.commands.launch --num_processes=4 scripts/finetune.py quickstart", 4),
        ("/bin/accelerate launch scripts/finetune.py quickstart", 1),
        ("python /bin/torchrun --nproc_per_node 2 scripts/finetune.py quickstart", 1),
        ("-bash", 1),
        ("", 1),
    ],
)
def test_asked_processes(command: str, processes: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vla_adapt.training.launch_command.default_config_file", "/nowhere")
    assert asked_processes(command.split()) == processes


def test_a_default_config_counts_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    file = tmp_path / "default.yaml"
    file.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nmixed_precision: 'no'\n"
        "use_cpu: true\nnum_machines: 1\nnum_processes: 3\ndebug: false\n"
    )
    for place in ("accelerate.commands.config.config_args", "vla_adapt.training.launch_command"):
        monkeypatch.setattr(f"{place}.default_config_file", str(file))
    assert asked_processes(["python", "/bin/accelerate", "launch", "scripts/finetune.py", "quickstart"]) == 3


@pytest.mark.slow
def test_only_launchers_are_taken_for_one(tmp_path: Path):
    assert launcher_command() == [], "pytest was started by no launcher"
    (tmp_path / "accelerate").write_text(
        "import subprocess, sys\n"
        "say = 'from vla_adapt.training.launch_command import launcher_command as c; print(c()[-1])'\n"
        "subprocess.run([sys.executable, '-c', say], check=True)\n"
    )
    command = [sys.executable, str(tmp_path / "accelerate"), "launch", "x.py"]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert said.stdout == "x.py\n"
