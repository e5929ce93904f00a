"""The check of a merge: what counts as a difference, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vla_adapt.adaptation.bundle import Bundle, Golden
from vla_adapt.adaptation.merge_check import MergeReport, answers, difference, golden_of, hidden_and_logits
from vla_adapt.policy.openvla import OpenVLA

GOLDEN = Golden(np.zeros((8, 8, 3), np.uint8), np.zeros(1), "x", np.zeros((1, 1)), tolerance=1e-3)


def report(**changes) -> MergeReport:
    fields = {
        "robot": "r", "modules": 1, "dtype": torch.float32, "difference": 1e-6, "chunk_difference": 0.0,
        "effect": 0.1, "tolerance": 1e-4, "notes": (),
    }  # fmt: skip
    return MergeReport(**fields | changes)


def test_difference_is_relative_and_nan_is_infinite():
    wanted = [torch.tensor([[[2.0, -4.0]]]), torch.tensor([[[1.0]]])]
    assert difference([wanted[0] + 0.4, wanted[1]], wanted) == pytest.approx(0.1)
    assert difference(wanted, wanted) == 0
    assert difference([wanted[0], torch.tensor([[[float("nan")]]])], wanted) == float("inf")


def test_small_differences_pass_and_others_do_not():
    report().check(GOLDEN)
    report(chunk_difference=9e-4).check(GOLDEN)
    report(effect=0.0, difference=0.0).check(GOLDEN)
    for changes in ({"difference": 2e-4}, {"chunk_difference": 2e-3}, {"difference": float("inf")}):
        with pytest.raises(ValueError, match="nothing was written"):
            report(**changes).check(GOLDEN)
    with pytest.raises(ValueError, match="swallows it"):
        report(difference=1e-5, effect=1.5e-5).check(GOLDEN)


def test_three_inputs_are_looked_at_with_and_without_the_adapter(tiny_bundle, random_base):
    bundle = Bundle.load(tiny_bundle)
    policy = bundle.attach(OpenVLA.from_pretrained(random_base))
    given = answers(policy, golden_of(bundle))
    bare = hidden_and_logits(policy, golden_of(bundle), adapted=False)
    assert [tensor.shape[-1] for tensor in given.tensors] == [128, 576] * 3
    assert difference(bare, given.tensors) > 1e-2
    assert difference(answers(policy, golden_of(bundle)).tensors, given.tensors) == 0
    assert not torch.equal(given.tensors[0][:, 1:20], given.tensors[2][:, 1:20])
    bundle.golden = None
    with pytest.raises(ValueError, match="no golden pair"):
        golden_of(bundle)
