"""The model card of a bundle: what a person reads before letting it move a robot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_adapt.actions.normalize import Statistics
from vla_adapt.adaptation.front_matter import with_front_matter
from vla_adapt.adaptation.licenses import UNKNOWN
from vla_adapt.embodiment import Embodiment
from vla_adapt.types import SLOT_NAMES, slot_group_of

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class DataLine:
    """One dataset a bundle was trained on; `license` is `unknown` where nobody said.

    `stand_in_cameras`: camera it lacks -> its camera whose images were seen instead.
    """

    name: str
    episodes: int
    steps: int
    held_out_episodes: int
    license: str = UNKNOWN
    source: str = ""
    rate_hz: float | None = None
    stand_in_cameras: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}: {self.episodes} episodes, {self.steps} steps"


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says, in words.

    Attributes:
        recipe: its name.
        base: fingerprint of the base.
        adaptation, head, image, state, constants: of the policy.
        data: datasets, or words where they are not known one by one.
        steps: of training.
        held_out: error on held-out episodes beside predict-the-mean, or `NOT_MEASURED`.
        statistics: of the training actions.
        errors: rows `{slot, unit, error, baseline_error}` of held-out errors per action component, SI units.
        horizon: actions per chunk.
        rate_hz: of the training data; None: not known, or of several rates.
        adapted: whether there is an adapter; else only a head.
        license: of the bundle.
        base_model: the base on the Hub, `owner/name`.
        base_license: of the base.
    """

    recipe: str
    base: str
    adaptation: str
    head: str
    image: str
    state: str
    constants: str
    data: Sequence[DataLine] | str
    steps: int | str
    held_out: str
    statistics: Statistics
    errors: Sequence[Mapping[str, Any]] = ()
    horizon: int = 1
    rate_hz: float | None = None
    adapted: bool = True
    license: str = UNKNOWN
    base_model: str | None = None
    base_license: str = UNKNOWN


def model_card(embodiment: Embodiment, facts: CardFacts) -> str:
    """Markdown with front matter that the Hugging Face Hub reads."""
    parts = [
        f"# {embodiment.name}: adapter bundle",
        f"{embodiment.title}: an adapter for OpenVLA, trained with vla_adapt.",
        _overview(embodiment, facts),
        "## Actions and errors",
        _components(embodiment, facts),
        "## Data",
        _data(facts),
        "## Use",
        _use(embodiment, facts),
        "## Limits",
        _limits(embodiment, facts),
        "## Licenses",
        _licenses(facts),
    ]
    fields: dict[str, Any] = {"library_name": "peft" if facts.adapted else "vla_adapt"}
    fields["license"] = facts.license
    if facts.base_model is not None:
        fields |= {"base_model": facts.base_model, "base_model_relation": "adapter"}
    tags = ["vla_adapt", "openvla", "robotics", *(["lora"] if facts.adapted else []), embodiment.name]
    return with_front_matter(fields, tags, "\n\n".join(parts) + "\n")


def _overview(embodiment: Embodiment, facts: CardFacts) -> str:
    data = facts.data if isinstance(facts.data, str) else ", ".join(str(line) for line in facts.data)
    return _table(["", ""], [
        ["robot", f"`{embodiment.name}`, {embodiment.action_dim} action numbers"],
        ["control rate", _rate(embodiment, facts)],
        ["recipe", f"`{facts.recipe}` (resolved text in `bundle.json`)"],
        ["base", f"{facts.base_model or 'not named'}, fingerprint `{facts.base}`"],
        ["adaptation", facts.adaptation],
        ["head", facts.head],
        ["image", facts.image],
        ["robot state", facts.state],
        ["sent as constants", facts.constants],
        ["training data", data],
        ["training steps", str(facts.steps)],
        ["held-out error", facts.held_out],
    ])  # fmt: skip


def _rate(embodiment: Embodiment, facts: CardFacts) -> str:
    """At which rate the actions are meant to be sent."""
    robot, data = f"{embodiment.rate_hz:g} Hz", [] if isinstance(facts.data, str) else facts.data
    rates = sorted({line.rate_hz for line in data if line.rate_hz is not None})
    if facts.rate_hz is not None:
        same = f"{facts.rate_hz:g} Hz" == robot
        return robot if same else f"{facts.rate_hz:g} Hz, that of its data (the robot declares {robot})"
    if len(rates) > 1:
        told = ", ".join(f"{rate:g}" for rate in rates)
        return f"not one: its data was recorded at {told} Hz (the robot declares {robot})"
    return f"{robot}, as the robot declares (that of its data is not known)"


