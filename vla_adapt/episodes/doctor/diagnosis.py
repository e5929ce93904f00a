"""The doctor: examines datasets of any format and says, with evidence, what is wrong with them.

Two steps per dataset: one streaming pass (`doctor_survey`), then checks, each a pure function of the survey.
Last, what shows only when datasets are put side by side. Where a convention (gripper, frame, rate, colors) is
broken by some episodes only, as in merged datasets, the finding names them. The codes of findings:

    files      unreadable undecodable_image
    episodes   empty_episodes short_episodes truncated_episodes empty_instruction one_instruction
               changing_instruction duplicate_episodes near_duplicate_episodes shared_episodes
               uneven_parts missing_camera no_state no_pose
    numbers    non_finite bad_quaternion dead_dimension narrow_quantiles outliers beyond_limits few_steps
    gripper    gripper_scale gripper_sign gripper_starts_closed
    motion     absolute_actions frame_mismatch axes_mismatch action_scale action_lag not_integrable
               joint_mismatch idle_frames dummy_first_action
    time       control_rate robot_rate pooled_rates time_gaps time_not_increasing
    cameras    camera_stand_in (found when opening)
    images     black_images plain_images frozen_images image_sizes camera_sizes bgr_images
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from vla_adapt.episodes.doctor.doctor_duplicates import check_duplicates, check_shared, fingerprints
from vla_adapt.episodes.doctor.doctor_episodes import (
    check_ended,
    check_instructions,
    check_lengths,
    check_readable,
    check_same_parts,
)
from vla_adapt.episodes.doctor.doctor_finding import SEVERITIES, Finding, Severity, by_severity
from vla_adapt.episodes.doctor.doctor_gripper import (
    check_gripper_scale,
    check_gripper_sign,
    check_gripper_start,
)
from vla_adapt.episodes.doctor.doctor_images import (
    check_blank,
    check_channel_order,
    check_decodable,
    check_frozen,
    check_image_sizes,
    colors_of,
)
from vla_adapt.episodes.doctor.doctor_joints import check_joints
from vla_adapt.episodes.doctor.doctor_numbers import (
    check_dead,
    check_enough,
    check_limits,
    check_narrow,
    check_non_finite,
    check_outliers,
    check_pose_known,
    check_quaternions,
)
from vla_adapt.episodes.doctor.doctor_odd_colors import check_some_swapped
from vla_adapt.episodes.doctor.doctor_odd_motion import check_deltas
from vla_adapt.episodes.doctor.doctor_stillness import check_dummy_first, check_idle
from vla_adapt.episodes.doctor.doctor_survey import Survey, survey
from vla_adapt.episodes.doctor.doctor_timing import (
    RobotRate,
    check_pooled_rates,
    check_robot_rate,
    check_times,
)
from vla_adapt.episodes.source import EpisodeDataset

Check = Callable[[Survey], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    check_readable,
    check_lengths,
    check_ended,
    check_instructions,
    check_same_parts,
    check_non_finite,
    check_quaternions,
    check_pose_known,
    check_dead,
    check_narrow,
    check_outliers,
    check_enough,
    check_limits,
    check_gripper_scale,
    check_gripper_sign,
    check_gripper_start,
    check_deltas,
    check_joints,
    check_idle,
    check_dummy_first,
    check_robot_rate,
    check_times,
    check_duplicates,
    check_decodable,
    check_blank,
    check_frozen,
    check_image_sizes,
    check_some_swapped,
)


@dataclass(frozen=True)
class Examined:
    """How much of a dataset was looked at: `examined` of `episodes`, `steps` in them, `images` decoded."""

    name: str
    robot: str
    episodes: int
    examined: int
    steps: int
    images: int


@dataclass(frozen=True)
class Diagnosis:
    """What was examined and what was found, errors first."""

    examined: Sequence[Examined]
    findings: Sequence[Finding]

    def count(self, severity: Severity) -> int:
        """Findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form: {"datasets": [...], "findings": [...], "counts": {severity: n}}."""
        return {
            "datasets": [vars(one) for one in self.examined],
            "findings": [finding.to_dict() for finding in self.findings],
            "counts": {severity: self.count(severity) for severity in SEVERITIES},
        }


def examine(
    datasets: Sequence[EpisodeDataset],
    names: Sequence[str] | None = None,
    max_episodes: int | None = None,
    images: int = 64,
    advance: Callable[[str, int, int, str], None] | None = None,
    already: Sequence[Finding] = (),
    strides: Sequence[int] | None = None,
) -> Diagnosis:
    """Examine datasets one by one, then side by side.

    Args:
        datasets: of any format; open them with `check=False`, so that NaN is found rather than refused.
        names: what to call each in the findings; default their own names.
        max_episodes: of each dataset, evenly spread; None: all. The numbers of one dataset's examined
            steps are in memory at a time, about 150 bytes a step.
        images: about how many frames of each camera to decode; 0: none.
        advance: called with (name, done, of how many, what) as it goes.
        already: found when opening them.
        strides: every how manyth step of each will be read; default all.
    """
    examined: list[Examined] = []
    findings = list(already)
    prints, colors, rates = [], [], []
    names = names or [dataset.name for dataset in datasets]
    for dataset, name, stride in zip(datasets, names, strides or [1] * len(names), strict=True):
        tell = None if advance is None else partial(advance, name)
        seen = replace(survey(dataset, name, max_episodes, images, tell), stride=stride)
        robot, known = seen.embodiment.name, len(seen.recordings)
        examined.append(Examined(name, robot, seen.total, known, seen.steps, len(seen.frames)))
        with np.errstate(over="ignore", invalid="ignore"):  # numbers may be as huge as they like
            findings += [finding for check in CHECKS for finding in check(seen)]
            prints.append((name, fingerprints(seen)))
        colors.append((name, colors_of(seen.frames)))
        rates.append(RobotRate(name, robot, seen.read_hz))
    findings += [*check_shared(prints), *check_channel_order(colors), *check_pooled_rates(rates)]
    return Diagnosis(examined, by_severity(findings))
