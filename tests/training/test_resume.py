"""Resume points: whole or absent, restored exactly, refused when they are of something else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from vla_adapt.training.resume import Resumed, drop_resume_point, load_resume_point, save_resume_point

ORDER = {"sample": 24, "mixture": "0123456789abcdef"}
RECIPE = "seed: 0\ntrain: {steps: 5}\nmixture: [{path: a}]\n"


def make(seed: int, width: int = 3) -> tuple[nn.Module, torch.optim.Optimizer, LambdaLR]:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(2, width), nn.Linear(width, 1))
    module[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(module[1].parameters(), lr=0.1)
    schedule = LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
    return module, optimizer, schedule


def advance(module: nn.Module, optimizer: torch.optim.Optimizer, schedule: LambdaLR) -> None:
    module(torch.ones(4, 2)).sum().backward()
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()


def test_nothing_there(tmp_path: Path):
    assert load_resume_point(tmp_path, RECIPE, *make(0)) == Resumed()
    drop_resume_point(tmp_path)


def test_goes_on_as_if_nothing_had_happened(tmp_path: Path):
    first = make(0)
    for _ in range(3):
        advance(*first)
    sums = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    save_resume_point(tmp_path, 3, RECIPE, *first, ORDER, sums)
    second = make(0)
    point = load_resume_point(tmp_path, RECIPE, *second)
    assert (point.step, point.order, point.differs) == (3, ORDER, [])
    assert point.sums is not None
    assert torch.equal(point.sums, sums)
    for run in (first, second):
        advance(*run)
    assert torch.equal(first[0][1].weight, second[0][1].weight)  # type: ignore[index]
    assert first[2].get_last_lr() == second[2].get_last_lr() == [pytest.approx(0.1 / 5)]
    assert [file.name for file in tmp_path.iterdir()] == ["resume.pt"]
    drop_resume_point(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_point_of_another_recipe_is_not_used_and_says_why(tmp_path: Path):
    save_resume_point(tmp_path, 3, RECIPE, *make(0), ORDER, torch.zeros(1))
    module, *rest = make(1)
    before = module[1].weight.clone()  # type: ignore[index]
    other = "seed: 1\ntrain: {steps: 5, batch_size: 2}\nmixture: [{path: b}, {path: c}]\n"
    point = load_resume_point(tmp_path, other, module, *rest)
    assert point.step == 0
    assert point.differs == ["seed", "mixture.0.path", "train.batch_size", "mixture.1.path"]
    assert torch.equal(module[1].weight, before)  # type: ignore[index]


def test_other_parameters_are_refused(tmp_path: Path):
    save_resume_point(tmp_path, 3, RECIPE, *make(0), ORDER, torch.zeros(1))
    module, optimizer, schedule = make(0)
    module[0].requires_grad_(True)  # type: ignore[index]
    with pytest.raises(ValueError, match="holds other parameters than this recipe trains; delete it"):
        load_resume_point(tmp_path, RECIPE, module, optimizer, schedule)
