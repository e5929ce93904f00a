"""Which hidden states are taken."""

from __future__ import annotations

import torch

from vla_adapt.invariance.tap import tapped


def test_means_over_patches_or_action_positions():
    patches, hidden = torch.randn(2, 9, 4), torch.randn(2, 3, 4)
    assert torch.equal(tapped("patches", patches, hidden), patches.mean(dim=1))
    assert torch.equal(tapped("hidden", patches, hidden), hidden.mean(dim=1))
