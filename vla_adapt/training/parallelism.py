"""Which way of adapting runs on which kind of launch: a table, and the reasons of what is refused."""

from __future__ import annotations

from itertools import groupby
from typing import Literal, get_args

from vla_adapt.adaptation.method import Frozen, Lora
from vla_adapt.recipe import Recipe
from vla_adapt.training.compatibility import why_uncached

Way = Literal["1 process", "DDP", "FSDP2", "ZeRO-2", "ZeRO-3"]
Precision = Literal["fp32", "bf16"]

WAYS: tuple[Way, ...] = get_args(Way)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
METHODS = ("lora", "lora + shared", "qlora", "frozen", "last_n", "staged", "full")
ONE, DDP, FSDP2 = WAYS[:3]

DEEPSPEED = (
    "DeepSpeed is not supported: it clips one norm over all robots and keeps checkpoints of its own, tied to "
    "the number of processes; FSDP2 shards the same (weights, gradients, optimizer): take "
    "recipes/launch/fsdp.yaml, with fsdp_reshard_after_forward false for something near ZeRO-2"
)
COMPILED = (
    "not supported: which adapters run on which rows changes with every batch, and torch compiles a layer "
    "anew until it gives up, after four batches when tried; drop the option (--dynamo_backend no). With one "
    "robot there is train.compile=true"
)
_ALWAYS_WHOLE = {
    "qlora": (
        "4-bit weights are packed bytes with block constants beside them, which cannot be cut into shards; "
        "take DDP (each process holds the base in 4 bits), or adaptation.kind=lora"
    ),
    "staged": (
        "shards fix at the start which weights have gradients, and stages change that; take DDP, or one run "
        "per stage with last_n or full"
    ),
}
_KEPT_FEATURES = (
    "features of the frozen backbone are kept, so that steps do not run it and there is nothing to shard; "
    "take DDP, or adaptation.cache=false"
)


def refusal(method: str, way: Way, precision: Precision) -> str | None:
    """Why a cell of the table is refused; None: it runs. Nothing depends on `precision` today."""
    del precision
    if way in ("ZeRO-2", "ZeRO-3"):
        return DEEPSPEED
    return _ALWAYS_WHOLE.get(method) if way == FSDP2 else None


def method_of(recipe: Recipe) -> str:
    """The recipe's row of the table."""
    method = recipe.adaptation
    return (
        "lora + shared"
        if isinstance(method, Lora) and method.shared and method.kind == "lora"
        else method.kind
    )


def check_way(recipe: Recipe, way: Way) -> None:
    """Refuse, before anything is opened, a recipe that cannot train the way it was launched.

    Raises:
        ValueError: with the reason.
    """
    reason = refusal(method_of(recipe), way, "bf16" if recipe.train.precision == "bf16" else "fp32")
    if (
        reason is None
        and way == FSDP2
        and isinstance(recipe.adaptation, Frozen)
        and why_uncached(recipe) is None
    ):
        reason = _KEPT_FEATURES
    if reason is None and way == FSDP2:
        reason = _untried_in_shards(recipe)
    if reason is None and way != ONE and recipe.train.cuda_graphs:
        reason = "train.cuda_graphs was never tried with several processes; set train.cuda_graphs=false"
    if reason is not None:
        raise ValueError(f"adaptation '{recipe.adaptation.kind}' on {way}: {reason}")


def _untried_in_shards(recipe: Recipe) -> str | None:
    train = recipe.train
    if train.compile:
        return "train.compile: compiled blocks were never tried with shards; set train.compile=false"
    if train.optimizer.kind != "adamw":
        return (
            f"optimizer '{train.optimizer.kind}' was never tried with shards, which make moments small, too; "
            "set train.optimizer.kind=adamw"
        )
    return None


def table() -> str:
    """All cells as Markdown, reasons numbered below it."""
    reasons: list[str] = []
    rows = []
    for method in METHODS:
        row = [_cell(method, way, reasons) for way in WAYS]
        rows.append(f"| {method} | {' | '.join(row)} |")
    head = ["| | " + " | ".join(WAYS) + " |", "|---" * (len(WAYS) + 1) + "|"]
    notes = [f"{number}. {reason}." for number, reason in enumerate(reasons, start=1)]
    return "\n".join([*head, *rows, "", *notes])


def _cell(method: str, way: Way, reasons: list[str]) -> str:
    """ "fp32, bf16", or that it is refused and why, by number."""
    said = []
    for reason, cells in groupby(PRECISIONS, lambda precision: refusal(method, way, precision)):
        names = ", ".join(cells)
        if reason is not None and reason not in reasons:
            reasons.append(reason)
        said.append(names if reason is None else f"refused ({reasons.index(reason) + 1})")
    if (method, way) == ("frozen", FSDP2):
        reasons.append(_KEPT_FEATURES)
        said.append(f"refused where ({len(reasons)})")
    return "; ".join(said)
