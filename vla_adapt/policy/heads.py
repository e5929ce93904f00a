"""Action heads by kind: making, saving and loading what turns hidden states into chunks of actions."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from vla_adapt.policy.action_head import ActionHead, HeadConfig, HeadOutput
from vla_adapt.policy.checkpoint import atomic_files
from vla_adapt.policy.flow_head import FlowHead
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.policy.parallel_head import ParallelHead
from vla_adapt.policy.readout_head import ReadoutHead
from vla_adapt.policy.token_head import TokenHead
from vla_adapt.suggest import validate_model

__all__ = [
    "ActionHead",
    "HeadConfig",
    "HeadOutput",
    "head_class",
    "load_head",
    "make_head",
    "save_head",
    "with_condition",
]

HEAD_JSON = "head.json"
HEAD_WEIGHTS = "head.safetensors"
_KINDS: dict[str, type[ActionHead]] = {
    head.name: head for head in (TokenHead, ParallelHead, ReadoutHead, FlowHead)
}


def head_class(config: HeadConfig) -> type[ActionHead]:
    """The class of a kind of head."""
    return _KINDS[config.kind]


def make_head(config: HeadConfig, model: OpenVLA, seed: int | None = None) -> ActionHead:
    """A fresh head of the model's width, float32, on the CPU.

    Args:
        config: which head.
        model: the policy it will sit on (adapters included or not).
        seed: of the initial weights; None draws from torch's global generator.
    """
    if seed is None:
        return _KINDS[config.kind](config, model.config.hidden_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _KINDS[config.kind](config, model.config.hidden_size)


def with_condition(head: ActionHead, config: HeadConfig, model: OpenVLA) -> ActionHead:
    """`head`'s weights in a head of `config`, which may differ in how the robot is told, a part that is then
    fresh, and in what changes training only.

    Raises:
        ValueError: it differs in something else.
    """
    if head.config == config:
        return head
    told = {"condition": config.condition, "condition_tokens": config.condition_tokens}
    if head.config.served.model_copy(update=told) != config.served:
        raise ValueError(
            f"the base carries the head {head.config}, the recipe wants {config}; make them equal (but for "
            "condition) or set policy.head_from_base=false to start with a fresh head"
        )
    fresh = make_head(config, model)
    same = head.config.served == config.served
    kept = {n: tensor for n, tensor in head.state_dict().items() if same or not n.startswith("condition.")}
    fresh.load_state_dict(kept, strict=False)
    return fresh


def save_head(head: ActionHead, directory: str | Path) -> None:
    """Write `head.json` and `head.safetensors` into a folder."""
    state = {name: tensor.detach().to("cpu").contiguous() for name, tensor in head.state_dict().items()}
    with atomic_files(directory) as scratch:
        described = {"config": head.config.model_dump(), "width": head.width}
        (scratch / HEAD_JSON).write_text(json.dumps(described, indent=2) + "\n")
        save_file(state, scratch / HEAD_WEIGHTS, metadata={"format": "pt"})


def load_head(directory: str | Path, model: OpenVLA) -> ActionHead:
    """Read a head for `model`, in float32.

    Raises:
        ValueError: when files are missing or broken, or the head was made for a model of another width.
    """
    directory = Path(directory)
    for name in (HEAD_JSON, HEAD_WEIGHTS):
        if not (directory / name).is_file():
            raise ValueError(f"no {name} in {directory}; wanted a folder with an action head")
    described = json.loads((directory / HEAD_JSON).read_text())
    config = validate_model(HeadConfig, described["config"], str(directory / HEAD_JSON))
    if described["width"] != model.config.hidden_size:
        raise ValueError(
            f"the head in {directory} is for a model of width {described['width']}, this one has "
            f"{model.config.hidden_size}; load it on the base it was trained on"
        )
    head = make_head(config, model, seed=0)
    state = {name: tensor.float() for name, tensor in load_file(directory / HEAD_WEIGHTS).items()}
    wanted = {name: tensor.shape for name, tensor in head.state_dict().items()}
    if {name: tensor.shape for name, tensor in state.items()} != wanted:
        raise ValueError(
            f"{directory / HEAD_WEIGHTS} does not fit {HEAD_JSON}; copy both files from one save"
        )
    head.load_state_dict(state)
    return head.eval()
