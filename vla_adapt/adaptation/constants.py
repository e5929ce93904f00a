"""Action components that no training data records: what the robot is sent for them, as the recipe says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.embodiment import Component, Embodiment
from vla_adapt.suggest import did_you_mean

# Action component -> its native numbers.
Constants = Mapping[str, Sequence[float | int]]


def untrained_components(embodiment: Embodiment, trained: Bool[np.ndarray, 32]) -> list[str]:
    """Names of action components with a slot that is not `trained`."""
    unifier = ActionUnifier(embodiment)
    return [
        component.name
        for component in embodiment.action
        if (unifier.mask & ~unifier.mask_without([component.name]) & ~trained).any()
    ]


def check_constants(embodiment: Embodiment, trained: Bool[np.ndarray, 32], constants: Constants) -> None:
    """Every action component is either trained or has constant numbers, which the robot can take.

    Nothing stands in by itself: 0 may be a closed gripper or a far pose.

    Raises:
        ValueError: an untrained component without constants (says what to do), constants of one that is
            trained or unknown, of another width, not finite or outside the declared limits.
    """
    untrained = untrained_components(embodiment, trained)
    where = f"robot '{embodiment.name}': action component"
    for name in untrained:
        if name not in constants:
            raise ValueError(
                f"{where} '{name}' is in none of its training data, so what the policy says of it must not "
                "reach the robot: add data that records it, describe a robot without it, or say what to send "
                f"instead, in native numbers (policy.constants: {{{embodiment.name}: {{{name}: [...]}}}}, or "
                f"constants: {{{name}: [...]}} in the entry of a dataset)"
            )
    names = [component.name for component in embodiment.action]
    for name in constants:
        if name not in names:
            raise ValueError(f"{where} '{name}' of the constants is unknown; {did_you_mean(name, names)}")
        if name not in untrained:
            raise ValueError(
                f"{where} '{name}' is in the training data and learned; constants are for those that are not"
            )
    for component in embodiment.action:
        if component.name in constants and (problem := _problem(component, constants[component.name])):
            raise ValueError(f"{where} '{component.name}': {problem}")


def put_constants(
    embodiment: Embodiment, actions: Float[np.ndarray, "H D"], constants: Constants
) -> Float[np.ndarray, "H D"]:
    """Native actions with the constants in place of what was predicted for those components."""
    actions, start = actions.copy(), 0
    for component in embodiment.action:
        end = start + component.native_size
        if component.name in constants:
            actions[:, start:end] = constants[component.name]
        start = end
    return actions


def _problem(component: Component, numbers: Sequence[float | int]) -> str | None:
    if len(numbers) != component.native_size:
        return f"got {len(numbers)} constant numbers, wanted {component.native_size}"
    if not np.isfinite(numbers).all():
        return f"constants {list(numbers)} must be finite"
    for number, (low, high) in zip(numbers, component.native_limits or (), strict=False):
        if not low <= number <= high:
            return f"constant {number:g} is outside its limits [{low:g}, {high:g}]"
    return None
