"""The training loop: one run over the mixture, one adapter per robot, on whatever Accelerate launched."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from vla_adapt.adaptation.environment_facts import note_start
from vla_adapt.adaptation.folder import replace_text
from vla_adapt.episodes.mixing.loader import MixtureLoader, make_loader
from vla_adapt.evaluation.drawn_episodes import PREDICTIONS
from vla_adapt.evaluation.open_loop import OpenLoopResult, open_loop
from vla_adapt.policy.batch import BatchBuilder, PolicyBatch
from vla_adapt.recipe import Recipe
from vla_adapt.training.determinism import deterministic
from vla_adapt.training.faster_steps import faster_steps
from vla_adapt.training.finished_run import SUMMARY, is_finished
from vla_adapt.training.frozen_features import use_features
from vla_adapt.training.launch import launched_way, start_accelerator
from vla_adapt.training.learner import INVARIANCE
from vla_adapt.training.leave import leave_bundles, leave_drawn
from vla_adapt.training.loss_balance import BALANCE, SCALE_RATE
from vla_adapt.training.micro_batches import check_split, in_micro_batches
from vla_adapt.training.optimizer import make_optimizer
from vla_adapt.training.parallelism import Way, check_way
from vla_adapt.training.prefetch import MicroBatch, Prefetch, copies_to
from vla_adapt.training.pulse import Pulse
from vla_adapt.training.ranks import Ranks
from vla_adapt.training.resource_advice import explained
from vla_adapt.training.resume import CheckpointKeeper, Resumed
from vla_adapt.training.robot_data import trained_with
from vla_adapt.training.run_lock import run_lock
from vla_adapt.training.run_log import METRICS, RunLog
from vla_adapt.training.run_state import RunState
from vla_adapt.training.sample_log import SampleId, SampleLog, name_bad_samples
from vla_adapt.training.selection import Selection
from vla_adapt.training.setting import Setting, prepare
from vla_adapt.training.spread import Spread, make_whole, spread_over
from vla_adapt.training.stage_switch import StageSwitch
from vla_adapt.training.stop_signal import Stopped, StopSignal, spare_once
from vla_adapt.training.trackers import Trackers


def train(recipe: Recipe, fresh: bool = False) -> Path:
    """Run a recipe and leave its folder: bundles, metrics, resolved recipe, open-loop table, drawn episodes.

    A finished run of the same recipe is left alone; an interrupted one resumes at its last checkpoint.
    `fresh` forgets both, and replaces what a run of another recipe left.

    Returns:
        The output folder.

    Raises:
        ValueError: a recipe that does not fit data, base or launch; a folder of another recipe; a loss that
            is not finite; a checkpoint that cannot be written or read; another process that failed
            (`RankLost`).
        Stopped: SIGTERM or SIGUSR1 came; a checkpoint is saved.
    """
    folder = Path(recipe.output).expanduser()
    with deterministic(recipe.train.deterministic):
        accelerator = start_accelerator(recipe.train.precision, timedelta(seconds=recipe.train.patience_s))
        if not fresh and is_finished(folder, recipe):
            accelerator.print(
                f"{folder} holds the finished run of this recipe already; --fresh trains it again"
            )
            accelerator.end_training()
            return folder
        way = launched_way(accelerator.num_processes)
        check_way(recipe, way)
        check_split(recipe.train.batch_size, accelerator.num_processes, recipe.train.accumulate)
        ranks = Ranks(accelerator)
        keeper = CheckpointKeeper(ranks, folder, recipe)
        with Pulse(ranks, keeper.where) as pulse, explained(recipe, ranks.world, keeper.where):
            _train(Run(accelerator, way, ranks, keeper, pulse, folder, recipe.train.steps), recipe, fresh)
        accelerator.end_training()
    return folder


@dataclass(frozen=True)
class Run:
    """What the parts of a run share."""

    accelerator: Accelerator
    way: Way
    ranks: Ranks
    keeper: CheckpointKeeper
    pulse: Pulse
    folder: Path
    steps: int


def _train(run: Run, recipe: Recipe, fresh: bool) -> None:
    started = time.perf_counter()
    with run_lock(run.ranks, run.folder):
        run.keeper.find(fresh)
        run.ranks.on_main(lambda: (run.folder / SUMMARY).unlink(missing_ok=True))
        run.ranks.on_main(lambda: replace_text(run.folder / "recipe.yaml", recipe.to_text()))
        setting = run.ranks.main_first(partial(prepare, recipe))
        _announce(run, setting)
        note = use_features(run.accelerator, run.ranks, setting)
        if note:
            run.accelerator.print(f"  {note}")
        _run_steps(run, setting)
        run.pulse.note("judging")
        run.ranks.on_main(lambda: _leave(run, setting, started))
        run.keeper.finish()


def _leave(run: Run, setting: Setting, started: float) -> None:
    setting.recipe.adaptation.finish(setting.learner.model)
    results = _judge(setting, setting.recipe)
    _write_open_loop(run.folder, results)
    leave_drawn(setting, run.folder / PREDICTIONS)
    leave_bundles(setting, run.folder, results)
    seconds = time.perf_counter() - started
    summary = {
        "recipe": setting.recipe.to_text(), "seconds": seconds, "processes": run.ranks.world,
        "robots": trained_with(setting),
        "trained": setting.trained,
    }  # fmt: skip
    replace_text(run.folder / SUMMARY, json.dumps(summary, indent=1))
    robots = len(setting.robots)
    print(f"{run.folder}: {robots} {'robot' if robots == 1 else 'robots'}, {seconds:.0f} s")


def _run_steps(run: Run, setting: Setting) -> None:
    recipe, learner, accelerator = setting.recipe, setting.learner, run.accelerator
    if recipe.train.steps == 0 or not learner.groups():
        learner.to(accelerator.device)
        run.ranks.on_main(lambda: replace_text(run.folder / METRICS, ""))
        run.ranks.on_main(lambda: note_start(run.folder, run.ranks.world, 0))
        return
    spread = spread_over(accelerator, run.way, learner)
    optimizer, schedule = _optimizer(recipe, spread.groups)
    stages = StageSwitch(learner, recipe.adaptation)
    wrapped, optimizer = spread.prepare(optimizer)
    selection = Selection(accelerator, run.ranks, setting)
    state = RunState(learner, optimizer, schedule, selection.extras, spread.sharding)
    loader = _loader(run, setting)
    point = _resume(run, state, loader)
    data = Prefetch(loader, copies_to(accelerator.device), recipe.train.batch_size)
    run.ranks.on_main(lambda: note_start(run.folder, run.ranks.world, point.step))
    wrapped.train()
    step = point.step
    with ExitStack() as opened:
        opened.enter_context(faster_steps(learner.model, recipe.train))
        trackers = opened.enter_context(_trackers(run, recipe, point.step))
        log = opened.enter_context(RunLog(accelerator, setting, run.folder, trackers, point.step, point.sums))
        samples = _sample_log(accelerator, recipe, run.folder, point.step)
        if samples is not None:
            opened.enter_context(samples)
        stop = opened.enter_context(StopSignal(run.ranks, timedelta(seconds=recipe.train.patience_s)))
        batches = () if selection.stopped else data
        for step, micro_batches in enumerate(batches, start=point.step + 1):
            run.pulse.note(f"step {step}")
            torch.manual_seed(recipe.seed + (step - 1) * run.ranks.world + run.ranks.rank)
            with stages.at(step - 1):
                robots = _add_up_gradients(run, spread, wrapped, data, micro_batches, step - 1, log)
            norms = spread.settle(robots, recipe.train.optimizer.clip_norm)
            _check_gradients(list(spread.groups), norms, micro_batches, step - 1)
            optimizer.step()
            schedule.step()
            spread.clear(optimizer)
            verdict = selection.after(step, log)
            log.step(step, float(schedule.get_last_lr()[0]), verdict.stop)
            if samples is not None:
                for _, ids in micro_batches:
                    samples.step(step, ids)
            signal = stop.agreed()
            due = step % recipe.train.save_every == 0 or step == recipe.train.steps
            if signal or due or verdict.save or verdict.stop:
                run.keeper.save(step, state, data.state_dict(), log.sums, verdict.metric)
            if signal and step < recipe.train.steps:
                raise Stopped(signal, step, run.keeper.where())
            if verdict.stop:
                break
            run.pulse.note(f"step {step + 1}, waiting for data")
    setting.trained = selection.choose(step, state, run.keeper)
    if setting.trained:
        accelerator.print(setting.trained)
    make_whole(spread.sharding, setting, run.ranks, accelerator.device)


def _optimizer(
    recipe: Recipe, groups: dict[str, list[nn.Parameter]]
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """Over all that trains; the adversary and the scales of losses have learning rates of their own."""
    config = recipe.train.optimizer
    multiples = {
        INVARIANCE: recipe.invariance.classifier_rate,
        BALANCE: SCALE_RATE / config.learning_rate,
    }
    rates = recipe.adaptation.rates(config.learning_rate)
    momenta = {INVARIANCE: recipe.invariance.classifier_momentum}
    return make_optimizer(config, groups, recipe.train.steps, rates, multiples, momenta)


def _add_up_gradients(
    run: Run,
    spread: Spread,
    wrapped: nn.Module,
    data: Prefetch,
    micro_batches: list[MicroBatch],
    done: int,
    log: RunLog,
) -> set[str]:
    """Forward and backward over every part of this process's share of the batch; returns whose rows it has.

    `done` steps are behind.
    """
    accelerator, alone = run.accelerator, run.ranks.world == 1
    for number, (loaded, ids) in enumerate(micro_batches, start=1):
        batch, following = data.on_device(loaded), micro_batches[number : number + 1]
        with spread.passing(not following):
            with accelerator.autocast():
                output = wrapped(batch, done / run.steps)
            if not alone:  # before a bad gradient goes to the others
                _check_finite(output, ids, batch.robots, done)
            accelerator.backward(output["loss"] / len(micro_batches))
        data.look_ahead(following[0][0] if following else None)  # before anything waits for the backward pass
        if alone:
            _check_finite(output, ids, batch.robots, done)
        log.add(output, loaded)
    return {robot for batch, _ in micro_batches for robot in batch.robots}


def _loader(run: Run, setting: Setting) -> MixtureLoader:
    """This process's share of every batch, in micro-batches."""
    train = setting.recipe.train
    rows = partial(collate, setting.builder, list(setting.robots))
    return make_loader(
        setting.mixture, train.batch_size, run.ranks.rank, run.ranks.world, steps=train.steps,
        num_workers=train.workers, collate=partial(in_micro_batches, rows, train.accumulate),
        worker_init_fn=spare_once,
    )  # fmt: skip


