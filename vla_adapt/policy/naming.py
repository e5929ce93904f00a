"""Names and shapes of tensors, both ways: the original OpenVLA checkpoint <-> transformers' own modules.

In the original the vision towers are timm models (fused `qkv`); here they are `Dinov2WithRegistersModel` and
`SiglipVisionModel` (separate q, k, v). The projector and the language model have the same names in both.
Tensors that never take part in the computation have no counterpart here: last blocks, final norms, pooling.
"""

from __future__ import annotations

import re

import torch

_DINO = "vision_backbone.featurizer."
_SIGLIP = "vision_backbone.fused_featurizer."

# original -> ours; `#` is the block number. Three targets mean a fused q, k, v, split along dimension 0.
_PAIRS: list[tuple[str, tuple[str, ...]]] = [
    (f"{_DINO}cls_token", (f"{_DINO}embeddings.cls_token",)),
    (f"{_DINO}reg_token", (f"{_DINO}embeddings.register_tokens",)),
    (f"{_DINO}pos_embed", (f"{_DINO}embeddings.position_embeddings",)),
    (f"{_DINO}patch_embed.proj", (f"{_DINO}embeddings.projection",)),
    (f"{_DINO}blocks.#.norm1", (f"{_DINO}encoder.layer.#.norm1",)),
    (f"{_DINO}blocks.#.norm2", (f"{_DINO}encoder.layer.#.norm2",)),
    (f"{_DINO}blocks.#.attn.qkv", tuple(f"{_DINO}encoder.layer.#.attention.{p}_proj" for p in "qkv")),
    (f"{_DINO}blocks.#.attn.proj", (f"{_DINO}encoder.layer.#.attention.o_proj",)),
    (f"{_DINO}blocks.#.ls1.scale_factor", (f"{_DINO}encoder.layer.#.layer_scale1.lambda1",)),
    (f"{_DINO}blocks.#.ls2.scale_factor", (f"{_DINO}encoder.layer.#.layer_scale2.lambda1",)),
    (f"{_DINO}blocks.#.mlp.fc1", (f"{_DINO}encoder.layer.#.mlp.fc1",)),
    (f"{_DINO}blocks.#.mlp.fc2", (f"{_DINO}encoder.layer.#.mlp.fc2",)),
    (f"{_SIGLIP}pos_embed", (f"{_SIGLIP}embeddings.position_embedding.weight",)),
    (f"{_SIGLIP}patch_embed.proj", (f"{_SIGLIP}embeddings.patch_embedding",)),
    (f"{_SIGLIP}blocks.#.norm1", (f"{_SIGLIP}encoder.layers.#.layer_norm1",)),
    (f"{_SIGLIP}blocks.#.norm2", (f"{_SIGLIP}encoder.layers.#.layer_norm2",)),
    (f"{_SIGLIP}blocks.#.attn.qkv", tuple(f"{_SIGLIP}encoder.layers.#.self_attn.{p}_proj" for p in "qkv")),
    (f"{_SIGLIP}blocks.#.attn.proj", (f"{_SIGLIP}encoder.layers.#.self_attn.out_proj",)),
    (f"{_SIGLIP}blocks.#.mlp.fc1", (f"{_SIGLIP}encoder.layers.#.mlp.fc1",)),
    (f"{_SIGLIP}blocks.#.mlp.fc2", (f"{_SIGLIP}encoder.layers.#.mlp.fc2",)),
]
_TO_OURS = dict(_PAIRS)
_TO_ORIGINAL = {ours: (original, part) for original, many in _PAIRS for part, ours in enumerate(many)}
_NUMBER = re.compile(r"(?<=\.)(blocks|layers?)\.(\d+)(?=\.)")
_SIGLIP_POSITIONS = f"{_SIGLIP}pos_embed"


def to_ours(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Our name(s) and tensor(s) of one tensor of the original; views, nothing is copied."""
    if not name.startswith("vision_backbone."):
        return {name: tensor}
    pattern, number, suffix = _parts(name)
    targets = _TO_OURS.get(pattern)
    if targets is None:
        return {}
    pieces = (
        tensor.chunk(3)
        if len(targets) == 3
        else (tensor.squeeze(0) if name == _SIGLIP_POSITIONS else tensor,)
    )
    return {
        target.replace("#", number) + suffix: piece for target, piece in zip(targets, pieces, strict=True)
    }


def to_original(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our tensors (parameters, or their gradients) under the original's names and shapes.

    Raises:
        ValueError: for a name the original does not have, such as an unmerged adapter's.
    """
    original: dict[str, torch.Tensor] = {}
    fused: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if not name.startswith("vision_backbone."):
            original[name] = tensor
            continue
        pattern, number, suffix = _parts(name)
        if pattern not in _TO_ORIGINAL:
            raise ValueError(
                f"{name} is not part of an OpenVLA checkpoint; merge or unload adapters before saving"
            )
        target, part = _TO_ORIGINAL[pattern]
        target_name = target.replace("#", number) + suffix
        if len(_TO_OURS[target]) == 3:
            fused.setdefault(target_name, {})[part] = tensor
        else:
            original[target_name] = tensor.unsqueeze(0) if target == _SIGLIP_POSITIONS else tensor
    for name, parts in fused.items():
        original[name] = torch.cat([parts[part] for part in range(3)])
    return original


def our_modules(module: str) -> tuple[str, ...]:
    """Our module(s) for one of the original's: three for a fused q, k, v, none if we have no such thing."""
    if not module.startswith("vision_backbone."):
        return (module,)
    pattern, number, _ = _parts(f"{module}.weight")
    return tuple(target.replace("#", number) for target in _TO_OURS.get(pattern, ()))


def original_module(module: str) -> tuple[str, int | None]:
    """The original's module for one of ours, and which third of a fused q, k, v it is (None: the whole).

    Raises:
        ValueError: for a name the original does not have.
    """
    if not module.startswith("vision_backbone."):
        return module, None
    pattern, number, _ = _parts(f"{module}.weight")
    if pattern not in _TO_ORIGINAL:
        raise ValueError(f"{module} has no counterpart in the original OpenVLA; it cannot be written for it")
    target, part = _TO_ORIGINAL[pattern]
    return target.replace("#", number), part if len(_TO_OURS[target]) == 3 else None


def _parts(name: str) -> tuple[str, str, str]:
    """Split `a.blocks.7.b.weight` into (`a.blocks.#.b`, `7`, `.weight`)."""
    found = _NUMBER.search(name)
    number = found.group(2) if found else ""
    pattern = _NUMBER.sub(r"\1.#", name, count=1)
    if pattern in _TO_OURS or pattern in _TO_ORIGINAL:
        return pattern, number, ""
    stem, _, suffix = pattern.rpartition(".")
    return stem, number, f".{suffix}"
