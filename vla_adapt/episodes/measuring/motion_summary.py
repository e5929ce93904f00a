"""Summaries of the unified motion of datasets, cut into fixed pieces of work for any number of processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.episodes.measuring.vector_summary import VectorSummary
from vla_adapt.episodes.source import EpisodeDataset
from vla_adapt.episodes.windows import UnifiedMotion, unify_motion
from vla_adapt.types import Layout

# A piece of work ends with the episode that reaches this many steps. Changing it changes the last digits.
PIECE_STEPS = 1 << 17


@dataclass
class MotionSummary:
    """Summaries of unified action and proprio; the latter is empty for data without a state."""

    action: VectorSummary = field(default_factory=VectorSummary)
    proprio: VectorSummary = field(default_factory=VectorSummary)

    def merge(self, other: MotionSummary) -> None:
        """Take in all that `other` has seen."""
        self.action.merge(other.action)
        self.proprio.merge(other.proprio)


class Piece(NamedTuple):
    """Episodes first .. end - 1 of a dataset, holding `steps` steps."""

    dataset: int
    first: int
    end: int
    steps: int


def pieces(datasets: Sequence[EpisodeDataset], piece_steps: int = PIECE_STEPS) -> list[Piece]:
    """Cut datasets into pieces; a function of their lengths alone, never of who works on them."""
    cut: list[Piece] = []
    for number, dataset in enumerate(datasets):
        first = steps = 0
        for episode, length in enumerate(dataset.lengths.tolist()):
            steps += length
            if steps >= piece_steps or episode == len(dataset) - 1:
                cut.append(Piece(number, first, episode + 1, steps))
                first, steps = episode + 1, 0
    return cut


def summarize(dataset: EpisodeDataset, first: int, end: int, layout: Layout) -> MotionSummary:
    """Summary of some episodes; each is read once, no image is.

    Raises:
        ValueError: NaN or a wrong width; names dataset, episode and step.
    """
    robot = dataset.embodiment
    unifier = ActionUnifier(robot, layout)
    proprio_unifier = ActionUnifier(robot, layout, kind="proprio") if robot.proprio else None
    motions: list[UnifiedMotion] = []
    for index in range(first, end):
        episode = dataset[index]
        if not len(episode):
            continue
        try:
            motions.append(unify_motion(episode, unifier, proprio_unifier))
        except ValueError as error:
            raise ValueError(f"{dataset.name}: episode {episode.episode_id}: {error}") from None
    summary = MotionSummary()
    _add_alike(summary.action, [(motion.action, motion.action_mask) for motion in motions])
    with_state = [(m.proprio, m.proprio_mask) for m in motions if m.proprio is not None]
    _add_alike(summary.proprio, with_state)
    return summary


def summaries(
    datasets: Sequence[EpisodeDataset], cut: Sequence[Piece], layout: Layout, workers: int
) -> Generator[MotionSummary]:
    """Summary of each piece, in order, computed by `workers` processes (0: this one).

    Raises:
        ValueError: as `summarize`, of the first piece that has it; or a worker was killed.
    """
    workers = min(workers, len(cut))
    if workers <= 1:
        yield from (summarize(datasets[p.dataset], p.first, p.end, layout) for p in cut)
        return
    with closing(_Workers(datasets, cut, layout, workers)) as running:
        yield from running.results()


class _Workers:
    """Processes of which number w works on pieces w, w + n, w + 2n, ... and sends them in that order."""

    def __init__(self, datasets: Sequence[EpisodeDataset], cut: Sequence[Piece], layout: Layout, count: int):
        self._pieces = len(cut)
        self._processes, self._connections = [], []
        for worker in range(count):
            receive, send = multiprocessing.Pipe(duplex=False)
            arguments = (send, datasets, cut[worker::count], layout)
            process = multiprocessing.Process(target=_work, args=arguments, daemon=True)
            process.start()
            send.close()
            self._processes.append(process)
            self._connections.append(receive)

    def results(self) -> Iterator[MotionSummary]:
        for piece in range(self._pieces):
            worker = piece % len(self._processes)
            try:
                result: Any = self._connections[worker].recv()
            except EOFError:
                self._processes[worker].join()
                code = self._processes[worker].exitcode
                raise ValueError(
                    f"statistics: a worker process ended with code {code} (out of memory?); use fewer workers"
                ) from None
            if isinstance(result, Exception):
                raise result
            yield result

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.terminate()
            process.join()


def _work(
    connection: Connection, datasets: Sequence[EpisodeDataset], cut: Sequence[Piece], layout: Layout
) -> None:
    try:
        for piece in cut:
            connection.send(summarize(datasets[piece.dataset], piece.first, piece.end, layout))
    except BrokenPipeError:
        pass  # the parent has stopped listening
    except Exception as error:
        connection.send(error)


def _add_alike(summary: VectorSummary, motions: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Add vectors, those with one mask together."""
    by_mask: dict[bytes, list[tuple[np.ndarray, np.ndarray]]] = {}
    for values, mask in motions:
        by_mask.setdefault(mask.tobytes(), []).append((values, mask))
    for alike in by_mask.values():
        summary.add(np.concatenate([values for values, _ in alike]), alike[0][1])
