"""State in files: restored exactly, refused when it is of something else, not saved when diverged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from vla_adapt.training.run_state import RunState


class Counter:
    """Something beside the optimizer that has a state."""

    def __init__(self, count: int) -> None:
        self.count = count

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        self.count = state_dict["count"]


def make(seed: int, width: int = 3, **extras: Any) -> RunState:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(2, width), nn.Dropout(0.5), nn.Linear(width, 1))
    module[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(module[2].parameters(), lr=0.1)
    return RunState(module, optimizer, LambdaLR(optimizer, lambda step: 1.0 / (1 + step)), extras)


def advance(state: RunState) -> float:
    loss = state.module(torch.ones(4, 2)).sum()
    loss.backward()
    state.optimizer.step()
    state.schedule.step()
    state.optimizer.zero_grad()
    return loss.item()


def test_goes_on_as_if_nothing_had_happened(tmp_path: Path):
    first = make(0, scaler=Counter(7))
    for _ in range(3):
        advance(first)
    assert first.write(tmp_path, 0) == ["rng-rank00000.pt", "trained.safetensors", "optimizer.pt"]
    wanted = [advance(first) for _ in range(3)]
    second = make(0, scaler=Counter(0))
    second.read(tmp_path, 0)
    assert second.extras["scaler"].count == 7  # type: ignore[attr-defined]
    assert [advance(second) for _ in range(3)] == wanted, "dropout draws included"
    assert torch.equal(first.module[2].weight, second.module[2].weight)  # type: ignore[index]
    assert first.schedule.get_last_lr() == second.schedule.get_last_lr() == [pytest.approx(0.1 / 7)]


def test_other_ranks_write_their_random_generators_only(tmp_path: Path):
    assert make(0).write(tmp_path, 3) == ["rng-rank00003.pt"]
    assert [file.name for file in tmp_path.iterdir()] == ["rng-rank00003.pt"]


def test_a_rank_that_is_new_keeps_its_generators(tmp_path: Path):
    make(0).write(tmp_path, 0)
    state = make(0)
    torch.manual_seed(11)
    wanted = torch.get_rng_state()
    state.read(tmp_path, 1)
    assert torch.equal(torch.get_rng_state(), wanted)


class Halves:
    """As shards: the module and its optimizer hold half of every number that there is."""

    def __init__(self, state: RunState) -> None:
        self.module = state.module

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: 2 * p.detach() for name, p in self.module.named_parameters() if p.requires_grad}

    def put_weight(self, parameter: nn.Parameter, value: torch.Tensor) -> None:
        parameter.copy_(value / 2)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return self.scaled(optimizer.state_dict(), 2.0)

    def part_of_optimizer_state(self, content: dict[str, Any]) -> dict[str, Any]:
        return self.scaled(content, 0.5)

    def scaled(self, content: dict[str, Any], factor: float) -> dict[str, Any]:
        state = {
            number: {key: value if key == "step" else factor * value for key, value in each.items()}
            for number, each in content["state"].items()
        }
        return {**content, "state": state}


def test_parts_are_put_together_and_taken_apart(tmp_path: Path):
    parts = make(0)
    parts.sharding = Halves(parts)
    for _ in range(3):
        advance(parts)
    parts.write(tmp_path, 0)
    whole, others = make(1), make(2)
    whole.read(tmp_path, 0)
    assert torch.equal(whole.module[2].weight, 2 * parts.module[2].weight)  # type: ignore[index]
    others.sharding = Halves(others)
    others.read(tmp_path, 0)
    assert torch.equal(others.module[2].weight, parts.module[2].weight)  # type: ignore[index]
    for number, state in parts.optimizer.state_dict()["state"].items():
        assert torch.equal(whole.optimizer.state_dict()["state"][number]["exp_avg"], 2 * state["exp_avg"])
        assert torch.equal(others.optimizer.state_dict()["state"][number]["exp_avg"], state["exp_avg"])


def test_weights_alone(tmp_path: Path):
    first, second = make(0), make(1)
    first.write(tmp_path, 0)
    second.read_weights(tmp_path)
    assert torch.equal(first.module[2].weight, second.module[2].weight)  # type: ignore[index]
    assert not torch.equal(first.module[0].weight, second.module[0].weight)  # type: ignore[index]


@pytest.mark.parametrize("other", ["more", "wider"])
def test_other_parameters_are_refused(tmp_path: Path, other: str):
    make(0).write(tmp_path, 0)
    state = make(0, width=4 if other == "wider" else 3)
    if other == "more":
        state.module[0].requires_grad_(True)  # type: ignore[index]
    with pytest.raises(ValueError, match="holds other parameters than this recipe trains"):
        state.read(tmp_path, 0)


def test_other_extras_are_refused(tmp_path: Path):
    make(0).write(tmp_path, 0)
    with pytest.raises(ValueError, match=r"holds the state of nothing .* this run wants \['scaler'\]"):
        make(0, scaler=Counter(0)).read(tmp_path, 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_written(tmp_path: Path, bad: float):
    state = make(0)
    with torch.no_grad():
        state.module[2].bias.fill_(bad)  # type: ignore[index, union-attr]
    with pytest.raises(ValueError, match=r"2\.bias is not finite: training has diverged"):
        state.write(tmp_path, 0)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code ran",)


def test_reading_runs_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    state = make(0)
    state.write(tmp_path, 0)
    torch.save({"optimizer": Evil()}, tmp_path / "optimizer.pt")
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        state.read(tmp_path, 0)
    assert "code ran" not in capsys.readouterr().out
