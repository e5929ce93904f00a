"""The row context: nested, entered again, per model, and seen again by what checkpointing recomputes."""

from __future__ import annotations

import torch
from torch.utils.checkpoint import checkpoint

from vla_adapt.policy.row_context import RowContext


def test_values_nest_and_can_be_entered_again():
    rows, other = RowContext(), RowContext()
    again = rows.using("a")
    for _ in range(2):
        with again:
            assert rows.current == "a"
            with rows.using("b"), again:
                assert rows.current == "a"
            assert rows.current == "a"
            assert other.current is None
        assert rows.current is None


def test_a_checkpointed_part_sees_its_value_again_in_every_backward_pass():
    rows, seen = RowContext(), []

    def part(x: torch.Tensor) -> torch.Tensor:
        seen.append(rows.current)
        return x.sin().exp()

    x = torch.ones(3, requires_grad=True)
    results = []
    for value in ("first", "second"):
        with rows.using(value):
            results.append(checkpoint(part, x, use_reentrant=False, context_fn=rows.at_checkpoint))
    assert seen == ["first", "second"]
    results[1].sum().backward(retain_graph=True)
    results[1].sum().backward()
    results[0].sum().backward()
    assert seen[2:] == ["second", "second", "first"]
    assert rows.current is None
