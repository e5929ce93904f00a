"""What a run will take: parameters, memory, arithmetic, size of adapters; from a rehearsal of one step.

The learner is the real one, built on the meta device and run on tensors without numbers (see `rehearsal`), so
that the plan holds for every method, head and loss. Weights need not be there, data neither.
"""

from __future__ import annotations

import os
import resource
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vla_adapt.adaptation.method import Lora, QLora
from vla_adapt.adaptation.quantized import is_quantizable
from vla_adapt.policy.batch import PolicyBatch
from vla_adapt.policy.configuration import OpenVLAConfig
from vla_adapt.policy.heads import ActionHead
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.policy.tiny import tiny_config
from vla_adapt.recipe import Recipe
from vla_adapt.resources import base_dir, tiny_base_dir
from vla_adapt.training.compatibility import check_compatible, why_uncached
from vla_adapt.training.flop_counter import flop_counter
from vla_adapt.training.launch_file import Layout
from vla_adapt.training.learner import Learner
from vla_adapt.training.micro_batches import check_split
from vla_adapt.training.optimizer import OptimizerConfig, clip_per_robot, make_optimizer, saved_by_8_bits
from vla_adapt.training.parallelism import DDP, FSDP2, ONE, Way, check_way
from vla_adapt.training.plan_data import PlanData, look_at_data, plan_batch
from vla_adapt.training.plan_shards import ShardSizes
from vla_adapt.training.rehearsal import Rehearsal
from vla_adapt.training.setting import make_learner

CUDA_CONTEXT_BYTES = 1 << 29
# glibc malloc keeps freed blocks: so many times the activations stay resident, too (measured 0.2 .. 0.5).
KEPT_BY_MALLOC = 0.5
NF4_BYTES = 0.5 + 0.127 / 8  # a number and its part of the block constants (Dettmers et al., 2305.14314)
WHOLE_AT_THE_END = "whole, at the end"
PREFETCHED = 2  # batches that each loader process keeps ready (the default of torch's DataLoader)


@dataclass(frozen=True)
class Plan:
    """What one process of a run takes, in the steady state.

    Attributes:
        trained: parameters that train, by robot; those that robots share under "shared".
        frozen: parameters that do not.
        memory: bytes by component.
        samples: in one pass of one process.
        passes: per optimizer step and process.
        processes: of the run.
        tokens: positions of the language model per sample.
        flops: floating point operations of one optimizer step over all processes (a multiply-add counts two).
        epoch_samples: steps of all datasets; None: unknown.
        adapter_bytes: what each robot's bundle needs on disk for weights.
        notes: what was assumed or left out.
        way: how the processes share the work.
    """

    device: str
    trained: dict[str, int]
    frozen: int
    memory: dict[str, int]
    samples: int
    passes: int
    processes: int
    tokens: int
    flops: int
    epoch_samples: int | None
    adapter_bytes: dict[str, int]
    notes: list[str] = field(default_factory=list)
    way: Way = ONE

    @property
    def total(self) -> int:
        """Bytes that one process needs."""
        return sum(self.memory.values())

    @property
    def device_total(self) -> int:
        """Bytes of `total` that lie on the device; a GPU leaves batches in the host's memory but two."""
        return self.total - (self.memory["batches"] if self.device == "cuda" else 0)


