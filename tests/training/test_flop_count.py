"""The analytic count of a step equals what PyTorch counts while the step runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vla_adapt.adaptation import adapted_linear
from vla_adapt.adaptation.method import Lora
from vla_adapt.policy.batch import PolicyBatch
from vla_adapt.policy.configuration import OpenVLAConfig
from vla_adapt.policy.heads import HeadConfig, make_head
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.policy.tiny import tiny_openvla
from vla_adapt.training.flop_count import StepSizes, step_flops
from vla_adapt.training.flop_counter import flop_counter
from vla_adapt.training.learner import Learner
from vla_adapt.types import NUM_SLOTS

LANGUAGE_MODEL = r"language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
ROBOT, RANK = "franka_panda", 32
# Rotary angles are a product of matrices in older versions of transformers: 2e-6 of a tiny step.
SLACK = 1e-5


@pytest.fixture
def tiny_model() -> OpenVLA:
    return tiny_openvla(seed=0)


@pytest.fixture
def batch() -> PolicyBatch:
    slots = (torch.arange(NUM_SLOTS) < 7).expand(2, -1)
    return PolicyBatch(
        input_ids=torch.randint(5, 200, (2, 12)), attention_mask=torch.ones(2, 12, dtype=torch.bool),
        pixel_values=torch.randn(2, 6, 84, 84), proprio=torch.zeros(2, NUM_SLOTS),
        proprio_mask=torch.zeros(2, NUM_SLOTS, dtype=torch.bool), slot_mask=slots,
        action=torch.zeros(2, 1, NUM_SLOTS), action_mask=slots[:, None], robots=[ROBOT] * 2,
    )  # fmt: skip


def counted(model, batch, targets: str) -> int:
    head = make_head(HeadConfig(kind="tokens", horizon=1, proprio=False), model)
    Lora(rank=RANK, targets=targets).prepare(model, [ROBOT])
    learner = Learner(model, {ROBOT: head}, adapted=True)
    with flop_counter() as counter:
        learner(batch)["loss"].backward()
    return counter.get_total_flops()


def sizes_of(batch) -> StepSizes:
    rows, text = batch.input_ids.shape
    return StepSizes(samples=rows, text=text + 7, rank=RANK, logits=8 * rows, read=8)


@pytest.mark.parametrize("folded", [False, True])
def test_the_count_is_what_pytorch_counts(tiny_model, batch, monkeypatch, folded):
    if not folded:
        monkeypatch.setattr(adapted_linear, "fold_is_cheaper", lambda *_: False)
    parts = step_flops(tiny_model.config, replace(sizes_of(batch), folded=folded))
    assert sum(parts.values()) == pytest.approx(counted(tiny_model, batch, "all_linear"), rel=SLACK)


def test_frozen_towers_and_weights_have_no_backward_pass(tiny_model, batch):
    parts = step_flops(tiny_model.config, replace(sizes_of(batch), vision=False, folded=True))
    assert sum(parts.values()) == pytest.approx(counted(tiny_model, batch, LANGUAGE_MODEL), rel=SLACK)


def test_openvla_7b_costs_two_passes_of_its_weights_and_three_of_its_adapters():
    config = OpenVLAConfig({"model_type": "openvla"})
    parts = step_flops(config, StepSizes(samples=1, text=40, rank=32, logits=8, read=8))
    language = parts["language_model"] / (296 * (2 * 2 * 6.476e9 + 3 * 2 * 80e6))
    assert 0.95 < language < 1.05
    whole = step_flops(config, StepSizes(samples=1, text=40, rank=32, logits=296))
    assert whole["lm_head"] == 37 * parts["lm_head"]
    assert 1.01 < sum(whole.values()) / sum(parts.values()) < 1.1
