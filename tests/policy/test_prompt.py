"""Prompt text and its token ids."""

from __future__ import annotations

import pytest

from vla_adapt.policy.prompt import PromptTokenizer, prompt_text


def test_prompt_is_the_originals_in_lower_case():
    wanted = "In: What action should the robot take to lift the red cube?\nOut:"
    assert prompt_text(" Lift the RED cube ") == wanted


@pytest.mark.parametrize("instruction", ["", "  \n", None, 3])
def test_an_empty_instruction_is_refused(instruction):
    with pytest.raises(ValueError, match="wanted a sentence"):
        prompt_text(instruction)


def test_ids_start_with_bos_end_with_the_empty_token_and_pad_right(tiny_dir):
    tokenizer = PromptTokenizer.from_pretrained(tiny_dir)
    ids, mask = tokenizer(["lift the cube", "pick up the cube and place it on the plate"])
    lengths = mask.sum(dim=1).tolist()
    assert lengths[0] < lengths[1] == ids.shape[1]
    for row, length in enumerate(lengths):
        assert ids[row, 0] == tokenizer.bos_token_id
        assert ids[row, length - 1] == tokenizer.empty_token_id
        assert mask[row, :length].all()
        assert (ids[row, length:] == tokenizer.pad_token_id).all()
        assert (ids[row, : length - 1] != tokenizer.empty_token_id).all()


def test_ever_new_prompts_are_not_all_kept(tiny_dir, monkeypatch):
    monkeypatch.setattr("vla_adapt.policy.prompt._KEPT_IDS", 100)
    tokenizer = PromptTokenizer.from_pretrained(tiny_dir)
    texts = [f"lift cube number {number}" for number in range(50)]
    first = [tokenizer.ids(text) for text in texts]
    assert 0 < sum(map(len, tokenizer._known.values())) <= 100
    assert [tokenizer.ids(text) for text in texts] == first


def test_a_folder_without_tokenizer_is_refused(parity):
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        PromptTokenizer.from_pretrained(parity.directory)
