"""Routed LoRA: one pass over a batch that mixes robots, each row through its own robot's adapter.

The parameters are ordinary PEFT adapters, one per robot and optionally `shared`, which every robot's rows
pass too; only the forward pass is ours, and only while a route is set.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Conv2d, Linear, LoraLayer
from torch import Tensor, nn

from vla_adapt.adaptation.adapted_linear import adapted_linear
from vla_adapt.adaptation.adapter_name import SHARED
from vla_adapt.adaptation.low_rank import Block, Pair, add_low_rank
from vla_adapt.policy.row_context import RowContext


@dataclass(frozen=True)
class Segment:
    """Samples [start, stop) of a batch go through the adapter `name`; `first` as in `low_rank.Block`."""

    name: str
    start: int
    stop: int
    first: bool = True


@dataclass(frozen=True)
class Route:
    """Which adapters each of `samples` samples passes: its robot's, then the shared one.

    `reach_all`: adapters that no sample passes get a gradient of zeros instead of none.
    """

    samples: int
    segments: tuple[Segment, ...]
    reach_all: bool = False
    masks: dict[Any, Tensor] = field(default_factory=dict)


class Routed(nn.Module, LoraLayer):
    """Before one of PEFT's LoRA layers: sends each row through its own adapter while a route is set.

    Without a route it is PEFT's layer. Dropout draws one mask for the rows' own and the shared adapter.
    """

    base_layer: Any
    merged_adapters: list[str]

    def __init__(self, base_layer: nn.Module, adapter_name: str, rows: RowContext, **options: Any) -> None:
        super().__init__(base_layer, adapter_name, **options)  # type: ignore[arg-type]
        self.rows = rows

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        route: Route | None = self.rows.current
        if route is None or self.disable_adapters:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        segments = [segment for segment in route.segments if segment.name in self.lora_A]
        names = list(dict.fromkeys(segment.name for segment in segments))
        if segments:
            _check(self, names, route, x)
            result = self._adapted(x, segments, names, route)
        else:
            result = self.base_layer(x, *args, **kwargs)
        return _reaching(self, result, names) if route.reach_all else result

    def _adapted(self, x: Tensor, segments: list[Segment], names: list[str], route: Route) -> Tensor:
        """What the base makes of `x`, with what each segment's adapter adds to its rows."""
        raise NotImplementedError


