"""What the doctor looks at: one streaming pass over a dataset's episodes, and a sample of its images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.doctor.doctor_frames import PER_EPISODE, Frame, frames_of, spread_over
from vla_adapt.episodes.doctor.doctor_stored import (
    END_NAMES,
    TIME_NAMES,
    StoredGripper,
    declared_zero,
    signal,
    skipped,
    stored_grippers,
)
from vla_adapt.episodes.doctor.doctor_track import Track, Tracker
from vla_adapt.episodes.recorded_rate import recorded_rate_hz
from vla_adapt.episodes.source import Episode, EpisodeDataset

# Share of the usual range of a slot that counts as a clear movement.
CLEAR_MOVE = 0.15

Advance = Callable[[int, int, str], None]


class Problem(NamedTuple):
    """Something that could not be read: which part, where, and the reader's own words."""

    part: Literal["record", "episode", "image"]
    where: str
    message: str


class Recording(NamedTuple):
    """Facts of one examined episode.

    Attributes:
        instruction: of step 0.
        instruction_changes: (step, instruction) from which on another one is given.
        time: [T] when each step was recorded, as stored; None: nothing tells.
        ended: whether the last step bears the end mark; None: nothing is marked.
        omits: components that this episode does not record.
    """

    episode_id: str
    length: int
    instruction: str
    instruction_changes: tuple[tuple[int, str], ...]
    cameras: tuple[str, ...]
    has_state: bool
    time: Float[np.ndarray, " T"] | None
    ended: bool | None
    omits: tuple[str, ...]

    @property
    def instructions(self) -> list[str]:
        """Of all its steps, in order."""
        return [self.instruction, *(text for _, text in self.instruction_changes)]


@dataclass(frozen=True)
class Survey:
    """All that the checks may look at; the steps of all examined episodes follow one another as N rows.

    Attributes:
        name: of the dataset.
        embodiment: of the dataset.
        total: episodes in the dataset, examined or not.
        recordings: one per examined episode.
        action: [N] rows of actions.
        state: [N] rows of states, when every examined episode has one; else None.
        frames: the sampled images, in order of episode, camera and step.
        rate_hz: at which the data was recorded, as declared.
        stride: every so manyth step will be read; what is examined are all of them.
        grippers: stored gripper fields as they are before clipping, each over all examined steps.
        problems: what could not be read.
    """

    name: str
    embodiment: Embodiment
    rate_hz: float
    total: int
    recordings: Sequence[Recording]
    action: Track
    state: Track | None
    grippers: Sequence[StoredGripper] = ()
    frames: Sequence[Frame] = ()
    problems: Sequence[Problem] = ()
    stride: int = 1

    @property
    def read_hz(self) -> float:
        """The rate that training will see."""
        return self.rate_hz / self.stride

    @property
    def steps(self) -> int:
        """N, examined steps."""
        return len(self.action.native)

    @cached_property
    def lengths(self) -> Int64[np.ndarray, " E"]:
        """Steps of each examined episode."""
        return np.array([recording.length for recording in self.recordings], np.int64)

    @cached_property
    def starts(self) -> Int64[np.ndarray, " E"]:
        """First row of each examined episode."""
        return np.cumsum(self.lengths) - self.lengths

    @cached_property
    def episode_of(self) -> Int64[np.ndarray, " N"]:
        """Number (among the examined) of the episode of each row."""
        return np.repeat(np.arange(len(self.lengths), dtype=np.int64), self.lengths)

    def where(self, row: int) -> str:
        """ "episode train/3 step 17"."""
        episode = int(self.episode_of[row])
        return f"episode {self.recordings[episode].episode_id} step {row - int(self.starts[episode])}"

    def episodes_with(self, rows: Bool[np.ndarray, " N"]) -> list[str]:
        """Ids of the episodes that have such a row."""
        return [self.recordings[i].episode_id for i in np.unique(self.episode_of[rows])]

    def only(self, episodes: Sequence[int]) -> Survey:
        """A survey of some of the examined episodes (by number, ascending), without their images."""
        rows = np.isin(self.episode_of, episodes)
        return dataclasses.replace(
            self,
            recordings=[self.recordings[number] for number in episodes],
            action=self.action.rows(rows),
            state=None if self.state is None else self.state.rows(rows),
            grippers=[gripper._replace(opening=gripper.opening[rows]) for gripper in self.grippers],
            frames=(),
        )

    def ids(self, episodes: Sequence[int]) -> list[str]:
        """Ids of examined episodes by number."""
        return [self.recordings[number].episode_id for number in episodes]

    def together(self, *offsets: int) -> Int64[np.ndarray, " M"]:
        """Rows t for which t + each offset lies in the episode of t."""
        rows = np.arange(self.steps, dtype=np.int64)
        for offset in offsets:
            rows = rows[(rows + offset >= 0) & (rows + offset < self.steps)]
            rows = rows[self.episode_of[rows] == self.episode_of[rows + offset]]
        return rows

    @cached_property
    def path(self) -> Float[np.ndarray, "N K"]:
        """Where the robot is, each slot as a share of its usual range: the state, or the summed commands."""
        track = self.state or self.action
        values = np.nan_to_num(track.unified.astype(np.float64))
        if track.kind == "action":
            deltas = [kind in ("position", "rotation", "velocity") for kind in track.kinds]
            values[:, deltas] = np.cumsum(values[:, deltas], axis=0)
        low, high = np.quantile(values, [0.01, 0.99], axis=0) if len(values) else (0.0, 1.0)
        return values / np.maximum(high - low, 1e-3)


