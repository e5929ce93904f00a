"""Names and licenses of what a bundle is made from, as their owners state them; nothing is made up."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from vla_adapt.adaptation.front_matter import split_front_matter

UNKNOWN = "unknown"
_SNAPSHOT = "models--"  # how huggingface_hub names the folder of a repository in its cache

# As the Hub writes them: mit, apache-2.0, cc-by-4.0, ...
License = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.+-]*$")]


class CardConfig(BaseModel):
    """What the model cards of a run say that its files do not."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    license: License = Field(default=UNKNOWN, description="of the bundles, as the Hub writes it: mit, ...")
    base_model: str | None = Field(
        default=None, pattern=r"^[\w.-]+/[\w.-]+$", description="the base on the Hub, owner/name"
    )
    base_license: License | None = Field(default=None, description="default: as the base's README.md says")


def base_on_hub(base: Path, config: CardConfig = CardConfig()) -> str | None:
    """`owner/name` of the base: told, or by the folder in which huggingface_hub keeps its download."""
    if config.base_model is not None:
        return config.base_model
    cached = [part.removeprefix(_SNAPSHOT) for part in base.absolute().parts if part.startswith(_SNAPSHOT)]
    return cached[-1].replace("--", "/") if cached and "--" in cached[-1] else None


def base_license(base: Path, config: CardConfig = CardConfig()) -> str:
    """Of the base: told, or as the card in its folder says, or unknown."""
    if config.base_license is not None:
        return config.base_license
    card = base / "README.md"
    if not card.is_file():
        return UNKNOWN
    try:
        fields, _ = split_front_matter(card.read_text(), str(card))
    except (ValueError, OSError):  # somebody else's file: a run does not fail for it
        return UNKNOWN
    return str(fields.get("license") or UNKNOWN)
