"""The training loop: one run over the mixture, one adapter per robot, on whatever Accelerate launched."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from vla_adapt.episodes.loader import MixtureLoader, make_loader
from vla_adapt.evaluation.open_loop import OpenLoopResult, open_loop
from vla_adapt.policy.batch import BatchBuilder, PolicyBatch
from vla_adapt.recipe import Recipe
from vla_adapt.training.launch import main_first, start_accelerator
from vla_adapt.training.leave import leave_bundles
from vla_adapt.training.optimizer import clip_per_robot, make_optimizer
from vla_adapt.training.resume import Resumed, drop_resume_point, load_resume_point, save_resume_point
from vla_adapt.training.run_log import METRICS, RunLog
from vla_adapt.training.sample_log import SampleId, SampleLog, name_bad_samples
from vla_adapt.training.setting import Setting, prepare

DONE = "summary.json"


def train(recipe: Recipe, fresh: bool = False) -> Path:
    """Run a recipe and leave its folder: bundles, metrics, TensorBoard log, resolved recipe, open-loop table.

    A finished run of the same recipe is left alone; an interrupted one resumes at its last resume point.

    Returns:
        The output folder.

    Raises:
        ValueError: a recipe that does not fit data, base or launch; a loss that is not finite.
    """
    accelerator = start_accelerator(recipe.train.precision)
    folder = Path(recipe.output).expanduser()
    if _finished(folder, recipe) and not fresh:
        accelerator.print(f"{folder} holds the finished run of this recipe already; --fresh trains it again")
        accelerator.end_training()
        return folder
    world = accelerator.num_processes
    if recipe.train.batch_size % world:
        raise ValueError(
            f"train.batch_size {recipe.train.batch_size} cannot be split over {world} processes evenly"
        )
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(recipe.to_text())
        if fresh:
            drop_resume_point(folder)
    setting = main_first(accelerator, partial(prepare, recipe))
    _announce(accelerator, setting)
    started = time.perf_counter()
    _run_steps(accelerator, setting, folder)
    if accelerator.is_main_process:
        results = _judge(setting, recipe)
        _write_open_loop(folder, results)
        leave_bundles(setting, folder, results)
        summary = {"recipe": recipe.to_text(), "seconds": time.perf_counter() - started, "processes": world}
        (folder / DONE).write_text(json.dumps(summary, indent=1))
        drop_resume_point(folder)
        print(f"{folder}: {len(results)} robots, {time.perf_counter() - started:.0f} s")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return folder


def _run_steps(accelerator: Accelerator, setting: Setting, folder: Path) -> None:
    recipe = setting.recipe
    learner = setting.learner
    groups = learner.groups()
    if recipe.train.steps == 0 or not groups:
        learner.to(accelerator.device)
        if accelerator.is_main_process:
            (folder / METRICS).write_text("")
        return
    optimizer, schedule = make_optimizer(recipe.train.optimizer, groups, recipe.train.steps)
    point = load_resume_point(folder, recipe.training_text(), learner, optimizer, schedule)
    wrapped, optimizer = accelerator.prepare(learner, optimizer)
    loader = _loader(accelerator, setting, point)
    wrapped.train()
    with ExitStack() as open_logs:
        log = open_logs.enter_context(RunLog(accelerator, setting, folder, point.step, point.sums))
        samples = _sample_log(accelerator, recipe, folder, point.step)
        if samples is not None:
            open_logs.enter_context(samples)
        for step, (loaded, ids) in enumerate(loader, start=point.step):
            torch.manual_seed(recipe.seed + step * accelerator.num_processes + accelerator.process_index)
            batch = loaded.to(accelerator.device)
            with accelerator.autocast():
                output = wrapped(batch)
            _check_finite(output, ids, batch.robots, step)
            accelerator.backward(output["loss"])
            clip_per_robot(groups.values(), recipe.train.optimizer.clip_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            log.step(step + 1, output, batch, float(schedule.get_last_lr()[0]))
            if samples is not None:
                samples.step(step + 1, ids)
            if (step + 1) % recipe.train.save_every == 0:
                sums = log.sums()
                if accelerator.is_main_process:
                    save_resume_point(
                        folder, step + 1, recipe.training_text(), learner, optimizer, schedule,
                        loader.state_dict(), sums,
                    )  # fmt: skip


def _loader(accelerator: Accelerator, setting: Setting, point: Resumed) -> MixtureLoader:
    """This process's share of the batches that are still to come.

    Raises:
        ValueError: the data is not what it was when the resume point was saved.
    """
    train = setting.recipe.train
    loader = make_loader(
        setting.mixture, train.batch_size, accelerator.process_index, accelerator.num_processes,
        steps=train.steps, num_workers=train.workers,
        collate=partial(collate, setting.builder, list(setting.robots)),
    )  # fmt: skip
    if point.differs:
        accelerator.print(
            f"the resume point is of another recipe ({', '.join(point.differs)}): starting anew"
        )
    if point.order is not None:
        main_first(accelerator, partial(loader.load_state_dict, point.order))
        accelerator.print(f"resuming after step {point.step}")
    return loader


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
        "the learning rate or look at these samples; the last resume point is untouched"
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


def _finished(folder: Path, recipe: Recipe) -> bool:
    file = folder / DONE
    return file.is_file() and json.loads(file.read_text())["recipe"] == recipe.to_text()


def _announce(accelerator: Accelerator, setting: Setting) -> None:
    recipe, learner = setting.recipe, setting.learner
    trained = {name: sum(p.numel() for p in group) for name, group in learner.groups().items()}
    accelerator.print(
        f"{recipe.name}: base {recipe.base}, {recipe.adaptation.kind}, {recipe.policy.head.kind} head; "
        f"{accelerator.num_processes} process(es) on {accelerator.device.type} "
        f"({accelerator.distributed_type.value}), {recipe.train.steps} steps of {recipe.train.batch_size} "
        "samples"
    )
    for name, robot in setting.robots.items():
        steps = sum(int(dataset.lengths.sum()) for dataset in robot.train)
        episodes = sum(len(dataset) for dataset in robot.train)
        mine = trained.get(name, 0) + trained.get("shared", 0)
        accelerator.print(f"  {name:16s} {episodes} episodes, {steps} steps; {mine:,} parameters train")
    for note in setting.notes:
        accelerator.print(f"  {note}")
