"""What an OpenVLA checkpoint's `config.json` says, with everything it leaves out filled in explicitly.

Configs on the hub are sparse: a missing Llama field meant the default of transformers 4.40, a missing vision
size the size of the named timm model. Today's library defaults are never inherited.
"""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Defaults of `LlamaConfig` in transformers 4.40 (Llama-2 7B), with OpenVLA's padded vocabulary.
LLAMA_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32064,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}

_TIMM_IDS = {
    "dinosiglip-vit-so-224px": ("vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"),
    "dinosiglip-vit-so-384px": ("vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_384"),
}
_KNOWN_TOWERS: dict[str, dict[str, int]] = {
    "vit_large_patch14_reg4_dinov2.lvd142m": {
        "width": 1024, "depth": 24, "heads": 16, "mlp_width": 4096, "patch_size": 14, "registers": 4
    },
    "vit_so400m_patch14_siglip_224": {
        "width": 1152, "depth": 27, "heads": 16, "mlp_width": 4304, "patch_size": 14, "registers": 0
    },
    "vit_so400m_patch14_siglip_384": {
        "width": 1152, "depth": 27, "heads": 16, "mlp_width": 4304, "patch_size": 14, "registers": 0
    },
}  # fmt: skip
_SHRUNKEN_HEAD_WIDTH = 16  # of the shrunken twins: head counts cannot be read off tensor shapes
_TOWER_PREFIXES = ("vision_backbone.featurizer", "vision_backbone.fused_featurizer")
_EMPTY_TOKEN_ID = 29871  # the lone word-boundary piece of Llama's vocabulary


def _download(name: str) -> str:
    """What to do with a name that is no folder here, but may be a repository of the Hub."""
    if Path(name).exists() or not re.fullmatch(r"[\w-]+/[\w.-]+", name):
        return ""
    return f". If that is a repository of the Hugging Face Hub: hf download {name} --local-dir DIR, then DIR"


@dataclass(frozen=True)
class TowerShape:
    """Sizes of one vision tower; `depth` counts all blocks of the layout, the last of which never runs."""

    width: int
    depth: int
    heads: int
    mlp_width: int
    patch_size: int
    registers: int
    image_size: int

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size


