"""Options of an FSDP launch: done, or refused by name."""

from __future__ import annotations

import os
import re

import pytest
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from transformers.modeling_layers import GradientCheckpointingLayer

from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.resources import tiny_base_dir
from vla_adapt.training import fsdp_launch
from vla_adapt.training.fsdp_launch import USE_FSDP, asks_for_fsdp, check_fsdp_options, fsdp_hidden


@pytest.fixture(autouse=True)
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FSDP_")] + [USE_FSDP]:
        monkeypatch.delenv(name, raising=False)


def test_the_command_line_of_accelerate_is_enough(monkeypatch: pytest.MonkeyPatch):
    line = ["--use_fsdp", "--fsdp_version", "2", "--num_processes", "2", "--main_process_port", "0", "x.py"]
    arguments = launch_command_parser().parse_args(line)
    arguments.num_machines, arguments.mixed_precision, arguments.dynamo_backend = 1, "no", "no"
    for name, value in prepare_multi_gpu_env(arguments).items():
        if name.startswith("FSDP_") or name == USE_FSDP:
            monkeypatch.setenv(name, value)
    assert asks_for_fsdp()
    check_fsdp_options()
    assert fsdp_launch.gathers_twice()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("VERSION", "1", "only FSDP2 .* --fsdp_version 2"),
        ("RESHARD_AFTER_FORWARD", "FULL_SHARD", "true .* or false"),
        ("OFFLOAD_PARAMS", "true", "weights stay on the GPU"),
        ("AUTO_WRAP_POLICY", "SIZE_BASED_WRAP", "each transformer block is a unit of its own"),
        ("STATE_DICT_TYPE", "SHARDED_STATE_DICT", "checkpoints hold whole tensors"),
        ("ACTIVATION_CHECKPOINTING", "true", "the recipe decides: --set train.checkpointing"),
        ("IGNORED_MODULES", ".*head", "heads stay whole"),
        ("TRANSFORMER_CLS_TO_WRAP", "LlamaDecoderLayer,T5Block", "no 'T5Block' in the model; its blocks are"),
    ],
)
def test_what_would_not_be_done_is_refused(
    monkeypatch: pytest.MonkeyPatch, option: str, value: str, message: str
):
    monkeypatch.setenv(f"FSDP_{option}", value)
    with pytest.raises(ValueError, match=rf"asks for FSDP_{option}={re.escape(value)}: {message}"):
        check_fsdp_options()


def test_blocks_may_be_named(monkeypatch: pytest.MonkeyPatch):
    model = OpenVLA.from_pretrained(tiny_base_dir())
    blocks = {
        next(kind.__name__ for kind in type(part).__mro__ if "transformers.models" in kind.__module__)
        for part in model.modules() if isinstance(part, GradientCheckpointingLayer)
    }  # fmt: skip
    assert blocks == set(fsdp_launch.BLOCKS)
    monkeypatch.setenv("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", ", ".join(blocks))
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "False")
    check_fsdp_options()
    assert not fsdp_launch.gathers_twice()


def test_accelerate_is_not_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(USE_FSDP, "true")
    with fsdp_hidden():
        assert not asks_for_fsdp()
    assert asks_for_fsdp()
    monkeypatch.delenv(USE_FSDP)
    with fsdp_hidden():
        pass
    assert USE_FSDP not in os.environ
