"""Samples per second of a LoRA training step, against OpenVLA's own script, and what each saving is worth.

The recipe is that of OpenVLA's `finetune.py`: LoRA r=32 on all linear layers, towers included, one action
of seven tokens. "baseline" is that script's step: Hugging Face forward with labels (logits at all
positions, an attention mask for padding), PEFT's own layers, plain AdamW, accuracy and L1 from the logits.
"ours" is the step of `training.loop` on the same weights, adapters and batch; losses and gradients of both
are compared. Each saving is switched off alone. Beside them: the towers' last blocks, which the original
runs for nothing; our parallel head with eight steps; checkpointing; with --compile (on a GPU always)
compiled blocks. Loading is left out.

Steps take turns; numbers are medians, on a CPU of processor time. Peak memory is of a process of its own
per variant, over what it had before the model; on a GPU PyTorch's. MFU is the arithmetic that a step cannot
do without (`training.flop_count`) per second, over the best rate of a large product in the same turns.

    python scripts/bench_train.py [--quick] [--json FILE] [--device cpu|cuda] [--compile]

Of this package's dependencies it needs torch, transformers, peft, accelerate, pydantic and jaxtyping only.
On a GPU the model has OpenVLA-7B's shape and random bf16 weights made there, and batches grow until memory
ends.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from vla_adapt.actions.normalize import Normalizer, Statistics
from vla_adapt.adaptation import adapted_linear
from vla_adapt.adaptation.method import Lora
from vla_adapt.adaptation.routed import RoutedLinear
from vla_adapt.policy.batch import PolicyBatch
from vla_adapt.policy.configuration import OpenVLAConfig
from vla_adapt.policy.gated_mlp import LeanMLP
from vla_adapt.policy.heads import HeadConfig, make_head
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.policy.reading_layer import at
from vla_adapt.policy.rms_norm import LeanRMSNorm
from vla_adapt.policy.tiny import tiny_config, tiny_openvla
from vla_adapt.policy.token_head import TokenQuestion
from vla_adapt.training.compiled import compiled_blocks
from vla_adapt.training.flop_count import StepSizes, step_flops
from vla_adapt.training.learner import Learner
from vla_adapt.training.meter import Meter
from vla_adapt.training.optimizer import OptimizerConfig, clip_per_robot, make_optimizer
from vla_adapt.types import NUM_SLOTS

ROBOT, RANK, SLOTS = "robot", 32, 7
TOKENS = HeadConfig(kind="tokens", horizon=1, proprio=False)
PARALLEL = HeadConfig(kind="parallel", horizon=8, proprio=False)
LLAMAS: dict[type[nn.Module], type[nn.Module]] = {LeanRMSNorm: LlamaRMSNorm, LeanMLP: LlamaMLP}
PROMPT = (20, 30)  # tokens, as "In: What action should the robot take to ...?" has
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclass(frozen=True)
class Size:
    """A model to measure, and the batch it gets."""

    name: str
    samples: int
    turns: int
    text: dict[str, int] = field(default_factory=dict)
    tower: dict[str, int] = field(default_factory=dict)

    def config(self) -> OpenVLAConfig:
        if self.name == "7B":
            return OpenVLAConfig({"model_type": "openvla"})
        raw = tiny_config().raw
        raw["text_config"] |= self.text
        for tower in raw["vision_towers"]:
            tower |= self.tower
        return OpenVLAConfig(raw)


def sizes(device: str, quick: bool) -> list[Size]:
    """What is measured; the first gives the headline numbers."""
    if device == "cuda":
        return [Size("7B", 16, 2 if quick else 5)]
    wide = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 12}
    wide |= {"num_key_value_heads": 12, "vocab_size": 8064}
    tower = {"width": 384, "depth": 4, "heads": 6, "mlp_width": 1536}
    return [
        Size("tiny twin", 32, 5 if quick else 11),
        *([] if quick else [Size("width 768", 8, 5, wide, tower)]),
    ]


class Bench:
    """One model with its adapters, and every way to take a step on it."""

    def __init__(self, size: Size, device: str, samples: int | None = None) -> None:
        torch.manual_seed(0)
        self.device, self.size = device, size
        self.samples = samples or size.samples
        self.model = _model(size, device)
        heads = {head.kind: make_head(head, self.model) for head in (TOKENS, PARALLEL)}
        Lora(rank=RANK, alpha=16, targets="all_linear").prepare(self.model, [ROBOT])
        for name, parameter in self.model.named_parameters():
            if ".lora_B." in name:
                nn.init.normal_(parameter, std=0.01)
        self.learners = {
            k: Learner(self.model, {ROBOT: head}, True).to(device).train() for k, head in heads.items()
        }
        self.batches = {
            head.kind: _batch(self.model, self.samples, head.horizon).to(device)
            for head in (TOKENS, PARALLEL)
        }
        slots = np.arange(NUM_SLOTS) < SLOTS
        ones = np.where(slots, 1.0, 0.0)
        self.meter = Meter(
            {ROBOT: Normalizer(Statistics(0 * ones, ones, -ones, ones, -ones, ones, slots, 9))}
        )
        self.labels = _labels(self.learners["tokens"], self.batches["tokens"])
        self.plain_adamw = torch.optim.AdamW(adapters(self.model), lr=1e-6)
        self.adamw = {
            kind: make_optimizer(OptimizerConfig(learning_rate=1e-6), learner.groups(), 10**6)[0]
            for kind, learner in self.learners.items()
        }

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda")

    def our_loss(self, head: str = "tokens") -> dict[str, Tensor]:
        with self.autocast():
            return self.learners[head](self.batches[head])

    def ours(self, head: str = "tokens", adamw: torch.optim.Optimizer | None = None) -> None:
        """The step of `training.loop`."""
        output = self.our_loss(head)
        assert torch.isfinite(output["loss"])
        output["loss"].backward()
        clip_per_robot(self.learners[head].groups().values(), 1.0)
        optimizer = adamw or self.adamw[head]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.meter.add(output, self.batches[head])

    def plain_loss(self) -> tuple[Tensor, Tensor]:
        """Loss and logits as `OpenVLAForActionPrediction` of the original makes them, on PEFT's layers."""
        ids, mask, labels = self.labels
        model: Any = self.model
        with self.autocast():
            patches = model.projector(
                model.vision_backbone(self.batches["tokens"].pixel_values.to(model.dtype))
            )
            text = model.language_model.model.embed_tokens(ids)
            seen = mask.new_ones(patches.shape[:2])
            output = model.language_model(
                inputs_embeds=torch.cat([text[:, :1], patches, text[:, 1:]], dim=1),
                attention_mask=torch.cat([mask[:, :1], seen, mask[:, 1:]], dim=1),
                labels=torch.cat([labels[:, :1], seen.long().fill_(-100), labels[:, 1:]], dim=1),
                use_cache=False,
            )
        return output.loss, output.logits

    def baseline(self) -> None:
        """The step of the original's `finetune.py`."""
        loss, logits = self.plain_loss()
        loss.backward()
        wanted = self.labels[2][:, 1:]
        chosen = logits[:, self.model.num_patches : -1].argmax(dim=2)
        mask = wanted > self.model.action_tokenizer().first_id
        float(((chosen == wanted) & mask).sum().float() / mask.sum().float())
        codec = self.model.action_tokenizer()
        told, right = (codec.decode(tokens[mask].cpu().numpy()) for tokens in (chosen, wanted))
        nn.functional.l1_loss(torch.from_numpy(told), torch.from_numpy(right)).item()
        loss.item()
        self.plain_adamw.step()
        self.plain_adamw.zero_grad()

    def difference(self) -> dict[str, float]:
        """Between baseline and ours, relative: of the loss, and of the gradient of all adapters."""
        with llamas_own(self.model):
            loss = self.plain_loss()[0]
        found = []
        for each in (loss, self.our_loss()["loss"]):
            each.backward()
            grads = [p.grad.flatten() for p in adapters(self.model) if p.grad is not None]
            found.append((each.item(), torch.cat(grads)))
            self.model.zero_grad(set_to_none=True)
        (plain, theirs), (own, mine) = found
        return {
            "loss": abs(plain - own) / abs(plain),
            "gradient": float((theirs - mine).norm() / theirs.norm()),
        }