def make_plan(
    recipe: Recipe, layout: Layout | None = None, device: str = "cpu", data: PlanData | None = None
) -> Plan:
    """Rehearse one optimizer step of `recipe`.

    Args:
        recipe: of the run.
        layout: processes that share the batch, and how; None: one.
        device: "cpu" or "cuda", for what the runtime itself takes.
        data: when looked at already.

    Raises:
        ValueError: a recipe that does not fit its base, data or layout, or a batch that cannot be split.
    """
    train, layout = recipe.train, layout or Layout()
    check_way(recipe, layout.way)
    compatible = check_compatible(recipe)
    check_split(train.batch_size, layout.processes, train.accumulate)
    samples = train.batch_size // (layout.processes * train.accumulate)
    model, notes = _model(recipe)
    notes += compatible
    if why_uncached(recipe) is None:
        notes.append("the frozen backbone's features are kept: only the steps that make them take all this")
    data = data or look_at_data(recipe, model.source)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")
        learner = make_learner(_unquantized(recipe), model, list(data.masks), data.datasets)
    batch = plan_batch(recipe, data, model, samples)
    step = _rehearse(recipe, learner, batch, layout)
    every = sum(parameter.numel() for parameter in learner.parameters())
    trained = {name: sum(p.numel() for p in group) for name, group in learner.groups().items()}
    return Plan(
        device=device, trained=trained, frozen=every - sum(trained.values()),
        memory=_memory(recipe, learner, step, _batch_bytes(batch), layout, device), samples=samples,
        passes=train.accumulate, processes=layout.processes, tokens=step.tokens,
        flops=step.flops * train.accumulate * layout.processes, epoch_samples=data.samples,
        adapter_bytes=_adapter_bytes(recipe, learner), way=layout.way,
        notes=[*notes, *data.notes, *_notes_on_shards(step, layout)],
    )  # fmt: skip


def _memory(
    recipe: Recipe, learner: Learner, step: _Step, batch_bytes: int, layout: Layout, device: str
) -> dict[str, int]:
    """Bytes of one process by component."""
    train, shards = recipe.train, ShardSizes(learner, layout)
    trained = [parameter for group in learner.groups().values() for parameter in group]
    state = step.optimizer - saved_by_8_bits(train.optimizer, trained)
    quantized = _saved_by_quantizing(learner.model) if isinstance(recipe.adaptation, QLora) else 0
    memory = {
        "weights": step.weights - quantized - shards.all_elsewhere,
        "gradients": step.gradients,
        "optimizer": int(state * shards.kept(trained)),
        "activations": step.activations,
        "batches": batch_bytes * train.accumulate * (1 + PREFETCHED * train.workers),
        "allocator": int(step.activations * KEPT_BY_MALLOC) if device == "cpu" and _keeps_blocks() else 0,
        "runtime": CUDA_CONTEXT_BYTES if device == "cuda" else _resident_bytes(),
    }
    if device == "cuda":
        memory["batches, copied"] = 2 * batch_bytes  # that at hand, and the next one
    if train.ema:
        memory["average"] = int(4 * sum(p.numel() for p in trained) * shards.kept(trained))
    if layout.way == DDP:  # gradients lie in its buckets, which stay; those of earlier passes beside them
        memory["gradients"] = _bytes(trained) * (1 if train.accumulate == 1 else 2)
    if layout.way == FSDP2:
        memory["gathered"] = shards.gathered()
        memory["allocator"] += memory["gathered"] if memory["allocator"] else 0
        passing = sum(memory[name] for name in ("gradients", "activations", "gathered", "allocator"))
        if step.weights > passing:
            memory[WHOLE_AT_THE_END] = step.weights - passing
    return memory


def _notes_on_shards(step: _Step, layout: Layout) -> list[str]:
    """What of a run in shards happens before and after the steps."""
    if layout.way != FSDP2:
        return []
    host_gb = step.weights * layout.per_machine / 1e9
    return [
        "before its first step each process loads the whole model; those of a machine take "
        f"{host_gb:.1f} GB of its memory",
        "after the last one rank 0 puts the model together beside its shards, to judge it and for bundles",
    ]


@dataclass(frozen=True)
class _Step:
    """Bytes of the parts of a step; `activations` with all that comes and goes beside them."""

    weights: int
    optimizer: int
    gradients: int
    activations: int
    flops: int
    tokens: int


