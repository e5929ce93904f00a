"""OpenVLA (Kim et al., 2406.09246) on transformers' own modules, in the original checkpoint layout."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from vla_adapt.actions.tokens import ActionTokenizer
from vla_adapt.policy.checkpoint import Checkpoint, atomic_files, fingerprint, save_tensors
from vla_adapt.policy.configuration import OpenVLAConfig, TowerShape
from vla_adapt.policy.decoding import greedy_decode
from vla_adapt.policy.gated_mlp import make_mlps_lean
from vla_adapt.policy.loading import load_weights
from vla_adapt.policy.naming import to_original
from vla_adapt.policy.norm_stats import dataset_stats, unnormalize
from vla_adapt.policy.reading_layer import read_at_the_end
from vla_adapt.policy.rms_norm import make_norms_lean
from vla_adapt.policy.row_context import RowContext
from vla_adapt.policy.sequence import attention_pattern, position_ids, right_padded, valid_positions
from vla_adapt.policy.vision import Projector, VisionBackbone

IGNORE_INDEX = -100
_COMPANION_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "dataset_statistics.json",
)


@dataclass
class OpenVLAOutput:
    """What `OpenVLA.forward` returns; sequences are [BOS, patches, text]."""

    loss: Float[torch.Tensor, ""] | None
    logits: Float[torch.Tensor, "B L V"]
    hidden_states: tuple[Float[torch.Tensor, "B L D"], ...] | None = None


class OpenVLA(nn.Module):
    """Image and instruction to action tokens: two vision towers, a projector and Llama.

    Build with `from_pretrained`, or from sizes alone (random weights) with `OpenVLA(config)`.
    """

    language_model: Any
    # Unless told no, PEFT makes token embeddings want a gradient, which reentrant checkpointing (never used
    # here) needs, and for which all others pay in the first layer.
    is_gradient_checkpointing: ClassVar[bool] = False

    def __init__(self, config: OpenVLAConfig, towers: tuple[TowerShape, TowerShape] | None = None):
        super().__init__()
        self.config = config
        self.vision_backbone = VisionBackbone(towers or config.towers())
        self.projector = Projector(self.vision_backbone.embed_dim, config.hidden_size)
        self.language_model = LlamaForCausalLM(_llama_config(config.text))
        read_at_the_end(self.language_model)
        make_norms_lean(self.language_model)
        make_mlps_lean(self.language_model)
        self.companions: dict[str, Path] = {}
        self.stored_only: dict[str, torch.Tensor] = {}
        self.rows = RowContext()
        self._source: Path | None = None
        self._fingerprint: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> OpenVLA:
        """Read a folder in the original Hugging Face layout (`config.json`, safetensors, tokenizer files).

        Weights are memory-mapped and converted one by one, so the peak is about the size of the model.

        Args:
            directory: the checkpoint folder.
            dtype: of all weights, usually float32 or bfloat16.
            device: where the weights go; None is the CPU.

        Raises:
            ValueError: for missing or broken files, or weights that do not fit the config.
        """
        directory = Path(directory)
        config = OpenVLAConfig.from_pretrained(directory)
        checkpoint = Checkpoint(directory)
        with torch.device("meta"):
            model = cls(config, config.towers(checkpoint.shapes))
        target = torch.device(device or "cpu")
        model.stored_only = load_weights(model, checkpoint, dtype, target)
        model.restore_buffers(target)
        assert not any(buffer.is_meta for buffer in model.buffers())
        model.companions = {
            name: directory / name for name in _COMPANION_FILES if (directory / name).is_file()
        }
        model._source = directory
        return model.eval()

    @classmethod
    def without_weights(
        cls, directory: str | Path, config: OpenVLAConfig | None = None, dtype: torch.dtype = torch.float32
    ) -> OpenVLA:
        """The model of a folder on the meta device: sizes without numbers. Its weights need not be there.

        Args:
            directory: the checkpoint folder.
            config: instead of the folder's own.
            dtype: of all weights.
        """
        directory = Path(directory)
        config = config or OpenVLAConfig.from_pretrained(directory)
        shapes = Checkpoint(directory).shapes if any(directory.glob("*.safetensors")) else None
        with torch.device("meta"):
            model = cls(config, config.towers(shapes)).to(dtype)
        model._source = directory
        return model

    def restore_buffers(self, device: torch.device | str) -> None:
        """Recreate what is computed rather than stored, after a build on the meta device."""
        self.vision_backbone.restore_buffers(device)
        self._restore_rotary(torch.device(device))

    def _restore_rotary(self, device: torch.device) -> None:
        rotary = self.language_model.model.rotary_emb
        self.language_model.model.rotary_emb = type(rotary)(self.language_model.config).to(device)

    def _apply(self, fn: Any, recurse: bool = True) -> OpenVLA:
        """Move or convert the module; rotary frequencies stay float32, as a bfloat16 copy loses positions."""
        super()._apply(fn, recurse)
        frequencies = self.language_model.model.rotary_emb.inv_freq
        if frequencies.dtype != torch.float32 and not frequencies.is_meta:
            self._restore_rotary(frequencies.device)
        return self

    def save_pretrained(self, directory: str | Path, max_shard_bytes: int = 5 * 10**9) -> None:
        """Write the original layout: same tensor names, config and companion files; shards when large.

        Raises:
            ValueError: when adapters are still attached (merge or unload them first).
        """
        tensors = to_original({name: tensor.detach() for name, tensor in self.state_dict().items()})
        extra = sorted(name for name in tensors if ".base_layer." in name or ".lora_" in name)
        if extra:
            raise ValueError(
                f"{extra[0]} belongs to an adapter; merge or unload adapters before saving the base"
            )
        for name, tensor in self.stored_only.items():
            tensors[name] = tensor.to(self.dtype) if tensor.is_floating_point() else tensor
        with atomic_files(directory) as scratch:
            save_tensors(scratch, tensors, max_shard_bytes)
            self.config.save_pretrained(scratch)
            for name, path in self.companions.items():
                if path.is_file():
                    shutil.copyfile(path, scratch / name)

    @property
    def source(self) -> Path:
        """The folder this model was loaded from; its tokenizer and preprocessor files lie there."""
        if self._source is None:
            raise ValueError("this model was not loaded from a folder; save it and load it again")
        return self._source

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the checkpoint this model was loaded from (see `checkpoint.fingerprint`)."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.source)
        return self._fingerprint

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the weights."""
        return self.language_model.model.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.language_model.model.norm.weight.device

    @property
    def num_patches(self) -> int:
        """Image tokens per image."""
        return self.vision_backbone.num_patches

    @property
    def vision_trains(self) -> bool:
        """Whether anything of the towers or the projector wants a gradient."""
        parts = (self.vision_backbone, self.projector)
        return any(parameter.requires_grad for part in parts for parameter in part.parameters())

    def get_input_embeddings(self) -> nn.Module:
        """Token embeddings of the language model."""
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """`lm_head` of the language model."""
        return self.language_model.get_output_embeddings()

    def gradient_checkpointing_enable(self, towers_only: bool = False) -> None:
        """Recompute activations of all three transformers in the backward pass, with `rows` as they were.

        Args:
            towers_only: not those of the language model. In OpenVLA-7B the towers do a twelfth of the
                arithmetic and hold a fourth of the activations.
        """
        towers = self.vision_backbone.featurizer, self.vision_backbone.fused_featurizer
        for part in towers if towers_only else (*towers, self.language_model):
            enable = getattr(part, "activation_checkpointing_enable", part.gradient_checkpointing_enable)
            enable({"use_reentrant": False, "context_fn": self.rows.at_checkpoint})

    def project(self, pixel_values: Float[torch.Tensor, "B 6 h w"]) -> Float[torch.Tensor, "B P D"]:
        """Patch features in the language model's width."""
        side, got = self.config.image_sizes[0], tuple(pixel_values.shape[1:])
        if got != (6, side, side):
            raise ValueError(
                f"pixel_values has shape [B, {', '.join(map(str, got))}], wanted [B, 6, {side}, {side}]"
            )
        return self.projector(self.vision_backbone(pixel_values))

    def embed(
        self, input_ids: Int[torch.Tensor, "B T"], patches: Float[torch.Tensor, "B P D"]
    ) -> Float[torch.Tensor, "B L D"]:
        """Input embeddings [BOS, patches, rest of the text]."""
        text = self.language_model.model.embed_tokens(input_ids)
        return torch.cat([text[:, :1], patches.to(text.dtype), text[:, 1:]], dim=1)

    def encode(
        self,
        input_ids: Int[torch.Tensor, "B T"],
        attention_mask: Shaped[torch.Tensor, "B T"] | None,
        pixel_values: Float[torch.Tensor, "B 6 h w"] | None,
        extra: Float[torch.Tensor, "B K D"] | None = None,
        bidirectional: bool = False,
        patches: Float[torch.Tensor, "B P D"] | None = None,
        patches_valid: Bool[torch.Tensor, "B P"] | None = None,
        extra_valid: Bool[torch.Tensor, "B K"] | None = None,
        read: Int[torch.Tensor, "B R"] | None = None,
    ) -> Float[torch.Tensor, "B L D"]:
        """Final hidden states of [BOS, patches, text, extra].

        Args:
            input_ids: right-padded text starting with BOS.
            attention_mask: True on text; None means no padding. States at padding mean nothing.
            pixel_values: not read when `patches` is given.
            extra: embeddings placed after each row's text.
            bidirectional: full attention over everything but padding instead of causal attention.
            patches: result of `project` (or any prefix tokens) when the caller has it already.
            patches_valid: which of them are attended to; None: all.
            extra_valid: which of `extra` are attended to; None: all.
            read: give the states of these positions only; None: of all.
        """
        if patches is None:
            if pixel_values is None:
                raise ValueError("encode needs pixel_values or patches")
            patches = self.project(pixel_values)
        embeds = self.embed(input_ids, patches)
        if extra is not None:
            embeds = torch.cat([embeds, extra.to(embeds.dtype)], dim=1)
        return self._decode(
            embeds, input_ids, attention_mask, patches.shape[1], bidirectional,
            patches_valid=patches_valid, extra_valid=extra_valid, read=read,
        ).last_hidden_state  # fmt: skip

    def _decode(
        self,
        embeds: Float[torch.Tensor, "B L D"],
        input_ids: Int[torch.Tensor, "B T"],
        attention_mask: Shaped[torch.Tensor, "B T"] | None,
        patches: int,
        bidirectional: bool = False,
        output_hidden_states: bool = False,
        patches_valid: Bool[torch.Tensor, "B P"] | None = None,
        extra_valid: Bool[torch.Tensor, "B K"] | None = None,
        read: Int[torch.Tensor, "B R"] | None = None,
        whole: bool = False,
    ) -> Any:
        """`whole`: also at padding, states are the original's; nothing needs them, and they cost a mask."""
        extra = embeds.shape[1] - patches - input_ids.shape[1]
        padded = attention_mask is not None and not bool(attention_mask.all())
        if attention_mask is None or not padded:
            mask = torch.ones_like(input_ids, dtype=torch.bool)
        else:
            mask = right_padded(attention_mask)
        valid = valid_positions(mask, patches, extra, patches_valid, extra_valid)
        holes = (
            patches_valid is not None
            or extra_valid is not None
            or (padded and (extra > 0 or bidirectional or whole))
        )
        pattern = attention_pattern(valid, holes, bidirectional)
        options: dict[str, Any] = {"is_causal": False} if bidirectional and pattern is None else {}
        if read is not None:
            options["read"] = read
        return self.language_model.model(
            inputs_embeds=embeds,
            attention_mask=pattern,
            position_ids=position_ids(mask, patches, extra) if extra else None,
            use_cache=False,
            output_hidden_states=output_hidden_states,
            **options,
        )

    def forward(
        self,
        input_ids: Int[torch.Tensor, "B T"],
        attention_mask: Shaped[torch.Tensor, "B T"] | None = None,
        pixel_values: Float[torch.Tensor, "B 6 h w"] | None = None,
        labels: Int[torch.Tensor, "B T"] | None = None,
        output_hidden_states: bool = False,
    ) -> OpenVLAOutput:
        """Logits at all positions of [BOS, patches, text] (text only without image), and the shifted CE loss.

        Args:
            input_ids: right-padded text starting with BOS.
            attention_mask: True on text; None means no padding.
            pixel_values: preprocessed images; None runs the language model alone.
            labels: as `input_ids`, -100 where no loss is wanted.
            output_hidden_states: also return embeddings, each layer's output, the final norm's output last.
        """
        if pixel_values is None:
            count, embeds = 0, self.language_model.model.embed_tokens(input_ids)
        else:
            patches = self.project(pixel_values)
            count, embeds = patches.shape[1], self.embed(input_ids, patches)
        output = self._decode(
            embeds, input_ids, attention_mask, count, output_hidden_states=output_hidden_states, whole=True
        )
        logits = self.language_model.lm_head(output.last_hidden_state).float()
        loss = None
        if labels is not None:
            ignored = labels.new_full((len(labels), count), IGNORE_INDEX)
            targets = torch.cat([labels[:, :1], ignored, labels[:, 1:]], dim=1)[:, 1:]
            loss = nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX
            )
        return OpenVLAOutput(loss, logits, output.hidden_states if output_hidden_states else None)

    def action_tokenizer(self) -> ActionTokenizer:
        """The tokenizer of normalized action numbers for this vocabulary."""
        return ActionTokenizer(self.config.tokenizer_vocab_size, self.config.n_action_bins)

    def get_action_stats(self, unnorm_key: str | None = None) -> dict[str, Any]:
        """Stored action statistics of a dataset.

        Raises:
            ValueError: for an unknown key, or None when the checkpoint knows several datasets.
        """
        return dataset_stats(self.config.norm_stats, unnorm_key)

    def get_action_dim(self, unnorm_key: str | None = None) -> int:
        """Numbers per action of a dataset."""
        return len(self.get_action_stats(unnorm_key)["q01"])

    def predict_action(
        self,
        input_ids: Int[torch.Tensor, "B T"],
        unnorm_key: str | None = None,
        *,
        pixel_values: Float[torch.Tensor, "B 6 h w"],
        attention_mask: Shaped[torch.Tensor, "B T"] | None = None,
        do_sample: bool = False,
    ) -> Float[np.ndarray, " D"]:
        """Greedy action of one observation, in the units of the dataset `unnorm_key`.

        The empty token that precedes actions is appended when missing and attended to, as in the original.

        Raises:
            ValueError: for more than one row, sampling, or a bad `unnorm_key`.
        """
        if len(input_ids) != 1 or do_sample:
            raise ValueError(
                f"predict_action decodes 1 row greedily; got {len(input_ids)} rows and do_sample={do_sample}"
            )
        empty = self.config.empty_token_id
        if empty >= self.config.tokenizer_vocab_size:
            raise ValueError(f"empty_token_id {empty} is outside the vocabulary; set config.empty_token_id")
        stats = self.get_action_stats(unnorm_key)
        ids = input_ids if attention_mask is None else input_ids[:, attention_mask[0].bool()]
        if ids[0, -1] != empty:
            ids = torch.cat([ids, ids.new_tensor([[empty]])], dim=1)
        with torch.no_grad():
            patches = self.project(pixel_values)
        tokens, _ = greedy_decode(
            self, ids, torch.ones_like(ids, dtype=torch.bool), patches, len(stats["q01"])
        )
        return unnormalize(self.action_tokenizer().decode(tokens[0].cpu().numpy()), stats)


def _llama_config(text: dict[str, Any]) -> LlamaConfig:
    fields = {name: value for name, value in text.items() if name != "rope_theta"}
    rope = {"rope_type": "default", "rope_theta": text["rope_theta"]}
    config = LlamaConfig(**fields, rope_parameters=rope)
    config._attn_implementation = "sdpa"
    return config
