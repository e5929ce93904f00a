"""A run that needs more memory or disk than there is: what to do, in numbers of the recipe at hand."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from vla_adapt.recipe import Recipe
from vla_adapt.training.compatibility import why_uncached

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)


@contextmanager
def explained(recipe: Recipe, world: int, where: Callable[[], str]) -> Iterator[None]:
    """Turn a GPU that is out of memory, and a disk that cannot be written to, into words.

    Args:
        recipe: of the run.
        world: its number of processes.
        where: says where the run would go on.

    Raises:
        ValueError: the words.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(f"{memory_advice(error, recipe, world)}; {where()}") from error
    except OSError as error:
        if error.errno not in _DISK:
            raise
        name = f" {error.filename}" if error.filename else ""
        raise ValueError(f"cannot write{name}: {error.strerror}; {where()}") from error


def memory_advice(error: torch.OutOfMemoryError, recipe: Recipe, world: int) -> str:
    """The ways out, first those that change no result."""
    train = recipe.train
    samples = train.batch_size // (world * train.accumulate)
    ways: list[str] = []
    if samples > 1:
        passes = next(n for n in range(2, samples + 1) if samples % n == 0)
        ways.append(
            f"train.accumulate={train.accumulate * passes} takes {samples // passes} at once, to the same end"
        )
    ways.append(f"more processes than {world} share the batch")
    if train.checkpointing is not True and why_uncached(recipe) is not None:
        ways.append("train.checkpointing=true keeps few activations, to the same end, in more time")
    if train.precision == "fp32":
        ways.append("train.precision=bf16 halves weights and activations")
    if recipe.adaptation.kind == "full":
        ways.append("adaptation.kind=lora keeps optimizer state for adapters only")
    reason = str(error).split(". ")[0].rstrip(".")
    return f"out of memory with {samples} samples at once on each process ({reason}): {', or '.join(ways)}"
