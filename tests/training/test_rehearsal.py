"""Rehearsals: bytes counted as PyTorch takes them, real masks and integers, code that looks at values."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from vla_adapt.training.rehearsal import Rehearsal

ROWS, WIDTH = 10, 64


def rehearsed(module: nn.Module) -> Rehearsal:
    rehearsal = Rehearsal()
    rehearsal.materialize(module)
    return rehearsal


def mlp() -> nn.Sequential:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.ReLU(), nn.Linear(WIDTH, 1, bias=False))


def test_bytes_of_a_pass_by_hand():
    module, batch = mlp(), torch.zeros(ROWS, WIDTH)
    rehearsal = rehearsed(module)
    weights = 4 * (WIDTH * WIDTH + WIDTH)
    assert rehearsal.live == weights
    rehearsal.start()
    with rehearsal:
        loss = module(batch).mean()
        hidden = 4 * ROWS * WIDTH
        assert rehearsal.live == weights + hidden + 4  # what ReLU made, and the loss; its input is gone
        assert rehearsal.peak.live == weights + 2 * hidden
        loss.backward()
        del loss
        gc.collect()
    assert rehearsal.live == 2 * weights
    assert rehearsal.peak.live >= weights + hidden + rehearsal.peak.gradients
    rehearsal.start()
    assert rehearsal.peak.gradients == weights
    rehearsal.zero_grad(module)
    assert rehearsal.live == weights


def test_gradients_that_add_up_are_counted_once():
    module, batch = mlp(), torch.zeros(ROWS, WIDTH)
    rehearsal = rehearsed(module)
    with rehearsal:
        for _ in range(3):
            module(batch).mean().backward()
    rehearsal.start()
    assert rehearsal.peak.gradients == rehearsal.live - rehearsal.peak.gradients


def test_memory_is_not_touched():
    with torch.device("meta"):
        module = nn.Linear(1 << 20, 1 << 20, bias=False)  # 4 TB
    rehearsal = rehearsed(module)
    with rehearsal:
        assert module(torch.zeros(2, 1 << 20)).shape == (2, 1 << 20)
    assert rehearsal.live >= 4 << 40


class Looks(nn.Module):
    """Code that asks masks for their values, picks rows by them, writes fake numbers into real tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, 5)

    def forward(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.inner(values)
        valid = hidden.new_zeros(hidden.shape[:1], dtype=torch.bool)
        valid[: len(valid) // 2] = True
        assert bool(valid.any())
        assert not bool(valid.all())
        picked = hidden[mask & valid]
        chosen = torch.full((len(values),), 7)
        chosen[mask & valid] = picked.argmax(dim=1)
        assert chosen.tolist() == [7] * len(values)
        places = torch.arange(len(values))[mask]
        return picked.sum() + hidden[places].sum()


def test_masks_and_integers_are_real():
    with torch.device("meta"):
        module = Looks()
    rehearsal = rehearsed(module)
    mask = torch.tensor([True, False, True, True, False, True])
    with rehearsal:
        loss = module(torch.zeros(6, WIDTH), mask)
        loss.backward()
    assert module.inner.weight.grad is not None
    assert module.inner.weight.grad.shape == (5, WIDTH)


def test_batches_that_were_there_before_are_not_counted():
    module, batch = mlp(), torch.zeros(1000, 2 * WIDTH)
    rehearsal = rehearsed(module)
    before = rehearsal.live
    with rehearsal, torch.no_grad():
        view = batch[:, :WIDTH]
        assert rehearsal.live == before
        copied = view.contiguous()
        assert rehearsal.live == before + copied.numel() * 4


def test_values_that_are_not_there_cannot_be_asked_for():
    module = mlp()
    with rehearsed(module), pytest.raises(Exception, match="local_scalar_dense"):
        module(torch.zeros(ROWS, WIDTH)).sum().item()
