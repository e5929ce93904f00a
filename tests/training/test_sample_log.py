"""The log of samples: what is written, what a resumed run drops, how bad samples are named."""

from __future__ import annotations

from pathlib import Path

import torch

from vla_adapt.training.sample_log import SampleId, SampleLog, name_bad_samples


def ids(first: int) -> list[SampleId]:
    return [SampleId(n, "set", f"train/{n}", 7) for n in (first + 1, first)]


def test_what_is_written(tmp_path: Path):
    with SampleLog(tmp_path, 1, 2, done=0) as log:
        log.step(1, [*ids(4), SampleId(3, "other\tset", "a\nb", 0)])
        log.step(2, ids(8))
        text = (tmp_path / "samples" / "rank1.tsv").read_text()
    assert text.splitlines() == [
        "1\t3\tother set\ta b\t0", "1\t4\tset\ttrain/4\t7", "1\t5\tset\ttrain/5\t7",
        "2\t8\tset\ttrain/8\t7", "2\t9\tset\ttrain/9\t7",
    ]  # fmt: skip


def test_a_resumed_run_drops_what_it_does_anew(tmp_path: Path):
    for rank in (0, 1):
        with SampleLog(tmp_path, rank, 2, done=0) as log:
            for step in range(1, 6):
                log.step(step, ids(4 * step + 2 * rank))
    files = [tmp_path / "samples" / f"rank{rank}.tsv" for rank in (0, 1)]
    files[0].write_text(files[0].read_text() + "6\t24\tset\ttr")  # killed while writing
    with SampleLog(tmp_path, 0, 1, done=3) as log:
        log.step(4, ids(16))
    steps = [[int(line.split("\t")[0]) for line in file.read_text().splitlines()] for file in files]
    assert steps == [[1, 1, 2, 2, 3, 3, 4, 4], [1, 1, 2, 2, 3, 3]]
    with SampleLog(tmp_path, 0, 1, done=0):
        assert [file.read_text() for file in files] == ["", ""]


def test_a_kill_within_a_line_of_a_kept_step(tmp_path: Path):
    (tmp_path / "samples").mkdir()
    file = tmp_path / "samples" / "rank0.tsv"
    file.write_text("1\t0\tset\ta\t0\n1\t1\tse")
    with SampleLog(tmp_path, 0, 1, done=1):
        assert file.read_text() == "1\t0\tset\ta\t0\n"


def test_bad_samples_are_named():
    nan = float("nan")
    samples = ids(4) + ids(20) + ids(30)
    robots = ["ur5e"] * 2 + ["panda"] * 4
    assert name_bad_samples(torch.tensor([0.5, nan, 0, 0, 0, 0]), samples, robots) == (
        "1 of 6 samples of this process: set episode train/4 step 7 (ur5e)"
    )
    many = torch.tensor([nan, 1.0, nan, float("inf"), 1.0, nan])
    assert name_bad_samples(many, samples, robots) == (
        "4 of 6 samples of this process: set episode train/5 step 7 (ur5e), set episode train/21 step 7 "
        "(panda), set episode train/20 step 7 (panda) and 1 more"
    )
    assert name_bad_samples(torch.zeros(6), samples, robots) == "each of the 6 samples by itself is finite"
