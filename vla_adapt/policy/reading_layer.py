"""A language model's last layer, run for the positions that are read; only keys and values need all."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, rotate_half


class ReadingLayer(LlamaDecoderLayer):
    """Llama's decoder layer, told by `read` which positions anything looks at; without `read` it is Llama's.

    An action head reads a handful of positions of hundreds. Queries, attention, output projection and MLP of
    the others would be thrown away.
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        hidden_states: Float[torch.Tensor, "B L D"],
        attention_mask: Shaped[torch.Tensor, "B 1 Q M"] | None = None,
        position_embeddings: Any = None,
        read: Int[torch.Tensor, "B R"] | None = None,
        **options: Any,
    ) -> Float[torch.Tensor, "B R D"]:
        """States after the layer, of all positions or of those of `read`, in its order."""
        if read is None:
            return super().forward(
                hidden_states, attention_mask, position_embeddings=position_embeddings, **options
            )
        assert options.get("past_key_values") is None, "a cache would lack the positions that are not read"
        normed = self.input_layernorm(hidden_states)
        causal = options.get("is_causal", True)
        mask = None if attention_mask is None and not causal else attended_rows(attention_mask, read, normed)
        attended = self._attend(normed, read, mask, position_embeddings)
        states = at(hidden_states, read) + attended
        return states + self.mlp(self.post_attention_layernorm(states))

    def _attend(
        self,
        normed: Float[torch.Tensor, "B L D"],
        read: Int[torch.Tensor, "B R"],
        mask: Shaped[torch.Tensor, "B 1 R M"] | None,
        rotary: tuple[torch.Tensor, torch.Tensor],
    ) -> Float[torch.Tensor, "B R D"]:
        layer: Any = self.self_attn
        query, key, value = (
            projection(states).unflatten(-1, (-1, layer.head_dim)).transpose(1, 2)
            for projection, states in (
                (layer.q_proj, at(normed, read)),
                (layer.k_proj, normed),
                (layer.v_proj, normed),
            )
        )
        cos, sin = (table.expand(len(normed), -1, -1) for table in rotary)
        query, key = _rotated(query, at(cos, read), at(sin, read)), _rotated(key, cos, sin)
        mixed = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask,
            dropout_p=layer.attention_dropout if self.training else 0.0, scale=layer.scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )  # fmt: skip
        return layer.o_proj(mixed.transpose(1, 2).flatten(2))


def read_at_the_end(language_model: Any) -> None:
    """Make the last layer of a Llama a `ReadingLayer`, in place: weights and names stay."""
    language_model.model.layers[-1].__class__ = ReadingLayer


def at(
    states: Float[torch.Tensor, "B L D"], places: Int[torch.Tensor, "B R"]
) -> Float[torch.Tensor, "B R D"]:
    """Each row's states at its own places."""
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))


def _rotated(
    heads: Float[torch.Tensor, "B heads L d"],
    cos: Float[torch.Tensor, "B L d"],
    sin: Float[torch.Tensor, "B L d"],
) -> Float[torch.Tensor, "B heads L d"]:
    """With their rotary positions."""
    return heads * cos[:, None] + rotate_half(heads) * sin[:, None]


def attended_rows(
    mask: Shaped[torch.Tensor, "B 1 Q M"] | None,
    read: Int[torch.Tensor, "B R"],
    states: Float[torch.Tensor, "B L D"],
) -> Shaped[torch.Tensor, "B 1 R M"]:
    """What read positions attend to: their rows of `mask` (Q = 1: all the same), or all up to themselves."""
    length = states.shape[1]
    if mask is None:
        return (torch.arange(length, device=read.device) <= read[..., None])[:, None]
    if mask.shape[2] == 1:
        return mask.expand(len(read), -1, read.shape[1], -1)
    return mask[:, 0].expand(len(read), -1, -1).gather(1, read[..., None].expand(-1, -1, length))[:, None]
