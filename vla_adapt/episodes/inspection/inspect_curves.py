"""Curves of one episode as inline SVG: one small chart per named slot, with a cursor line for a scrubber."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

WIDTH, HEIGHT, MARGIN = 1000, 100, 6
LEAST_SPAN = 1e-9


@dataclass(frozen=True)
class Curve:
    """One slot over time.

    Attributes:
        name: slot name.
        unit: of the values.
        values: [T]; NaN leaves a gap.
        what: "action" or "state"; colors the line.
        closed: [T] where the gripper of this side is commanded to be closed, or None.
        limits: lowest and highest value of the axis; None: those of the values.
    """

    name: str
    unit: str
    values: Float[np.ndarray, " T"]
    what: str
    closed: Bool[np.ndarray, " T"] | None = None
    limits: tuple[float, float] | None = None


def chart(curve: Curve, number: int) -> str:
    """A figure with title, value at the cursor (filled in by the page's script) and the curve."""
    low, high = curve.limits or _range(curve.values)
    shade = "" if curve.closed is None else _shade(curve.closed)
    zero = ""
    if low < 0 < high:
        y = _height(0.0, low, high)
        zero = f'<line class=zero x1=0 x2={WIDTH} y1="{y:.1f}" y2="{y:.1f}" />'
    lines = "".join(f'<path class={curve.what} d="{path}" />' for path in _paths(curve.values, low, high))
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none">{shade}{zero}{lines}'
        f"<line class=cursor x1=0 x2=0 y1=0 y2={HEIGHT} /></svg>"
    )
    title = f"<b>{html.escape(curve.name)}</b> <small>{html.escape(curve.unit)}</small>"
    axis = f"<span>{_label(high, high - low)}</span><span>{_label(low, high - low)}</span>"
    return (
        f"<figure data-curve={number}><figcaption>{title}<output></output></figcaption>"
        f"<div class=plot><div class=axis>{axis}</div>{svg}</div></figure>"
    )


def _range(values: Float[np.ndarray, " T"]) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return (low, high) if high - low > LEAST_SPAN else (low - 0.5, high + 0.5)


def _label(value: float, span: float) -> str:
    return f"{0.0 if abs(value) < 1e-3 * span else value:.3g}"


def _height(value: float, low: float, high: float) -> float:
    return HEIGHT - MARGIN - (value - low) / (high - low) * (HEIGHT - 2 * MARGIN)


def x_of(step: float | int, steps: int) -> float:
    """Where a step lies on the horizontal axis."""
    return WIDTH * step / max(steps - 1, 1)


def _paths(values: Float[np.ndarray, " T"], low: float, high: float) -> Sequence[str]:
    """SVG paths of the finite stretches."""
    paths, points = [], []
    for step, value in enumerate(values):
        if np.isfinite(value):
            points.append(f"{x_of(step, len(values)):.1f} {_height(float(value), low, high):.1f}")
        elif points:
            paths.append("M" + "L".join(points))
            points = []
    return [*paths, "M" + "L".join(points)] if points else paths


def _shade(closed: Bool[np.ndarray, " T"]) -> str:
    """Bands over the steps with a closed gripper."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], closed.astype(int), [0]])))
    bands = []
    for first, after in zip(edges[::2], edges[1::2], strict=True):
        left = x_of(max(first - 0.5, 0), len(closed))
        right = x_of(min(after - 0.5, len(closed) - 1), len(closed))
        bands.append(f'<rect class=closed x="{left:.1f}" y=0 width="{right - left:.1f}" height={HEIGHT} />')
    return "".join(bands)
