"""Lengths equal those of the sequences that heads really ask for; what does not fit is refused."""

from __future__ import annotations

import pytest

from vla_adapt.policy.heads import HeadConfig, make_head
from vla_adapt.policy.sequence_length import check_length, sequence_length


@pytest.mark.parametrize("kind", ["tokens", "parallel", "readout", "flow"])
@pytest.mark.parametrize("condition", ["none", "soft_prompt"])
def test_it_counts_what_the_head_asks_for(tiny_model, make_batch, kind, condition):
    placeholders = {"placeholders": "number"} if kind == "parallel" else {}
    config = HeadConfig(kind=kind, horizon=3, condition=condition, **placeholders)
    batch = make_batch(horizon=3, robots=("mobile_panda",))
    question = make_head(config, tiny_model, seed=0).ask(tiny_model, batch)
    asked = question.input_ids.shape[1] - batch.input_ids.shape[1]
    added = (question.prefix, question.extra)
    asked += sum(part.shape[1] for part in added if part is not None)
    inside = config.proprio and kind in ("readout", "flow")  # they read the state after the backbone
    assert sequence_length(config, 10, 36) == 36 + 32 + asked + int(inside)


def test_a_head_that_cannot_serve_a_robot_is_refused(tiny_model):
    known = tiny_model.config.text["max_position_embeddings"]
    config = HeadConfig(kind="tokens", horizon=known // 14)
    check_length(config, tiny_model, "franka_panda", 7)
    with pytest.raises(
        ValueError, match=r"the tokens head of 'bimanual_panda' needs about .* the base knows"
    ):
        check_length(config, tiny_model, "bimanual_panda", 14)
