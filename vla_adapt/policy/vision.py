"""The vision towers and the projector of OpenVLA (DINOv2 with registers + SigLIP, Prismatic VLMs 2402.07865).

Patch features are the second-to-last block's output, un-normed. The last block and the final norm are not
built: they would never run nor get a gradient; they only live on as stored tensors of the checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import nn
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from vla_adapt.policy.configuration import TowerShape

_LAYER_NORM_EPS = 1e-6


class DinoEmbeddings(nn.Module):
    """Class token, register tokens and patches; only patches carry positions (timm's `no_embed_class`)."""

    def __init__(self, shape: TowerShape):
        super().__init__()
        self.projection = nn.Conv2d(3, shape.width, shape.patch_size, stride=shape.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.register_tokens = nn.Parameter(torch.zeros(1, shape.registers, shape.width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, shape.grid**2, shape.width))

    def forward(
        self, pixel_values: Float[torch.Tensor, "B 3 h w"], **_: object
    ) -> Float[torch.Tensor, "B N F"]:
        """Tokens in the order class, registers, patches."""
        patches = self.projection(pixel_values.to(self.projection.weight.dtype)).flatten(2).transpose(1, 2)
        prefix = torch.cat([self.cls_token[0], self.register_tokens[0]]).expand(len(patches), -1, -1)
        return torch.cat([prefix, patches + self.position_embeddings], dim=1)


class DinoAttention(nn.Module):
    """Attention of transformers 5.17, under the names that later releases give its projections."""

    def __init__(self, original: Any):
        super().__init__()
        inner = original.attention
        self.heads = inner.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj = inner.query, inner.key, inner.value
        self.o_proj = original.output.dense

    def forward(self, hidden: Float[torch.Tensor, "B N F"]) -> Float[torch.Tensor, "B N F"]:
        """Full self-attention."""
        query, key, value = (
            projection(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


def _dino(shape: TowerShape) -> Any:
    config = Dinov2WithRegistersConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.depth - 1,
        num_attention_heads=shape.heads,
        mlp_ratio=shape.mlp_width // shape.width,
        hidden_act="gelu",
        layer_norm_eps=_LAYER_NORM_EPS,
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        num_register_tokens=shape.registers,
    )
    config._attn_implementation = "sdpa"
    tower: Any = Dinov2WithRegistersModel(config)
    tower.embeddings = DinoEmbeddings(shape)
    tower.layernorm = nn.Identity()
    for layer in tower.encoder.layer:
        if not hasattr(layer.attention, "q_proj"):  # transformers 5.17; adapters load on every release
            layer.attention = DinoAttention(layer.attention)
    return tower


def _siglip(shape: TowerShape) -> Any:
    config = SiglipVisionConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.depth - 1,
        num_attention_heads=shape.heads,
        intermediate_size=shape.mlp_width,
        hidden_act="gelu",
        layer_norm_eps=_LAYER_NORM_EPS,
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        vision_use_head=False,
    )
    config._attn_implementation = "sdpa"
    model = SiglipVisionModel(config)
    tower: Any = getattr(model, "vision_model", model)
    tower.post_layernorm = nn.Identity()
    return tower


class VisionBackbone(nn.Module):
    """Both towers over one image, given as two differently normalized copies stacked into six channels."""

    featurizer: Any
    fused_featurizer: Any

    def __init__(self, towers: tuple[TowerShape, TowerShape]):
        super().__init__()
        dino, siglip = towers
        if dino.grid != siglip.grid:
            raise ValueError(f"the towers see {dino.grid} and {siglip.grid} patches a side; wanted the same")
        if dino.mlp_width % dino.width:
            raise ValueError(f"DINOv2 mlp_width {dino.mlp_width} is not a multiple of its width {dino.width}")
        self.towers = towers
        self.num_patches = dino.grid**2
        self.embed_dim = dino.width + siglip.width
        self.featurizer = _dino(dino)
        self.fused_featurizer = _siglip(siglip)

    def restore_buffers(self, device: torch.device | str) -> None:
        """Recreate what is computed rather than stored, after a build on the meta device."""
        positions = torch.arange(self.num_patches, device=device)[None]
        self.fused_featurizer.embeddings.register_buffer("position_ids", positions, persistent=False)

    def patches(
        self, pixel_values: Float[torch.Tensor, "B 6 h w"]
    ) -> tuple[Float[torch.Tensor, "B P F1"], Float[torch.Tensor, "B P F2"]]:
        """Patch features of each tower."""
        prefix = 1 + self.towers[0].registers
        dino = self.featurizer(pixel_values[:, :3]).last_hidden_state[:, prefix:]
        siglip = self.fused_featurizer(pixel_values[:, 3:]).last_hidden_state
        return dino, siglip

    def forward(self, pixel_values: Float[torch.Tensor, "B 6 h w"]) -> Float[torch.Tensor, "B P F"]:
        """Patch features of both towers, concatenated."""
        return torch.cat(self.patches(pixel_values), dim=2)


class Projector(nn.Module):
    """Three-layer GELU MLP from patch features to the language model's width (`fused-gelu-mlp`)."""

    def __init__(self, vision_dim: int, llm_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(vision_dim, 4 * vision_dim)
        self.fc2 = nn.Linear(4 * vision_dim, llm_dim)
        self.fc3 = nn.Linear(llm_dim, llm_dim)

    def forward(self, patches: Float[torch.Tensor, "B P F"]) -> Float[torch.Tensor, "B P D"]:
        """Project each patch."""
        hidden = nn.functional.gelu(self.fc1(patches))
        return self.fc3(nn.functional.gelu(self.fc2(hidden)))
