"""Exact resume: all processes save and restore together, and agree on which checkpoint is the last good one.

Of the order of samples a checkpoint holds the number of the next one (`mixing.loader`): the rest is a pure
function, on any number of processes and workers. Dropout draws from (seed, step, rank), anew each step.

Bit for bit as if nothing had happened: on as many processes, with any number of workers, whenever it saves.
On another number of processes, in other shards or none, or with another `accumulate`: the same samples in
each step, losses equal but for the order of float sums; with dropout, other draws. Other software is named,
not refused.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vla_adapt.adaptation.environment_facts import ENVIRONMENT, changed_facts, environment_facts
from vla_adapt.recipe import Recipe
from vla_adapt.training.checkpoint_folder import CheckpointFolder, write_manifest, written_facts
from vla_adapt.training.ranks import Ranks
from vla_adapt.training.recipe_change import changed_keys
from vla_adapt.training.run_state import Gathered, RunState

PROGRESS, RECIPE = "progress.json", "recipe.yaml"


@dataclass(frozen=True)
class Resumed:
    """Where a run goes on.

    Attributes:
        step: steps already done.
        order: state of the loader, or None at the start.
        sums: this process's of the metrics since the last logged step, or None.
        notes: what the user should know: damaged checkpoints passed over, changed software.
    """

    step: int = 0
    order: dict[str, Any] | None = None
    sums: torch.Tensor | None = None
    notes: list[str] = field(default_factory=list)


class CheckpointKeeper:
    """Saves and restores the checkpoints of one run; every method but `where` is collective."""

    def __init__(self, ranks: Ranks, run: Path, recipe: Recipe) -> None:
        self.folder = CheckpointFolder(run, recipe.train.keep)
        self._ranks, self._recipe = ranks, recipe
        self._last: int | None = None  # step of the newest whole checkpoint
        self._notes: list[str] = []
        self._damaged: set[int] = set()

    def find(self, fresh: bool = False) -> None:
        """Choose the newest whole checkpoint, without changing anything; `fresh` removes all of them instead.

        Raises:
            ValueError: there are checkpoints, but of another recipe, or none of them is whole.
        """
        self._last, self._notes = self._ranks.on_main(lambda: self._choose(fresh))
        self._damaged = {step for step in self.folder.steps() if step > (self._last or 0)}

    def restore(self, state: RunState) -> Resumed:
        """Restore the checkpoint that `find` chose, if any.

        Raises:
            ValueError: it does not fit `state`.
        """
        step = self._last
        if step is None:
            return Resumed()
        progress = self._ranks.attempt(lambda: self._read(step, state))
        self._ranks.on_main(lambda: self.folder.rewind(step, progress["metric"]))
        return Resumed(progress["step"], progress["order"], self._mine(progress["sums"]), self._notes)

    def save(
        self,
        step: int,
        state: RunState,
        order: dict[str, Any],
        sums: torch.Tensor,
        metric: float | None = None,
    ) -> None:
        """Write the checkpoint after `step` steps; older ones go only when it is in place.

        Args:
            step: steps done.
            state: what to keep.
            order: state of the loader.
            sums: this process's of the metrics since the last logged step.
            metric: of validation at this step, less is better; the best one's checkpoint is kept.

        Raises:
            ValueError: it cannot be written, or a weight is not finite; older checkpoints are untouched.
        """
        all_sums = self._ranks.everyone(sums.tolist())
        progress = {"step": step, "order": order, "sums": all_sums, "metric": metric}
        gathered = state.gather()
        try:
            with ExitStack() as stack:
                aside = self._ranks.on_main(lambda: stack.enter_context(self.folder.writing(step)))
                files = self._ranks.attempt(lambda: self._write(aside, state, gathered, progress))
                everyone = self._ranks.everyone(files)
                merged = {name: facts for each in everyone for name, facts in each.items()}
                self._ranks.on_main(lambda: write_manifest(aside, merged))
                self._ranks.on_main(stack.close)
            self._last = step
            self._damaged.discard(step)
            self._ranks.on_main(lambda: self.folder.publish(step, metric))
        except ValueError as error:
            raise ValueError(f"cannot keep a checkpoint of step {step}: {error}") from error

    def restore_best(self, step: int, state: RunState) -> str:
        """Restore the checkpoint of `step`, the best by validation, unless something is wrong with it.

        Returns:
            What is wrong; empty when it is restored.
        """
        fault = self._ranks.on_main(lambda: self.folder.fault(step))
        if fault:
            return f"the best, of step {step}, is lost: {fault}"
        self._ranks.attempt(lambda: state.read(self.folder.path(step), self._ranks.rank))
        return ""

    def finish(self) -> None:
        """Remove the checkpoints of a finished run but the best by validation."""
        self._ranks.on_main(lambda: self.folder.drop(keep_best=True))
        self._last = None

    def where(self) -> str:
        """Where the run would go on, as a phrase for messages; also in the middle of a save that failed."""
        step = next((step for step in self.folder.steps() if step not in self._damaged), None)
        if step is None:
            return "there is no checkpoint yet"
        path = self.folder.path(step)
        return f"the last checkpoint is {path}; the same command goes on from there"

    @property
    def last_step(self) -> int | None:
        """Step of the newest whole checkpoint."""
        return self._last

    def _choose(self, fresh: bool) -> tuple[int | None, list[str]]:
        if fresh:
            self.folder.drop()
        self.folder.sweep()
        step, faults = self.folder.newest_whole()
        if step is None and faults:
            raise ValueError(
                f"no checkpoint in {self.folder.root} is whole: {'; '.join(faults)}; restore one of them, or "
                "start anew with --fresh"
            )
        notes = [f"passed over a damaged checkpoint, {fault}" for fault in faults]
        if step is not None:
            self._refuse_another_recipe(step)
            before = json.loads((self.folder.path(step) / ENVIRONMENT).read_text())
            changed = changed_facts(before, environment_facts(self._ranks.world))
            notes += [f"changed since the checkpoint: {', '.join(changed)}"] if changed else []
        return step, notes

    def _refuse_another_recipe(self, step: int) -> None:
        path = self.folder.path(step)
        differs = changed_keys((path / RECIPE).read_text(), self._recipe, training_only=True)
        if differs:
            raise ValueError(
                f"{path} is of another recipe, which differs in {', '.join(differs)}; make them equal to go "
                "on from it, choose another output folder, or start anew with --fresh, which deletes it"
            )

    def _mine(self, all_sums: list[Any]) -> torch.Tensor:
        """This process's sums; rank 0 gets all of them when there were more or fewer processes."""
        sums = torch.tensor(all_sums, dtype=torch.float64)
        if len(sums) == self._ranks.world:
            return sums[self._ranks.rank]
        return sums.sum(0) if self._ranks.is_main else torch.zeros_like(sums[0])

    def _write(
        self, aside: Path, state: RunState, gathered: Gathered, progress: dict[str, Any]
    ) -> dict[str, Any]:
        names = state.write(aside, self._ranks.rank, gathered)
        if self._ranks.is_main:
            facts = environment_facts(self._ranks.world)
            texts = {
                PROGRESS: json.dumps(progress), RECIPE: self._recipe.to_text(), ENVIRONMENT: json.dumps(facts)
            }  # fmt: skip
            for name, text in texts.items():
                (aside / name).write_text(text)
            names += texts
        return dict(written_facts(aside, names))

    def _read(self, step: int, state: RunState) -> dict[str, Any]:
        path = self.folder.path(step)
        if not path.is_dir():
            raise ValueError(f"{path} is not there: all machines of a run must share its output folder")
        state.read(path, self._ranks.rank)
        return json.loads((path / PROGRESS).read_text())
