"""Probe a finished run: how well features tell the robot, before and after training."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Float

from vla_adapt.adaptation.folder import replace_text
from vla_adapt.adaptation.robot_policy import RobotPolicy
from vla_adapt.episodes.mixing.open_mixture import open_mixture
from vla_adapt.episodes.source import EpisodeDataset
from vla_adapt.evaluation.open_loop import BATCH, cut_windows, evenly_spaced
from vla_adapt.evaluation.run_folder import RunFolder
from vla_adapt.invariance.picture import feature_picture, picture_bytes
from vla_adapt.invariance.probe import ProbeConfig, ProbeResult, probe
from vla_adapt.invariance.tap import TapName, tapped
from vla_adapt.policy.heads import ActionHead, load_head
from vla_adapt.policy.openvla import OpenVLA

PROBE_JSON, PROBE_PICTURE = "probe.json", "probe.png"
TAPS: tuple[TapName, ...] = get_args(TapName)


@dataclass(frozen=True)
class RunProbe:
    """What the probe finds in a run: tap -> result, on the same windows before and after training.

    Attributes:
        before: of the bare base.
        after: each robot through its own adapter and head, as it is served.
        head_before: whose head asks the bare base: "base", or "robot" (the base has none of this kind).
        windows: at most so many per robot.
        folds: of the cross-validation by episode.
        error: robot -> mean absolute error on held-out windows after training, in half action ranges.
    """

    before: dict[TapName, ProbeResult]
    after: dict[TapName, ProbeResult]
    head_before: str
    windows: int
    folds: int
    error: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        stages = {
            stage: {tap: result.to_dict() for tap, result in getattr(self, stage).items()}
            for stage in ("before", "after")
        }
        return asdict(self) | stages

    @staticmethod
    def load(run: Path) -> RunProbe | None:
        """What `probe_run` left in a run's folder; None when it was not run."""
        file = run / PROBE_JSON
        if not file.is_file():
            return None
        content = json.loads(file.read_text())
        for stage in ("before", "after"):
            content[stage] = {tap: ProbeResult.from_dict(found) for tap, found in content[stage].items()}
        return RunProbe(**content)


@dataclass(frozen=True)
class Features:
    """Features [N, D] by tap, and robot and episode of each row."""

    taps: dict[TapName, Float[np.ndarray, "N D"]]
    robots: list[str]
    episodes: list[str]


def probe_run(
    run: RunFolder, windows: int = 200, config: ProbeConfig | None = None, device: str = "cpu"
) -> RunProbe:
    """Probe a run's features, and leave `probe.json` and `probe.png` in its folder.

    Looked at are windows evenly spaced over each robot's training and held-out episodes together, so that
    there are episodes enough to split by. The robot's own adapter, head and state are part of what is served:
    features "hidden", which depend on the head, may tell the robot even if images do not.

    Args:
        windows: at most so many per robot.
        config: of the probe.
        device: where the policy runs.

    Raises:
        ValueError: one robot only, too few episodes for the folds, data or base that are gone.
    """
    config = config or ProbeConfig()
    bundles = run.bundles()
    if len(bundles) < 2:
        raise ValueError(
            f"{run.path} has one robot ({', '.join(bundles)}): the probe tells robots apart and wants two"
        )
    data = _episodes(run)
    _check_folds(data, windows, config.folds)
    model = OpenVLA.from_pretrained(run.base, device=device).eval()
    served = {robot: bundle.attach(model) for robot, bundle in bundles.items()}
    head = _base_head(run, model)
    bare = model if run.base == run.start else OpenVLA.from_pretrained(run.start, device=device).eval()
    start = {
        robot: replace(policy, model=bare, head=head or policy.head, adapted=False)
        for robot, policy in served.items()
    }
    before, after = collect(start, data, windows), collect(served, data, windows)
    result = RunProbe(
        before=_probed(before, config),
        after=_probed(after, config),
        head_before="robot" if head is None else "base",
        windows=windows,
        folds=config.folds,
        error={robot: row["error"] for robot, row in run.open_loop().items()},
    )
    _draw(run, {"before": before, "after": after})
    replace_text(run.path / PROBE_JSON, json.dumps(result.to_dict(), indent=1) + "\n")
    return result


def collect(
    policies: Mapping[str, RobotPolicy], data: Mapping[str, Sequence[EpisodeDataset]], windows: int
) -> Features:
    """Features of at most `windows` windows of each robot, in the policies' order."""
    rows: dict[TapName, list[np.ndarray]] = {tap: [] for tap in TAPS}
    robots: list[str] = []
    episodes: list[str] = []
    for robot, policy in policies.items():
        places = evenly_spaced(data[robot], windows)
        numbers = {id(dataset): number for number, dataset in enumerate(data[robot])}
        for start in range(0, len(places), BATCH):
            answer = policy.answer_windows(cut_windows(policy, places[start : start + BATCH]))
            for tap in TAPS:
                found = tapped(tap, answer.patches, answer.action_hidden)
                rows[tap].append(found.float().cpu().numpy())
        robots += [robot] * len(places)
        episodes += [f"{robot}/{numbers[id(dataset)]}/{episode}" for dataset, episode, _ in places]
    return Features({tap: np.concatenate(found) for tap, found in rows.items()}, robots, episodes)


def _probed(features: Features, config: ProbeConfig) -> dict[TapName, ProbeResult]:
    return {
        tap: probe(rows, features.robots, features.episodes, config) for tap, rows in features.taps.items()
    }


def _episodes(run: RunFolder) -> dict[str, list[EpisodeDataset]]:
    """Robot -> its training and held-out episodes."""
    data: dict[str, list[EpisodeDataset]] = {}
    for part in open_mixture(run.mixture, full_size=True).parts:
        both = [part.train] if part.held_out is None else [part.train, part.held_out]
        data.setdefault(part.train.embodiment.name, []).extend(both)
    return data


def _check_folds(data: Mapping[str, Sequence[EpisodeDataset]], windows: int, folds: int) -> None:
    for robot, datasets in data.items():
        seen = Counter((id(dataset), episode) for dataset, episode, _ in evenly_spaced(datasets, windows))
        if len(seen) < folds:
            raise ValueError(
                f"'{robot}': the windows are of {len(seen)} episode(s), cross-validation by episode in "
                f"{folds} folds wants at least as many: take fewer folds, more windows or more episodes"
            )


def _base_head(run: RunFolder, model: OpenVLA) -> ActionHead | None:
    """The head that the base carries, if the run's heads started from it."""
    if not run.recipe["policy"]["head_from_base"] or not (run.start / "head.json").is_file():
        return None
    return load_head(run.start, model)


def _draw(run: RunFolder, stages: Mapping[str, Features]) -> None:
    panels = {
        f"{tap}, {stage}": (features.taps[tap], features.robots)
        for tap in TAPS
        for stage, features in stages.items()
    }
    (run.path / PROBE_PICTURE).write_bytes(picture_bytes(feature_picture(panels)))
