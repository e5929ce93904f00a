"""Whether a folder holds a finished run, and of which recipe: it is neither trained again nor replaced."""

from __future__ import annotations

import json
from pathlib import Path

from vla_adapt.recipe import Recipe
from vla_adapt.training.recipe_change import changed_keys

SUMMARY = "summary.json"


def finished_recipe(folder: Path) -> str | None:
    """The recipe of the finished run in `folder`, as it was saved; None: no run is finished there."""
    file = folder / SUMMARY
    return json.loads(file.read_text())["recipe"] if file.is_file() else None


def changed_since(folder: Path, recipe: Recipe) -> list[str] | None:
    """Keys in which the finished run in `folder` had another recipe than `recipe`; None: none is finished."""
    saved = finished_recipe(folder)
    return None if saved is None else changed_keys(saved, recipe)


def is_finished(folder: Path, recipe: Recipe) -> bool:
    """Whether the run of `recipe` in `folder` is finished.

    Raises:
        ValueError: that of another recipe is.
    """
    differs = changed_since(folder, recipe)
    if differs:
        raise ValueError(
            f"{folder} holds the finished run of another recipe, which differs in {', '.join(differs)}; "
            "choose another output folder, or --fresh, which replaces that run and its bundles"
        )
    return differs is not None