def _rehearse(recipe: Recipe, learner: Learner, batch: PolicyBatch, layout: Layout) -> _Step:
    """One pass and one update; the optimizer's state is there before, as in every step but the first."""
    rehearsal = Rehearsal()
    rehearsal.materialize(learner)
    rehearsal.elsewhere = ShardSizes(learner, layout).elsewhere
    groups, tokens = learner.groups(), [0]
    with rehearsal:
        learner.model.restore_buffers("cpu")
        weights = rehearsal.live
        optimizer, _ = (
            make_optimizer(_in_32_bits(recipe), groups, recipe.train.steps) if groups else (None, None)
        )
        learner.train()
        for parameter in learner.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        if optimizer is not None:
            optimizer.step()
        rehearsal.zero_grad(learner)
        state = rehearsal.live - weights
        if recipe.train.accumulate > 1 and groups:  # all passes but the first add to gradients that are there
            _pass(recipe, learner, batch)
        rehearsal.start()
        with (
            _counted_tokens(learner.model, tokens),
            flop_counter() as flops,
        ):
            _pass(recipe, learner, batch)
        clip_per_robot(groups.values(), recipe.train.optimizer.clip_norm)
        if optimizer is not None:
            optimizer.step()
    peak = rehearsal.peak
    activations = peak.live - weights - state - peak.gradients
    return _Step(weights, state, peak.gradients, activations, flops.get_total_flops(), tokens[0])


def _pass(recipe: Recipe, learner: Learner, batch: PolicyBatch) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.train.precision == "bf16"):
        loss = learner(batch)["loss"]
    if loss.requires_grad:
        loss.backward()


@contextmanager
def _counted_tokens(model: OpenVLA, tokens: list[int]) -> Iterator[None]:
    """Writes the length of the language model's sequences into `tokens`."""

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        tokens[0] = kwargs["inputs_embeds"].shape[1]

    handle = model.language_model.model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _model(recipe: Recipe) -> tuple[OpenVLA, list[str]]:
    """The base without its weights, and what had to be assumed."""
    dtype = torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
    if recipe.base == "tiny-random":
        return OpenVLA.without_weights(tiny_base_dir(), tiny_config(), dtype), []
    folder = base_dir(recipe.base)
    if folder.exists():
        return OpenVLA.without_weights(folder, dtype=dtype), []
    note = f"{folder} is not here: the sizes of OpenVLA-7B assumed"
    return OpenVLA.without_weights(folder, OpenVLAConfig({"model_type": "openvla"}), dtype), [note]


def _unquantized(recipe: Recipe) -> Recipe:
    """The recipe with `lora` for `qlora`, whose layers exist on a GPU only."""
    if not isinstance(recipe.adaptation, QLora):
        return recipe
    plain = Lora(**recipe.adaptation.model_dump(exclude={"kind"}))
    return recipe.model_copy(update={"adaptation": plain})


def _in_32_bits(recipe: Recipe) -> OptimizerConfig:
    """The optimizer with moments that tensors without numbers can have."""
    return recipe.train.optimizer.model_copy(update={"kind": "adamw"})


def _saved_by_quantizing(model: OpenVLA) -> int:
    """Bytes by which nf4 with quantized block constants is smaller, in the layers that `qlora` quantizes."""
    weights: list[Any] = [m.weight for name, m in model.named_modules() if is_quantizable(name, m)]
    return sum(int(weight.numel() * (weight.itemsize - NF4_BYTES)) for weight in weights)


def _adapter_bytes(recipe: Recipe, learner: Learner) -> dict[str, int]:
    """Weights that a bundle holds: the robot's adapter, the shared one joined to it, and its head."""
    lora: dict[str, int] = dict.fromkeys([*learner.heads, "shared"], 0)
    for name, parameter in learner.named_parameters():
        owner = next((robot for robot in lora if ".lora_" in name and f".{robot}." in name), None)
        if owner is not None:
            lora[owner] += parameter.numel() * parameter.itemsize
    sizes = {}
    for robot, head in learner.heads.items():
        assert isinstance(head, ActionHead)
        sizes[robot] = lora[robot] + lora["shared"] + _bytes(head.state_dict().values())
    if recipe.adaptation.changes_base:
        sizes["model"] = _bytes(learner.model.parameters())
    return sizes


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def _batch_bytes(batch: PolicyBatch) -> int:
    tensors = [value for value in vars(batch).values() if isinstance(value, Tensor)]
    return _bytes([*tensors, *batch.extra.values()])


def _keeps_blocks() -> bool:
    """Whether freed memory stays with the process: glibc's malloc, unless it is told to return blocks."""
    return sys.platform == "linux" and "MALLOC_MMAP_THRESHOLD_" not in os.environ


def _resident_bytes() -> int:
    """What this process takes with its libraries, as a process that trains will, too."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
