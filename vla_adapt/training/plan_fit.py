"""Whether a plan fits into the memory there is, and if not, what would."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from vla_adapt.adaptation.method import Lora
from vla_adapt.recipe import Recipe
from vla_adapt.training.parallelism import FSDP2
from vla_adapt.training.plan import Plan

_UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 2**10,
    "MI": 2**20,
    "GI": 2**30,
    "TI": 2**40,
}
_CGROUP = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))

Planner = Callable[[Recipe], Plan]


def parse_bytes(text: str) -> int:
    """ "24GB", "24 GiB", "800M" to bytes.

    Raises:
        ValueError: anything else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", text.upper())
    if found is None or found[2] not in _UNITS or float(found[1]) <= 0:
        raise ValueError(f"got memory {text!r}; wanted a size such as 24GB or 80GiB")
    return int(float(found[1]) * _UNITS[found[2]])


def machine_memory(device: str, processes: int) -> int:
    """Bytes that one of `processes` processes of a machine may have: a GPU of its own, or its part of the
    memory."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[1]
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _CGROUP:
        if file.is_file() and (text := file.read_text().strip()).isdigit():
            limits.append(int(text))
    return min(limits) // processes


def way_out(recipe: Recipe, plan: Plan, limit: int, planner: Planner) -> str:
    """Words for a plan that needs more than `limit` bytes: what would fit, by planning it.

    Args:
        recipe: of the plan.
        plan: that does not fit.
        limit: bytes per process.
        planner: plans a changed recipe on the same processes.
    """
    needs = f"one process needs {gigabytes(plan.device_total)}, there are {gigabytes(limit)}"
    least = (plan.device_total, "the recipe as it is")
    for changes in (_single_changes(recipe, plan), _joint_changes(recipe, plan)):
        fits = []
        for words, changed in changes:
            total = planner(changed).device_total
            least = min(least, (total, words))
            if total <= limit:
                fits.append(f"{words} needs {gigabytes(total)}")
        if fits:
            return f"{needs}; {'; '.join(fits)}"
    several = "" if plan.way == FSDP2 else ", several with shards (--launch recipes/launch/fsdp.yaml),"
    return (
        f"{needs}; the least of what was tried, {least[1]}, needs {gigabytes(least[0])}: take a larger "
        f"machine{several} or a smaller base"
    )


def _single_changes(recipe: Recipe, plan: Plan) -> Iterator[tuple[str, Recipe]]:
    """Recipes with one change, first those that train the same."""
    train = recipe.train
    if plan.samples > 1:
        yield _set(recipe, {"train.accumulate": train.accumulate * _more_passes(plan.samples)})
    if not train.checkpointing:
        yield _set(recipe, {"train.checkpointing": "towers"})
    if train.checkpointing is not True:
        yield _set(recipe, {"train.checkpointing": True})
    if train.precision == "fp32":
        yield _set(recipe, {"train.precision": "bf16"})
    if recipe.adaptation.changes_base:
        yield _set(recipe, {"adaptation.kind": "lora"})
    elif isinstance(recipe.adaptation, Lora) and recipe.adaptation.rank > 1:
        yield _set(recipe, {"adaptation.rank": recipe.adaptation.rank // 2})


def _joint_changes(recipe: Recipe, plan: Plan) -> Iterator[tuple[str, Recipe]]:
    """Recipes that do all that leaves the training the same, and then bf16 too."""
    changes = {"train.accumulate": recipe.train.accumulate * plan.samples, "train.checkpointing": True}
    yield _set(recipe, changes)
    if recipe.train.precision == "fp32":
        yield _set(recipe, {**changes, "train.precision": "bf16"})


def _more_passes(samples: int) -> int:
    """The number of passes that takes about a quarter of `samples` at once."""
    return next((n for n in range(4, samples + 1) if samples % n == 0), samples)


def _set(recipe: Recipe, changes: Mapping[str, object]) -> tuple[str, Recipe]:
    """(how to say it on the command line, the recipe with `changes`)."""
    tree = recipe.model_dump(mode="json")
    for key, value in changes.items():
        part, leaf = key.split(".")
        tree[part] = {"kind": value} if leaf == "kind" else {**tree[part], leaf: value}
    words = " ".join(f"--set {key}={str(value).lower()}" for key, value in changes.items())
    return words, Recipe.model_validate(tree)


def gigabytes(count: int) -> str:
    """Bytes for people."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 1e7 else f"{count / 1e6:.1f} MB"
