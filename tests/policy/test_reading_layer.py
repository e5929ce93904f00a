"""States at the positions that are read equal those of a pass over all positions, with all gradients."""

from __future__ import annotations

import pytest
import torch

from vla_adapt.policy.reading_layer import ReadingLayer, at

READ = torch.tensor([[0, 5, 41], [40, 37, 37]])


def states(model, read: bool, bidirectional: bool, holes: bool, checkpointing: bool = False):
    """Hidden states at READ, and the gradients of a loss on them."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 200, (2, 6), generator=draw)
    mask = torch.tensor([[True] * 6, [True] * 5 + [False]])
    extra = torch.randn(2, 2, 128, generator=draw, requires_grad=True)
    patches_valid = (torch.arange(36) != 7).expand(2, -1) if holes else None
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    hidden = model.encode(
        ids, mask, torch.randn(2, 6, 84, 84, generator=draw), extra, bidirectional,
        patches_valid=patches_valid, read=READ if read else None,
    )  # fmt: skip
    hidden = hidden if read else at(hidden, READ)
    wanted = [extra, *model.parameters()]
    grads = torch.autograd.grad(hidden.square().sum(), wanted, allow_unused=True)
    return hidden.detach(), grads


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("holes", [False, True])
def test_read_states_and_all_gradients_are_those_of_a_whole_pass(tiny_model, bidirectional, holes):
    whole = states(tiny_model, False, bidirectional, holes)
    read = states(tiny_model, True, bidirectional, holes)
    torch.testing.assert_close(read[0], whole[0], atol=1e-5, rtol=1e-5)
    scale = max(float(grad.abs().max()) for grad in whole[1] if grad is not None)
    for mine, theirs in zip(read[1], whole[1], strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            assert (mine - theirs).abs().max() < 1e-5 * scale


def test_checkpointed_layers_read_the_same(tiny_model):
    whole = states(tiny_model, False, False, False)
    read = states(tiny_model, True, False, False, checkpointing=True)
    torch.testing.assert_close(read[0], whole[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(read[1][0], whole[1][0], atol=1e-4, rtol=1e-4)


def test_the_last_layer_alone_leaves_positions_out(tiny_model):
    layers = tiny_model.language_model.model.layers
    assert [type(layer) is ReadingLayer for layer in layers] == [False, True]
    rows = []
    for layer in layers:
        layer.mlp.register_forward_hook(lambda module, args, out: rows.append(out.shape[1]))
    states(tiny_model, True, False, False)
    assert rows == [44, 3]
