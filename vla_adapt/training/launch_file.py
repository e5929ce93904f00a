"""How many processes share a run, and how: from a launch config of Accelerate, for a plan of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.commands.config.config_args import load_config_from_file
from yaml import YAMLError

from vla_adapt.training.fsdp_launch import check_fsdp_options, gathers_twice
from vla_adapt.training.parallelism import COMPILED, DDP, FSDP2, ONE, Way


@dataclass(frozen=True)
class Layout:
    """Processes of a run.

    Attributes:
        processes: of all machines together.
        way: how they share the work.
        machines: each with equally many processes.
        gather_twice: with FSDP2, see `fsdp_shards.Shards`.
    """

    processes: int = 1
    way: Way = ONE
    machines: int = 1
    gather_twice: bool = True

    @staticmethod
    def of(processes: int) -> Layout:
        """One process, or several of one machine that each have all weights."""
        return Layout(processes, ONE if processes == 1 else DDP)

    @property
    def per_machine(self) -> int:
        """Processes that share a machine's memory."""
        return max(self.processes // self.machines, 1)


def read_layout(file: Path, processes: int | None = None) -> Layout:
    """What `accelerate launch --config_file FILE [--num_processes N]` would start.

    Raises:
        ValueError: no launch config, or one that the run itself would refuse.
    """
    config = _read(file)
    kind = str(getattr(config.distributed_type, "value", config.distributed_type))
    count = int(processes or config.num_processes or 1)
    machines = int(config.num_machines or 1)
    if count % machines:
        raise ValueError(f"{file}: {count} processes do not spread over {machines} machines evenly")
    if str((config.dynamo_config or {}).get("dynamo_backend", "no")).lower() != "no":
        raise ValueError(f"{file} asks for torch.compile (dynamo_config): {COMPILED}")
    if kind == "FSDP":
        return _in_shards(file, count, machines, config.fsdp_config or {})
    if kind == "DEEPSPEED":
        stage = (config.deepspeed_config or {}).get("zero_stage", 2)
        return Layout(count, "ZeRO-3" if stage == 3 else "ZeRO-2", machines)
    if kind == "NO" and count > 1:
        raise ValueError(f"{file}: distributed_type NO starts one process, not {count}; wanted MULTI_GPU")
    if kind not in ("NO", "MULTI_GPU"):
        raise ValueError(f"{file}: got distributed_type {kind}; wanted NO, MULTI_GPU (on CPUs, too) or FSDP")
    return Layout(count, ONE if count == 1 else DDP, machines)


def _read(file: Path) -> Any:
    try:
        return load_config_from_file(str(file))
    except (OSError, TypeError, AttributeError, ValueError, KeyError, YAMLError) as error:
        raise ValueError(
            f"{file} is no launch config of Accelerate, such as recipes/launch/fsdp.yaml: {error}"
        ) from error


def _in_shards(file: Path, processes: int, machines: int, options: Mapping[str, Any]) -> Layout:
    if processes == 1:
        raise ValueError(f"{file} asks for FSDP over one process, which has nobody to share with")
    # As `accelerate launch` hands them on.
    asked = {name.upper(): str(value) for name, value in options.items() if value not in (None, "")}
    try:
        check_fsdp_options(asked)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return Layout(processes, FSDP2, machines, gathers_twice(asked))
