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
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Conv2d, Linear, LoraLayer
from torch import Tensor, nn

from vla_adapt.adaptation.adapted_linear import Group, Narrow, adapted_linear, row_groups
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


class Way(NamedTuple):
    """What the rows of one layer pass: its adapters by name, and which rows which of them."""

    names: list[str]
    segments: list[Segment]
    blocks: list[Block]
    groups: list[Group]


@dataclass(frozen=True)
class Route:
    """Which adapters each of `samples` samples passes: its robot's, then the shared one.

    `reach_all`: adapters that no sample passes get a gradient of zeros instead of none. `narrow`: layers have
    up-to-date copies of adapters (`narrow_copies`). `masks` and `ways` are kept for layers that want the
    same.
    """

    samples: int
    segments: tuple[Segment, ...]
    reach_all: bool = False
    narrow: bool = False
    masks: dict[Any, Tensor] = field(default_factory=dict)
    ways: dict[Any, Way] = field(default_factory=dict)

    def way(self, adapters: tuple[str, ...], rows: int) -> Way:
        """Through a layer that has `adapters` and gets `rows` rows."""
        if torch.compiler.is_compiling():  # what a trace keeps makes it worthless for the next layer
            return self._way(adapters, rows)
        way = self.ways.get((adapters, rows))
        if way is None:
            way = self.ways[adapters, rows] = self._way(adapters, rows)
        return way

    def _way(self, adapters: tuple[str, ...], rows: int) -> Way:
        segments = [segment for segment in self.segments if segment.name in adapters]
        names = list(dict.fromkeys(segment.name for segment in segments))
        each = rows // self.samples
        blocks = [Block(s.start * each, s.stop * each, names.index(s.name), s.first) for s in segments]
        return Way(names, segments, blocks, row_groups(blocks, rows))


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
        way = route.way(tuple(self.lora_A), self._rows_of(x))
        if way.names:
            _check(self, way.names, route, x)
            result = self._adapted(x, way, route)
        else:
            result = self.base_layer(x, *args, **kwargs)
        return _reaching(self, result, way.names) if route.reach_all else result

    def _rows_of(self, x: Tensor) -> int:
        """Along how many rows of `x` the samples of a batch lie."""
        raise NotImplementedError

    def _adapted(self, x: Tensor, way: Way, route: Route) -> Tensor:
        """What the base makes of `x`, with what each segment's adapter adds to its rows."""
        raise NotImplementedError


class RoutedLinear(Routed, Linear):
    """Of a linear layer: `x` is [*rows, F].

    Attributes:
        narrow: copies of adapters in the dtype of autocast, which hold while a route says so.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, rows: RowContext, **options: Any) -> None:
        super().__init__(base_layer, adapter_name, rows, **options)
        self.narrow: dict[str, Narrow] = {}

    def _rows_of(self, x: Tensor) -> int:
        return x.shape[:-1].numel()

    def _adapted(self, x: Tensor, way: Way, route: Route) -> Tensor:
        base: Any = self.base_layer
        dtype = self._dtype(way.names[0], x.device.type)
        if self._in_one_step(base, way.names, x, dtype):
            copied = route.narrow and all(name in self.narrow for name in way.names)
            narrow = [self.narrow[name] for name in way.names] if copied else []
            pairs = [self._pair(name, None if copied else dtype) for name in way.names]
            return adapted_linear(x.to(dtype), base, way.groups, pairs, narrow=narrow)
        result = base(x)
        fresh = result.dtype == dtype and type(base) is nn.Linear
        added = add_low_rank(
            result if fresh else torch.zeros_like(result, dtype=dtype),
            self.lora_dropout[way.names[0]](x.to(dtype)),
            way.blocks,
            [self._pair(name, dtype) for name in way.names],
            masks=route.masks,
        )
        return added if fresh else (result + added).to(result.dtype)

    def takes_copies(self, name: str) -> bool:
        """Whether copies of an adapter can be of use here: only where layer and adapter may be one step."""
        base: Any = self.base_layer
        plain = type(base) is nn.Linear and not base.weight.requires_grad
        return plain and not getattr(self.lora_dropout[name], "p", 0.0)

    def _in_one_step(self, base: nn.Module, names: list[str], x: Tensor, dtype: torch.dtype) -> bool:
        """Whether layer and adapters are one step of autograd: in training, of a frozen plain layer."""
        if type(base) is not nn.Linear or not torch.is_grad_enabled():
            return False
        weight, bias = base.weight, base.bias
        if weight.dtype != dtype or weight.requires_grad or (bias is not None and bias.requires_grad):
            return False
        if self.training and getattr(self.lora_dropout[names[0]], "p", 0.0):
            return False
        return x.dtype == dtype or torch.is_autocast_enabled(x.device.type)

    def _dtype(self, name: str, device: str) -> torch.dtype:
        """What PEFT computes adapters in: their own dtype, under autocast that of autocast."""
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        layer: Any = self.lora_A[name]
        return layer.weight.dtype  # type: ignore[no-any-return]

    def _pair(self, name: str, dtype: torch.dtype | None) -> Pair:
        """An adapter in `dtype`; None: as it is."""
        inner: Any = self.lora_A[name]
        outer: Any = self.lora_B[name]
        return Pair(inner.weight.to(dtype), outer.weight.to(dtype), self.scaling[name])


class RoutedConv2d(Routed, Conv2d):
    """Of a convolution, `x` is [N, C, h, w]: the original OpenVLA's adapters change the patch embeddings too.

    One robot's rows after the other, as a batch passes each tower's only convolution once.
    """

    def _rows_of(self, x: Tensor) -> int:
        return x.shape[0]

    def _adapted(self, x: Tensor, way: Way, route: Route) -> Tensor:
        result = self.base_layer(x)
        dropped = self.lora_dropout[way.names[0]](x)
        each = x.shape[0] // route.samples
        for segment in way.segments:
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
    variants, biases = layer.lora_variant, layer.lora_bias
    odd = [name for name in names if name in variants or biases[name]]
    if odd:
        raise ValueError(f"adapter '{odd[0]}' is not plain LoRA (DoRA, bias, ...); serve it on its own")
    rates = {getattr(layer.lora_dropout[name], "p", 0.0) for name in names} if len(names) > 1 else set()
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
def route(
    model: nn.Module, robots: Sequence[str | None], reach_all: bool = False, narrow: bool = False
) -> Iterator[None]:
    """Inside, each sample of a batch passes the adapter of its own robot, and the shared one if there is one.

    Holds for every forward pass inside, and for what checkpointed layers recompute of it in backward passes,
    which may come after. Not locked: one forward pass of a model at a time.

    Args:
        model: holds routed layers; may be wrapped (DDP, PEFT).
        robots: one per sample, samples of a robot next to each other; None: the bare base. Layers may see
            several rows per sample (tokens, cameras), as long as a sample's rows are together.
        reach_all: adapters that no sample passes get a gradient of zeros, else none (None). For shards of
            which all processes must have the same gradients, whichever robots each of them sees.
        narrow: layers may use their copies of adapters, which were brought up to date just now.

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
    with rows.using(Route(len(robots), tuple(_segments(runs)), reach_all, narrow)):
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
