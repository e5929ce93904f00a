"""Configurations of adapters: read, or refused in one line, whatever PEFT itself makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vla_adapt.adaptation.lora_config import read_lora_config


def test_a_configuration_is_read(tiny_bundle: Path):
    config = read_lora_config(tiny_bundle)
    assert (config.r, config.lora_alpha) == (4, 8)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (None, r"no adapter_config\.json"),
        ([], "is no LoRA configuration"),
        ({"peft_type": "IA3"}, "is of type .*IA3; only LoRA adapters are read"),
        ({"peft_type": "LORA", "r": "many"}, "r 'many' and lora_alpha 8; wanted numbers above 0"),
    ],
)
def test_what_is_none_is_named(tmp_path: Path, tree: Any, words: str):
    if tree is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=words):
        read_lora_config(tmp_path)