class OpenVLAConfig:
    """The original's `config.json`: `.raw` as stored (what gets saved again) plus complete, typed views.

    It deliberately has no attribute `model_type`: with one, PEFT would take the model for one of
    transformers' own and rewrite adapter names.

    Raises:
        ValueError: for architectures other than the fused DINOv2 + SigLIP OpenVLA.
    """

    def __init__(self, raw: dict[str, Any], empty_token_id: int | None = None):
        self.raw = copy.deepcopy(raw)
        self.raw.setdefault("norm_stats", {})
        fields = {k: v for k, v in raw.get("text_config", {}).items() if k in LLAMA_DEFAULTS}
        self.text: dict[str, Any] = {**LLAMA_DEFAULTS, **fields}
        if self.text["num_key_value_heads"] is None:
            self.text["num_key_value_heads"] = self.text["num_attention_heads"]
        self.empty_token_id: int = (
            raw.get("empty_token_id", _EMPTY_TOKEN_ID) if empty_token_id is None else empty_token_id
        )
        self._check()

    def _check(self) -> None:
        kind = self.raw.get("model_type", "openvla")
        if kind != "openvla":
            raise ValueError(
                f"config.json has model_type {kind!r}, wanted 'openvla'; point at an OpenVLA folder"
            )
        text = self.raw.get("text_config", {})
        if text.get("model_type", "llama") != "llama" or text.get("rope_scaling") is not None:
            raise ValueError(
                "config.json asks for a language model other than plain Llama; only Llama-2 is read"
            )
        if not self.raw.get("use_fused_vision_backbone", True):
            raise ValueError("config.json has use_fused_vision_backbone false; only DINOv2 + SigLIP is read")

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> OpenVLAConfig:
        """Read `config.json` of a checkpoint folder."""
        path = Path(directory) / "config.json"
        if not path.is_file():
            hint = _download(str(directory))
            raise ValueError(f"no config.json in {directory}; wanted an OpenVLA checkpoint folder{hint}")
        try:
            return cls(json.loads(path.read_text()))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not valid JSON ({error}); download the checkpoint again") from None

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `config.json` with exactly the fields it was read with (and today's `norm_stats`)."""
        Path(directory, "config.json").write_text(json.dumps(self.raw, indent=2) + "\n")

    def to_dict(self) -> dict[str, Any]:
        """The config as PEFT reads it; embeddings are never tied, whatever the stored top-level flag says."""
        return {**self.raw, "model_type": "openvla", "tie_word_embeddings": False}

    def get(self, key: str, default: Any = None) -> Any:
        """Dictionary-style read of a stored field, as PEFT and accelerate do."""
        return self.to_dict().get(key, default)

    @property
    def norm_stats(self) -> dict[str, Any]:
        """Action statistics by dataset name, as the original stores them."""
        return self.raw["norm_stats"]

    @property
    def hidden_size(self) -> int:
        """Width of the language model."""
        return self.text["hidden_size"]

    @property
    def tokenizer_vocab_size(self) -> int:
        """Vocabulary without the padding rows; action tokens are its last `n_action_bins` ids."""
        return self.text["vocab_size"] - self.raw.get("pad_to_multiple_of", 64)

    @property
    def n_action_bins(self) -> int:
        """Number of bin edges of the action tokenizer."""
        return self.raw.get("n_action_bins", 256)

    @property
    def pad_token_id(self) -> int:
        """Id used to right-pad text."""
        return self.raw.get("pad_token_id", self.tokenizer_vocab_size)

    @property
    def timm_model_ids(self) -> tuple[str, str]:
        """The original's names of the two vision towers, DINOv2 first."""
        ids = self.raw.get("timm_model_ids")
        if ids is None:
            backbone = self.raw.get("vision_backbone_id", "dinosiglip-vit-so-224px")
            if backbone not in _TIMM_IDS:
                raise ValueError(f"vision_backbone_id {backbone!r} is unknown; known: {', '.join(_TIMM_IDS)}")
            ids = _TIMM_IDS[backbone]
        return ids[0], ids[1]

    @property
    def image_sizes(self) -> tuple[int, int]:
        """Side of the square input image of each tower, in pixels."""
        default = 384 if "384" in self.raw.get("vision_backbone_id", "") else 224
        first, second = self.raw.get("image_sizes", (default, default))
        return first, second

    def towers(self, shapes: dict[str, tuple[int, ...]] | None = None) -> tuple[TowerShape, TowerShape]:
        """Sizes of both towers: from the field `vision_towers`, else tensor `shapes`, else the timm names.

        Args:
            shapes: tensor name -> shape of a checkpoint in the original's naming, if there is one.
        """
        explicit = self.raw.get("vision_towers")
        towers = []
        for index, (timm_id, size) in enumerate(zip(self.timm_model_ids, self.image_sizes, strict=True)):
            if explicit is not None:
                sizes = dict(explicit[index])
            elif shapes is not None:
                sizes = _sizes_from_shapes(_TOWER_PREFIXES[index], shapes, timm_id)
            elif timm_id in _KNOWN_TOWERS:
                sizes = dict(_KNOWN_TOWERS[timm_id])
            else:
                raise ValueError(f"timm model {timm_id!r} is unknown; known: {', '.join(_KNOWN_TOWERS)}")
            towers.append(TowerShape(**sizes, image_size=size))
        return towers[0], towers[1]


def _sizes_from_shapes(prefix: str, shapes: dict[str, tuple[int, ...]], timm_id: str) -> dict[str, int]:
    """Read a tower's sizes off its tensors; the head count comes from the name or the twins' head width."""
    if f"{prefix}.patch_embed.proj.weight" not in shapes:
        raise ValueError(
            f"checkpoint has no {prefix}.patch_embed.proj.weight; wanted the original OpenVLA layout"
        )
    width, _, patch_size, _ = shapes[f"{prefix}.patch_embed.proj.weight"]
    block = re.compile(re.escape(prefix) + r"\.blocks\.(\d+)\.")
    depth = 1 + max(int(found.group(1)) for found in map(block.match, shapes) if found)
    known = _KNOWN_TOWERS.get(timm_id, {})
    if known.get("width") == width:
        heads = known["heads"]
    elif width % _SHRUNKEN_HEAD_WIDTH == 0:
        heads = width // _SHRUNKEN_HEAD_WIDTH
    else:
        raise ValueError(
            f"cannot tell the number of heads of {prefix} (width {width}); set vision_towers in config"
        )
    registers = shapes.get(f"{prefix}.reg_token", (1, 0, width))[1]
    mlp_width = shapes[f"{prefix}.blocks.0.mlp.fc1.weight"][0]
    sizes = {"width": width, "depth": depth, "heads": heads, "mlp_width": mlp_width}
    return {**sizes, "patch_size": patch_size, "registers": registers}
