"""A 2-D picture of features by robot: their first two principal components."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def principal_components(
    features: Float[np.ndarray, "N F"], count: int = 2
) -> tuple[Float[np.ndarray, "N K"], Float[np.ndarray, " K"]]:
    """Rows along the `count` directions of greatest variance, and the share of the variance of each.

    Features are put into standard units first. The sign of each direction is such that its largest weight is
    positive, so that equal features give equal pictures. Directions that do not exist are zero.
    """
    rows = torch.as_tensor(features, dtype=torch.float64)
    rows = rows - rows.mean(dim=0)
    deviation = rows.square().mean(dim=0).sqrt()
    rows = rows / torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    largest = right.gather(1, right.abs().argmax(dim=1, keepdim=True))[:, 0]
    scores = left * values * largest.sign()
    shares = values.square() / values.square().sum().clamp_min(torch.finfo(torch.float64).tiny)
    kept = min(count, len(values))
    full = np.zeros((len(features), count)), np.zeros(count)
    full[0][:, :kept], full[1][:kept] = scores[:, :kept].numpy(), shares[:kept].numpy()
    return full


def feature_picture(panels: Mapping[str, tuple[Float[np.ndarray, "N F"], Sequence[str]]]) -> Figure:
    """One scatter per panel, title -> (features, robot of each row); a robot has one color in all of them."""
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(4.6 * len(panels), 4.0), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(panels)))
    names = sorted({robot for _, robots in panels.values() for robot in robots})
    for axis, (title, (features, robots)) in zip(axes, panels.items(), strict=True):
        places, shares = principal_components(features)
        _scatter(axis, places, np.asarray(robots), names)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(f"component 1 ({100 * shares[0]:.0f} % of variance)", fontsize=8)
        axis.set_ylabel(f"component 2 ({100 * shares[1]:.0f} %)", fontsize=8)
    axes[0].legend(fontsize=7, markerscale=1.5)
    return figure


def picture_bytes(figure: Figure, kind: Literal["png", "svg"] = "png") -> bytes:
    """A figure as a file's content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=110)
    return buffer.getvalue()


def _scatter(axis: Any, places: np.ndarray, robots: np.ndarray, names: list[str]) -> None:
    for number, name in enumerate(names):
        mine = places[robots == name]
        axis.scatter(mine[:, 0], mine[:, 1], s=9, alpha=0.6, linewidths=0, color=f"C{number}", label=name)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3)
