"""Averaged weights: the formula, other precisions, in and out again, state."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from vla_adapt.training.weight_average import WeightAverage


def moving(module: nn.Module, average: WeightAverage, steps: int) -> list[torch.Tensor]:
    """The weights after each of some random steps."""
    seen = []
    for _ in range(steps):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update()
        seen.append(module.weight.detach().clone())  # type: ignore[union-attr, operator]
    return seen


def test_weights_of_k_steps_ago_count_as_the_kth_power_and_the_first_ones_not_at_all():
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    average = WeightAverage(module, 0.9)
    seen = torch.stack(moving(module, average, 5))
    shares = 0.9 ** torch.arange(4, -1, -1)
    wanted = (shares[:, None, None] * seen).sum(dim=0) / shares.sum()
    torch.testing.assert_close(average.average["weight"], wanted)
    average.put_in()
    torch.testing.assert_close(module.weight, wanted)


def test_after_one_step_it_is_the_weights_themselves():
    module = nn.Linear(3, 2)
    average = WeightAverage(module, 0.999)
    with average.in_place():
        before = module.weight.detach().clone()
    (after,) = moving(module, average, 1)
    assert torch.equal(average.average["weight"], after)
    assert not torch.equal(before, after)


def test_only_what_trains_is_averaged():
    module = nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    assert list(WeightAverage(module, 0.9).average) == ["weight"]


def test_in_place_puts_the_own_weights_back_also_after_an_error():
    module = nn.Linear(3, 2)
    average = WeightAverage(module, 0.9)
    own = moving(module, average, 3)[-1]
    with average.in_place():
        assert torch.equal(module.weight, average.average["weight"])
        assert not torch.equal(module.weight, own)
    assert torch.equal(module.weight, own)

    def fail() -> None:
        with average.in_place():
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(module.weight, own)
    assert module.weight.requires_grad


def test_bfloat16_weights_have_a_float32_average():
    """Steps of a size that a bfloat16 average would round away."""
    module = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        module.weight.fill_(1.0)
    average = WeightAverage(module, 0.99)
    for _ in range(200):
        average.update()
    with torch.no_grad():
        module.weight.fill_(1.125)
    for _ in range(10):
        average.update()
    share = (1 - 0.99**10) / (1 - 0.99**210)
    assert average.average["weight"].item() == pytest.approx(1 + 0.125 * share, rel=1e-5)
    average.put_in()
    assert module.weight.dtype == torch.bfloat16


def test_shards_are_averaged_where_they_are_and_saved_whole():
    """One process that holds all shards: the code that many run."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        averages = []
        for shard in (False, True):
            torch.manual_seed(0)
            module = nn.Linear(3, 2)
            if shard:
                fully_shard(module, mesh=mesh)
            average = WeightAverage(module, 0.9)
            torch.manual_seed(1)
            for factor in (1.5, 0.5):
                with torch.no_grad():
                    for parameter in module.parameters():
                        parameter.mul_(factor)
                average.update()
            averages.append((module, average))
        plain, sharded = (average.state_dict()["average"] for _, average in averages)
        assert not any(isinstance(tensor, DTensor) for tensor in sharded.values())
        assert all(torch.equal(plain[name], sharded[name]) for name in plain)
        module, average = averages[1]
        again = WeightAverage(module, 0.9)
        again.load_state_dict({"updates": 2, "average": {n: t.clone() for n, t in plain.items()}})
        assert isinstance(again.average["weight"], DTensor)
        again.put_in()
        assert torch.equal(module.weight.full_tensor(), plain["weight"])  # type: ignore[union-attr, operator]
    finally:
        dist.destroy_process_group()


def test_goes_on_from_its_state_bit_for_bit():
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    average = WeightAverage(module, 0.9)
    moving(module, average, 3)
    other = nn.Linear(3, 2)
    other.load_state_dict(module.state_dict())
    again = WeightAverage(other, 0.9)
    again.load_state_dict({"updates": 3, "average": {n: t.clone() for n, t in average.average.items()}})
    for one, each in ((module, average), (other, again)):
        torch.manual_seed(1)
        moving(one, each, 3)
    assert average.updates == again.updates == 6
    assert all(torch.equal(average.average[name], again.average[name]) for name in average.average)
