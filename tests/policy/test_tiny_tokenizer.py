"""The tiny tokenizer: short prompts, any text, action bins at the end, the same in transformers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from vla_adapt.policy.prompt import prompt_text
from vla_adapt.policy.tiny_tokenizer import (
    ACTION_BINS,
    BOS,
    EMPTY,
    EOS,
    PAD,
    UNK,
    VOCAB_SIZE,
    build_tiny_tokenizer,
    save_tiny_tokenizer,
)

TOKENIZER = build_tiny_tokenizer()


def test_layout_of_the_vocabulary():
    assert [TOKENIZER.token_to_id(piece) for piece in (UNK, BOS, EOS, EMPTY)] == [0, 1, 2, 3]
    assert TOKENIZER.token_to_id("<action_0>") == VOCAB_SIZE - ACTION_BINS
    assert TOKENIZER.token_to_id(PAD) == VOCAB_SIZE == TOKENIZER.get_vocab_size() - 1


def test_it_is_the_same_every_time():
    assert build_tiny_tokenizer().to_str() == TOKENIZER.to_str()


@pytest.mark.parametrize(
    ("instruction", "tokens"), [("lift the cube", 6), ("pick up the red cube and place it on the table", 14)]
)
def test_common_instructions_take_one_token_a_word(instruction, tokens):
    assert len(TOKENIZER.encode(prompt_text(instruction)).ids) == tokens


@given(st.text(alphabet=[chr(code) for code in range(32, 127)], min_size=1))
def test_printable_ascii_never_becomes_unknown_or_an_action(text):
    ids = TOKENIZER.encode(text).ids
    assert ids[0] == TOKENIZER.token_to_id(BOS)
    assert all(0 < index < VOCAB_SIZE - ACTION_BINS for index in ids) or any(
        piece in text for piece in (UNK, PAD, EOS, BOS)
    )


@given(st.text())
def test_any_text_encodes_without_action_tokens(text):
    assert all(
        index < VOCAB_SIZE - ACTION_BINS or index == VOCAB_SIZE for index in TOKENIZER.encode(text).ids
    )


def test_words_spell_back():
    pieces = TOKENIZER.encode("Zébra 12, ok").tokens[1:]
    assert "".join(pieces).replace(EMPTY, " ").strip() == "Zebra 12, ok"


def test_transformers_reads_the_same_tokenizer(tmp_path):
    save_tiny_tokenizer(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = prompt_text("Push the zebra over, please")
    assert loaded(text).input_ids == TOKENIZER.encode(text).ids
    assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (512, 1, 2)
