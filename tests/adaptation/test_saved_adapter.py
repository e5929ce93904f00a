"""Reading what finetune.py saved: both file kinds, and every damage named in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vla_adapt.adaptation.factors import read_factors
from vla_adapt.adaptation.saved_adapter import check_complete, idle_modules, read_saved_adapter
from vla_adapt.policy.checkpoint import Checkpoint
from vla_adapt.policy.openvla import OpenVLA

QKV = "base_model.model.vision_backbone.featurizer.blocks.0.attn.qkv"


def check(folder: Path, base: Path) -> None:
    saved = read_saved_adapter(folder)
    check_complete(saved, read_factors(saved.config, saved.tensors), Checkpoint(base))


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def test_a_whole_adapter_fits_its_base(saved_adapter: Path, original_base: Path):
    saved = read_saved_adapter(saved_adapter)
    assert f"{QKV}.lora_B.weight" in saved.tensors
    assert all(".lora_" in key for key in saved.tensors)
    assert list(saved.base_copies) == ["language_model.lm_head.weight"]
    check(saved_adapter, original_base)


def test_a_bin_file_reads_the_same(adapter_copy: Path, original_base: Path):
    file = adapter_copy / "adapter_model.safetensors"
    wanted = load_file(file)
    file.unlink()
    torch.save(wanted, adapter_copy / "adapter_model.bin")
    saved = read_saved_adapter(adapter_copy)
    assert all(torch.equal(saved.tensors[key], wanted[key]) for key in saved.tensors)
    check(adapter_copy, original_base)


def test_a_bin_file_that_would_run_code_is_refused(adapter_copy: Path, tmp_path: Path):
    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harmed",))

    (adapter_copy / "adapter_model.safetensors").unlink()
    torch.save({"base_model.model.x.lora_A.weight": Harm()}, adapter_copy / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter_model\.bin cannot be read"):
        read_saved_adapter(adapter_copy)
    assert not (tmp_path / "harmed").exists()


def test_idle_modules_are_what_the_checkpoint_stores_and_nothing_runs(original_base: Path):
    idle = idle_modules(OpenVLA.from_pretrained(original_base))
    assert "vision_backbone.fused_featurizer.attn_pool.mlp.fc1" in idle
    assert sum(name.startswith("vision_backbone.featurizer.blocks.") for name in idle) == 6
    assert not any(name.startswith(("projector", "language_model")) for name in idle)


def test_missing_and_unknown_modules_are_named(adapter_copy: Path, original_base: Path):
    rewrite(adapter_copy, lambda tensors: [tensors.pop(f"{QKV}.lora_{side}.weight") for side in "AB"])
    with pytest.raises(ValueError, match=r"lacks 1 of (57|49) modules .*featurizer\.blocks\.0\.attn\.qkv"):
        check(adapter_copy, original_base)

    def rename(tensors: dict) -> None:
        for side in "AB":
            tensors[f"{QKV}s.lora_{side}.weight"] = torch.zeros(32, 32)

    rewrite(adapter_copy, rename)
    with pytest.raises(ValueError, match=r"1 modules that base .* lacks \(first: .*attn\.qkvs\)"):
        check(adapter_copy, original_base)


def test_half_a_pair_and_nan_are_named(adapter_copy: Path, original_base: Path):
    def poison(tensors: dict) -> None:
        tensors[f"{QKV}.lora_A.weight"][0, 0] = float("nan")

    rewrite(adapter_copy, poison)
    with pytest.raises(ValueError, match="holds NaN"):
        check(adapter_copy, original_base)
    rewrite(adapter_copy, lambda tensors: tensors.pop(f"{QKV}.lora_A.weight"))
    with pytest.raises(ValueError, match="has lora_B alone"):
        check(adapter_copy, original_base)


def test_broken_files_are_named(adapter_copy: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"no adapter_config\.json"):
        read_saved_adapter(tmp_path)
    file = adapter_copy / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="cannot be read"):
        read_saved_adapter(adapter_copy)
    save_file({"x": torch.ones(1)}, file)
    with pytest.raises(ValueError, match="holds no LoRA tensors"):
        read_saved_adapter(adapter_copy)
    file.unlink()
    with pytest.raises(ValueError, match=r"neither adapter_model\.safetensors nor adapter_model\.bin"):
        read_saved_adapter(adapter_copy)
