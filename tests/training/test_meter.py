"""Metrics against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vla_adapt.actions.normalize import Normalizer, Statistics
from vla_adapt.policy.batch import PolicyBatch
from vla_adapt.training.meter import Meter


@pytest.fixture
def normalizer() -> Normalizer:
    """Position slots run over +-0.1 m, the gripper over 0..1; nothing else."""
    values = np.zeros((101, 32))
    values[:, :3] = np.linspace(-0.1, 0.1, 101)[:, None]
    values[:, 6] = np.arange(101) % 2
    mask = np.zeros(32, bool)
    mask[[0, 1, 2, 6]] = True
    return Normalizer(Statistics.from_samples(values, mask), mask)


def batch_of(target: torch.Tensor, mask: torch.Tensor) -> PolicyBatch:
    rows = len(target)
    return PolicyBatch(
        input_ids=torch.ones(rows, 2, dtype=torch.long),
        attention_mask=torch.ones(rows, 2, dtype=torch.bool),
        pixel_values=torch.zeros(rows, 6, 4, 4),
        proprio=torch.zeros(rows, 32),
        proprio_mask=torch.zeros(rows, 32, dtype=torch.bool),
        slot_mask=mask.any(dim=1),
        action=target,
        action_mask=mask,
        robots=["r"] * rows,
    )


def test_errors_are_physical_and_masked(normalizer: Normalizer):
    target = torch.zeros(2, 1, 32)
    mask = torch.zeros(2, 1, 32, dtype=torch.bool)
    mask[..., [0, 1, 2, 6]] = True
    prediction = target.clone()
    prediction[..., 0] = 0.5  # half of the half range 0.098 m
    prediction[..., 6] = 0.25
    prediction[..., 9] = 7.0  # a masked slot: must not count
    meter = Meter({"r": normalizer})
    meter.add({"loss_per_sample": torch.tensor([1.0, 3.0]), "prediction": prediction}, batch_of(target, mask))
    found = meter.summary(meter.sums)["r"]
    assert found["loss"] == 2.0
    assert found["samples"] == 2
    assert found["l1_right_ee_position_delta_m"] == pytest.approx(0.5 * 0.098 / 3, rel=1e-4)
    assert found["l1_right_gripper_opening"] == pytest.approx(0.25)
    assert found["token_accuracy"] == pytest.approx(0.5)
    assert not any("joints" in key for key in found)


def test_sums_of_processes_add_up(normalizer: Normalizer):
    target = torch.rand(4, 2, 32) * 0.5
    mask = torch.zeros(4, 2, 32, dtype=torch.bool)
    mask[..., [0, 6]] = True
    output = {"loss_per_sample": torch.rand(4), "prediction": torch.rand(4, 2, 32)}
    whole, first, second = (Meter({"r": normalizer}) for _ in range(3))
    whole.add(output, batch_of(target, mask))
    for part, rows in ((first, slice(0, 1)), (second, slice(1, 4))):
        part.add({key: value[rows] for key, value in output.items()}, batch_of(target[rows], mask[rows]))
    both = first.summary(first.sums + second.sums)["r"]
    assert both == pytest.approx(whole.summary(whole.sums)["r"])
    whole.reset()
    assert whole.summary(whole.sums) == {}
