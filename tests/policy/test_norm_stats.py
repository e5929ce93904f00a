"""Statistics keys and un-normalization."""

from __future__ import annotations

import numpy as np
import pytest

from vla_adapt.policy.norm_stats import dataset_stats, unnormalize

STATS = {
    "bridge_orig": {"action": {"q01": [-1.0, 0.0], "q99": [3.0, 1.0], "mask": [True, False]}},
    "fractal": {"action": {"q01": [0.0], "q99": [1.0]}},
}


def test_masked_dimensions_pass_unchanged():
    assert unnormalize(np.array([0.0, 0.25]), STATS["bridge_orig"]["action"]).tolist() == [1.0, 0.25]
    assert unnormalize(np.array([-1.0]), STATS["fractal"]["action"]).tolist() == [0.0]


def test_no_key_is_fine_for_one_dataset_only():
    assert dataset_stats({"only": STATS["fractal"]}, None) == STATS["fractal"]["action"]
    with pytest.raises(ValueError, match="2 datasets; pass unnorm_key, one of: bridge_orig, fractal"):
        dataset_stats(STATS, None)
    with pytest.raises(ValueError, match="0 datasets; pass unnorm_key, one of: none"):
        dataset_stats({}, None)


def test_wrong_key_lists_keys_and_suggests():
    with pytest.raises(ValueError, match=r"did you mean 'bridge_orig'.*Keys there: bridge_orig, fractal"):
        dataset_stats(STATS, "bridge_org")
