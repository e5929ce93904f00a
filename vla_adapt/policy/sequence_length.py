"""Whether what a head asks of the backbone fits into the positions that its language model knows."""

from __future__ import annotations

from vla_adapt.policy.action_head import HeadConfig
from vla_adapt.policy.openvla import OpenVLA

_TEXT = 32  # tokens that an ordinary instruction needs


def sequence_length(config: HeadConfig, slots: int, patches: int, cameras: int = 1) -> int:
    """Tokens of one sample: image, condition, state, instruction and, where they are tokens, actions.

    Args:
        config: of the head.
        slots: action numbers of the robot per step.
        patches: per camera.
        cameras: that the policy sees.
    """
    told = {"none": 0, "token": 1, "soft_prompt": config.condition_tokens}[config.condition]
    numbers = config.horizon * slots
    actions = {"tokens": numbers, "parallel": config.horizon if config.placeholders == "step" else numbers}
    return cameras * patches + told + int(config.proprio) + _TEXT + actions.get(config.kind, 0)


def check_length(config: HeadConfig, model: OpenVLA, robot: str, slots: int, cameras: int = 1) -> None:
    """Raise ValueError when the head cannot serve a robot of `slots` numbers on this base."""
    wanted = sequence_length(config, slots, model.num_patches, cameras)
    known = model.config.text["max_position_embeddings"]
    if wanted > known:
        raise ValueError(
            f"the {config.kind} head of '{robot}' needs about {wanted} positions ({config.horizon} steps of "
            f"{slots} numbers, {cameras} camera(s)), the base knows {known}: shorten policy.head.horizon, "
            "see fewer cameras, or take the parallel head with placeholders per step"
        )
