"""Fixtures: base folders, a module tree with the original's names for PEFT to judge by, saved adapters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn

from vla_adapt.policy.checkpoint import Checkpoint
from vla_adapt.policy.tiny_tokenizer import EMPTY, build_tiny_tokenizer, save_tiny_tokenizer

# What "all-linear" becomes on the original: base names of its linear layers ("proj" also hits convolutions).
ALL_LINEAR = (
    "qkv", "proj", "fc1", "fc2", "fc3", "q", "kv", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj",
    "up_proj", "down_proj", "lm_head",
)  # fmt: skip


@pytest.fixture(scope="session")
def parity_base(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parity checkpoint with a tokenizer, and an `lm_head` that prefers action tokens, like a trained one.

    Its random `lm_head` also picks ids that are no actions, where the original folds and ours never goes.
    """
    source = Checkpoint(shared_dir / "openvla_parity")
    folder = tmp_path_factory.mktemp("parity") / "base"
    tensors = {name: source.read(name).clone() for name in source.tensors}
    head = tensors["language_model.lm_head.weight"]
    head[: 1024 - 256] *= 0.01
    head[1024:] *= 0.01
    return write_base(folder, source.directory, tensors)


def write_base(folder: Path, like: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """A checkpoint folder with other weights than `like`, the tiny tokenizer and its empty token."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((like / "config.json").read_text())
    config["empty_token_id"] = build_tiny_tokenizer().token_to_id(EMPTY)
    (folder / "config.json").write_text(json.dumps(config))
    save_tiny_tokenizer(folder)
    return folder


class OriginalTree(nn.Module):
    """The root, with what PEFT asks a transformers model for."""

    def get_input_embeddings(self) -> nn.Module:
        return self.get_submodule("language_model.model.embed_tokens")

    def get_output_embeddings(self) -> nn.Module:
        return self.get_submodule("language_model.lm_head")


def original_tree(base: Path) -> OriginalTree:
    """Modules under the original's names with a checkpoint's weights: linear, convolution, bare parameters."""
    checkpoint = Checkpoint(base)
    root = OriginalTree()
    for name, shape in checkpoint.shapes.items():
        path, _, leaf = name.rpartition(".")
        parent = root
        for word in path.split(".") if path else []:
            if word not in dict(parent.named_children()):
                parent.add_module(word, nn.Module())
            parent = parent.get_submodule(word)
        if leaf == "weight" and len(shape) in (2, 4) and "embed_tokens" not in name:
            bias = f"{path}.bias" in checkpoint.shapes
            layer = (
                nn.Linear(shape[1], shape[0], bias)
                if len(shape) == 2
                else nn.Conv2d(*shape[1::-1], shape[2], bias=bias)
            )
            grandparent, _, word = path.rpartition(".")
            setattr(root.get_submodule(grandparent), word, layer)
    for name in checkpoint.tensors:
        path, _, leaf = name.rpartition(".")
        setattr(
            root.get_submodule(path), leaf, nn.Parameter(checkpoint.read(name).clone(), requires_grad=False)
        )
    return root


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """The original's tensors after PEFT itself merged a saved adapter into them."""
    model = PeftModel.from_pretrained(original_tree(base), str(adapter))
    return model.merge_and_unload().state_dict()


def save_original_adapter(base: Path, folder: Path, seed: int = 0, **changes: object) -> Path:
    """An adapter as `finetune.py` saves it, with random instead of trained B."""
    torch.manual_seed(seed)
    fields: dict = {"r": 32, "lora_alpha": 16, "lora_dropout": 0.0, "init_lora_weights": "gaussian",
                    "target_modules": list(ALL_LINEAR)}  # fmt: skip
    model = get_peft_model(original_tree(base), LoraConfig(**fields | changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
            if "lm_head.lora_B" in name:  # leave the choice among action tokens to the base
                parameter.mul_(0.01)
    model.save_pretrained(str(folder))
    shutil.copyfile(base / "config.json", folder / "base_config.json")
    return folder


@pytest.fixture(scope="session")
def saved_adapter(parity_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """r=32, alpha=16, all-linear, on the parity checkpoint, with its `ds_a` statistics beside it."""
    folder = save_original_adapter(parity_base, tmp_path_factory.mktemp("adapter") / "vla+ds_a")
    norm_stats = json.loads((parity_base / "config.json").read_text())["norm_stats"]
    (folder / "dataset_statistics.json").write_text(json.dumps({"ds_a": norm_stats["ds_a"]}))
    return folder


@pytest.fixture
def adapter_copy(saved_adapter: Path, tmp_path: Path) -> Path:
    """A copy of `saved_adapter` that a test may damage."""
    return Path(shutil.copytree(saved_adapter, tmp_path / "adapter"))


@pytest.fixture
def same_tensors() -> Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], float]:
    """`same_tensors(got, wanted)`: largest difference, after the names were found equal."""

    def compare(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
        assert got.keys() == wanted.keys()
        return max(float((got[name].float() - wanted[name].float()).abs().max()) for name in wanted)

    return compare
