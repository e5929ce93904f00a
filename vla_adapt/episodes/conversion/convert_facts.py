"""What is known of whole episodes (success, file, a goal image), carried from one format to another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vla_adapt.episodes.conversion.convert_names import StorageFormat
from vla_adapt.episodes.lerobot.lerobot_columns import encode_png
from vla_adapt.episodes.storage.feature_spec import Kind, LeafSpec

# What LeRobot says of every episode anyway; other facts of these names are "recorded_NAME" there.
LEROBOT_FACTS = ("episode_index", "length", "tasks")
# The name an episode had, where the target's numbers do not give it.
RECORDED_AS = "recorded_as"


@runtime_checkable
class TypedFacts(Protocol):
    """A store that knows what kind each of its episode-level facts is, as far as it is plain."""

    @property
    def fact_leaves(self) -> Mapping[str, LeafSpec]: ...


@dataclass
class _Seen:
    """Values of one fact over all episodes: kinds ("text", "image", ...), numbers' shapes and dtypes."""

    kinds: set[str] = field(default_factory=set)
    shapes: set[tuple[int, ...]] = field(default_factory=set)
    dtypes: set[np.dtype] = field(default_factory=set)
    count: int = 0


class CarriedFacts:
    """The facts of episodes that a format can hold, with one type each, settled before anything is written.

    RLDS holds text, numbers of one shape and images, in every episode or in none; LeRobot text and numbers,
    also where some episodes have none. 64-bit floats are 32-bit in RLDS.

    Args:
        facts: of every episode that is to be written.
        to: the target's format.
        leaves: kinds of facts and dtypes of numbers, where the source's store knows.

    Attributes:
        left_behind: what cannot be carried, or not as exactly, and why: one line a fact.
    """

    def __init__(self, facts: Iterable[Mapping[str, Any]], to: StorageFormat, leaves: Mapping[str, LeafSpec]):
        self._to = to
        self.left_behind: list[str] = []
        self._dtypes: dict[str, np.dtype | None] = {}
        seen: dict[str, _Seen] = {}
        episodes = 0
        for one in facts:
            episodes += 1
            for name, value in one.items():
                if value is not None:
                    _look(value, seen.setdefault(name, _Seen()))
        for name, what in seen.items():
            stored = {np.dtype(leaves[name].dtype)} if name in leaves else what.dtypes
            why = _refusal(what, episodes, to)
            if why:
                self.left_behind.append(f"episode fact '{name}': {why}")
                continue
            dtype = np.result_type(*stored) if what.kinds == {"number"} else None
            if to == "rlds" and dtype == np.float64:
                self.left_behind.append(f"episode fact '{name}': 64-bit floats became 32-bit")
                dtype = np.dtype(np.float32)
            self._dtypes[name] = dtype

    @property
    def names(self) -> set[str]:
        """Of the carried facts."""
        return set(self._dtypes)

    def drop(self, name: str) -> None:
        """Do without a fact."""
        self._dtypes.pop(name, None)

    def values(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """The carried facts of an episode: text, numpy numbers, images [h, w, 3]; None where it lacks one."""
        values = {name: facts.get(name) for name in self._dtypes}
        return {name: _typed(value, self._dtypes[name]) for name, value in values.items()}

    def examples(self, facts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """A value of every carried fact, from the first episode that has it."""
        found: dict[str, Any] = {}
        for one in facts:
            if found.keys() >= self._dtypes.keys():
                break
            found |= {k: v for k, v in self.values(one).items() if v is not None and k not in found}
        return found


def fact_field(value: Any) -> tuple[LeafSpec, Any]:
    """A carried fact as a field of an RLDS record."""
    if isinstance(value, str):
        return LeafSpec(Kind.TEXT), [value.encode()]
    if isinstance(value, np.ndarray) and _is_image(value):
        return LeafSpec(Kind.IMAGE, value.shape, "uint8", "png"), [encode_png(value)]
    numbers = np.asarray(value)
    return LeafSpec(Kind.NUMBER, numbers.shape, numbers.dtype.name), numbers[None]


def _look(value: Any, seen: _Seen) -> None:
    seen.count += 1
    if isinstance(value, str):
        seen.kinds.add("text")
    elif isinstance(value, np.ndarray) and _is_image(value):
        seen.kinds.add("image")
        seen.shapes.add(value.shape)
    else:
        numbers = _numbers(value)
        seen.kinds.add("other" if numbers is None else "number")
        if numbers is not None:
            seen.shapes.add(numbers.shape)
            seen.dtypes.add(numbers.dtype)


def _refusal(seen: _Seen, episodes: int, to: StorageFormat) -> str | None:
    """Why a fact cannot be carried, if it cannot."""
    if len(seen.kinds) > 1:
        return f"is {' in one episode, '.join(sorted(seen.kinds))} in another"
    kind = next(iter(seen.kinds))
    if kind == "other":
        return "neither text nor numbers"
    if to == "lerobot":
        return "an image of the whole episode, which LeRobot has no place for" if kind == "image" else None
    if seen.count < episodes:
        return f"missing in {episodes - seen.count} of {episodes} episodes, RLDS wants it in all"
    if len(seen.shapes) > 1:
        return "of another size in every episode, RLDS wants one"
    return None


def _numbers(value: Any) -> np.ndarray | None:
    if not isinstance(value, bool | int | float | list | np.ndarray | np.generic):
        return None
    try:
        numbers = np.asarray(value)
    except (ValueError, OverflowError):
        return None
    return numbers if numbers.dtype.kind in "biuf" else None


def _is_image(value: np.ndarray) -> bool:
    return value.dtype == np.uint8 and value.ndim == 3 and value.shape[-1] == 3


def _typed(value: Any, dtype: np.dtype | None) -> Any:
    if value is None or dtype is None:
        return value
    numbers = np.asarray(value, dtype)
    return numbers if numbers.ndim else numbers[()]
