"""Checks of whole episodes: readable, complete, long enough, with words, with the cameras of the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from vla_adapt.episodes.doctor.doctor_finding import Finding, listed, share
from vla_adapt.episodes.doctor.doctor_survey import Recording, Survey

SHORT_STEPS = 5
SHORT_SHARE = 0.1  # of the median length
LEAST_EPISODES = 5


def check_readable(survey: Survey) -> Iterator[Finding]:
    """Episodes that cannot be read."""
    records = [problem for problem in survey.problems if problem.part == "record"]
    if records:
        yield Finding(
            "unreadable", "error", survey.name,
            f"{len(records)} damaged places in the files, left out: "
            f"{listed([one.message for one in records], 2)}",
            "copy the damaged files again, or train with on_error: skip",
            {"records": [problem.message for problem in records[:20]]},
        )  # fmt: skip
    bad = [problem for problem in survey.problems if problem.part == "episode"]
    if bad:
        yield Finding(
            "unreadable", "error", survey.name,
            f"{share(len(bad), len(bad) + len(survey.recordings), 'episodes')} cannot be read: "
            f"{bad[0].message}",
            "copy the data again or drop what is damaged",
            {"episodes": len(bad), "where": [problem.where for problem in bad[:20]]},
        )  # fmt: skip


def check_lengths(survey: Survey) -> Iterator[Finding]:
    """Empty and very short episodes."""
    empty = [recording for recording in survey.recordings if recording.length == 0]
    median = float(np.median(survey.lengths)) if len(survey.lengths) else 0.0
    # Half a row of steps is odd beside long episodes only; where all are short, that is how it was recorded.
    limit = max(min(SHORT_STEPS, 0.5 * median), SHORT_SHARE * median)
    short = [recording for recording in survey.recordings if 0 < recording.length < limit]
    for code, bad, what in (
        ("empty_episodes", empty, "have no steps"),
        ("short_episodes", short, "are very short"),
    ):
        if bad:
            sizes = sorted({recording.length for recording in bad})
            yield Finding(
                code, "warning", survey.name,
                f"{_count(bad, survey)} {what}" + (f": {sizes[0]} to {sizes[-1]} steps" if sizes[-1] else "")
                + f", the median is {median:g}",
                "aborted recordings or splits gone wrong; filter them out",
                {"episodes": [recording.episode_id for recording in bad[:50]], "median": median},
            )  # fmt: skip


def check_ended(survey: Survey) -> Iterator[Finding]:
    """Episodes whose last step does not bear the end mark that the others, or at least the field, promise."""
    marked = [recording for recording in survey.recordings if recording.ended]
    open_ended = [recording for recording in survey.recordings if recording.ended is False]
    if not open_ended:
        return
    if marked:
        told = f"{_count(open_ended, survey)} end without the mark is_last, {len(marked)} episodes have it"
        advice = "cut off when recording or converting; convert again or drop them"
    else:
        told = (
            f"none of {len(open_ended)} episodes ends with the mark is_last, though the data has that field"
        )
        advice = (
            "every episode was cut off, or whoever wrote the data never set the mark: look at how some end "
            "(vla-adapt data inspect); if they are whole, all is well"
        )
    yield Finding(
        "truncated_episodes", "warning", survey.name, told, advice,
        {"episodes": [recording.episode_id for recording in open_ended[:50]]},
    )  # fmt: skip


def check_instructions(survey: Survey) -> Iterator[Finding]:
    """Missing instructions, one instruction for everything, and instructions that change on the way."""
    recordings = [recording for recording in survey.recordings if recording.length]
    empty = [one for one in recordings if not all(text.strip() for text in one.instructions)]
    if empty:
        partly = sum(any(text.strip() for text in one.instructions) for one in empty)
        some = f", {partly} of them at some steps" if partly else ""
        yield Finding(
            "empty_instruction", "warning", survey.name,
            f"{_count(empty, survey)} have no instruction{some}",
            "a policy that follows words learns nothing from them: drop them, label them, or name the "
            "right field in the entry",
            {"episodes": [recording.episode_id for recording in empty[:50]]},
        )  # fmt: skip
    words = Counter(text.strip().lower() for recording in recordings for text in recording.instructions)
    if len(words) == 1 and len(recordings) >= LEAST_EPISODES and not empty:
        yield Finding(
            "one_instruction", "note", survey.name,
            f"all {len(recordings)} episodes examined have the instruction {recordings[0].instruction!r}",
            "fine for one task; mixed with nothing else, the policy has no reason to listen",
        )  # fmt: skip
    changing = [recording for recording in recordings if recording.instruction_changes]
    if changing:
        step, text = changing[0].instruction_changes[0]
        yield Finding(
            "changing_instruction", "note", survey.name,
            f"{_count(changing, survey)} change their instruction on the way: {changing[0].episode_id} from "
            f"{changing[0].instruction!r} to {text!r} at step {step}",
            "each step trains with its own; who serves the policy must switch as the labels do",
            {"episodes": [recording.episode_id for recording in changing[:50]]},
        )  # fmt: skip


def check_same_parts(survey: Survey) -> Iterator[Finding]:
    """Episodes that have other cameras than the rest, or a state where others have none."""
    for what, parts in (
        ("cameras", [tuple(recording.cameras) for recording in survey.recordings]),
        ("state", ["a state" if recording.has_state else "no state" for recording in survey.recordings]),
        ("what is not recorded", [recording.omits for recording in survey.recordings]),
    ):
        counts = Counter(parts).most_common()
        if len(counts) < 2:
            continue
        rare = [
            recording
            for recording, part in zip(survey.recordings, parts, strict=True)
            if part != counts[0][0]
        ]
        kinds = "; ".join(f"{_shown(part)} in {count}" for part, count in counts[:4])
        yield Finding(
            "uneven_parts", "warning", survey.name,
            f"episodes differ in {what}: {kinds} ({listed([recording.episode_id for recording in rare])} "
            "differ)",
            "what some episodes lack is masked there; check that this is meant, or split the dataset",
            {"episodes": [recording.episode_id for recording in rare[:50]]},
        )  # fmt: skip
    required = [name for name, camera in survey.embodiment.cameras.items() if camera.required]
    for camera in required:
        lacking = [recording for recording in survey.recordings if camera not in recording.cameras]
        if lacking:
            everywhere = len(lacking) == len(survey.recordings)
            yield Finding(
                "missing_camera", "warning" if everywhere else "error", survey.name,
                f"{_count(lacking, survey)} lack camera '{camera}', which {survey.embodiment.name} requires",
                "name its field in the entry, declare the camera `required: false` in the embodiment, or "
                "choose one that is there (policy.camera in a recipe)",
                {"camera": camera, "episodes": len(lacking)},
            )  # fmt: skip
    if survey.recordings and survey.embodiment.proprio and not any(r.has_state for r in survey.recordings):
        yield Finding(
            "no_state", "note", survey.name,
            f"no episode has a state, though {survey.embodiment.name} declares "
            f"{survey.embodiment.proprio_dim} numbers of it; actions could not be checked against what the "
            "robot did",
            "name the state field in the entry if there is one",
        )  # fmt: skip


def _count(some: Sequence[Recording], survey: Survey) -> str:
    names = [recording.episode_id for recording in some]
    return f"{share(len(some), len(survey.recordings), 'episodes')} ({listed(names)})"


def _shown(part: object) -> str:
    return part if isinstance(part, str) else "/".join(part) or "none"  # type: ignore[arg-type]
