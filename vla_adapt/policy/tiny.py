"""The tiny twin: OpenVLA's classes and checkpoint layout at a size that trains on two CPU cores.

84 px images, two towers of width 64 (three blocks each, of which, as always, the last never runs), Llama of
width 128 with two layers, vocabulary 512. The initialization is what made it learn to see within minutes:
sin-cos positions, larger ViT linears, Llama `initializer_range` 0.08.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vla_adapt.policy.checkpoint import atomic_files
from vla_adapt.policy.configuration import OpenVLAConfig, TowerShape
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.policy.preprocess import ImagePreprocessor
from vla_adapt.policy.tiny_tokenizer import (
    ACTION_BINS,
    EMPTY,
    VOCAB_SIZE,
    build_tiny_tokenizer,
    save_tiny_tokenizer,
)

IMAGE_SIZE = 84
_PAD_ROWS = 64


def tiny_config() -> OpenVLAConfig:
    """Configuration of the tiny twin."""
    tower = {"width": 64, "depth": 3, "heads": 4, "patch_size": 14}
    raw: dict[str, Any] = {
        "model_type": "openvla",
        "architectures": ["OpenVLAForActionPrediction"],
        "arch_specifier": "no-align+fused-gelu-mlp",
        "vision_backbone_id": "dinosiglip-vit-so-224px",
        "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        "timm_override_act_layers": [None, None],
        "use_fused_vision_backbone": True,
        "image_sizes": [IMAGE_SIZE, IMAGE_SIZE],
        "image_resize_strategy": "resize-naive",
        "vision_towers": [
            {**tower, "mlp_width": 256, "registers": 4},
            {**tower, "mlp_width": int(64 * 3.7362), "registers": 0},
        ],
        "llm_backbone_id": "llama2-7b-pure",
        "llm_max_length": 2048,
        "n_action_bins": ACTION_BINS,
        "norm_stats": {},
        "empty_token_id": build_tiny_tokenizer().token_to_id(EMPTY),
        "pad_token_id": VOCAB_SIZE,
        "pad_to_multiple_of": _PAD_ROWS,
        "text_config": {
            "model_type": "llama",
            "vocab_size": VOCAB_SIZE + _PAD_ROWS,
            "pad_token_id": VOCAB_SIZE,
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "initializer_range": 0.08,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
        },
    }
    return OpenVLAConfig(raw)


def tiny_openvla(seed: int) -> OpenVLA:
    """A tiny OpenVLA with fresh weights, complete with the tensors of the layout that never run."""
    config = tiny_config()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # transformers initializes first, from the global generator
        torch.manual_seed(seed)
        model = OpenVLA(config)
    backbone = model.vision_backbone
    for tower in (backbone.featurizer, backbone.fused_featurizer, model.projector):
        _init_linears(tower, generator)
    positions = sincos_positions(backbone.towers[0].grid, backbone.towers[0].width)
    with torch.no_grad():
        dino = backbone.featurizer.embeddings
        dino.position_embeddings.copy_(positions[None])
        dino.cls_token.normal_(std=0.02, generator=generator)
        dino.register_tokens.normal_(std=0.02, generator=generator)
        backbone.fused_featurizer.embeddings.position_embedding.weight.copy_(positions)
        _init_language_model(model.language_model, config.text["initializer_range"], generator)
    model.stored_only = {
        **_unused_block(
            "vision_backbone.featurizer", backbone.towers[0], layer_scale=True, generator=generator
        ),
        **_unused_block(
            "vision_backbone.fused_featurizer", backbone.towers[1], layer_scale=False, generator=generator
        ),
        **_unused_pool("vision_backbone.fused_featurizer.attn_pool", backbone.towers[1], generator),
    }
    return model.eval()


def build_tiny_base(out_dir: str | Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write an untrained tiny base: the original layout with tokenizer and preprocessor files.

    Args:
        out_dir: folder to write into.
        seed: of the weights; the same seed gives the same bytes.
        dtype: of the stored weights.
    """
    model = tiny_openvla(seed).to(dtype)
    model.save_pretrained(out_dir)
    with atomic_files(out_dir) as scratch:
        save_tiny_tokenizer(scratch)
        described = ImagePreprocessor(model.config.image_sizes).to_dict()
        (scratch / "preprocessor_config.json").write_text(json.dumps(described, indent=2) + "\n")
    return Path(out_dir)


def sincos_positions(grid: int, width: int) -> torch.Tensor:
    """Fixed 2-D sine-cosine positions [grid * grid, width] (as in MAE, He et al., 2111.06377)."""
    assert width % 4 == 0
    frequency = 1.0 / 10000 ** (torch.arange(width // 4) / (width // 4))
    angle = torch.arange(grid)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows, columns = axis[:, None].expand(-1, grid, -1), axis[None].expand(grid, -1, -1)
    return torch.cat([columns, rows], dim=2).reshape(grid * grid, width)


def _init_linears(module: nn.Module, generator: torch.Generator) -> None:
    """Variance-preserving weights (std 1/sqrt(fan in)), zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.normal_(part.weight, std=1 / math.sqrt(part.weight[0].numel()), generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def _init_language_model(module: nn.Module, std: float, generator: torch.Generator) -> None:
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std, generator=generator)


def _unused_block(
    prefix: str, tower: TowerShape, layer_scale: bool, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """The tower's last block and final norm, which only the layout needs."""
    block, width = f"{prefix}.blocks.{tower.depth - 1}", tower.width
    tensors = {
        f"{block}.attn.qkv": _linear(width, 3 * width, generator),
        f"{block}.attn.proj": _linear(width, width, generator),
        f"{block}.mlp.fc1": _linear(width, tower.mlp_width, generator),
        f"{block}.mlp.fc2": _linear(tower.mlp_width, width, generator),
        **{name: (torch.ones(width), torch.zeros(width)) for name in _norms(prefix, block)},
    }
    named = {
        f"{name}.{kind}": t
        for name, pair in tensors.items()
        for kind, t in zip(("weight", "bias"), pair, strict=True)
    }
    if layer_scale:
        named |= {f"{block}.ls{index}.scale_factor": torch.ones(width) for index in (1, 2)}
    return named


def _norms(prefix: str, block: str) -> tuple[str, str, str]:
    return f"{block}.norm1", f"{block}.norm2", f"{prefix}.norm"


def _unused_pool(prefix: str, tower: TowerShape, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """SigLIP's attention pooling, which OpenVLA never uses."""
    width = tower.width
    tensors = {
        "q": _linear(width, width, generator),
        "kv": _linear(width, 2 * width, generator),
        "proj": _linear(width, width, generator),
        "norm": (torch.ones(width), torch.zeros(width)),
        "mlp.fc1": _linear(width, tower.mlp_width, generator),
        "mlp.fc2": _linear(tower.mlp_width, width, generator),
    }
    named = {
        f"{prefix}.{name}.{kind}": t
        for name, pair in tensors.items()
        for kind, t in zip(("weight", "bias"), pair, strict=True)
    }
    return {**named, f"{prefix}.latent": torch.zeros(1, 1, width)}


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(outputs, inputs, generator=generator) / math.sqrt(inputs), torch.zeros(outputs)
