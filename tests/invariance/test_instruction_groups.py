"""Numbers for instructions, and statistics within groups."""

from __future__ import annotations

import pytest
import torch

from vla_adapt.invariance.instruction_groups import group_numbers, instruction_ids, within_groups
from vla_adapt.invariance.mmd import mmd2


def test_ids_are_of_the_text_alone():
    ids = torch.tensor([[1, 5, 7, 0], [1, 5, 9, 0], [1, 5, 7, 3], [1, 7, 5, 0]])
    mask = torch.tensor([[1, 1, 1, 0]] * 4, dtype=torch.bool)
    numbers = instruction_ids(ids, mask)
    assert numbers[0] == numbers[2], "padding is not read"
    assert len(set(numbers.tolist())) == 3
    longer = instruction_ids(torch.tensor([[0, 1, 5, 7, 0, 0]]), torch.tensor([[0, 1, 1, 1, 0, 0]]).bool())
    assert longer[0] == numbers[0], "neither the width of the batch nor the side of the padding matters"
    cut = instruction_ids(ids[:1], torch.tensor([[1, 1, 0, 0]]).bool())
    assert cut[0] != numbers[0]


def test_group_numbers_of_numbers_and_of_vectors():
    numbers = group_numbers(torch.tensor([40, 7, 40, 9]))
    assert numbers[0] == numbers[2]
    assert len(set(numbers.tolist())) == 3
    vectors = group_numbers(torch.tensor([[0.5, 1.0], [0.5, 2.0], [0.5, 1.0], [0.0, 0.0]]))
    assert vectors[0] == vectors[2]
    assert len(set(vectors.tolist())) == 3


def test_the_average_is_over_rows_of_groups_that_have_a_value():
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(14, 3, generator=draw)
    robots = torch.tensor([0, 0, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0])
    groups = torch.tensor([8] * 4 + [3] * 6 + [5] * 4)  # the last has one robot only
    first, second = mmd2(features[:4], robots[:4]), mmd2(features[4:10], robots[4:10])
    assert first is not None
    assert second is not None
    got = within_groups(mmd2, features, robots, groups)
    torch.testing.assert_close(got, (4 * first + 6 * second) / 10)
    assert within_groups(mmd2, features[10:], robots[10:], groups[10:]) is None
    plain = within_groups(mmd2, features, robots, None)
    assert plain is not None
    torch.testing.assert_close(plain, mmd2(features, robots))


def test_robots_that_differ_by_task_only_are_alike_within_tasks():
    """Each robot does mostly its own task: to tell the task is to tell the robot, but not within a task."""
    draw = torch.Generator().manual_seed(1)
    robots = torch.arange(240) % 2
    tasks = torch.where(torch.rand(240, generator=draw) < 0.8, robots, 1 - robots)
    features = torch.randn(240, 4, generator=draw) + 3.0 * tasks[:, None]
    apart = within_groups(mmd2, features, robots, None)
    alike = within_groups(mmd2, features, robots, tasks)
    assert apart is not None
    assert alike is not None
    assert float(apart) > 0.1
    assert float(alike) == pytest.approx(0.0, abs=0.02)
