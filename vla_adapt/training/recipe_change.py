"""In which keys a recipe differs from one that a run saved."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import yaml
from pydantic import ValidationError

from vla_adapt.recipe import Recipe

# Keys of a mixture that say where a dataset or its index lies.
_PLACE = re.compile(r"mixture\.((sources\.)?\d+\.(path|cache_dir)|folder|defaults\.cache_dir)")


def changed_keys(saved: str, recipe: Recipe, training_only: bool = False) -> list[str]:
    """Dotted keys in which `recipe` differs from a saved one; none: they say the same.

    Args:
        saved: a recipe's `to_text`, perhaps written by another version of this package.
        recipe: that of now.
        training_only: pass over keys that change no sample and no update, and over where the data lies: that
            it is the same data is for the loader's state to say (`Mixture.fingerprint`).
    """
    text = Recipe.training_text if training_only else Recipe.to_text
    with suppress(ValidationError):  # of another version
        saved = text(Recipe.model_validate(yaml.safe_load(saved)))
    left, right = _flat(yaml.safe_load(saved)), _flat(yaml.safe_load(text(recipe)))
    absent = object()
    differs = [key for key in {**left, **right} if left.get(key, absent) != right.get(key, absent)]
    return [key for key in differs if not (training_only and _PLACE.fullmatch(key))]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings and lists by dotted key."""
    if isinstance(tree, dict | list) and tree:
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {key: leaf for name, part in items for key, leaf in _flat(part, f"{prefix}.{name}").items()}
    return {prefix.removeprefix("."): tree}
