"""One drawn episode as a picture: each action component over time, recorded and predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vla_adapt.evaluation.drawn_episodes import DrawnEpisode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 4
_RECORDED, _PREDICTED = "#444", "#c30"


def episode_picture(drawn: DrawnEpisode) -> Figure:
    """Dark: recorded; red: the first action of each predicted chunk; faint red: all of the chunk."""
    from matplotlib.figure import Figure as NewFigure

    rows = -(-len(drawn.names) // COLUMNS)
    height = 1.75 * rows + 0.3
    figure = NewFigure(figsize=(11, height))
    edges = {"left": 0.06, "right": 0.99, "bottom": 0.4 / height, "top": 1 - 0.25 / height}
    space = {"wspace": 0.35, "hspace": 0.3}  # by hand: a layout engine takes most of the time
    axes = figure.subplots(rows, COLUMNS, squeeze=False, sharex=True, gridspec_kw={**edges, **space})
    for axis in axes.flat[len(drawn.names) :]:
        axis.axis("off")
    for column, axis in enumerate(axes.flat[: len(drawn.names)]):
        _component(axis, drawn, column)
    axes.flat[0].legend(fontsize=7)
    for axis in axes.flat[max(0, len(drawn.names) - COLUMNS) : len(drawn.names)]:
        axis.set_xlabel("time (s)", fontsize=7)
        axis.tick_params(labelbottom=True)
    return figure


def _component(axis: Any, drawn: DrawnEpisode, column: int) -> None:
    from matplotlib.collections import LineCollection

    rate, end = drawn.rate_hz, len(drawn.true)
    chunks = [
        np.column_stack([np.arange(start, start + len(chunk)) / rate, chunk])[: end - start]
        for start, chunk in zip(drawn.starts, drawn.predicted[..., column], strict=True)
    ]
    axis.add_collection(LineCollection(chunks, colors=_PREDICTED, alpha=0.18, linewidths=0.8))
    axis.plot(np.arange(end) / rate, drawn.true[:, column], color=_RECORDED, linewidth=1.2, label="recorded")
    first = drawn.predicted[:, 0, column]
    axis.plot(drawn.starts / rate, first, color=_PREDICTED, linewidth=1, label="predicted")
    axis.set_title(drawn.names[column], fontsize=8)
    axis.set_ylabel(drawn.units[column], fontsize=7)
    axis.tick_params(labelsize=7)
