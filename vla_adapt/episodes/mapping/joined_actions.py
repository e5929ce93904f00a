"""Actions of several neighboring steps joined into the one that has their effect, component by component."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from vla_adapt.actions.rotation import decode_rotation, encode_rotation
from vla_adapt.embodiment import Component, Embodiment

# Kinds of slots whose numbers are steps from where the robot is; joints and lifts say it by `command`.
_STEPS = ("position", "rotation")


class ActionJoiner:
    """Joins every `count` neighboring actions of one robot into one.

    What becomes of a component depends on what its numbers mean:

    - end-effector steps are put one after the other: in the base frame positions add up and rotations are
      multiplied through SO(3); in the tool frame each step starts from the orientation that those before it
      have led to,
    - joint and lift numbers add up where they are steps (`command: delta`); of targets (`command: target`)
      the last one counts,
    - of a gripper the last opening counts,
    - velocities are averaged.

    Args:
        embodiment: the robot.
        count: how many actions make one; fewer at an episode's end.

    Raises:
        ValueError: a component where this is not defined: its name, and what to do.
    """

    def __init__(self, embodiment: Embodiment, count: int):
        self._count = count
        self._parts: list[tuple[Component, slice]] = []
        start = 0
        for component in embodiment.action:
            columns = slice(start, start := start + component.native_size)
            self._parts.append((component, columns))
        self._of_group = {component.group.name: (component, columns) for component, columns in self._parts}
        for component, _ in self._parts if count > 1 else ():
            if problem := self._problem(component):
                what = f"{count} steps of action '{component.name}' of {embodiment.name}"
                raise ValueError(f"{what} cannot be made one: {problem}")

    def join(self, action: Float[np.ndarray, "T D"]) -> Float[np.ndarray, "N D"]:
        """[T, D] native actions to [ceil(T / count), D], float32."""
        starts = np.arange(0, len(action), self._count)
        joined = np.empty((len(starts), action.shape[1]), np.float32)
        if len(starts):
            values = action.astype(np.float64)
            for component, columns in self._parts:
                joined[:, columns] = self._joined(component, columns, values, starts)
        return joined

    def _problem(self, component: Component) -> str | None:
        kind = component.group.kind
        if kind in ("joints", "lift") and component.command is None:
            return (
                "it is not said whether its numbers are targets or steps; add `command: target` or "
                "`command: delta` to it in the embodiment"
            )
        is_step = kind in _STEPS or component.command == "delta"
        if is_step and component.limits is not None:
            return f"its limits {list(component.limits)} are for one step; name an embodiment without them"
        if kind == "rotation" and 1 < len(component.slot_indices) < 3:
            return "turns about two axes make one about a third"
        if kind == "position" and component.frame == "tool":
            turn = self._turn_of(component)
            if turn is not None and turn[0].frame != "tool":
                return f"it is in the tool frame and '{turn[0].name}' is not"
        return None

    def _joined(
        self, component: Component, columns: slice, values: np.ndarray, starts: np.ndarray
    ) -> Float[np.ndarray, "N F"]:
        kind = component.group.kind
        numbers = values[:, columns]
        if kind == "velocity":
            counts = np.diff(starts, append=len(values))[:, None]
            return np.add.reduceat(numbers, starts) / counts
        if kind == "gripper" or component.command == "target":
            return numbers[np.minimum(starts + self._count, len(values)) - 1]
        scale = np.array(component.native_scale)
        if kind == "rotation" and len(component.slot_indices) == 3:
            assert component.rotation is not None
            turns = _running_turns(component, numbers * scale, starts, self._count)[-1]
            return encode_rotation(turns, component.rotation) / scale
        turn = self._turn_of(component) if component.frame == "tool" else None
        if turn is None:
            return np.add.reduceat(numbers, starts)
        turned = values[:, turn[1]] * np.array(turn[0].native_scale)
        before = _running_turns(turn[0], turned, starts, self._count)
        total = np.zeros((len(starts), 3))
        for k in range(self._count):
            steps = np.zeros((len(starts), 3))
            there = starts + k < len(values)
            steps[there] = numbers[starts[there] + k] * scale
            total += before[k].apply(steps)
        return total / scale

    def _turn_of(self, component: Component) -> tuple[Component, slice] | None:
        """The rotation that moves along with a position."""
        return self._of_group.get(component.group.name.replace("position", "rotation"))


def _running_turns(
    component: Component, numbers: Float[np.ndarray, "T F"], starts: np.ndarray, count: int
) -> list[Rotation]:
    """The turn before each of the `count` steps, and after all of them; steps past the end do not turn."""
    assert component.rotation is not None
    steps = decode_rotation(numbers, component.rotation).as_rotvec()
    turns = [Rotation.identity(len(starts))]
    for k in range(count):
        there = starts + k < len(numbers)
        vectors = np.zeros((len(starts), 3))
        vectors[there] = steps[starts[there] + k]
        step = Rotation.from_rotvec(vectors)
        turns.append(turns[-1] * step if component.frame == "tool" else step * turns[-1])
    return turns
