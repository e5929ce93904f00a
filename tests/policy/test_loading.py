"""Loading weights: number type, missing and misshapen tensors, unused tensors kept."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from vla_adapt.policy.openvla import OpenVLA


@pytest.fixture
def broken(tiny_dir, tmp_path):
    """A copy of the tiny base whose tensors a test may change."""
    for path in tiny_dir.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())

    def change(edit) -> str:
        tensors = load_file(tmp_path / "model.safetensors")
        edit(tensors)
        save_file(tensors, tmp_path / "model.safetensors")
        return str(tmp_path)

    return change


def test_bfloat16_load_keeps_rotary_frequencies_in_float32(tiny_dir):
    model = OpenVLA.from_pretrained(tiny_dir, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.language_model.model.rotary_emb.inv_freq.dtype == torch.float32
    converted = OpenVLA.from_pretrained(tiny_dir).to(torch.bfloat16)
    frequencies = converted.language_model.model.rotary_emb.inv_freq
    assert torch.equal(frequencies, model.language_model.model.rotary_emb.inv_freq)


def test_missing_tensor_is_named(broken):
    directory = broken(lambda tensors: tensors.pop("projector.fc2.bias"))
    with pytest.raises(ValueError, match=r"lacks 1 tensors.*projector\.fc2\.bias"):
        OpenVLA.from_pretrained(directory)


def test_misshapen_tensor_is_named(broken):
    directory = broken(lambda tensors: tensors.update({"projector.fc2.bias": torch.zeros(3)}))
    with pytest.raises(
        ValueError, match=r"projector\.fc2\.bias the shape \[3\], but config\.json wants \[128\]"
    ):
        OpenVLA.from_pretrained(directory)


def test_tensors_nobody_knows_are_kept(broken):
    name = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    model = OpenVLA.from_pretrained(broken(lambda tensors: tensors.update({name: torch.ones(4)})))
    assert torch.equal(model.stored_only[name], torch.ones(4))
    assert "vision_backbone.featurizer.norm.weight" in model.stored_only


def test_a_model_outlives_changes_to_its_file(broken):
    directory = broken(lambda tensors: None)
    model = OpenVLA.from_pretrained(directory)
    before = model.projector.fc1.weight.clone()
    broken(lambda tensors: tensors["projector.fc1.weight"].zero_())
    assert torch.equal(model.projector.fc1.weight, before)
