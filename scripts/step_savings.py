"""What our training step leaves out or does faster, each switched off alone; and what lies beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch
from compared_steps import Bench, adapters
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from vla_adapt.adaptation import adapted_linear
from vla_adapt.adaptation.routed import RoutedLinear
from vla_adapt.policy.gated_mlp import LeanMLP
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.policy.reading_layer import at
from vla_adapt.policy.rms_norm import LeanRMSNorm

LLAMAS: dict[type[nn.Module], type[nn.Module]] = {LeanRMSNorm: LlamaRMSNorm, LeanMLP: LlamaMLP}


@contextmanager
def llamas_own(model: OpenVLA, *ours: type[nn.Module]) -> Iterator[None]:
    """Norms and MLPs as transformers has them."""
    modules: list[Any] = [module for module in model.modules() if type(module) in (ours or LLAMAS)]
    before = [type(module) for module in modules]
    for module, kind in zip(modules, before, strict=True):
        module.__class__ = LLAMAS[kind]
    try:
        yield
    finally:
        for module, kind in zip(modules, before, strict=True):
            module.__class__ = kind


@contextmanager
def whole_last_layer(model: OpenVLA, logits: bool = False) -> Iterator[None]:
    """Run the last layer, and on request `lm_head`, at all positions; pick what is read afterwards."""
    encode, head, kept = model.encode, model.language_model.lm_head, []

    def everywhere(*arguments: Any, read: Tensor, **options: Any) -> Tensor:
        hidden = encode(*arguments, **options)
        kept[:] = [head(hidden).float(), read] if logits else []
        return at(hidden, read)

    class Picked(nn.Module):
        def forward(self, _: Tensor) -> Tensor:
            return at(*kept).flatten(0, 1)

    with mock.patch.object(model, "encode", everywhere), ExitStack() as stack:
        if logits:
            model.language_model.lm_head = Picked()
            stack.callback(setattr, model.language_model, "lm_head", head)
        yield


@contextmanager
def attention_by_hand(model: OpenVLA) -> Iterator[None]:
    found: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs = {id(config): config for config in found if hasattr(config, "_attn_implementation")}
    for config in configs.values():
        config._attn_implementation = "eager"
    try:
        yield
    finally:
        for config in configs.values():
            config._attn_implementation = "sdpa"


@contextmanager
def embedding_gradients(model: OpenVLA) -> Iterator[None]:
    """As PEFT sets a model up that does not say whether it checkpoints."""
    handle = model.get_input_embeddings().register_forward_hook(lambda *given: given[-1].requires_grad_(True))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def checkpointing(model: OpenVLA, towers_only: bool = False) -> Iterator[None]:
    model.gradient_checkpointing_enable(towers_only)
    try:
        yield
    finally:
        for module in model.modules():
            if hasattr(module, "gradient_checkpointing"):
                setattr(module, "gradient_checkpointing", False)  # noqa: B010


@contextmanager
def last_vision_blocks(model: OpenVLA) -> Iterator[None]:
    """One more block per tower, its output not used, as timm runs `get_intermediate_layers`."""
    towers = model.vision_backbone
    blocks = (towers.featurizer.encoder.layer[-1], towers.fused_featurizer.encoder.layers[-1])

    def again(block: nn.Module, inputs: Any, options: Any, output: Any) -> None:
        rest = {name: value for name, value in options.items() if name != "hidden_states"}
        block.forward(output if isinstance(output, Tensor) else output[0], *inputs[1:], **rest)

    handles = [block.register_forward_hook(again, with_kwargs=True) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


OFF: dict[str, Callable[[OpenVLA], AbstractContextManager[Any]]] = {
    "last layer at all positions": whole_last_layer,
    "logits at all positions, too": partial(whole_last_layer, logits=True),
    "attention mask for padding": lambda m: mock.patch.object(m, "_decode", partial(m._decode, whole=True)),
    "attention without SDPA": attention_by_hand,
    "adapters never folded": lambda m: mock.patch.object(
        adapted_linear, "fold_is_cheaper", return_value=False
    ),
    "adapters beside their layer": lambda m: mock.patch.object(
        RoutedLinear, "_in_one_step", return_value=False
    ),
    "Llama's own RMSNorm": lambda m: llamas_own(m, LeanRMSNorm),
    "Llama's own MLP": lambda m: llamas_own(m, LeanMLP),
    "gradient into token embeddings": embedding_gradients,
}


def difference(bench: Bench) -> dict[str, float]:
    """Between baseline and ours, relative: of the loss, and of the gradient of all adapters."""

    def gradient(loss: Tensor) -> tuple[float, Tensor]:
        loss.backward()
        grads = [p.grad.flatten() for p in adapters(bench.model) if p.grad is not None]
        bench.model.zero_grad(set_to_none=True)
        return loss.item(), torch.cat(grads)

    with llamas_own(bench.model):
        found = [gradient(bench.plain_loss()[0])]
    found.append(gradient(bench.our_loss()["loss"]))
    (plain, theirs), (own, mine) = found
    return {
        "loss": abs(plain - own) / abs(plain),
        "gradient": float((theirs - mine).norm() / theirs.norm()),
    }


def variants(bench: Bench) -> dict[str, tuple[Callable[[], Any], Callable[[], AbstractContextManager[Any]]]]:
    """Name -> a step, and what has to hold around it."""
    model = bench.model

    def original() -> AbstractContextManager[Any]:
        return llamas_own(model)

    @contextmanager
    def original_towers() -> Iterator[None]:
        with llamas_own(model), last_vision_blocks(model):
            yield

    return {
        "baseline": (bench.baseline, original),
        "ours": (bench.ours, nullcontext),
        **{name: (bench.ours, partial(off, model)) for name, off in OFF.items()},
        "AdamW not fused": (partial(bench.ours, adamw=bench.plain_adamw), nullcontext),
        "baseline, last vision blocks run": (bench.baseline, original_towers),
        "parallel head, 8 steps": (partial(bench.ours, "parallel"), nullcontext),
        "checkpointing": (bench.ours, partial(checkpointing, model)),
        TOWERS: (bench.ours, partial(checkpointing, model, towers_only=True)),
    }


LESS = (*OFF, "AdamW not fused")
TOWERS = "checkpointing of the towers"
BESIDE = ("baseline, last vision blocks run", "parallel head, 8 steps", "checkpointing", TOWERS)
NAMES = ("baseline", "ours", *LESS, *BESIDE)
QUICK = ("baseline", "ours", *list(OFF)[:2], "adapters beside their layer", "AdamW not fused")
