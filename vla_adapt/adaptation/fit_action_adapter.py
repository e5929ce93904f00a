"""Fit an action adapter on paired steps of two robots and measure it on pairs of episodes held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field

from vla_adapt.adaptation.action_adapter import ActionAdapter, ActionAdapterConfig, Side
from vla_adapt.adaptation.action_pairs import ActionPairs
from vla_adapt.types import NUM_SLOTS


class FitConfig(BaseModel):
    """How an action adapter is fitted.

    Attributes:
        ridge: strength of the pull of the linear map towards "copy the shared slots" (Hoerl & Kennard, 1970),
            in units of the mean square of a normalized action.
        held_out: share of the pairs of episodes that are judged, not fitted; at least one.
        steps, batch_size, learning_rate, weight_decay: of AdamW on the MLP, which learns what the linear map
            leaves over (L1). Not read by linear adapters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    ridge: float = Field(default=1e-3, ge=0)
    held_out: float = Field(default=0.2, gt=0, lt=1)
    steps: int = Field(default=1000, ge=0)
    batch_size: int = Field(default=512, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0)
    weight_decay: float = Field(default=1e-2, ge=0)


@dataclass(frozen=True)
class FitErrors:
    """Mean absolute error on held-out pairs over the target's slots, in half ranges of its actions.

    Attributes:
        adapter: of the fitted adapter.
        linear: of its linear part alone.
        copy: copying the slots that both robots have; the target's other slots predicted by their mean.
        mean: always predicting the target's mean action of the fitted pairs.
    """

    adapter: float
    linear: float
    copy: float
    mean: float


def fit_action_adapter(
    pairs: ActionPairs,
    source: Side,
    target: Side,
    adapter_config: ActionAdapterConfig | None = None,
    config: FitConfig | None = None,
    seed: int = 0,
) -> tuple[ActionAdapter, FitErrors]:
    """Fit on some pairs of episodes, judge on the others; the same numbers for the same seed.

    Args:
        pairs: normalized with the statistics in `source` and `target`.
        source: the robot whose actions are given.
        target: the robot whose actions are wanted.
        adapter_config: linear or with an MLP.
        config: how to fit.
        seed: of the choice of held-out pairs, the MLP's first weights and its batches.

    Raises:
        ValueError: fewer than two pairs of episodes.
    """
    config = config or FitConfig()
    draw = np.random.default_rng(seed)
    held = _held_out(pairs, config.held_out, draw)
    train, test = pairs.select(~held), pairs.select(held)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = ActionAdapter(source, target, adapter_config)
    matrix, offset = solve_ridge(train, source.mask, target.mask, config.ridge)
    adapter.set_linear(torch.from_numpy(matrix), torch.from_numpy(offset))
    errors = _errors(adapter, train, test)
    if adapter.mlp is not None:
        _train_mlp(adapter, train, config, draw)
        errors = FitErrors(_error(_predict(adapter, test), test), errors.linear, errors.copy, errors.mean)
    adapter.facts = _facts(train, test, errors, config, seed)
    return adapter.eval(), errors


def solve_ridge(
    pairs: ActionPairs,
    source_mask: Bool[np.ndarray, " 32"],
    target_mask: Bool[np.ndarray, " 32"],
    ridge: float,
) -> tuple[Float[np.ndarray, "32 32"], Float[np.ndarray, " 32"]]:
    """(matrix, offset) of least squares, pulled towards copying the shared slots; the offset is free.

    Each target slot is solved on the steps that recorded it.
    """
    matrix = np.diag((source_mask & target_mask).astype(np.float64))
    offset = np.zeros(NUM_SLOTS)
    read = np.flatnonzero(source_mask)
    for slot in np.flatnonzero(target_mask):
        rows = pairs.target_mask[:, slot]
        if not rows.any() or not len(read):
            continue
        inputs, wanted = pairs.source[rows][:, read], pairs.target[rows, slot]
        center = inputs.mean(axis=0)
        left = inputs - center
        prior = matrix[slot, read]
        gram = left.T @ left + (ridge * len(left) + 1e-9) * np.eye(len(read))
        weights = prior + np.linalg.solve(gram, left.T @ (wanted - wanted.mean() - left @ prior))
        matrix[slot, read] = weights
        offset[slot] = wanted.mean() - weights @ center
    return matrix, offset


def _held_out(pairs: ActionPairs, share: float, draw: np.random.Generator) -> Bool[np.ndarray, " N"]:
    if pairs.episodes < 2:
        raise ValueError(
            f"{pairs.episodes} pair of episodes: wanted at least 2, one to fit and one to judge; record more"
        )
    count = min(max(1, round(share * pairs.episodes)), pairs.episodes - 1)
    return np.isin(pairs.episode, draw.permutation(pairs.episodes)[:count])


def _train_mlp(
    adapter: ActionAdapter, pairs: ActionPairs, config: FitConfig, draw: np.random.Generator
) -> None:
    assert adapter.mlp is not None
    source = torch.from_numpy(pairs.source.astype(np.float32))
    target = torch.from_numpy(pairs.target.astype(np.float32))
    mask = torch.from_numpy(pairs.target_mask)
    optimizer = torch.optim.AdamW(
        adapter.mlp.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / max(config.steps, 1))
    for _ in range(config.steps):
        rows = torch.from_numpy(draw.integers(len(pairs), size=min(config.batch_size, len(pairs))))
        error = (adapter(source[rows]) - target[rows]).abs().masked_fill(~mask[rows], 0.0)
        (error.sum() / mask[rows].sum().clamp(min=1)).backward()
        optimizer.step()
        schedule.step()
        adapter.zero_grad()


def _errors(adapter: ActionAdapter, train: ActionPairs, test: ActionPairs) -> FitErrors:
    counts = train.target_mask.sum(axis=0)
    mean = np.where(train.target_mask, train.target, 0.0).sum(axis=0) / np.maximum(counts, 1)
    shared = test.source_mask & test.target_mask
    linear = _error(_predict(adapter, test), test)
    copied = np.where(shared, test.source, mean)
    return FitErrors(linear, linear, _error(copied, test), _error(np.broadcast_to(mean, copied.shape), test))


@torch.no_grad()
def _predict(adapter: ActionAdapter, pairs: ActionPairs) -> Float[np.ndarray, "N 32"]:
    return adapter(torch.from_numpy(pairs.source.astype(np.float32))).double().numpy()


def _error(predicted: Float[np.ndarray, "N 32"], pairs: ActionPairs) -> float:
    return float(np.abs(predicted - pairs.target)[pairs.target_mask].mean())


def _facts(
    train: ActionPairs, test: ActionPairs, errors: FitErrors, config: FitConfig, seed: int
) -> dict[str, Any]:
    """What goes into the saved adapter, for people."""
    counts = {"fitted_steps": len(train), "held_out_steps": len(test)}
    return {"held_out_errors": vars(errors), **counts, "fit": config.model_dump(), "seed": seed}