class RoutedLinear(Routed, Linear):
    """Of a linear layer: `x` is [*rows, F]."""

    def _adapted(self, x: Tensor, segments: list[Segment], names: list[str], route: Route) -> Tensor:
        dtype = self._dtype(names[0], x.device.type)
        blocks = _blocks(segments, names, x.shape[:-1].numel() // route.samples)
        pairs = [self._pair(name, dtype) for name in names]
        if self._in_one_step(names, x, dtype):
            return adapted_linear(x.to(dtype), self.base_layer, blocks, pairs)  # type: ignore[arg-type]
        result = self.base_layer(x)
        fresh = result.dtype == dtype and type(self.base_layer) is nn.Linear
        added = add_low_rank(
            result if fresh else torch.zeros_like(result, dtype=dtype),
            self.lora_dropout[names[0]](x.to(dtype)),
            blocks,
            pairs,
            masks=route.masks,
        )
        return added if fresh else (result + added).to(result.dtype)

    def _in_one_step(self, names: list[str], x: Tensor, dtype: torch.dtype) -> bool:
        """Whether layer and adapters are one step of autograd: in training, of a frozen plain layer."""
        base: Any = self.base_layer
        if not torch.is_grad_enabled() or type(base) is not nn.Linear or base.weight.requires_grad:
            return False
        if base.bias is not None and base.bias.requires_grad:
            return False
        if self.training and getattr(self.lora_dropout[names[0]], "p", 0.0):
            return False
        if torch.is_autocast_enabled(x.device.type):
            return base.weight.dtype == dtype
        return x.dtype == base.weight.dtype == dtype

    def _dtype(self, name: str, device: str) -> torch.dtype:
        """What PEFT computes adapters in: their own dtype, under autocast that of autocast."""
        layer: Any = self.lora_A[name]
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else layer.weight.dtype

    def _pair(self, name: str, dtype: torch.dtype) -> Pair:
        inner: Any = self.lora_A[name]
        outer: Any = self.lora_B[name]
        return Pair(inner.weight.to(dtype), outer.weight.to(dtype), self.scaling[name])


class RoutedConv2d(Routed, Conv2d):
    """Of a convolution, `x` is [N, C, h, w]: the original OpenVLA's adapters change the patch embeddings too.

    One robot's rows after the other, as a batch passes each tower's only convolution once.
    """

    def _adapted(self, x: Tensor, segments: list[Segment], names: list[str], route: Route) -> Tensor:
        result = self.base_layer(x)
        dropped = self.lora_dropout[names[0]](x)
        each = x.shape[0] // route.samples
        for segment in segments:
            mine = slice(segment.start * each, segment.stop * each)
            inner: Any = self.lora_A[segment.name]
            added = self.lora_B[segment.name](inner(dropped[mine].to(inner.weight.dtype)))
            result[mine] = (result[mine] + added * self.scaling[segment.name]).to(result.dtype)
        return result


def _check(layer: Routed, names: list[str], route: Route, x: Tensor) -> None:
    if x.shape[0] % route.samples:
        raise ValueError(
            f"a routed layer got {x.shape[0]} rows, the route is for {route.samples} samples; run the "
            "model on the batch that the route was made for"
        )
    if layer.merged:
        raise ValueError(f"{layer.merged_adapters} merged into the base: unmerge before routing rows")
    odd = [name for name in names if name in layer.lora_variant or layer.lora_bias[name]]
    if odd:
        raise ValueError(f"adapter '{odd[0]}' is not plain LoRA (DoRA, bias, ...); serve it on its own")
    rates = {getattr(layer.lora_dropout[name], "p", 0.0) for name in names}
    if layer.training and len(rates) > 1:
        raise ValueError(f"adapters of one batch drop out at {sorted(rates)}; give them the same dropout")


def _reaching(layer: Routed, result: Tensor, names: list[str]) -> Tensor:
    """`result`; its gradient also goes, as zeros, to the adapters that are not in `names`."""
    sides = [layer.lora_A[name] for name in layer.lora_A if name not in names]
    sides += [layer.lora_B[name] for name in layer.lora_B if name not in names]
    weights = [weight for side in sides for weight in side.parameters() if weight.requires_grad]
    return _Reach.apply(result, *weights) if weights else result  # type: ignore[no-any-return]


class _Reach(torch.autograd.Function):
    """Identity of the first argument; the others get zeros as their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, *weights: Tensor) -> Tensor:
        ctx.facts = [(weight.shape, weight.dtype, weight.device) for weight in weights]
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        zeros = (torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.facts)
        return gradients[0], *zeros


def routed(config: LoraConfig, rows: RowContext) -> LoraConfig:
    """A copy of `config` that makes routed layers, which read their route from their model's `rows`."""
    config = copy.copy(config)
    config._custom_modules = None
    layers = {nn.Linear: partial(RoutedLinear, rows=rows), nn.Conv2d: partial(RoutedConv2d, rows=rows)}
    config._register_custom_module(layers)  # type: ignore[arg-type]
    return config


@contextmanager
def route(model: nn.Module, robots: Sequence[str | None], reach_all: bool = False) -> Iterator[None]:
    """Inside, each sample of a batch passes the adapter of its own robot, and the shared one if there is one.

    Holds for every forward pass inside, and for what checkpointed layers recompute of it in backward passes,
    which may come after. Not locked: one forward pass of a model at a time.

    Args:
        model: holds routed layers; may be wrapped (DDP, PEFT).
        robots: one per sample, samples of a robot next to each other; None: the bare base. Layers may see
            several rows per sample (tokens, cameras), as long as a sample's rows are together.
        reach_all: adapters that no sample passes get a gradient of zeros, else none (None). For shards of
            which all processes must have the same gradients, whichever robots each of them sees.

    Raises:
        ValueError: no samples, a robot's samples not together, or a robot without an adapter.
    """
    if not robots:
        raise ValueError("no samples to route; give one robot per sample")
    runs = [(robot, len(list(samples))) for robot, samples in groupby(robots)]
    names = {robot for robot in robots if robot is not None}
    if len(runs) > len({robot for robot, _ in runs}):
        again = next(robot for n, (robot, _) in enumerate(runs) if robot in {r for r, _ in runs[:n]})
        raise ValueError(f"samples of '{again}' are not next to each other; sort the batch by robot")
    rows, known = _find(model, names)
    known.discard(SHARED)
    lost = sorted(names - known)
    if lost:
        has = ", ".join(sorted(known)) or "none"
        raise ValueError(
            f"no adapter for '{lost[0]}' in this model; it has {has}: prepare or attach it first"
        )
    if rows is None:
        yield
        return
    with rows.using(Route(len(robots), tuple(_segments(runs)), reach_all)):
        yield


def _segments(runs: list[tuple[str | None, int]]) -> Iterator[Segment]:
    """Own adapters first, then the shared one over each run of samples that have a robot."""
    start = 0
    spans: list[list[int]] = []
    for robot, count in runs:
        if robot is not None:
            yield Segment(robot, start, start + count)
            if spans and spans[-1][1] == start:
                spans[-1][1] += count
            else:
                spans.append([start, start + count])
        start += count
    for begin, end in spans:
        yield Segment(SHARED, begin, end, first=False)


def _find(model: nn.Module, names: set[str]) -> tuple[RowContext | None, set[str]]:
    """Where the model's routed layers read their route, and adapters it has: `names`, if it has them all."""
    rows: RowContext | None = None
    known: set[str] = set()
    for module in model.modules():
        if isinstance(module, Routed):
            rows = module.rows
            known |= module.lora_A.keys()
            if names <= known:
                break
    return rows, known


def _blocks(segments: list[Segment], names: list[str], rows_per_sample: int) -> list[Block]:
    return [
        Block(s.start * rows_per_sample, s.stop * rows_per_sample, names.index(s.name), s.first)
        for s in segments
    ]
