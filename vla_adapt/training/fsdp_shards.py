"""A learner of which each process holds a shard (FSDP2, torch's `fully_shard`): same numbers as whole ones.

Ours instead of Accelerate's own FSDP, which drops out without a word where there is no GPU and knows nothing
of robots that a process does not see: what the tests run on CPUs (gloo) is what GPUs run.

Each block of the language model and of both vision towers is gathered while it runs, the rest (embeddings,
projector, output layer) while a pass runs. Adapters are sharded with the layers they are on, their gradients
and optimizer states, too (ZeRO-3, Rajbhandari et al., 1910.02054). Heads and helper losses are small, and a
process calls only those of the robots it sees: they stay whole everywhere, their gradients are averaged here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers.modeling_layers import GradientCheckpointingLayer

from vla_adapt.training.learner import Learner


class Shards:
    """Shards `learner` in place; all processes make it and call its methods together, in the same order.

    Attributes:
        groups: as `Learner.groups`, but of plain tensors: this process's shards of what is sharded, under the
            same numbers. An optimizer over them updates the learner.
        sharding: this, as what `RunState` puts together.

    Args:
        learner: on the CPU, with the same weights on every process.
        device: of this process.
        gather_twice: free a block's weights after its forward pass and gather them again for its backward
            pass (ZeRO-3); else keep them in between: faster, more memory.
    """

    def __init__(self, learner: Learner, device: torch.device, gather_twice: bool = True) -> None:
        self.sharding = self
        self._rank, self._world, self._device = dist.get_rank(), dist.get_world_size(), device
        self._learner = learner
        learner.reach_all = True
        whole = nn.ModuleList(part for part in learner.children() if part is not learner.model).to(device)
        self._whole = [parameter for parameter in whole.parameters() if parameter.requires_grad]
        self._start_alike()
        mesh = init_device_mesh(device.type, (self._world,))
        for block in learner.model.modules():
            if isinstance(block, GradientCheckpointingLayer):
                fully_shard(block, mesh=mesh, reshard_after_forward=gather_twice)
        fully_shard(learner, mesh=mesh, ignored_params=set(whole.parameters()))
        self._shards: dict[nn.Parameter, nn.Parameter] = {
            parameter: nn.Parameter(_local(parameter))
            for parameter in learner.parameters()
            if parameter.requires_grad and isinstance(parameter, DTensor)
        }
        groups = learner.groups()
        self.groups = {name: [self._mine(parameter) for parameter in group] for name, group in groups.items()}
        self._owners = {parameter: name for name, group in groups.items() for parameter in group}

    def prepare(self, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """What to call for a forward pass, and the optimizer to step."""
        return self._learner, optimizer

    def passing(self, last: bool) -> AbstractContextManager[Any]:
        """Around one forward and backward pass.

        Every pass adds to the shards of the gradients: added up before, they would be whole on every process.
        """
        del last
        return nullcontext()

    def settle(self, robots: set[str], clip_norm: float) -> list[Tensor]:
        """After the backward passes of a step: gradients of the whole batch, clipped per robot, in `groups`.

        What no process used has no gradient (None, not zero), as where nothing is sharded: AdamW passes it
        over.

        Args:
            robots: that this process's rows were of.
            clip_norm: see `optimizer.clip_per_robot`.

        Returns:
            Norms of `groups` before they were clipped, the same on all processes.
        """
        names = list(self.groups)
        seen = [name in robots or name not in self._learner.heads for name in names]
        used = self._anywhere(seen + [parameter.grad is not None for parameter in self._whole])
        for parameter, wanted in zip(self._whole, used[len(names) :], strict=True):
            self._average(parameter, wanted)
        there = {name for name, wanted in zip(names, used, strict=False) if wanted}
        for parameter, shard in self._shards.items():
            wanted = parameter.grad is not None and self._owners[parameter] in there
            shard.grad = _local(parameter.grad) if wanted else None
        norms = self._norms()
        for group, norm in zip(self.groups.values(), norms, strict=True):
            clip_grads_with_norm_(group, clip_norm, norm)
        return norms

    def clear(self, optimizer: torch.optim.Optimizer) -> None:
        """Forget all gradients."""
        del optimizer
        for parameter in (*self._shards, *self._shards.values(), *self._whole):
            parameter.grad = None

    def weights(self) -> dict[str, Tensor]:
        """What trains, whole, by the learner's names, on the CPU of rank 0; nothing on other ranks."""
        for module in self._learner.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # a pass without backward leaves what lies outside of blocks gathered
        trained = {name: p for name, p in self._learner.named_parameters() if p.requires_grad}
        return self._at_main(trained.items(), lambda p: p.full_tensor() if isinstance(p, DTensor) else p)

    def put_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Set one trained parameter of the learner, of which `value` is all."""
        with torch.no_grad():
            self._mine(parameter).copy_(self._part(parameter, value))

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """`optimizer.state_dict()` with whole tensors on the CPU, at rank 0; empty on other ranks."""
        content = optimizer.state_dict()
        owners = self._in_order()
        whole = {}
        for number in sorted(content["state"]):
            state = content["state"][number]
            whole[number] = self._at_main(state.items(), lambda t, of=owners[number]: self._joined(of, t))
        return {**content, "state": whole} if self._rank == 0 else {}

    def part_of_optimizer_state(self, content: dict[str, Any]) -> dict[str, Any]:
        """This process's part of what `optimizer_state` gave."""
        owners = self._in_order()
        parts = {
            number: {key: _copy(self._part(owners[number], value)) for key, value in state.items()}
            for number, state in content["state"].items()
        }
        return {**content, "state": parts}

    def _mine(self, parameter: nn.Parameter) -> nn.Parameter:
        return self._shards.get(parameter, parameter)  # pyright: ignore

    def _in_order(self) -> list[nn.Parameter]:
        """The learner's parameters as the optimizer numbers them."""
        owner = {id(shard): parameter for parameter, shard in self._shards.items()}
        return [owner.get(id(mine), mine) for group in self.groups.values() for mine in group]

    def _start_alike(self) -> None:
        """What trains is that of rank 0, should others have drawn it differently."""
        for parameter in self._learner.parameters():
            if parameter.requires_grad:
                value = parameter.data.to(self._device)
                dist.broadcast(value, 0)
                parameter.data.copy_(value)

    def _anywhere(self, here: list[bool]) -> list[bool]:
        """Which of them hold on any process."""
        flags = torch.tensor(here, dtype=torch.int32, device=self._device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return [bool(flag) for flag in flags.tolist()]

    def _average(self, parameter: nn.Parameter, used: bool) -> None:
        if not used:
            return
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= self._world

    def _norms(self) -> list[Tensor]:
        """Of each group's gradient, over all of its shards."""
        shards = set(self._shards.values())
        sums = []
        for group in self.groups.values():
            squares = [
                get_total_norm([p.grad for p in group if p.grad is not None and (p in shards) is sharded])
                ** 2
                for sharded in (True, False)
            ]
            sums.append(squares[0].to(self._device) + squares[1].to(self._device) / self._world)
        total = torch.stack(sums)
        dist.all_reduce(total)
        return list(total.sqrt())

    def _at_main(self, items: Any, whole: Callable[[Any], Any]) -> dict[str, Any]:
        found = {}
        for name, value in items:
            tensor = whole(value)
            if self._rank == 0:
                found[name] = tensor.detach().cpu().contiguous() if isinstance(tensor, Tensor) else tensor
        return found

    def _joined(self, parameter: nn.Parameter, value: Any) -> Any:
        """All of a state of which `value` is this process's part."""
        if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.ndim == 0:
            return value
        sharded = DTensor.from_local(
            value, parameter.device_mesh, parameter.placements, run_check=False,
            shape=parameter.shape, stride=parameter.stride(),
        )  # fmt: skip
        return sharded.full_tensor()

    def _part(self, parameter: nn.Parameter, value: Any) -> Any:
        """This process's rows: `fully_shard` cuts as `torch.chunk` does."""
        if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.ndim == 0:
            return value
        chunks = value.chunk(self._world)
        return chunks[self._rank] if self._rank < len(chunks) else value[:0]


def _copy(value: Any) -> Any:
    """A view would keep all of its tensor in memory."""
    return value.clone() if isinstance(value, Tensor) else value


def _local(tensor: Any) -> Tensor:
    return tensor.detach().to_local()
