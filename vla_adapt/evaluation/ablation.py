"""An ablation as data: variants of one recipe, each to be trained with several seeds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from vla_adapt.resources import recipes_dir
from vla_adapt.suggest import did_you_mean, load_yaml_model


class Ablation(BaseModel):
    """Variants of one recipe. See `recipes/ablation/*.yaml`.

    Attributes:
        output: folder; a run per variant and seed goes below it.
        recipe: file, or name of a built-in one.
        changes: `a.b` -> value, made to the recipe in all variants.
        variants: name -> further changes; the first is what the others are compared with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    title: str = ""
    output: str
    recipe: str
    changes: dict[str, Any] = {}
    variants: dict[str, dict[str, Any]] = Field(min_length=2)

    @staticmethod
    def load(path: str) -> Ablation:
        """Read a file, or a built-in one by name.

        Raises:
            ValueError: there is none, or it is not well-formed.
        """
        file = Path(path).expanduser()
        if not file.is_file():
            file = recipes_dir() / "ablation" / f"{path}.yaml"
        if not file.is_file():
            known = Ablation.available()
            raise ValueError(
                f"no ablation '{path}': no file and no built-in name; {did_you_mean(path, known)}"
            )
        return load_yaml_model(Ablation, file.read_text(), str(file))

    @staticmethod
    def available() -> list[str]:
        """Names of the built-in ones."""
        return sorted(file.stem for file in (recipes_dir() / "ablation").glob("*.yaml"))

    @property
    def folder(self) -> Path:
        return Path(self.output).expanduser()

    def cells(self, seeds: int) -> list[Cell]:
        """All runs, seed after seed, so that a stopped ablation has whole seeds to compare."""
        return [
            Cell(variant, seed, self.folder / variant / f"seed{seed}", tuple(self._overrides(variant, seed)))
            for seed in range(seeds)
            for variant in self.variants
        ]

    def _overrides(self, variant: str, seed: int) -> Iterator[str]:
        folder = self.folder / variant / f"seed{seed}"
        own = {"name": f"{self.name}_{variant}", "title": "", "output": str(folder), "seed": seed}
        for key, value in (self.changes | self.variants[variant] | own).items():
            yield f"{key}={json.dumps(value)}"


@dataclass(frozen=True)
class Cell:
    """One run of an ablation; `overrides` are its recipe's `a.b=value`."""

    variant: str
    seed: int
    folder: Path
    overrides: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.variant}, seed {self.seed}"