def adapters(model: OpenVLA) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


# --- the model and the batch --------------------------------------------------------------------------------


def _model(size: Size, device: str) -> OpenVLA:
    """Random weights: the tiny twin's own on a CPU, bfloat16 made on the GPU for the 7B model."""
    if size.name == "tiny twin":
        return tiny_openvla(seed=0)
    if device == "cpu":
        return OpenVLA(size.config())
    with torch.device("meta"):
        model = OpenVLA(size.config()).to(torch.bfloat16)
    model.to_empty(device=device)
    model.restore_buffers(device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    return model


def _batch(model: OpenVLA, samples: int, horizon: int) -> PolicyBatch:
    """Random images, actions and texts; texts differ in length, as those of a mixture do."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(PROMPT[0], PROMPT[1] + 1, (samples, 1), generator=draw)
    mask = torch.arange(int(lengths.max())) < lengths
    slots = (torch.arange(NUM_SLOTS) < SLOTS).expand(samples, -1)
    none = torch.zeros(samples, NUM_SLOTS)
    side, ids = model.config.image_sizes[0], torch.randint(5, 200, mask.shape, generator=draw)
    return PolicyBatch(
        input_ids=ids.masked_fill(~mask, model.config.pad_token_id),
        attention_mask=mask,
        pixel_values=torch.randn(samples, 6, side, side, generator=draw).to(model.dtype),
        proprio=none, proprio_mask=none.bool(),
        slot_mask=slots, action_mask=slots[:, None].repeat(1, horizon, 1),
        action=(2 * torch.rand(samples, horizon, NUM_SLOTS, generator=draw) - 1) * slots[:, None],
        robots=[ROBOT] * samples,
    )  # fmt: skip


def _labels(learner: Learner, batch: PolicyBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and labels of prompt, action tokens and EOS, as the original's data loader gives them."""
    question: Any = learner.heads[ROBOT].ask(learner.model, batch)  # type: ignore[operator]
    assert isinstance(question, TokenQuestion)
    assert isinstance(question.read, Tensor)
    wide = partial(nn.functional.pad, pad=(0, 1))
    places = question.read
    ids = wide(question.input_ids, value=learner.model.config.pad_token_id).scatter(
        1, places + 1, question.labels
    )
    labels = torch.full_like(ids, -100).scatter(1, places + 1, question.labels)
    return ids, wide(question.attention_mask, value=False).scatter(1, places + 1, True), labels


# --- savings, switched off one at a time --------------------------------------------------------------------


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
def checkpointing(model: OpenVLA) -> Iterator[None]:
    model.gradient_checkpointing_enable()
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
    }