def _resume(run: Run, state: RunState, loader: MixtureLoader) -> Resumed:
    """Go on where the last checkpoint was saved, if there is one.

    Raises:
        ValueError: it does not fit, or the data is not what it was then.
    """
    point = run.keeper.restore(state)
    for note in point.notes:
        run.accelerator.print(note)
    if point.order is not None:
        run.ranks.main_first(partial(loader.load_state_dict, point.order))
        run.accelerator.print(f"resuming after step {point.step}")
    return point


def _trackers(run: Run, recipe: Recipe, done: int) -> Trackers:
    names, project = recipe.train.trackers, recipe.train.project
    return Trackers(run.ranks, names, project, run.folder, recipe.model_dump(mode="json"), done)


def _sample_log(accelerator: Accelerator, recipe: Recipe, folder: Path, done: int) -> SampleLog | None:
    if not recipe.train.log_samples:
        return None
    return SampleLog(folder, accelerator.process_index, accelerator.num_processes, done)


def collate(
    builder: BatchBuilder, robots: Sequence[str], windows: Sequence[Mapping[str, Any]]
) -> tuple[PolicyBatch, list[SampleId]]:
    """Windows as one batch, robot after robot, and which samples its rows are; runs in loader processes."""
    ordered = sorted(windows, key=lambda item: robots.index(item["robot"]))
    return builder.windows(ordered), [SampleId.of(item) for item in ordered]


