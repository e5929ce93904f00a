"""One run per folder, and folders that cannot be written to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from accelerate import Accelerator

from vla_adapt.training.ranks import Ranks
from vla_adapt.training.run_lock import run_lock


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path: Path):
    ranks = Ranks(Accelerator(cpu=True))
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with run_lock(ranks, tmp_path / "run"):
            if os.fork() == 0:  # as a loader process, which may outlive a killed run by seconds
                os.close(go[1])
                os.read(go[0], 1)
                os._exit(0)
            os.write(ready[1], b"x")
            os.read(go[0], 1)
    os.read(ready[0], 1)
    with (
        pytest.raises(ValueError, match=f"being trained into by process {child} on "),
        run_lock(ranks, tmp_path / "run"),
    ):
        pass
    os.kill(child, 9)
    os.waitpid(child, 0)
    with run_lock(ranks, tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    for end in (*ready, *go):
        os.close(end)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ValueError, match=r"cannot write to the output folder .*file/run: Not a directory"),
        run_lock(Ranks(Accelerator(cpu=True)), tmp_path / "file" / "run"),
    ):
        pass


def test_a_read_only_folder_is_named(tmp_path: Path):
    """/proc is read-only for root too."""
    folder = Path("/proc/1") if os.geteuid() == 0 else tmp_path
    if os.geteuid() != 0:
        folder.chmod(0o500)
    with (
        pytest.raises(ValueError, match="cannot write to the output folder"),
        run_lock(Ranks(Accelerator(cpu=True)), folder),
    ):
        pass
