"""Gains and losses: planted ones are called so, chance is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import inf

import numpy as np
import pytest

from vla_adapt.evaluation.seed_comparison import (
    ALL,
    BETTER,
    REFERENCE,
    UNCLEAR,
    WORSE,
    Comparison,
    Estimate,
)

Compare = Callable[..., Comparison]


@pytest.fixture
def found(compare: Compare) -> Comparison:
    return compare(4)


def row(found: Comparison, variant: str, robot: str):
    return next(row for row in found.rows if (row.variant, row.robot) == (variant, robot))


def test_harm_and_help_on_the_same_seed_are_called_so(found: Comparison):
    assert row(found, "harm", "ur5e").verdict == WORSE
    assert row(found, "help", "ur5e").verdict == BETTER
    assert row(found, "harm", "franka_panda").verdict == UNCLEAR
    assert row(found, "own", "ur5e").verdict == REFERENCE
    difference = row(found, "harm", "ur5e").difference
    assert difference is not None
    assert difference.low < 0.03 < difference.high
    assert difference.high - difference.low < 0.01, "paired: the spread between seeds is not in it"
    error = row(found, "harm", "ur5e").error
    assert error.high - error.low > 0.1, "it is in the error itself"


def test_the_mean_of_robots(found: Comparison):
    runs = [run for run in found.results if run.variant == "own"]
    wanted = np.mean([list(run.error.values()) for run in runs])
    assert row(found, "own", ALL).error.mean == pytest.approx(wanted)


def test_only_seeds_of_both_are_paired(compare: Compare):
    few = row(compare(4, only=lambda run: (run.variant, run.seed) != ("own", 2)), "harm", "ur5e").difference
    same = row(compare(4, only=lambda run: run.seed != 2), "harm", "ur5e").difference
    assert few is not None
    assert same is not None
    assert few.mean == pytest.approx(same.mean)


def test_a_stopped_ablation_leaves_out_variants_that_did_not_run(compare: Compare):
    assert compare(2, only=lambda run: run.variant != "help").variants == ["own", "harm"]


def test_estimate_text():
    assert Estimate(0.1, 0.05, 0.15).text() == "0.100 [0.050, 0.150]"
    assert Estimate(-0.1, -0.15, 0.05).text(2, sign=True) == "-0.10 [-0.15, +0.05]"
    assert Estimate.of([0.5]) == Estimate(0.5, -inf, inf)


def test_losses_come_before_gains(found: Comparison):
    lines = found.verdicts()
    assert lines[0][0] == WORSE
    assert lines[0][1].startswith("WORSE: harm on ur5e, error +0.03")
    gains = [line for verdict, line in lines if verdict == BETTER]
    assert gains[0].startswith("BETTER: help on ur5e, error -0.03")
    assert gains[0].endswith("against own")
    assert [verdict for verdict, _ in lines] == sorted(
        (verdict for verdict, _ in lines), key=[WORSE, BETTER, UNCLEAR].index
    )
    assert (
        "2 of 4 comparisons of a robot with own: no difference shown; the largest average loss"
        in lines[-1][1]
    )


def test_one_seed_shows_nothing(compare: Compare):
    one = compare(1)
    assert {row.verdict for row in one.rows} == {REFERENCE, UNCLEAR}
    json.loads(json.dumps(one.to_dict()), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_successes_are_pooled(compare: Compare):
    found = compare(3, success=True)
    assert row(found, "own", "ur5e").success == (3, 12)
    assert row(found, "own", ALL).success == (6, 24)


def test_probes(found: Comparison):
    assert found.probe("own", "patches").mean == pytest.approx(0.615)
    assert found.probe("own", "patches", before=True) == Estimate(0.99, 0.99, 0.99)
