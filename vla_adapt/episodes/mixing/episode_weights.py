"""A file of episode weights, for instance reward scores: which episodes a mixture draws more often."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vla_adapt.episodes import episode_facts
from vla_adapt.episodes.source import EpisodeDataset
from vla_adapt.suggest import did_you_mean

OTHERS = "*"


def read_episode_weights(file: str | Path) -> dict[str, float]:
    """Episode name -> weight >= 0, as the file has them; the name "*" stands for all that it does not list.

    By the file's ending: `.json` one object {name: weight}; `.jsonl` lines {"episode": name, "weight": w};
    `.csv` with the columns `episode` and `weight`. Further keys and columns are not read.

    Raises:
        ValueError: no such file, another ending, a name twice, a weight that is not a finite number >= 0.
    """
    path = Path(file).expanduser()
    if path.suffix not in _READERS:
        raise ValueError(f"{path}: wanted a .json, .jsonl or .csv file of episode weights")
    if not path.is_file():
        raise ValueError(f"{path}: no such file of episode weights")
    weights: dict[str, float] = {}
    for where, name, given in _READERS[path.suffix](path):
        if name in weights:
            raise ValueError(f"{path}: {where}: episode '{name}' is given twice")
        try:
            weight = float(given)
        except (TypeError, ValueError):
            weight = math.nan
        if isinstance(given, bool) or not 0 <= weight < math.inf:
            raise ValueError(f"{path}: {where}: weight {given!r} of episode '{name}', wanted a number >= 0")
        weights[name] = weight
    return weights


def weights_of(
    dataset: EpisodeDataset, weights: dict[str, float], where: str
) -> tuple[Float[np.ndarray, " E"], int]:
    """The weight of each episode of `dataset`, and how many names of the file are no episodes of it.

    Raises:
        ValueError: an episode the file does not give, or all of them weigh nothing.
    """
    names = [episode_facts.episode_id(dataset, i) for i in range(len(dataset))]
    missing = [] if OTHERS in weights else [name for name in names if name not in weights]
    if missing:
        near = did_you_mean(missing[0], list(weights)[:1000])
        raise ValueError(
            f"{where}: no weight for {len(missing)} of {len(names)} episodes of {dataset.name}, first "
            f"'{missing[0]}' ({near}); add them, or '{OTHERS}' for all others"
        )
    found = np.array([weights.get(name, weights.get(OTHERS, 0.0)) for name in names], np.float64)
    if not (found > 0).any():
        raise ValueError(f"{where}: all episodes of {dataset.name} have weight 0: nothing to draw from")
    return found, len(weights.keys() - set(names) - {OTHERS})


Row = tuple[str, str, Any]


def _from_json(path: Path) -> Iterator[Row]:
    try:
        pairs = json.loads(path.read_text(), object_pairs_hook=list)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise ValueError(f"{path}: wanted one JSON object of episode name to weight")
    return (("entry", str(name), weight) for name, weight in pairs)


def _from_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield f"line {number}", str(row["episode"]), row["weight"]
        except (KeyError, TypeError, json.JSONDecodeError):
            raise ValueError(
                f'{path}: line {number}: got {line[:60]}, wanted {{"episode": name, "weight": number}}'
            ) from None


def _from_csv(path: Path) -> Iterator[Row]:
    with path.open(newline="") as stream:
        rows = csv.DictReader(stream)
        if not {"episode", "weight"} <= set(rows.fieldnames or ()):
            raise ValueError(f"{path}: columns {rows.fieldnames}, wanted 'episode' and 'weight'")
        for row in rows:
            yield f"line {rows.line_num}", row["episode"], row["weight"]


_READERS = {".json": _from_json, ".jsonl": _from_lines, ".csv": _from_csv}
