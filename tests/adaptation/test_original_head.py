"""Which heads the original knows, and reading a head's description."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vla_adapt.adaptation.original_head import ORIGINAL_HEAD, describe, is_originals, stored_head
from vla_adapt.policy.heads import HeadConfig


def test_only_single_steps_of_tokens_without_state_are_the_originals():
    assert is_originals(ORIGINAL_HEAD)
    for changes in ({"kind": "parallel"}, {"horizon": 2}, {"proprio": True}):
        assert not is_originals(ORIGINAL_HEAD.model_copy(update=changes))
    assert describe(HeadConfig(kind="parallel", horizon=8)) == "'parallel', horizon 8, with state"
    assert describe(ORIGINAL_HEAD) == "'tokens', horizon 1"


def test_stored_heads_are_read_and_damage_is_named(tiny_bundle: Path, tmp_path: Path):
    assert stored_head(tmp_path) is None
    assert stored_head(tiny_bundle) == HeadConfig(kind="parallel", horizon=4, proprio=True)
    for text in ("{", "[]", json.dumps({"width": 3})):
        (tmp_path / "head.json").write_text(text)
        with pytest.raises(ValueError, match="describes no action head"):
            stored_head(tmp_path)
    (tmp_path / "head.json").write_text(json.dumps({"config": {"kind": "tokns"}}))
    with pytest.raises(ValueError, match="did you mean 'tokens'"):
        stored_head(tmp_path)
