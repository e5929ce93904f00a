"""Statistics and quantile normalization: exact text form, round trips, dead dimensions, masks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_adapt.actions.normalize import HALF_RANGE_FLOOR, Normalizer, Statistics
from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.embodiment import Embodiment
from vla_adapt.types import Layout

NAMES = Embodiment.available()
LAYOUTS: list[Layout] = ["slots", "padded"]


def _samples(
    name: str, layout: Layout = "slots", count: int = 200, seed: int = 0
) -> tuple[np.ndarray, ActionUnifier]:
    unifier = ActionUnifier(Embodiment.load(name), layout)
    native = np.random.default_rng(seed).uniform(-1, 1, (count, unifier.native_dim)) * 0.5
    return unifier.to_unified(native)[0], unifier


def _normalizer(values: np.ndarray, unifier: ActionUnifier) -> Normalizer:
    return Normalizer(Statistics.from_samples(values, unifier.mask), groups=unifier.groups)


def test_statistics_are_those_of_numpy() -> None:
    values, unifier = _samples("ur5e")
    statistics = Statistics.from_samples(values, unifier.mask)
    assert np.allclose(statistics.mean, values.mean(0))
    assert np.allclose(statistics.std, values.std(0))
    assert np.allclose(statistics.q99, np.quantile(values, 0.99, axis=0))
    assert np.array_equal(statistics.max, values.max(0))
    assert statistics.count == 200


def test_statistics_round_trip_exactly_through_json() -> None:
    values, unifier = _samples("widowx")
    statistics = Statistics.from_samples(values, unifier.mask)
    again = Statistics.from_dict(json.loads(json.dumps(statistics.to_dict())))
    assert again == statistics
    assert again != Statistics.from_samples(values[:100], unifier.mask)


def test_statistics_never_read_masked_slots() -> None:
    values, unifier = _samples("ur5e")
    dirty = np.where(unifier.mask, values, np.nan)
    assert Statistics.from_samples(dirty, unifier.mask) == Statistics.from_samples(values, unifier.mask)


def test_statistics_cannot_be_changed() -> None:
    values, unifier = _samples("ur5e")
    statistics = Statistics.from_samples(values, unifier.mask)
    with pytest.raises(ValueError, match="read-only"):
        statistics.mean[0] = 1.0


def test_nan_sample_is_refused_with_its_place() -> None:
    values, unifier = _samples("ur5e")
    values[7, 2] = np.nan
    with pytest.raises(ValueError, match="sample 7 holds nan in slot 2"):
        Statistics.from_samples(values, unifier.mask)


@pytest.mark.parametrize("shape", [(0, 32), (5, 7), (32,)])
def test_samples_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"samples \[N, 32\] with N >= 1"):
        Statistics.from_samples(np.zeros(shape), np.ones(32, dtype=bool))


def test_statistics_text_with_wrong_keys_is_refused() -> None:
    values, unifier = _samples("ur5e")
    data = Statistics.from_samples(values, unifier.mask).to_dict()
    with pytest.raises(ValueError, match="unknown key 'q1'; did you mean 'q01'"):
        Statistics.from_dict(data | {"q1": []})
    with pytest.raises(ValueError, match="missing key 'q99'"):
        Statistics.from_dict({key: value for key, value in data.items() if key != "q99"})
    with pytest.raises(ValueError, match=r"mean has shape \[3\], wanted \[32\]"):
        Statistics.from_dict(data | {"mean": [0.0, 0.0, 0.0]})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_denormalize_undoes_normalize_inside_the_quantile_range(name: str, layout: Layout) -> None:
    values, unifier = _samples(name, layout)
    normalizer = _normalizer(values, unifier)
    statistics = normalizer.statistics
    inside = np.clip(values, statistics.q01, statistics.q99)
    normalized = normalizer.normalize(inside)
    assert np.abs(normalized).max() <= 1.0
    assert np.allclose(normalizer.denormalize(normalized), inside, atol=1e-12)


@given(scale=st.floats(1e-9, 1e3), offset=st.floats(-10, 10), seed=st.integers(0, 1000))
def test_normalize_round_trip_for_any_range(scale: float, offset: float, seed: int) -> None:
    mask = np.ones(32, dtype=bool)
    values = np.random.default_rng(seed).normal(size=(50, 32)) * scale + offset
    normalizer = Normalizer(Statistics.from_samples(values, mask))
    inside = np.clip(values, normalizer.statistics.q01, normalizer.statistics.q99)
    gripper = normalizer.half_range == 1.0
    again = normalizer.denormalize(normalizer.normalize(inside))
    assert np.allclose(again[:, ~gripper], inside[:, ~gripper], rtol=1e-9, atol=1e-9)


def test_q01_and_q99_go_to_minus_one_and_one_as_in_openvla() -> None:
    values, unifier = _samples("ur5e")
    normalizer = _normalizer(values, unifier)
    low, high = normalizer.statistics.q01, normalizer.statistics.q99
    openvla = np.clip(2 * (values - low) / (high - low + 1e-8) - 1, -1, 1)
    assert np.allclose(normalizer.normalize(values)[:, :6], openvla[:, :6], atol=1e-5)
    assert normalizer.normalize(high * 10)[0] == 1.0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_grippers_pass_unchanged(layout: Layout) -> None:
    values, unifier = _samples("bimanual_panda", layout)
    grippers = [i for i, group in enumerate(unifier.groups) if group is not None and group.kind == "gripper"]
    assert len(grippers) == 2
    normalized = _normalizer(values, unifier).normalize(values)
    assert np.array_equal(normalized[:, grippers], values[:, grippers])


@pytest.mark.parametrize("name", NAMES)
def test_dead_dimensions_stay_near_zero_and_small(name: str) -> None:
    values, unifier = _samples(name)
    dead = np.tile(values[:1], (100, 1))
    normalizer = _normalizer(dead, unifier)
    jitter = dead + 1e-6 * np.sin(np.arange(100))[:, None]
    moving = unifier.mask & np.array(
        [group is not None and group.kind != "gripper" for group in unifier.groups]
    )
    assert np.abs(normalizer.normalize(jitter)[:, moving]).max() < 0.02
    wild = normalizer.denormalize(np.ones(32)) - dead[0]
    assert np.abs(wild[moving]).max() <= max(HALF_RANGE_FLOOR.values()) + 1e-12


def test_masked_slots_give_zero_both_ways_even_from_nan() -> None:
    values, unifier = _samples("ur5e")
    normalizer = _normalizer(values, unifier)
    dirty = np.where(unifier.mask, values, np.nan)
    for result in (normalizer.normalize(dirty), normalizer.denormalize(dirty)):
        assert np.array_equal(result[:, ~unifier.mask], np.zeros((200, 25)))
        assert np.isfinite(result).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_torch_gives_the_same_numbers_and_keeps_its_dtype(dtype: torch.dtype) -> None:
    values, unifier = _samples("mobile_panda")
    normalizer = _normalizer(values, unifier)
    tensor = torch.from_numpy(values).to(dtype)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for operation in ("normalize", "denormalize"):
        result = getattr(normalizer, operation)(tensor)
        assert result.dtype == dtype
        expected = getattr(normalizer, operation)(values)
        assert np.allclose(result.double().numpy(), expected, atol=tolerance)


def test_masked_slots_get_no_gradient_in_torch() -> None:
    values, unifier = _samples("ur5e")
    tensor = torch.from_numpy(values).requires_grad_()
    _normalizer(values, unifier).denormalize(tensor).sum().backward()
    assert tensor.grad is not None
    assert torch.all(tensor.grad[:, torch.from_numpy(~unifier.mask)] == 0)
    assert torch.all(tensor.grad[:, torch.from_numpy(np.array(unifier.mask))] != 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numpy_keeps_its_dtype(dtype: type) -> None:
    values, unifier = _samples("ur5e")
    assert _normalizer(values, unifier).normalize(values.astype(dtype)).dtype == dtype


def test_wrong_width_and_unknown_slots_are_refused() -> None:
    values, unifier = _samples("ur5e")
    normalizer = _normalizer(values, unifier)
    with pytest.raises(ValueError, match=r"shape \[4, 7\], wanted \[..., 32\]"):
        normalizer.normalize(np.zeros((4, 7)))
    with pytest.raises(ValueError, match=r"shape \[7\], wanted"):
        normalizer.denormalize(torch.zeros(7))
    with pytest.raises(ValueError, match=r"hold nothing for slots \[28, 29, 30\]"):
        Normalizer(normalizer.statistics, ActionUnifier(Embodiment.load("mobile_panda")).mask)
