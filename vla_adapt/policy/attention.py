"""Multi-head attention of a head's own tokens to others (Vaswani et al., 1706.03762), on SDPA."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import nn

_HEADS, _HEAD_WIDTH = 8, 16  # at most, at least


class Attention(nn.Module):
    """Queries from one sequence, keys and values from another; up to 8 heads of width 16 or more."""

    def __init__(self, width: int):
        super().__init__()
        most = max(1, min(_HEADS, width // _HEAD_WIDTH))
        self.heads = next(heads for heads in range(most, 0, -1) if width % heads == 0)
        self.q_proj = nn.Linear(width, width)
        self.kv_proj = nn.Linear(width, 2 * width)
        self.o_proj = nn.Linear(width, width)

    def forward(
        self,
        queries: Float[torch.Tensor, "B Q F"],
        context: Float[torch.Tensor, "B K F"],
        counted: Bool[torch.Tensor, "B K"] | None = None,
    ) -> Float[torch.Tensor, "B Q F"]:
        """One vector per query; context that is not `counted` (None: all is) is not looked at."""
        query = self._split(self.q_proj(queries))
        key, value = map(self._split, self.kv_proj(context).chunk(2, dim=-1))
        mask = None if counted is None else counted[:, None, None, :]
        seen = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.o_proj(seen.transpose(1, 2).flatten(2))

    def _split(self, tokens: Float[torch.Tensor, "B K F"]) -> Float[torch.Tensor, "B heads K d"]:
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)
