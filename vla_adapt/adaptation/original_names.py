"""Adapters between our module names and the original OpenVLA's, whose vision towers fuse q, k and v.

Fusing: (A_q, B_q), (A_k, B_k), (A_v, B_v) become A = [A_q; A_k; A_v] and a B with one block per projection;
the rank is the sum of theirs. Where all share one A, as after splitting, A stays and the B are stacked.
Splitting: q, k and v share A, each takes its third of B's rows; columns of B that are zero there are dropped.
Both are exact: the same products, plus zeros.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch

from vla_adapt.adaptation.factors import Factor
from vla_adapt.policy.naming import original_module, our_modules


def factors_to_original(factors: Mapping[str, Factor]) -> dict[str, Factor]:
    """Our factors under the original's module names.

    Raises:
        ValueError: for a module the original does not have.
    """
    original: dict[str, Factor] = {}
    fused: dict[str, dict[int, Factor]] = {}
    for module, factor in factors.items():
        target, part = original_module(module)
        if part is None:
            original[target] = factor
        else:
            fused.setdefault(target, {})[part] = factor
    return original | {module: _fuse(parts) for module, parts in fused.items()}


def _fuse(parts: Mapping[int, Factor]) -> Factor:
    first = next(iter(parts.values()))
    width = first.b.shape[0]
    shared = all(part.scale == first.scale and torch.equal(part.a, first.a) for part in parts.values())
    rank = first.rank if shared else sum(part.rank for part in parts.values())
    b = first.b.new_zeros(3 * width, rank)
    column = 0
    for index, part in sorted(parts.items()):
        rows = slice(index * width, (index + 1) * width)
        ratio = part.scale / first.scale if part.scale != first.scale else 1.0
        b[rows, column : column + part.rank] = part.b * ratio
        column += 0 if shared else part.rank
    a = first.a if shared else torch.cat([part.a for _, part in sorted(parts.items())])
    return Factor(a, b, first.scale)


def factors_to_ours(
    factors: Mapping[str, Factor], idle: Collection[str]
) -> tuple[dict[str, Factor], list[str]]:
    """The original's factors under our module names, and the modules left out because they never run.

    Args:
        factors: by the original's module names.
        idle: the original's modules that take no part in the computation (last blocks, attention pooling).
    """
    ours: dict[str, Factor] = {}
    dropped = []
    for module, factor in factors.items():
        if module in idle:
            dropped.append(module)
            continue
        targets = our_modules(module)
        assert targets, f"{module} is neither idle nor ours"
        if len(targets) == 1:
            ours[targets[0]] = factor
        else:
            ours |= dict(zip(targets, _split(factor), strict=True))
    return {module: factor for module, factor in ours.items() if factor.rank}, dropped


def _split(factor: Factor) -> list[Factor]:
    thirds = [replace(factor, b=rows) for rows in factor.b.chunk(3)]
    if not factor.b.any():
        return thirds
    used = [(third.b != 0).any(dim=0) for third in thirds]
    return [Factor(third.a[u], third.b[:, u], third.scale) for third, u in zip(thirds, used, strict=True)]