def survey(
    dataset: EpisodeDataset,
    name: str | None = None,
    max_episodes: int | None = None,
    images: int = 64,
    advance: Advance | None = None,
) -> Survey:
    """Read a dataset once.

    Args:
        dataset: of any format.
        name: what to call it; default its own name.
        max_episodes: examine so many, evenly spread; None: all.
        images: about how many frames of each camera to decode, spread over episodes; 0: none.
        advance: called with (done, of how many, what) as it goes.
    """
    advance = advance or (lambda done, of, what: None)
    chosen = spread_over(len(dataset), max_episodes)
    problems = [Problem("record", "when opened", message) for message in skipped(dataset)]
    gathered = _Gathered(dataset)
    for done, number in enumerate(chosen):
        advance(done, len(chosen), "episodes")
        try:
            gathered.add(number)
        except ValueError as error:
            problems.append(Problem("episode", f"number {number}", str(error)))
    advance(len(chosen), len(chosen), "episodes")
    numbers = gathered.survey(name or dataset.name)
    frames = _look(dataset, numbers, list(gathered.recordings), images, problems, advance)
    return dataclasses.replace(numbers, frames=frames, problems=problems)


class _Gathered:
    """The numbers of the episodes read so far."""

    def __init__(self, dataset: EpisodeDataset):
        self.dataset = dataset
        self.recordings: dict[int, Recording] = {}
        self._actions: list[Track] = []
        self._states: list[Track] = []
        self._grippers: dict[str, list[StoredGripper]] = {}
        self._trackers: tuple[Tracker, Tracker | None] | None = None

    def add(self, number: int) -> None:
        """Read one episode.

        Raises:
            ValueError: it cannot be read; nothing of it is kept.
        """
        episode = self.dataset[number]
        to_action, to_state = self._to_tracks(episode)
        action = to_action.track(episode.action, episode.state)
        state = (
            to_state.track(episode.state, episode.state) if to_state and episode.state is not None else None
        )
        grippers = list(stored_grippers(self.dataset, number))
        self.recordings[number] = _recording(self.dataset, number, episode)
        self._actions.append(action)
        self._states += [] if state is None else [state]
        for gripper in grippers:
            self._grippers.setdefault(gripper.what, []).append(gripper)

    def survey(self, name: str) -> Survey:
        """What the numbers make; no images yet."""
        robot = self.dataset.embodiment
        to_action, to_state = self._trackers or (Tracker(robot, "action"), None)
        everywhere = to_state is not None and 0 < len(self._states) == len(self._actions)
        return Survey(
            name=name,
            embodiment=robot,
            rate_hz=recorded_rate_hz(self.dataset),
            total=len(self.dataset),
            recordings=list(self.recordings.values()),
            action=to_action.merged(self._actions),
            state=to_state.merged(self._states) if to_state is not None and everywhere else None,
            grippers=[
                StoredGripper(what, parts[0].declared, np.concatenate([part.opening for part in parts]))
                for what, parts in self._grippers.items()
            ],
        )

    def _to_tracks(self, episode: Episode) -> tuple[Tracker, Tracker | None]:
        """Made for the components that the first episode records."""
        if self._trackers is None:
            robot = self.dataset.embodiment
            zero = {kind: declared_zero(self.dataset, kind) for kind in ("action", "proprio")}
            recorded = [part.name for part in robot.proprio if part.name not in episode.state_omits]
            to_state = Tracker(robot, "proprio", episode.state_omits, zero["proprio"]) if recorded else None
            self._trackers = Tracker(robot, "action", episode.action_omits, zero["action"]), to_state
        return self._trackers


def _look(
    dataset: EpisodeDataset,
    numbers: Survey,
    readable: list[int],
    images: int,
    problems: list[Problem],
    advance: Advance,
) -> list[Frame]:
    """Sample images of some of the readable episodes."""
    frames: list[Frame] = []
    chosen = spread_over(len(readable), -(-images // PER_EPISODE))
    for done, i in enumerate(chosen):
        advance(done, len(chosen), "episodes' images")
        episode, start = dataset[readable[i]], int(numbers.starts[i])

        def moved(before: int, after: int, start: int = start) -> bool:
            went = np.abs(numbers.path[start + after] - numbers.path[start + before])
            return bool(went.max(initial=0.0) > CLEAR_MOVE)

        def failed(camera: str, step: int, message: str, name: str = episode.episode_id) -> None:
            problems.append(Problem("image", f"episode {name} step {step} camera '{camera}'", message))

        frames += frames_of(episode, moved, failed)
    advance(len(chosen), len(chosen), "episodes' images")
    return frames


def _recording(dataset: EpisodeDataset, number: int, episode: Episode) -> Recording:
    ends = signal(dataset, number, episode, END_NAMES)
    return Recording(
        episode_id=episode.episode_id,
        length=len(episode),
        instruction=episode.instruction,
        instruction_changes=episode.instruction_changes,
        cameras=episode.cameras,
        has_state=episode.state is not None,
        time=signal(dataset, number, episode, TIME_NAMES),
        ended=None if ends is None or not len(ends) else bool(ends[-1]),
        omits=(*episode.action_omits, *episode.state_omits),
    )
