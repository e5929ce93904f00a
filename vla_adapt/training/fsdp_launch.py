"""What an FSDP launch asks for, by environment variables: what `fsdp_shards` does not do is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

USE_FSDP = "ACCELERATE_USE_FSDP"
# Each of them is sharded by itself, whatever the launch config names.
BLOCKS = ("LlamaDecoderLayer", "Dinov2WithRegistersLayer", "SiglipEncoderLayer")

_OPTIONS = {
    "FSDP_VERSION": (("2",), "only FSDP2 shards adapters on a frozen base: --fsdp_version 2"),
    "FSDP_RESHARD_AFTER_FORWARD": (
        ("true", "false"), "true (less memory) or false (faster): --fsdp_reshard_after_forward true"
    ),
    "FSDP_OFFLOAD_PARAMS": (
        ("false",), "weights stay on the GPU: --fsdp_offload_params false, and more GPUs or a smaller batch"
    ),
    "FSDP_AUTO_WRAP_POLICY": (
        ("transformer_based_wrap",), "each transformer block is a unit of its own: drop the option"
    ),
    "FSDP_STATE_DICT_TYPE": (
        ("full_state_dict",),
        "checkpoints hold whole tensors, so that any number of processes can go on from them: "
        "--fsdp_state_dict_type FULL_STATE_DICT",
    ),
    "FSDP_ACTIVATION_CHECKPOINTING": (
        ("false",), "the recipe decides: --set train.checkpointing=true"
    ),
    "FSDP_IGNORED_MODULES": ((), "heads stay whole, all else is sharded: drop the option"),
}  # fmt: skip


def asks_for_fsdp() -> bool:
    """Whether this process was launched to shard."""
    return os.environ.get(USE_FSDP, "false").lower() in ("true", "1", "yes")


def check_fsdp_options(asked: Mapping[str, str] = os.environ) -> None:
    """Look at what the launch config says beside "FSDP", in the environment or in `asked`.

    Raises:
        ValueError: something that would not be done, or a torch that is too old.
    """
    for variable, (known, reason) in _OPTIONS.items():
        value = asked.get(variable)
        if value is not None and value.lower() not in known:
            raise ValueError(f"the launch asks for {variable}={value}: {reason}")
    named = asked.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "")
    strange = [name for name in named.replace(" ", "").split(",") if name and name not in BLOCKS]
    if strange:
        raise ValueError(
            f"the launch asks for FSDP_TRANSFORMER_CLS_TO_WRAP={named}: no '{strange[0]}' in the model; its "
            f"blocks are {', '.join(BLOCKS)}, all sharded without being named: drop the option"
        )


def gathers_twice(asked: Mapping[str, str] = os.environ) -> bool:
    """Whether a block's weights are freed after its forward pass; else they stay until its backward pass."""
    return asked.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true"


@contextmanager
def fsdp_hidden() -> Iterator[None]:
    """Inside, Accelerate does not see that FSDP is asked for: it joins the processes, sharding is ours."""
    asked = os.environ.pop(USE_FSDP, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[USE_FSDP] = asked
