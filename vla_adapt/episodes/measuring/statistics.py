"""Statistics of unified actions and proprioception per robot, over whole datasets; reads no image.

Every step is read once. Datasets are summarized in fixed pieces, merged in a fixed order, so any number of
processes or ranks gives the same numbers. Up to `quantile_sketch.EXACT_ROWS` steps of a robot they are
exactly those of all steps in one array; beyond that quantiles have the rank error stated there.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from vla_adapt.actions.normalize import Statistics
from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.episodes import episode_facts
from vla_adapt.episodes.measuring.motion_summary import MotionSummary, Piece, pieces, summaries
from vla_adapt.episodes.measuring.statistics_cache import SummaryCache
from vla_adapt.episodes.source import EpisodeDataset
from vla_adapt.progress_bar import progress_bar
from vla_adapt.types import Layout


@dataclass(frozen=True)
class RobotStatistics:
    """Statistics of one robot; `proprio` is None when its data has no state."""

    action: Statistics
    proprio: Statistics | None


def robot_statistics(
    datasets: Iterable[EpisodeDataset], layout: Layout = "slots", workers: int = 0, cache: bool = True
) -> dict[str, RobotStatistics]:
    """Statistics by robot name, every step of all its datasets counted once.

    A slot's numbers are those of the steps whose dataset records it; one that none records is masked.

    Args:
        datasets: of any robots; the same embodiment text for the same name.
        layout: of the unified vectors.
        workers: processes that read; 0: this one. The numbers do not depend on it.
        cache: keep each dataset's summary beside its index, and use one that is there.

    Raises:
        ValueError: NaN or a wrong width (names dataset and episode), two embodiments of one name that differ.
    """
    by_robot = episode_facts.by_robot(datasets)
    in_order = [dataset for group in by_robot.values() for dataset in group]
    with closing(_summarized(in_order, layout, workers, cache)) as each:
        return {robot: _statistics(group, each, layout) for robot, group in by_robot.items()}


def _statistics(
    datasets: Sequence[EpisodeDataset], each: Iterator[MotionSummary], layout: Layout
) -> RobotStatistics:
    """Statistics of one robot, of as many summaries of `each` as it has datasets."""
    robot, merged = datasets[0].embodiment, _merged(itertools.islice(each, len(datasets)))
    if not merged.action.count:
        raise ValueError(f"{datasets[0].name}: no steps to compute statistics from")
    action = merged.action.statistics(ActionUnifier(robot, layout).mask)
    if not merged.proprio.count:
        return RobotStatistics(action, None)
    mask = ActionUnifier(robot, layout, kind="proprio").mask
    return RobotStatistics(action, merged.proprio.statistics(mask))


def _summarized(
    datasets: Sequence[EpisodeDataset], layout: Layout, workers: int, cache: bool
) -> Generator[MotionSummary]:
    """The summary of each dataset in turn, from the cache or computed; only one is held at a time."""
    caches = [SummaryCache(dataset, layout) if cache else None for dataset in datasets]
    known = [kept is not None and kept.is_there for kept in caches]
    cut = [piece for piece in pieces(datasets) if not known[piece.dataset]]
    with closing(_followed(datasets, cut, layout, workers)) as computed:
        for number, (dataset, kept) in enumerate(zip(datasets, caches, strict=True)):
            summary = kept.load() if kept is not None and known[number] else None
            if summary is None:
                if known[number]:  # it was there, but is damaged
                    parts = summaries([dataset], pieces([dataset]), layout, workers)
                else:
                    parts = itertools.islice(computed, sum(piece.dataset == number for piece in cut))
                summary = _merged(parts)
                if kept is not None:
                    kept.save(summary)
            yield summary


def _merged(parts: Iterable[MotionSummary]) -> MotionSummary:
    merged = MotionSummary()
    for part in parts:
        merged.merge(part)
    return merged


def _followed(
    datasets: Sequence[EpisodeDataset], cut: Sequence[Piece], layout: Layout, workers: int
) -> Generator[MotionSummary]:
    """`summaries` with a progress bar."""
    total = sum(piece.steps for piece in cut)
    with (
        progress_bar("measuring", total, "steps") as bar,
        closing(summaries(datasets, cut, layout, workers)) as parts,
    ):
        bar.note = datasets[cut[0].dataset].name if cut else ""
        for piece, part in zip(cut, parts, strict=True):
            bar.advance(piece.steps)
            bar.note = datasets[piece.dataset].name
            yield part
