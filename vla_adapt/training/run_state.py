"""What of a run changes as it trains, and how it is written to and read from the folder of a checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from vla_adapt.training.rng_state import restore_rng, save_rng

TRAINED, OPTIMIZER = "trained.safetensors", "optimizer.pt"


@runtime_checkable
class Stateful(Protocol):
    """Anything with a state of tensors, numbers and texts: a loss scaler, an average of weights."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


@runtime_checkable
class Sharding(Protocol):
    """Puts together and takes apart what each rank holds a part of; see `fsdp_shards.Shards`."""

    def weights(self) -> dict[str, torch.Tensor]: ...

    def put_weight(self, parameter: nn.Parameter, value: torch.Tensor) -> None: ...

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]: ...

    def part_of_optimizer_state(self, content: dict[str, Any]) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Gathered:
    """What all ranks together trained, whole; on other ranks than 0 it may be empty."""

    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    extras: dict[str, dict[str, Any]]


@dataclass
class RunState:
    """Module (only what trains is kept), optimizer, schedule, and `extras` by name.

    Weights, optimizer and extras are the same on all ranks, or with `sharding` parts that are put together
    first, and written by rank 0; random generators are each rank's own. So a checkpoint says nothing of how
    many ranks there were. Files hold tensors, numbers and texts only: reading one runs no code.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    extras: dict[str, Stateful] = field(default_factory=dict)
    sharding: Sharding | None = None

    def gather(self) -> Gathered:
        """Put shards together; collective, so nothing that can fail on one rank alone belongs beside it."""
        extras = {name: extra.state_dict() for name, extra in self.extras.items()}
        if self.sharding is not None:
            return Gathered(self.sharding.weights(), self.sharding.optimizer_state(self.optimizer), extras)
        trained = {name: p.detach() for name, p in self.module.named_parameters() if p.requires_grad}
        return Gathered(trained, self.optimizer.state_dict(), extras)

    def write(self, folder: Path, rank: int, gathered: Gathered | None = None) -> list[str]:
        """Write this rank's files and return their names.

        Args:
            folder: of the checkpoint.
            rank: this one.
            gathered: what `gather` gave; None: gather now.

        Raises:
            ValueError: the disk is full; a weight is not finite: such a state is no good to go on from.
        """
        with _said(folder):
            return self._write(folder, rank, gathered or self.gather())

    def _write(self, folder: Path, rank: int, gathered: Gathered) -> list[str]:
        save_rng(folder / _rng(rank))
        if rank != 0:
            return [_rng(rank)]
        save_file(_finite(gathered.weights), folder / TRAINED)
        schedule = {key: value for key, value in self.schedule.state_dict().items() if key != "lr_lambdas"}
        state = {"optimizer": gathered.optimizer, "schedule": schedule, "extras": gathered.extras}
        torch.save(state, folder / OPTIMIZER)
        return [_rng(rank), TRAINED, OPTIMIZER]

    def read(self, folder: Path, rank: int) -> None:
        """Restore all of it. A rank that was not there when it was saved keeps its own random generators.

        Raises:
            ValueError: the checkpoint is of other parameters or extras than these.
        """
        self.read_weights(folder)
        state: dict[str, Any] = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
        if state["extras"].keys() != self.extras.keys():
            raise ValueError(
                f"{folder} holds the state of {sorted(state['extras']) or 'nothing'} beside the optimizer, "
                f"this run wants {sorted(self.extras) or 'nothing'}; --fresh starts anew"
            )
        optimizer = state["optimizer"]
        if self.sharding is not None:
            optimizer = self.sharding.part_of_optimizer_state(optimizer)
        self.optimizer.load_state_dict(optimizer)
        self.schedule.load_state_dict(
            state["schedule"] | {"lr_lambdas": [None] * len(self.schedule.lr_lambdas)}
        )
        for name, extra in self.extras.items():
            extra.load_state_dict(state["extras"][name])
        if (folder / _rng(rank)).is_file():
            restore_rng(folder / _rng(rank))

    def read_weights(self, folder: Path) -> None:
        """Restore what trains and nothing else.

        Raises:
            ValueError: the checkpoint is of other parameters.
        """
        parameters = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        trained = load_file(folder / TRAINED)
        if {n: p.shape for n, p in parameters.items()} != {n: t.shape for n, t in trained.items()}:
            raise ValueError(f"{folder} holds other parameters than this recipe trains; --fresh starts anew")
        with torch.no_grad():
            for name, parameter in parameters.items():
                if self.sharding is not None:
                    self.sharding.put_weight(parameter, trained[name])
                else:
                    parameter.copy_(trained[name])


def _finite(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Them on the CPU, one after the other in memory."""
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} is not finite: training has diverged; lower the learning rate")
    return {name: tensor.cpu().contiguous() for name, tensor in weights.items()}


@contextmanager
def _said(folder: Path) -> Iterator[None]:
    """On a full disk torch and safetensors fail without naming it; the number of free bytes does."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        free = shutil.disk_usage(folder).free
        raise ValueError(f"cannot write to {folder.parent}, {free:,} bytes are free ({error})") from error


def _rng(rank: int) -> str:
    return f"rng-rank{rank:05d}.pt"
