"""The ratio, also where predicting the mean makes no error."""

from __future__ import annotations

from math import inf

import pytest

from vla_adapt.evaluation.mean_ratio import mean_ratio


@pytest.mark.parametrize(
    ("error", "baseline", "ratio"), [(0.2, 0.4, 0.5), (0.3, 0.0, inf), (0.0, 0.0, 1.0), (0.0, 0.2, 0.0)]
)
def test_ratio(error: float, baseline: float, ratio: float):
    assert mean_ratio({"error": error, "baseline_error": baseline}) == ratio
