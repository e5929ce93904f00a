"""The model card of a bundle: what a person reads before letting it move a robot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_adapt.embodiment import Embodiment

_TEMPLATE = """---
library_name: peft
tags: [vla_adapt, openvla, robotics, {robot}]
---

# {robot}: adapter bundle

{title}

| | |
| --- | --- |
| robot | `{robot}`, {dims} action dimensions, {rate:g} Hz |
| recipe | `{recipe}` (resolved text in `bundle.json`) |
| base | fingerprint `{base}` |
| adaptation | {adaptation} |
| head | {head} |
| image | {image} |
| robot state | {state} |
| sent as constants | {constants} |
| training data | {data} |
| training steps | {steps} |
| held-out error | {held_out} |

## Use

    vla-adapt adapters verify DIR --base BASE
    vla-adapt serve --base BASE --adapters PARENT_DIR

The adapter alone is plain PEFT: `PeftModel.from_pretrained(OpenVLA.from_pretrained(BASE), DIR)`.

## Limits

Trained on the data above and on nothing else; statistics, units, frames and gripper convention of
`embodiment.yaml` are part of the bundle and must be the robot's. Actions are clipped to the declared limits,
not checked for collisions. Keep a person at the stop button.

Licenses of base and data apply to what was derived from them.
"""


def model_card(embodiment: Embodiment, facts: Mapping[str, Any]) -> str:
    """Markdown card; `facts` holds recipe, base, adaptation, head, image, state, constants, data, steps,
    held_out.
    """
    return _TEMPLATE.format(
        robot=embodiment.name,
        title=embodiment.title,
        dims=embodiment.action_dim,
        rate=embodiment.rate_hz,
        **facts,
    )
