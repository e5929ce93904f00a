"""Floating point operations that one training step of LoRA on OpenVLA cannot do without, from sizes alone.

A multiply-add counts two. Products only, as PyTorch's counter has it: norms, activations and the optimizer
count nothing; causal attention counts as full, its backward pass as five products. Frozen weights have no
weight gradient, and nothing counts that only checkpointing computes again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from vla_adapt.adaptation.adapted_linear import extra_flops
from vla_adapt.policy.configuration import OpenVLAConfig, TowerShape


@dataclass(frozen=True)
class StepSizes:
    """What a step works on: one robot's adapter of `rank` on all linear layers but `lm_head`.

    Attributes:
        samples: in the batch, one image each.
        text: text positions per sample, padding and action tokens included.
        read: positions per sample whose final hidden states are read; None: all.
        logits: positions in the batch that get logits.
        vision: whether towers and projector have adapters, too.
        folded: layers run folded into their adapters where that is cheaper (`adaptation.adapted_linear`).
    """

    samples: int
    text: int
    rank: int
    logits: int
    read: int | None = None
    vision: bool = True
    folded: bool = False


class Layer(NamedTuple):
    """A linear layer with an adapter, and whether its input wants a gradient."""

    rows: int
    inner: int
    outer: int
    rank: int
    input_gradient: bool = True


def step_flops(config: OpenVLAConfig, sizes: StepSizes) -> dict[str, int]:
    """By part of the model: "towers", "projector", "language_model" (attention included), "lm_head"."""
    towers = config.towers()
    patches = sizes.samples * towers[0].grid ** 2
    width, seen = config.hidden_size, sum(tower.width for tower in towers)
    rank = sizes.rank if sizes.vision else 0
    projector = [(seen, 4 * seen), (4 * seen, width), (width, width)]
    return {
        "towers": sum(_tower(tower, sizes) for tower in towers),
        "projector": sum(
            linear_flops(Layer(patches, *widths, rank, sizes.vision), sizes.folded) for widths in projector
        ),
        "language_model": sum(_decoder_layers(config, sizes)),
        "lm_head": linear_flops(Layer(sizes.logits, width, config.text["vocab_size"], 0), False),
    }


def linear_flops(layer: Layer, folded: bool) -> int:
    """Forward and backward of a frozen layer whose adapter trains (rank 0: it has none)."""
    rows, inner, outer, rank, input_gradient = layer
    dense, passes = 2 * rows * inner * outer, 1 + input_gradient
    if not rank:
        return passes * dense
    if folded and extra_flops(rows, inner, outer, rank).folding_pays:
        return (passes + 1) * dense + 6 * rank * inner * outer
    return passes * dense + 2 * rows * rank * ((passes + 1) * inner + 3 * outer)


def attention_flops(samples: int, queries: int, keys: int, width: int, backward: bool = True) -> int:
    """Scores and mixtures: two products forward, five backward, where the scores are computed again."""
    return (14 if backward else 4) * samples * queries * keys * width


def _tower(tower: TowerShape, sizes: StepSizes) -> int:
    """The last block of the layout never runs; no gradient is wanted before the first."""
    rank = sizes.rank if sizes.vision else 0
    patches = tower.grid**2
    tokens = patches + (1 + tower.registers if tower.registers else 0)
    rows, width, hidden = sizes.samples * tokens, tower.width, tower.mlp_width
    total = 2 * sizes.samples * patches * 3 * tower.patch_size**2 * width
    for block in range(tower.depth - 1):
        layers = [
            *[Layer(rows, width, width, rank, sizes.vision and block > 0)] * 3,
            Layer(rows, width, width, rank, sizes.vision),
            Layer(rows, width, hidden, rank, sizes.vision),
            Layer(rows, hidden, width, rank, sizes.vision),
        ]
        total += sum(linear_flops(layer, sizes.folded) for layer in layers)
        total += attention_flops(sizes.samples, tokens, tokens, width, sizes.vision)
    return total


def _decoder_layers(config: OpenVLAConfig, sizes: StepSizes) -> Iterator[int]:
    """Each layer; the last works only for what is read, but for its keys and values."""
    text, width = config.text, config.hidden_size
    head = width // text["num_attention_heads"]
    narrow, hidden = head * text["num_key_value_heads"], text["intermediate_size"]
    tokens = sizes.text + config.towers()[0].grid ** 2
    for number in range(text["num_hidden_layers"]):
        last = number == text["num_hidden_layers"] - 1
        queries = sizes.read if last and sizes.read is not None else tokens
        rows, every, rank = sizes.samples * queries, sizes.samples * tokens, sizes.rank
        before = number > 0 or sizes.vision
        layers = [
            Layer(rows, width, width, rank, before),
            *[Layer(every, width, narrow, rank, before)] * 2,
            Layer(rows, width, width, rank),
            *[Layer(rows, width, hidden, rank)] * 2,
            Layer(rows, hidden, width, rank),
        ]
        yield sum(linear_flops(layer, sizes.folded) for layer in layers) + attention_flops(
            sizes.samples, queries, tokens, width
        )
