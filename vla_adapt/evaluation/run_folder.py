"""A finished run's folder as whoever judges it reads it: data, base, bundles, held-out errors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_adapt.adaptation.bundle import Bundle
from vla_adapt.adaptation.bundle_manifest import find_bundles
from vla_adapt.episodes.mixing.mixture_spec import MixtureSpec
from vla_adapt.resources import base_dir
from vla_adapt.suggest import parse_yaml, validate_model


@dataclass(frozen=True)
class RunFolder:
    """What `scripts/finetune.py` left in `path`. `recipe` is the resolved recipe as a tree."""

    path: Path
    recipe: dict[str, Any]

    @staticmethod
    def open(path: str | Path) -> RunFolder:
        """Read a run's recipe.

        Raises:
            ValueError: no run, or one that left no bundles.
        """
        path = Path(path).expanduser()
        file = path / "recipe.yaml"
        if not file.is_file():
            raise ValueError(f"{path} holds no run: no recipe.yaml; train with scripts/finetune.py first")
        if not (path / "bundles").is_dir():
            raise ValueError(f"{path} holds no finished run: no bundles; start its training again to end it")
        return RunFolder(path, parse_yaml(file.read_text(), str(file)))

    @property
    def mixture(self) -> MixtureSpec:
        """The data it trained on."""
        given = self.recipe["mixture"]
        tree = {"sources": given} if isinstance(given, list) else given
        return validate_model(MixtureSpec, tree, str(self.path / "recipe.yaml"))

    @property
    def start(self) -> Path:
        """Checkpoint folder of the base it started from."""
        base = self.recipe["base"]
        return self.path / "initial_base" if base == "tiny-random" else base_dir(base)

    @property
    def base(self) -> Path:
        """Checkpoint folder of the base its bundles belong to: its own when every parameter was trained."""
        return self.path / "model" if (self.path / "model").is_dir() else self.start

    def bundles(self) -> dict[str, Bundle]:
        """Robot -> its bundle."""
        found = [Bundle.load(folder) for folder in find_bundles(self.path / "bundles")]
        return {bundle.robot: bundle for bundle in found}

    def open_loop(self) -> dict[str, dict[str, Any]]:
        """Robot -> its row of `open_loop.json`; empty when nothing was held out."""
        file = self.path / "open_loop.json"
        rows = json.loads(file.read_text()) if file.is_file() else []
        return {row["robot"]: row for row in rows}
