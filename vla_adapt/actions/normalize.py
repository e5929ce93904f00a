"""Statistics of unified vectors and quantile normalization to [-1, 1] with a floor for dead dimensions.

As in OpenVLA, q01..q99 go to [-1, 1] and grippers (0 closed .. 1 open) pass through unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from vla_adapt.suggest import did_you_mean
from vla_adapt.types import NUM_SLOTS, SlotGroup, SlotKind, slot_group_of

# Smallest half range (SI units) that counts as motion; a quieter dimension is not blown up to [-1, 1].
HALF_RANGE_FLOOR: dict[SlotKind, float] = {
    "position": 1e-4,
    "rotation": 1e-3,
    "gripper": 1e-3,
    "joints": 1e-3,
    "velocity": 1e-3,
    "lift": 1e-4,
}

_FIELDS = ("mean", "std", "min", "max", "q01", "q99")


@dataclass(frozen=True, eq=False)
class Statistics:
    """Per-slot statistics of one robot's unified vectors, float64 in SI units; 0 where masked."""

    mean: Float[np.ndarray, 32]
    std: Float[np.ndarray, 32]
    min: Float[np.ndarray, 32]
    max: Float[np.ndarray, 32]
    q01: Float[np.ndarray, 32]
    q99: Float[np.ndarray, 32]
    mask: Bool[np.ndarray, 32]
    count: int

    def __post_init__(self) -> None:
        for name in (*_FIELDS, "mask"):
            array = np.array(getattr(self, name), dtype=bool if name == "mask" else np.float64)
            if array.shape != (NUM_SLOTS,):
                raise ValueError(f"statistics: {name} has shape {list(array.shape)}, wanted [{NUM_SLOTS}]")
            if not np.isfinite(array).all():
                slot = int(np.argmin(np.isfinite(array)))
                raise ValueError(
                    f"statistics: {name} holds {array[slot]} in slot {slot}; wanted finite numbers"
                )
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Statistics):
            return NotImplemented
        same = all(np.array_equal(getattr(self, name), getattr(other, name)) for name in (*_FIELDS, "mask"))
        return same and self.count == other.count

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def from_samples(cls, values: ArrayLike, mask: ArrayLike) -> Statistics:
        """Statistics over unified vectors [N, 32] with mask [32]; masked slots are not read.

        Raises:
            ValueError: no samples, wrong width, or NaN in an unmasked slot.
        """
        array, mask = np.asarray(values), np.asarray(mask, dtype=bool)
        if array.ndim != 2 or array.shape[1] != NUM_SLOTS or len(array) == 0:
            raise ValueError(
                f"statistics need samples [N, {NUM_SLOTS}] with N >= 1, got shape {list(array.shape)}"
            )
        array = np.where(mask, array, 0.0).astype(np.float64)
        if not np.isfinite(array).all():
            row, slot = np.argwhere(~np.isfinite(array))[0]
            bad = f"sample {row} holds {array[row, slot]} in slot {slot}"
            raise ValueError(f"statistics: {bad}; wanted finite numbers")
        q01, q99 = np.quantile(array, [0.01, 0.99], axis=0)
        return cls(
            mean=array.mean(axis=0),
            std=array.std(axis=0),
            min=array.min(axis=0),
            max=array.max(axis=0),
            q01=q01,
            q99=q99,
            mask=mask,
            count=len(array),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; exact, `from_dict` gives equal statistics."""
        return {name: getattr(self, name).tolist() for name in (*_FIELDS, "mask")} | {
            "count": int(self.count)
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Statistics:
        """Read `to_dict`'s form; an unknown or missing key is a ValueError."""
        wanted = (*_FIELDS, "mask", "count")
        for key in data:
            if key not in wanted:
                raise ValueError(f"statistics: unknown key {key!r}; {did_you_mean(key, wanted)}")
        missing = [key for key in wanted if key not in data]
        if missing:
            raise ValueError(f"statistics: missing key {missing[0]!r}; wanted {', '.join(wanted)}")
        arrays = {name: np.asarray(data[name], dtype=np.float64) for name in _FIELDS}
        return cls(**arrays, mask=np.asarray(data["mask"], dtype=bool), count=int(data["count"]))


class Normalizer:
    """Quantile normalization of unified vectors: (value - center) / half range, clipped to [-1, 1].

    A dimension whose half range is under the floor of its slot group is divided by the floor, so that a dead
    dimension gives about 0 and a wild prediction moves it by the floor at most. Grippers pass unchanged.

    Args:
        statistics: of the same layout as the vectors.
        mask: [32] bool of the robot's slots (default the statistics' own); others give 0 both ways.
        groups: slot group of each position; give `ActionUnifier.groups` in the padded layout.
    """

    def __init__(
        self,
        statistics: Statistics,
        mask: ArrayLike | None = None,
        groups: Sequence[SlotGroup | None] | None = None,
    ) -> None:
        self.statistics = statistics
        self.mask: Bool[np.ndarray, 32] = statistics.mask if mask is None else np.asarray(mask, dtype=bool)
        if self.mask.shape != (NUM_SLOTS,):
            raise ValueError(f"mask has shape {list(self.mask.shape)}, wanted [{NUM_SLOTS}]")
        unknown = np.flatnonzero(self.mask & ~statistics.mask)
        if len(unknown):
            raise ValueError(
                f"the statistics hold nothing for slots {unknown.tolist()}; compute them for this robot"
            )
        groups = [slot_group_of(slot) for slot in range(NUM_SLOTS)] if groups is None else groups
        kinds: list[SlotKind | None] = [group.kind if group is not None else None for group in groups]
        floor = np.array([HALF_RANGE_FLOOR[kind] if kind is not None else 1.0 for kind in kinds])
        gripper = np.array([kind == "gripper" for kind in kinds])
        half = np.maximum((statistics.q99 - statistics.q01) / 2.0, floor)
        self.center: Float[np.ndarray, 32] = np.where(gripper, 0.0, (statistics.q99 + statistics.q01) / 2.0)
        self.half_range: Float[np.ndarray, 32] = np.where(gripper, 1.0, half)

    def normalize(self, values: Any) -> Any:
        """SI values `[..., 32]` (numpy or torch) to [-1, 1], same type and dtype; masked slots give 0."""
        work, mask, center, half, restore = self._prepare(values)
        return restore(((work - center) / half).clip(-1.0, 1.0), mask)

    def denormalize(self, values: Any) -> Any:
        """Inverse of `normalize` inside the quantile range; not clipped. Masked slots give 0."""
        work, mask, center, half, restore = self._prepare(values)
        return restore(work * half + center, mask)

    def _prepare(self, values: Any) -> tuple[Any, Any, Any, Any, Any]:
        """(working copy, mask, center, half range, restore) for numpy arrays and torch tensors alike."""
        if hasattr(values, "new_tensor"):  # a torch tensor, without importing torch here
            _check_width(tuple(values.shape))
            values = values if values.is_floating_point() else values.float()
            work = values if values.itemsize >= 4 else values.float()
            mask = work.new_tensor(self.mask.tolist()).bool()
            center, half = (work.new_tensor(x.tolist()) for x in (self.center, self.half_range))
            return work, mask, center, half, lambda out, m: out.masked_fill(~m, 0.0).to(values.dtype)
        array = np.asarray(values)
        if array.dtype.kind != "f":
            array = array.astype(np.float64)
        _check_width(array.shape)
        kind = array.dtype
        return (
            array.astype(np.float64),
            self.mask,
            self.center,
            self.half_range,
            lambda out, m: np.where(m, out, 0.0).astype(kind),
        )


def _check_width(shape: tuple[int, ...]) -> None:
    if not shape or shape[-1] != NUM_SLOTS:
        raise ValueError(f"unified values have shape {list(shape)}, wanted [..., {NUM_SLOTS}]")