LESS = (*OFF, "AdamW not fused")
BESIDE = ("baseline, last vision blocks run", "parallel head, 8 steps", "checkpointing")
NAMES = ("baseline", "ours", *LESS, *BESIDE)
QUICK = ("baseline", "ours", *list(OFF)[:2], "adapters beside their layer", "AdamW not fused")


# --- clocks, and memory -------------------------------------------------------------------------------------


def clock(device: str, work: Callable[[], Any]) -> float:
    """Seconds: of the wall on a GPU, of this process on a CPU, whoever else is busy."""
    if device == "cuda":
        torch.cuda.synchronize()
    now = time.perf_counter if device == "cuda" else time.process_time
    start = now()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return now() - start


class Peak:
    """Rate of a large matrix product in the dtype of the steps, floating point operations per second."""

    def __init__(self, device: str) -> None:
        self.device, self.side = device, 8192 if device == "cuda" else 1024
        self.factor = torch.randn(self.side, self.side, device=device).to(
            torch.bfloat16 if device == "cuda" else torch.float32
        )

    def rate(self) -> float:
        times = 10 if self.device == "cuda" else 3
        taken = clock(self.device, lambda: [self.factor @ self.factor for _ in range(times)])
        return times * 2 * self.side**3 / taken


def resident(key: str) -> int:
    """VmRSS (now) or VmHWM (at the peak) of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def peak_memory(size: Size, name: str) -> int:
    """Of three steps on a CPU, bytes over what was there before."""
    before = resident("VmRSS")
    step, around = variants(Bench(size, "cpu"))[name]
    for _ in range(3):
        with around():
            step()
    return resident("VmHWM") - before


def peak_memory_elsewhere(size: Size, name: str) -> float:
    """`peak_memory` in a process of its own whose malloc returns freed blocks, MB."""
    command = [sys.executable, __file__, "--measure", size.name, name]
    done = subprocess.run(command, env=os.environ | RETURNING, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return int(done.stdout.split()[-1]) / 1e6


# --- measuring ----------------------------------------------------------------------------------------------


def measure(size: Size, device: str, names: Sequence[str], compiled: bool) -> dict[str, Any]:
    """Seconds of every variant in turns, and what follows from them."""
    bench, peak = Bench(size, device), Peak(device)
    steps = {name: variant for name, variant in variants(bench).items() if name in names}
    if compiled:
        steps["compiled blocks"] = (bench.ours, partial(compiled_blocks, bench.model))
    difference, seconds, rates = bench.difference(), {name: [] for name in steps}, []
    memory: dict[str, float] = {}
    for turn in range(size.turns + 1):
        rates.append(peak.rate())
        for name, (step, around) in steps.items():
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            with around():
                taken = clock(device, step)
            if turn:  # the first turn warms up, and compiles
                seconds[name].append(taken)
            if device == "cuda":
                memory[name] = torch.cuda.max_memory_allocated() / 1e6
    middle = {name: median(taken) for name, taken in seconds.items()}
    flops = {
        name: sum(step_flops(bench.model.config, work).values()) for name, work in work_of(bench).items()
    }
    tokens = float(bench.labels[1].sum()) + size.samples * bench.model.num_patches
    return {
        "model": size.name, "samples": size.samples, "seconds": middle, "difference": difference,
        "samples_per_s": {name: size.samples / taken for name, taken in middle.items()},
        "tokens_per_s": {name: tokens / middle[name] for name in ("baseline", "ours")},
        "flops": flops, "peak_flops_per_s": max(rates),
        "mfu": {name: flops[name] / middle[name] / max(rates) for name in flops},
        "speedup": {name: median(a / b for a, b in zip(seconds["baseline"], taken, strict=True))
                    for name, taken in seconds.items()},
        "peak_memory_mb": memory,
    }  # fmt: skip


def work_of(bench: Bench) -> dict[str, StepSizes]:
    """What the steps compute: ours, and the baseline, which has one more position and all logits."""
    samples, text = bench.batches["tokens"].input_ids.shape
    every = samples * (text + SLOTS + 1 + bench.model.num_patches)
    folded = bench.model.dtype == torch.float32
    return {
        "ours": StepSizes(samples, text + SLOTS, RANK, samples * (SLOTS + 1), read=SLOTS + 1, folded=folded),
        "baseline": StepSizes(samples, text + SLOTS + 1, RANK, every),
    }


def growing_batches(size: Size) -> list[dict[str, Any]]:
    """On a GPU: batches of 1 to 64, with and without checkpointing, until memory ends."""
    rows = []
    bench = Bench(size, "cuda", 1)
    for around in (nullcontext, partial(checkpointing, bench.model)):
        for samples in (1, 2, 4, 8, 16, 32, 64):
            bench.batches["tokens"] = _batch(bench.model, samples, 1).to("cuda")
            row = {"samples": samples, "checkpointing": around is not nullcontext}
            try:
                with around():
                    bench.ours()
                    torch.cuda.reset_peak_memory_stats()
                    taken = median(clock("cuda", bench.ours) for _ in range(3))
            except torch.cuda.OutOfMemoryError:
                rows.append({**row, "samples_per_s": None})
                bench.model.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
                break
            peak = torch.cuda.max_memory_allocated() / 1e6
            rows.append({**row, "samples_per_s": samples / taken, "peak_memory_mb": peak})
    return rows


def smallest_memory(size: Size, rows: list[dict[str, Any]]) -> float:
    """Megabytes of a GPU that a batch of one needs with checkpointing, found by giving it less and less."""
    bench = Bench(size, "cuda", 1)
    total = torch.cuda.get_device_properties(0).total_memory / 1e6
    low = next(row["peak_memory_mb"] for row in rows if row["samples"] == 1 and row["checkpointing"])
    high = min(1.25 * low, total)
    for _ in range(6):
        tried = (low + high) / 2
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(tried / total)
        try:
            with checkpointing(bench.model):
                bench.ours()
            high = tried
        except torch.cuda.OutOfMemoryError:
            low = tried
            bench.model.zero_grad(set_to_none=True)
    return high


# --- main ---------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few variants and turns: within 60 s on 2 cores")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="also compiled blocks: minutes on a CPU")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device, quick = arguments.device, arguments.quick
    torch.set_num_threads(1 if device == "cpu" else torch.get_num_threads())
    every = sizes(device, quick)
    if arguments.measure:
        size = next(size for size in sizes(device, quick=False) if size.name == arguments.measure[0])
        print(peak_memory(size, arguments.measure[1]))
        return
    rows = []
    for number, size in enumerate(every):
        names = QUICK if quick else NAMES
        row = measure(size, device, names, arguments.compile or (device == "cuda" and not quick))
        if device == "cpu" and number == 0:
            few = [name for name in names if not quick or name in ("baseline", "ours")]
            row["peak_memory_mb"] = {name: peak_memory_elsewhere(size, name) for name in few}
        rows.append(row)
        show(row)
        gc.collect()
    report = {
        "speedup_vs_baseline": rows[0]["speedup"]["ours"],
        "mfu": rows[0]["mfu"]["ours"],
        "peak_memory_mb": rows[0]["peak_memory_mb"]["ours"],
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu, 1 thread",
        "torch": torch.__version__,
        "models": rows,
    }
    if device == "cuda" and not quick:
        report["batches"] = growing_batches(every[0])
        alone = [row for row in report["batches"] if row["samples"] == 16 and not row["checkpointing"]]
        report["peak_memory_mb"] = (
            alone[0].get("peak_memory_mb") if alone else None
        )  # no other AdamW beside it
        gc.collect()
        torch.cuda.empty_cache()
        report["smallest_memory_mb"] = smallest_memory(every[0], report["batches"])
        print(json.dumps({key: report[key] for key in ("batches", "smallest_memory_mb")}, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))


def show(row: dict[str, Any]) -> None:
    """The table of one model."""
    print(f"\n{row['model']}, LoRA r={RANK} on all linear layers, batch {row['samples']}")
    print(f"{'':38s}{'ms':>8s}{'samples/s':>11s}{'/ baseline':>12s}{'peak MB':>9s}")
    for name, taken in row["seconds"].items():
        label = name if name in ("baseline", "ours") or name not in LESS else f"ours, {name}"
        memory = row["peak_memory_mb"].get(name)
        print(
            f"{label:38s}{1e3 * taken:8.1f}{row['samples_per_s'][name]:11.1f}{row['speedup'][name]:11.2f}x"
            f"{'' if memory is None else f'{memory:9.0f}'}"
        )
    for name in ("baseline", "ours"):
        print(
            f"{name}: {row['tokens_per_s'][name]:.0f} tokens/s, {row['flops'][name] / 1e9:.1f} GFLOP a step, "
            f"MFU {100 * row['mfu'][name]:.0f} % of {row['peak_flops_per_s'] / 1e9:.0f} GFLOP/s"
        )
    print(
        "baseline and ours differ by {loss:.1e} in loss, {gradient:.1e} in gradient".format(
            **row["difference"]
        )
    )


if __name__ == "__main__":
    main()
