"""The YAML that begins a Hugging Face card: read it, and write it so that the Hub can read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from huggingface_hub import ModelCardData

_FENCE = "---\n"


def split_front_matter(card: str, name: str = "README.md") -> tuple[dict[str, Any], str]:
    """A card's fields and its text; no fields where it begins with its text.

    Raises:
        ValueError: the front matter is not YAML; `name` says of which file.
    """
    if not card.startswith(_FENCE):
        return {}, card
    head, _, text = card[len(_FENCE) :].partition(f"\n{_FENCE}")
    try:
        fields = yaml.safe_load(head)
    except yaml.YAMLError as error:
        raise ValueError(
            f"the front matter of {name} is not valid YAML ({str(error).splitlines()[0]})"
        ) from None
    return (fields if isinstance(fields, dict) else {}), text


def with_front_matter(fields: Mapping[str, Any], tags: Sequence[str], text: str) -> str:
    """A card of an adapter: `fields` over our own (library, pipeline), each tag once, then the text."""
    told = {"library_name": "peft", "pipeline_tag": "robotics", **fields}
    data = ModelCardData(**told, tags=list(dict.fromkeys(tags)), ignore_metadata_errors=False)
    return f"{_FENCE}{data.to_yaml()}\n{_FENCE}\n{text.lstrip()}"