def _components(embodiment: Embodiment, facts: CardFacts) -> str:
    """What each trained slot did in the data, and how far predictions are off on held-out episodes."""
    errors = {row["slot"]: row for row in facts.errors}
    of, rows = facts.statistics, []
    for slot in np.flatnonzero(of.mask):
        name, group = SLOT_NAMES[slot], slot_group_of(int(slot))
        numbers = [f"{value[slot]:.4g}" for value in (of.min, of.q01, of.q99, of.max)]
        row = errors.get(name)
        told = ["", ""] if row is None else [f"{row[key]:.4g}" for key in ("error", "baseline_error")]
        rows.append([f"`{name}`", group.units[slot - group.start], *numbers, *told])
    head = ["component", "unit", "min", "q01", "q99", "max", "held-out error", "predict-the-mean"]
    note = (
        "Ranges are those of the training actions, in SI units (grippers: 0 closed, 1 open); predictions are "
        f"scaled to q01..q99. `{embodiment.name}`'s own units are in `embodiment.yaml`."
    )
    return f"{_table(head, rows)}\n\n{note}"


def _data(facts: CardFacts) -> str:
    if isinstance(facts.data, str):
        return f"{facts.data}. License: {UNKNOWN}."
    head = ["dataset", "episodes", "steps", "held-out episodes", "rate", "license", "published at"]
    table = _table(head, [
        [data.name, str(data.episodes), str(data.steps), str(data.held_out_episodes),
         "not known" if data.rate_hz is None else f"{data.rate_hz:g} Hz", data.license,
         data.source or "not said"]
        for data in facts.data
    ])  # fmt: skip
    told = [
        f"{data.name} has no camera `{name}`: what it saw as `{name}` are images of its camera `{other}`."
        for data in facts.data
        for name, other in data.stand_in_cameras.items()
    ]
    return "\n\n".join([table, *told])


def _use(embodiment: Embodiment, facts: CardFacts) -> str:
    base = facts.base_model or "BASE"
    lines = [
        "All that is in the bundle (adapter, head, statistics, units), with vla_adapt:",
        "",
        "    vla-adapt adapters verify DIR --base BASE",
        "    vla-adapt serve --base BASE --adapters PARENT_DIR",
        "",
        "```python",
        "from vla_adapt.serving.client import Client",
        f'chunk = Client("http://127.0.0.1:8000", robot="{embodiment.name}").act(observation)',
        "```",
    ]
    if not facts.adapted:
        return "\n".join([*lines, "", "There is no adapter in it, only a head: nothing for PEFT to load."])
    plain = [
        "",
        "The adapter alone is plain PEFT (the head is not part of it):",
        "",
        "```python",
        "from peft import PeftModel",
        "from vla_adapt.policy.openvla import OpenVLA",
        f'model = PeftModel.from_pretrained(OpenVLA.from_pretrained("{base}"), "DIR")',
        "```",
    ]
    where = "`BASE`, `DIR` and `PARENT_DIR` are folders on this machine"
    downloaded = f"; `{base}` stands for the folder of its download" if facts.base_model else ""
    return "\n".join([*lines, *plain, "", f"{where}{downloaded}."])


def _limits(embodiment: Embodiment, facts: CardFacts) -> str:
    rate_hz = facts.rate_hz or embodiment.rate_hz
    seconds = facts.horizon / rate_hz
    judged = (
        "Not tested at all: no error of its actions was measured on held-out episodes."
        if not facts.errors
        else "Tested open loop only: errors are of single chunks predicted from recorded observations of "
        "held-out episodes of the same datasets."
    )
    lines = [
        judged,
        "Not tested by the run that made it: closed loop, in simulation or on a real robot; other scenes, "
        "lights, camera places, objects and instructions than those of the data.",
        f"One answer is {facts.horizon} action(s), {seconds:.2g} s at {rate_hz:g} Hz; at another "
        "rate the same numbers are another motion.",
        f"Cameras: {facts.image}. They must be where they were in the data.",
        "Actions outside of the ranges above were never seen. What is sent is clipped to the limits declared "
        "in `embodiment.yaml`, not checked for collisions.",
        "Statistics, units, frames and gripper convention of `embodiment.yaml` are part of the bundle and "
        "must be the robot's.",
        "Keep a person at the stop button.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _licenses(facts: CardFacts) -> str:
    data = [UNKNOWN] if isinstance(facts.data, str) else [line.license for line in facts.data]
    told = [
        f"- this bundle: {_said(facts.license)}",
        f"- base: {_said(facts.base_license)}",
        f"- data: {', '.join(dict.fromkeys(_said(license) for license in data))}",
    ]
    note = "Those of base and data apply to what was derived from them; unknown means: ask their owners."
    return "\n".join([*told, "", note])


def _said(license: str) -> str:
    return "unknown (nobody said)" if license == UNKNOWN else license


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
