"""What the launcher above this process was told, from its command line: it may have dropped it silently."""

from __future__ import annotations

import os
from collections.abc import Sequence

import psutil
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser

LAUNCHERS = ("accelerate", "torchrun", "torch.distributed.run")


def launcher_command() -> list[str]:
    """Command line of the launcher that started this process; empty when none did."""
    try:
        command = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return []
    return command if any(name in part for part in command[:4] for name in LAUNCHERS) else []


def asked_processes(command: Sequence[str]) -> int:
    """How many processes an `accelerate launch` command line, or its config file, asks for; else 1."""
    start = next((index for index, part in enumerate(command[:4]) if "accelerate" in part), None)
    if start is None:
        return 1
    options = [part for part in command[start + 1 :] if part != "launch"]
    arguments, _ = launch_command_parser().parse_known_args(options)
    if arguments.num_processes is not None:
        return int(arguments.num_processes)
    if arguments.config_file is None and not os.path.isfile(default_config_file):
        return 1
    return int(getattr(load_config_from_file(arguments.config_file), "num_processes", 1) or 1)