def _check_finite(
    output: dict[str, torch.Tensor], ids: Sequence[SampleId], robots: Sequence[str], step: int
) -> None:
    if torch.isfinite(output["loss"]):
        return
    losses = output["loss_per_sample"] + output.get("auxiliary", torch.zeros(())).to(output["loss"])
    raise ValueError(
        f"the loss is {output['loss'].item()} at step {step}: {name_bad_samples(losses, ids, robots)}; lower "
        "the learning rate or look at these samples; the last checkpoint is untouched"
    )


def _check_gradients(
    names: Sequence[str], norms: Sequence[torch.Tensor], micro_batches: Sequence[MicroBatch], step: int
) -> None:
    """A loss may be finite and its gradient not; once in the weights, every sample would seem bad."""
    finite = torch.stack([norm.to(norms[-1].device) for norm in norms]).isfinite()
    if finite.all():
        return
    bad = [name for name, fine in zip(names, finite.tolist(), strict=True) if not fine]
    ids = [str(each) for _, part in micro_batches for each in part]
    more = f" and {len(ids) - 8} more" if len(ids) > 8 else ""
    raise ValueError(
        f"the gradient of {', '.join(bad)} is not finite at step {step}, the loss is; this process had "
        f"{', '.join(ids[:8])}{more}; lower the learning rate or look at these samples; the last checkpoint "
        "is untouched"
    )


def _judge(setting: Setting, recipe: Recipe) -> list[OpenLoopResult]:
    results = []
    for name, robot in setting.robots.items():
        if robot.held_out:
            result = open_loop(setting.policy(name), robot.held_out, recipe.evaluation.windows)
            print(
                f"{name:16s} held-out error {result.error:.3f}, predict-the-mean {result.baseline_error:.3f} "
                f"({result.windows} windows)"
            )
            results.append(result)
    return results


def _write_open_loop(folder: Path, results: list[OpenLoopResult]) -> None:
    (folder / "open_loop.json").write_text(json.dumps([result.to_dict() for result in results], indent=1))


def _announce(run: Run, setting: Setting) -> None:
    recipe, learner, accelerator = setting.recipe, setting.learner, run.accelerator
    trained = {name: sum(p.numel() for p in group) for name, group in learner.groups().items()}
    accelerator.print(
        f"{recipe.name}: base {recipe.base}, {recipe.adaptation.kind}, {recipe.policy.head.kind} head; "
        f"{accelerator.num_processes} process(es) on {accelerator.device.type} ({run.way}), "
        f"{recipe.train.steps} steps of {recipe.train.batch_size} samples"
    )
    for name, robot in setting.robots.items():
        steps = sum(int(dataset.lengths.sum()) for dataset in robot.train)
        episodes = sum(len(dataset) for dataset in robot.train)
        mine = trained.get(name, 0) + trained.get("shared", 0)
        accelerator.print(f"  {name:16s} {episodes} episodes, {steps} steps; {mine:,} parameters train")
    for note in setting.notes:
        accelerator.print(f"  {note}")
