"""Which recorded step every sample of a run was: for the message about a bad one, and as a log on request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch
from jaxtyping import Float

FOLDER = "samples"
_NAMED = 3


class SampleId(NamedTuple):
    """Sample number, and the dataset, episode and step it was drawn from."""

    sample: int
    dataset: str
    episode: str
    step: int

    @staticmethod
    def of(window: Mapping[str, Any]) -> SampleId:
        """The id of a window of a mixture."""
        ids = window["ids"]
        return SampleId(ids["sample"], ids["dataset"], ids["episode"], int(ids["step"]))

    def __str__(self) -> str:
        return f"{self.dataset} episode {self.episode} step {self.step}"


def name_bad_samples(
    losses: Float[torch.Tensor, " B"], ids: Sequence[SampleId], robots: Sequence[str]
) -> str:
    """The samples whose loss is not finite, as a phrase; the first few by name.

    Args:
        losses: of each sample.
        ids: of the same samples.
        robots: whose they are.
    """
    bad = [f"{ids[row]} ({robots[row]})" for row in (~torch.isfinite(losses)).nonzero()[:, 0].tolist()]
    total = len(ids)
    if not bad:
        return f"each of the {total} samples by itself is finite"
    more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    return f"{len(bad)} of {total} samples of this process: {', '.join(bad[:_NAMED])}{more}"


class SampleLog:
    """`samples/rank<k>.tsv`: training step, sample number, dataset, episode, step, one line a sample.

    A context manager. On resume the lines of steps that are done anew are dropped, also from files of ranks
    that the run no longer has.
    """

    def __init__(self, folder: Path, rank: int, world: int, done: int) -> None:
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        mine = folder / FOLDER / f"rank{rank}.tsv"
        if rank == 0:
            for file in (folder / FOLDER).glob("rank*.tsv"):
                if int(file.stem.removeprefix("rank")) >= world:
                    _keep_until(file, done)
        _keep_until(mine, done)
        self._file: TextIO = mine.open("a")

    def step(self, step: int, ids: Sequence[SampleId]) -> None:
        """Write what step number `step` (from 1) consumed; a kill after this loses none of it."""
        self._file.write("".join(f"{step}\t" + "\t".join(map(_plain, row)) + "\n" for row in sorted(ids)))
        self._file.flush()

    def __enter__(self) -> SampleLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _plain(value: object) -> str:
    return " ".join(str(value).split())


def _keep_until(file: Path, step: int) -> None:
    """Drop the lines of later steps (all of them for step 0), and a line that a kill cut off."""
    if not file.is_file():
        return
    end = 0
    with file.open("rb+") as stream:
        for line in stream:
            if not line.endswith(b"\n") or int(line.split(b"\t", 1)[0]) > step:
                break
            end += len(line)
        stream.truncate(end)
