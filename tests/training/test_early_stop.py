"""The best validation and the end of patience; knobs without effect."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from vla_adapt.training.early_stop import EarlyStop, ValidationConfig


def run(metrics: list[float], patience: int, min_delta: float = 0.0) -> tuple[EarlyStop, list[bool], int]:
    """Validations after steps 10, 20, ...; which were the best so far, and after which it stopped."""
    stop, best = EarlyStop(patience, min_delta), []
    for number, metric in enumerate(metrics, start=1):
        best.append(stop.add(10 * number, metric))
        if stop.stopped:
            return stop, best, 10 * number
    return stop, best, 0


def test_stops_after_so_many_in_a_row_without_improvement():
    stop, best, at = run([3.0, 2.0, 2.5, 1.0, 1.0, 1.5, 0.5], patience=2)
    assert (best, at) == ([True, True, False, True, False, False], 60)
    assert (stop.best, stop.best_step) == (1.0, 40)
    assert stop.why() == "stopped early after step 60: no improvement in 2 validation(s), best 1 at 40"


def test_small_improvements_are_the_best_but_no_reason_to_go_on():
    stop, best, at = run([1.0, 0.95, 0.91, 0.85], patience=2, min_delta=0.1)
    assert (best, at) == ([True, True, True], 30)
    assert stop.best_step == 30
    _, _, at = run([1.0, 0.95, 0.89, 0.85], patience=2, min_delta=0.1)
    assert at == 0, "0.89 is 0.1 below 1.0, though not below 0.95"


def test_without_patience_it_never_stops():
    stop, _, at = run([1.0] + [2.0] * 50, patience=0)
    assert at == 0
    assert stop.best_step == 10


def test_what_is_not_a_number_is_no_improvement():
    stop, best, at = run([math.nan, math.inf, 1.0, math.nan, math.nan], patience=3)
    assert (best, at) == ([False, False, True, False, False], 0)
    stop, _, at = run([math.nan] * 3, patience=3)
    assert at == 30
    assert stop.best_step is None
    assert stop.why().endswith("none was finite")


@pytest.mark.parametrize("cut", range(1, 6))
def test_goes_on_where_it_was(cut: int):
    metrics = [3.0, 2.0, 2.5, 1.0, 1.0, 1.5]
    first, _, _ = run(metrics[:cut], patience=2, min_delta=0.1)
    second = EarlyStop(2, 0.1)
    second.load_state_dict(first.state_dict())
    for number, metric in enumerate(metrics[cut:], start=cut + 1):
        second.add(10 * number, metric)
    assert second.state_dict() == run(metrics, patience=2, min_delta=0.1)[0].state_dict()
    assert second.stopped


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"patience": 3}, "patience has no effect without validation; set validation.every"),
        ({"windows": 8}, "windows has no effect without validation"),
        ({"use_best": False}, "use_best has no effect without validation"),
        ({"every": 5, "min_delta": 0.1}, "min_delta 0.1 has no effect without patience"),
        ({"every": 5, "metric": "accuracy"}, "metric"),
        ({"every": -1}, "every"),
        ({"every": 5, "patience": 1, "min_delta": -0.1}, "min_delta"),
    ],
)
def test_refusals(given: dict[str, object], message: str):
    with pytest.raises(ValidationError, match=message):
        ValidationConfig.model_validate(given)
    assert ValidationConfig() == ValidationConfig.model_validate(ValidationConfig().model_dump())
