"""What every method says of itself, in one table."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter

from vla_adapt.adaptation.method import AdaptationMethod, Method

STAGES = [{"from_step": 0, "train": ["language"]}]
# kind -> adapts, changes_base, trains_heads
TABLE = {
    "lora": (True, False, True),
    "qlora": (True, False, True),
    "frozen": (False, False, True),
    "last_n": (False, True, True),
    "staged": (False, True, False),
    "full": (False, True, True),
    "none": (False, False, False),
}


@pytest.mark.parametrize("kind", TABLE)
def test_what_methods_say_of_themselves(kind: str):
    given = {"kind": kind} | ({"stages": STAGES} if kind == "staged" else {})
    method: AdaptationMethod = TypeAdapter(Method).validate_python(given)
    assert (method.adapts, method.changes_base, method.trains_heads) == TABLE[kind]
    assert method.rates(1e-3) == [(0, 1e-3)]
    assert method.trains("model.language_model.lm_head.weight", 7, 2)
    assert TypeAdapter(Method).validate_python(method.model_dump()) == method


def test_the_older_name_of_frozen_is_taken():
    method = TypeAdapter(Method).validate_python({"kind": "head_only"})
    assert method == TypeAdapter(Method).validate_python({"kind": "frozen"})
    assert method.model_dump()["kind"] == "frozen"
