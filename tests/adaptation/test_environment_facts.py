"""What a run ran on, and what changed since."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vla_adapt.adaptation import environment_facts as module
from vla_adapt.adaptation.environment_facts import changed_facts, environment_facts, note_start, read_starts


def test_facts_of_this_place():
    facts = environment_facts(2)
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["python"] == platform.python_version()
    assert facts["processes"] == 2
    assert facts["cpu"]
    assert facts["cores"] >= 1
    assert facts["memory_gb"] >= 1
    assert len(facts["devices"]) == torch.cuda.device_count()
    assert json.loads(json.dumps(facts)) == facts


def test_changes_are_named():
    now = environment_facts(2)
    assert changed_facts(now, now) == []
    before = {**now, "packages": {**now["packages"], "torch": "2.0.1"}, "processes": 4}
    assert changed_facts(before, now) == [f"torch 2.0.1 -> {torch.__version__}", "processes 4 -> 2"]
    del before["cpu"]
    assert len(changed_facts(before, now)) == 2, "an older version did not note it: nothing changed"


def test_every_start_of_a_run_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert read_starts(tmp_path) == []
    monkeypatch.setattr(sys, "argv", ["/home/me/bin/vla-adapt", "train", "a b.yaml"])
    note_start(tmp_path, 1, 0)
    note_start(tmp_path, 2, 40)
    first, second = read_starts(tmp_path)
    assert (first["after_step"], first["processes"]) == (0, 1)
    assert (second["after_step"], second["processes"]) == (40, 2)
    assert first["command"] == "vla-adapt train 'a b.yaml'"
    note_start(tmp_path, 1, 0)
    assert len(read_starts(tmp_path)) == 1, "a new run"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_of_the_code_and_says_when_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def commit() -> str | None:
        module._commit.cache_clear()
        return module._commit()

    def git(*words: str) -> None:
        author = ("-c", "user.name=x", "-c", "user.email=x@y.z")
        subprocess.run(["git", "-C", tmp_path, *author, *words], check=True, capture_output=True)

    code = tmp_path / "code.py"
    code.write_text("1\n")
    monkeypatch.setattr(module, "__file__", str(code))
    assert commit() is None, "no checkout"
    git("init")
    git("commit", "--allow-empty", "-m", "somebody else's")
    assert commit() is None, "installed inside of another project's checkout"
    git("add", ".")
    git("commit", "-m", "ours")
    clean = commit()
    assert clean is not None
    assert len(clean) == 40
    code.write_text("2\n")
    assert commit() == f"{clean}-dirty"
    module._commit.cache_clear()


def test_the_driver_is_read_from_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "version"
    monkeypatch.setattr(module, "_DRIVER", file)
    assert environment_facts(1)["driver"] is None
    file.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n"
        "GCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04)\n"
    )
    assert environment_facts(1)["driver"] == "570.86.15"
