"""What a run's folder tells a reader of its report, of a run at work too: numbers, verdicts, surroundings."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_adapt.evaluation.drawn_episodes import PREDICTIONS, DrawnEpisode, load_episodes
from vla_adapt.evaluation.run_metrics import RunMetrics
from vla_adapt.suggest import parse_yaml

OPEN_LOOP, SUMMARY, ENVIRONMENT, RECIPE = "open_loop.json", "summary.json", "environment.json", "recipe.yaml"


@dataclass(frozen=True)
class RunFacts:
    """A run as its report shows it.

    Attributes:
        path: its folder.
        metrics: what it logged.
        judged: robot -> its row of `open_loop.json`; empty before the end, or when nothing was held out.
        drawn: held-out episodes with predictions.
        summary: of a finished run: `seconds`, `processes`, `trained` (which weights were chosen), `robots`
            (what each was trained on and with).
        starts: facts of the machine and software at each start.
        recipe: its text.
    """

    path: Path
    metrics: RunMetrics
    judged: dict[str, dict[str, Any]]
    drawn: list[DrawnEpisode]
    summary: dict[str, Any]
    starts: list[dict[str, Any]]
    recipe: str

    @staticmethod
    def load(run: Path) -> RunFacts:
        """Read what is there. Raises ValueError when it holds no run."""
        metrics = RunMetrics.load(run)
        recipe = run / RECIPE
        return RunFacts(
            path=run,
            metrics=metrics,
            judged={row["robot"]: row for row in _read(run / OPEN_LOOP, [])},
            drawn=load_episodes(run / PREDICTIONS),
            summary=_read(run / SUMMARY, {}),
            starts=_read(run / ENVIRONMENT, []),
            recipe=recipe.read_text() if recipe.is_file() else "",
        )

    @property
    def robots(self) -> list[str]:
        """All it trained or judged."""
        told = self.summary.get("robots", {})
        return list(dict.fromkeys([*self.metrics.robots, *self.judged, *told]))

    @property
    def headline(self) -> list[str]:
        """What it is, in a few phrases."""
        tree = parse_yaml(self.recipe, str(self.path / RECIPE)) if self.recipe else {}
        said = []
        if tree:
            train, head = tree.get("train", {}), tree.get("policy", {}).get("head", {})
            said.append(f"base {tree.get('base', '?')}")
            said.append(f"{tree.get('adaptation', {}).get('kind', '?')}, {head.get('kind', '?')} head")
            said.append(f"{train.get('steps', '?')} steps of {train.get('batch_size', '?')} samples")
        if self.starts:
            last = self.starts[-1]
            where = ", ".join(last.get("devices") or [last.get("cpu") or last.get("machine", "?")])
            said.append(f"{last['processes']} process(es) on {where}")
        if self.summary.get("trained"):
            said.append(self.summary["trained"])
        if "seconds" in self.summary:
            said.append(f"{self.summary['seconds']:.0f} s since its last start")
        else:
            said.append("not finished")
        return said


def distinct_names(runs: list[Path]) -> list[str]:
    """Short names for folders: the last part of the path, or as much of it as tells them apart."""
    resolved = [run.resolve() for run in runs]
    for parts in range(1, max(len(path.parts) for path in resolved) + 1):
        names = ["/".join(path.parts[-parts:]) for path in resolved]
        if len(set(names)) == len(set(resolved)):
            return names
    raise AssertionError("whole paths tell them apart")


def _read(file: Path, otherwise: Any) -> Any:
    return json.loads(file.read_text()) if file.is_file() else otherwise
