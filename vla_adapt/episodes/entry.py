"""How a stored dataset maps onto an embodiment: which field is the action, which camera is which.

An entry comes from the dataset's own `vla_adapt.json` (our writer leaves one), from the catalogue of known
datasets, or from the caller. Nothing is guessed.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, field_validator

SIDECAR = "vla_adapt.json"


class DatasetEntry(BaseModel):
    """Where the parts of an episode lie in a stored dataset.

    Paths are slash-separated field names inside a step ("observation/image_0").

    Attributes:
        embodiment: name (or YAML file) of the robot.
        cameras: our camera name -> image field.
        action: field, or fields to concatenate, making the native action in the embodiment's order.
        state: the same for proprioception; empty when the dataset has none the embodiment knows.
        instruction: text field.
        extra: our key -> field, passed on untouched.
        episode_id: episode-level text or integer field naming an episode; None: split and number.
        transforms: named episode transforms (`transforms.TRANSFORMS`), applied in order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    embodiment: str
    cameras: dict[str, str]
    action: tuple[str, ...] = ("action",)
    state: tuple[str, ...] = ("observation/state",)
    instruction: str = "language_instruction"
    extra: dict[str, str] = {}
    episode_id: str | None = None
    transforms: tuple[str, ...] = ()

    @field_validator("action", "state", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        if value is None:
            return ()
        return (value,) if isinstance(value, str) else value


class Sidecar(BaseModel):
    """Content of `vla_adapt.json`: the entry and the embodiment text at the time of recording."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    entry: DatasetEntry
    embodiment_yaml: str


def read_sidecar(folder: Path) -> Sidecar | None:
    """The dataset folder's own entry, or None when it has none.

    Raises:
        ValueError: the file is not readable as one.
    """
    path = folder / SIDECAR
    if not path.is_file():
        return None
    try:
        return Sidecar.model_validate_json(path.read_text())
    except ValueError as error:
        reason = "; ".join(str(error).split("\n")[:3])
        raise ValueError(f"{path}: not a dataset description of ours: {reason}") from None
