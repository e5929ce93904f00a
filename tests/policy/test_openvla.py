"""OpenVLA against the original, number by number; saving; PEFT."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from vla_adapt.policy.checkpoint import fingerprint
from vla_adapt.policy.naming import to_original
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.policy.sequence import valid_positions

TARGETS = r".*\.(q_proj|k_proj|v_proj|o_proj|out_proj|gate_proj|up_proj|down_proj|fc1|fc2|fc3)"


def inputs(parity, *names: str) -> list[torch.Tensor]:
    return [torch.from_numpy(parity.inputs[name]) for name in names]


def test_parity_of_logits_loss_and_hidden_states(parity, parity_model):
    with torch.no_grad():
        output = parity_model(
            *inputs(parity, "input_ids", "attention_mask", "pixel_values", "labels"),
            output_hidden_states=True,
        )
    np.testing.assert_allclose(output.logits, parity.expected["logits"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(output.loss, parity.expected["loss"], atol=1e-5, rtol=0)
    for index, hidden in enumerate(output.hidden_states):
        np.testing.assert_allclose(hidden, parity.expected[f"hidden_{index}"], atol=1e-4, rtol=0)
    assert index == 2


def test_parity_of_action_accuracy_and_l1_as_the_original_trainer_counts_them(parity, parity_model):
    ids, mask, pixel_values, labels = inputs(parity, "input_ids", "attention_mask", "pixel_values", "labels")
    with torch.no_grad():
        logits = parity_model(ids, mask, pixel_values, labels).logits
    chosen, wanted = logits[:, 256:-1].argmax(dim=2), labels[:, 1:]
    tokenizer = parity_model.action_tokenizer()
    is_action = wanted > tokenizer.vocab_size - 257
    accuracy = (chosen == wanted)[is_action].float().mean()
    np.testing.assert_allclose(accuracy, parity.expected["train_action_accuracy"], atol=1e-6)
    error = tokenizer.decode(chosen[is_action].numpy()) - tokenizer.decode(wanted[is_action].numpy())
    np.testing.assert_allclose(np.abs(error).mean(), parity.expected["train_l1"], atol=1e-6)


def test_parity_of_every_gradient(parity, parity_model):
    parity_model(*inputs(parity, "input_ids", "attention_mask", "pixel_values", "labels")).loss.backward()
    gradients = to_original({name: p.grad for name, p in parity_model.named_parameters()})
    names = [name.removeprefix("grad/") for name in parity.expected if name.startswith("grad/")]
    assert len(names) == 12
    for name in names:
        wanted = parity.expected[f"grad/{name}"]
        np.testing.assert_allclose(gradients[name], wanted, atol=1e-5, rtol=0, err_msg=name)


def test_parity_without_image_and_without_mask(parity, parity_model):
    ids, mask, pixel_values, labels = inputs(parity, "input_ids", "attention_mask", "pixel_values", "labels")
    with torch.no_grad():
        text_only = parity_model(ids, mask, None, labels)
        unmasked = parity_model(ids, None, pixel_values)
    np.testing.assert_allclose(text_only.logits, parity.expected["unimodal_logits"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(text_only.loss, parity.expected["unimodal_loss"], atol=1e-5, rtol=0)
    wanted = parity.expected["logits_nomask_row0_last"]
    np.testing.assert_allclose(unmasked.logits[0, -1], wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("key", ["ds_a", "ds_b"])
@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("form", ["whole", "without empty token", "padded"])
def test_parity_of_actions(parity, parity_model, row, key, form):
    ids, pixel_values = inputs(parity, "gen_input_ids", "pixel_values")
    ids = ids[:, :-1] if form == "without empty token" else ids
    mask = torch.ones_like(ids)
    if form == "padded":
        ids = torch.cat([ids, ids.new_full((1, 3), 1024)], dim=1)
        mask = torch.cat([mask, mask.new_zeros(1, 3)], dim=1)
    action = parity_model.predict_action(
        ids, key, pixel_values=pixel_values[row : row + 1], attention_mask=mask, do_sample=False
    )
    np.testing.assert_allclose(action, parity.expected[f"gen{row}/{key}/action"], atol=1e-12, rtol=0)


def test_predict_action_refuses_what_it_cannot_do(parity, parity_model):
    ids, pixel_values = inputs(parity, "gen_input_ids", "pixel_values")
    with pytest.raises(ValueError, match="one of: ds_a, ds_b"):
        parity_model.predict_action(ids, pixel_values=pixel_values[:1])
    with pytest.raises(ValueError, match="got 2 rows"):
        parity_model.predict_action(ids.expand(2, -1), "ds_a", pixel_values=pixel_values)
    with pytest.raises(ValueError, match=r"wanted \[B, 6, 224, 224\]"):
        parity_model.predict_action(ids, "ds_a", pixel_values=pixel_values[:1, :, :14])
    parity_model.config.empty_token_id = 29871
    with pytest.raises(ValueError, match="empty_token_id 29871 is outside the vocabulary"):
        parity_model.predict_action(ids, "ds_a", pixel_values=pixel_values[:1])


@pytest.mark.parametrize("limit", [10**9, 300_000])
def test_save_gives_the_same_names_and_bytes(parity, parity_model, tmp_path, limit):
    parity_model.save_pretrained(tmp_path, max_shard_bytes=limit)
    original = load_file(parity.directory / "model.safetensors")
    saved = {
        name: tensor for path in tmp_path.glob("*.safetensors") for name, tensor in load_file(path).items()
    }
    assert len(list(tmp_path.glob("*.safetensors"))) == (1 if limit == 10**9 else 8)
    assert saved.keys() == original.keys()
    for name, tensor in original.items():
        assert saved[name].dtype == tensor.dtype
        assert saved[name].numpy().tobytes() == tensor.numpy().tobytes(), name
    read = json.loads((parity.directory / "config.json").read_text())
    assert json.loads((tmp_path / "config.json").read_text()) == read
    assert fingerprint(tmp_path) == parity_model.fingerprint == fingerprint(parity.directory)


def test_companion_files_travel_along(tiny_dir, tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    for path in tiny_dir.iterdir():
        if path.name != "config.json":
            assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_saving_over_its_own_folder(tiny_dir, tmp_path):
    for path in tiny_dir.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    OpenVLA.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert fingerprint(tmp_path) == fingerprint(tiny_dir)


def test_encode_equals_forward_and_extra_tokens_follow_the_text(tiny_model, make_batch):
    batch = make_batch()
    with torch.no_grad():
        hidden = tiny_model.encode(batch.input_ids, batch.attention_mask, batch.pixel_values)
        logits = tiny_model(batch.input_ids, batch.attention_mask, batch.pixel_values).logits
        valid = valid_positions(batch.attention_mask, tiny_model.num_patches)
        torch.testing.assert_close(tiny_model.language_model.lm_head(hidden)[valid], logits[valid])
        extra = torch.randn(3, 2, 128, generator=torch.Generator().manual_seed(0))
        for bidirectional in (False, True):
            together = tiny_model.encode(
                batch.input_ids, batch.attention_mask, batch.pixel_values, extra, bidirectional
            )
            assert together.shape == (3, 36 + batch.input_ids.shape[1] + 2, 128)
            for row in range(3):
                ids = batch.input_ids[row : row + 1, : int(batch.attention_mask[row].sum())]
                alone = tiny_model.encode(
                    ids, None, batch.pixel_values[row : row + 1], extra[row : row + 1], bidirectional
                )
                torch.testing.assert_close(together[row, -2:], alone[0, -2:], atol=1e-4, rtol=1e-4)


def test_bidirectional_attention_reaches_the_patches_causal_does_not(tiny_model, make_batch):
    batch = make_batch()
    extra = torch.zeros(3, 1, 128)
    results = {}
    for bidirectional in (False, True):
        with torch.no_grad():
            first, second = (
                tiny_model.encode(
                    batch.input_ids, batch.attention_mask, batch.pixel_values, extra + shift, bidirectional
                )[:, 1:37]
                for shift in (0.0, torch.arange(128.0))
            )
        results[bidirectional] = (first - second).abs().max().item()
    assert results[False] == 0.0
    assert results[True] > 1e-3


def test_gradient_checkpointing_gives_the_same_gradients(tiny_dir, make_batch):
    batch = make_batch()
    gradients = []
    for checkpointing in (False, True):
        model = OpenVLA.from_pretrained(tiny_dir).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(batch.input_ids, batch.attention_mask, batch.pixel_values, batch.input_ids).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_fingerprint_needs_a_folder(tiny_model):
    from_memory = OpenVLA(tiny_model.config)
    with pytest.raises(ValueError, match="not loaded from a folder"):
        _ = from_memory.fingerprint


def test_peft_adapter_trains_saves_and_loads_with_the_same_logits(tiny_dir, tmp_path, make_batch):
    batch = make_batch()
    call = (batch.input_ids, batch.attention_mask, batch.pixel_values)
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=TARGETS, init_lora_weights="gaussian")
    tuned = get_peft_model(OpenVLA.from_pretrained(tiny_dir), config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    tuned(*call, labels=batch.input_ids).loss.backward()
    trained = {name for name, parameter in tuned.named_parameters() if parameter.grad is not None}
    assert all(".lora_" in name for name in trained)
    for part in ("vision_backbone.featurizer", "fused_featurizer", "projector.fc3", "language_model"):
        assert any(part in name for name in trained), part
    tuned.eval().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(OpenVLA.from_pretrained(tiny_dir), str(tmp_path))
    with torch.no_grad():
        wanted, plain = tuned(*call).logits, OpenVLA.from_pretrained(tiny_dir)(*call).logits
        assert torch.equal(loaded(*call).logits, wanted)
    assert (wanted - plain).abs().max() > 1e-2
    assert "/" not in json.dumps(
        json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"]
    )


def test_merged_adapter_saves_in_the_original_layout_but_an_attached_one_is_refused(
    tiny_dir, tmp_path, make_batch
):
    batch = make_batch()
    call = (batch.input_ids, batch.attention_mask, batch.pixel_values)
    tuned = get_peft_model(OpenVLA.from_pretrained(tiny_dir), LoraConfig(r=2, target_modules=TARGETS))
    with pytest.raises(ValueError, match="merge or unload adapters"):
        tuned.base_model.model.save_pretrained(tmp_path)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
        wanted = tuned(*call).logits
        tuned.merge_and_unload().save_pretrained(tmp_path)
        saved = OpenVLA.from_pretrained(tmp_path)(*call).logits
    torch.testing.assert_close(saved, wanted, atol=1e-4, rtol=1e-4)
