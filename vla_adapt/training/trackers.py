"""Where a run reports to beside its own files: TensorBoard, Weights & Biases, Trackio, by Accelerate."""

from __future__ import annotations

import importlib.util
import json
import re
import uuid
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from vla_adapt.adaptation.folder import replace_text
from vla_adapt.training.ranks import Ranks

TrackerName = Literal["tensorboard", "wandb", "trackio"]
IDENTITY = "trackers.json"
# Modules of which one must be there, and how to get one.
_NEEDS: dict[str, tuple[tuple[str, ...], str]] = {
    "tensorboard": (("tensorboardX", "torch.utils.tensorboard"), "tensorboardX"),
    "wandb": (("wandb",), "'vla_adapt[wandb]'"),
    "trackio": (("trackio",), "'vla_adapt[trackio]'"),
}
_ADVICE = {
    "wandb": "log in with `wandb login`, or set WANDB_MODE=offline and `wandb sync` later",
    "trackio": "unset TRACKIO_SPACE_ID to keep it on this machine",
}


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Refuse what is not installed, before anything starts.

    Raises:
        ValueError: it says what to install.
    """
    for name in names:
        modules, package = _NEEDS[name]
        if not any(_is_there(module) for module in modules):
            raise ValueError(
                f"train.trackers: {name} is not installed; pip install {package}, or leave it out "
                "(metrics.jsonl has the same numbers)"
            )


class Trackers:
    """A context manager; every process enters it, the main one reports.

    A resumed run goes on as the same run of each service: its name there lies in `trackers.json`. Steps that
    were reported and then lost are trained again to the same numbers; W&B ignores their second report.

    Args:
        ranks: of the run.
        names: which services.
        project: what the services list the run under.
        folder: of the run.
        config: the recipe, as a tree.
        done: steps an interrupted run had finished.

    Raises:
        ValueError: on entering, on all processes: one of them does not start.
    """

    def __init__(
        self,
        ranks: Ranks,
        names: Sequence[TrackerName],
        project: str,
        folder: Path,
        config: Mapping[str, Any],
        done: int,
    ) -> None:
        self._ranks, self._names, self._project = ranks, names, project
        self._folder, self._config, self._done = folder, dict(config), done
        self._running: dict[str, GeneralTracker] = {}

    def __enter__(self) -> Trackers:
        self._ranks.on_main(self._start)
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._running):
            self._call(name, "finish")
        self._running.clear()

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Report numbers of a step; a service that fails is not used further, and the run goes on."""
        for name in list(self._running):
            self._call(name, "log", dict(values), step=step)

    def _start(self) -> None:
        identity = _identity(self._folder, self._names, self._done)
        for name in dict.fromkeys(self._names):
            options = self._options(name, identity.get(name, ""))
            try:
                tracker = LOGGER_TYPE_TO_CLASS[name](**options)
                tracker.start()
                if name != "tensorboard":  # which would begin another run for it
                    tracker.store_init_configuration(self._config)
            except Exception as error:  # each service has errors of its own
                self.__exit__()
                raise ValueError(
                    f"train.trackers: {name} does not start ({error}); {_ADVICE.get(name, 'leave it out')}"
                ) from error
            self._running[name] = tracker

    def _options(self, name: str, own: str) -> dict[str, Any]:
        """What Accelerate's tracker class is made with; `own`: the run's name at this service."""
        if name == "tensorboard":
            purge = {"purge_step": self._done + 1} if self._done else {}
            return {"run_name": "tensorboard", "logging_dir": str(self._folder), **purge}
        shared = {"run_name": self._project, "resume": "allow"}
        if name == "wandb":
            title = str(self._config.get("name", self._folder.name))
            return {**shared, "id": own, "name": title, "dir": str(self._folder)}
        return {**shared, "name": own}

    def _call(self, name: str, what: str, *given: Any, **options: Any) -> None:
        try:
            getattr(self._running[name], what)(*given, **options)
        except Exception as error:
            self._running.pop(name)
            warnings.warn(f"{name} failed and is left out from here on ({error})", stacklevel=3)


def _identity(folder: Path, names: Sequence[str], done: int) -> dict[str, str]:
    """Service -> the run's own name there: kept when it goes on, new when it begins."""
    file = folder / IDENTITY
    known: dict[str, str] = json.loads(file.read_text()) if done and file.is_file() else {}
    for name in names:
        if name != "tensorboard" and name not in known:
            title = re.sub(r"[^A-Za-z0-9_-]", "-", folder.resolve().name)
            known[name] = f"{title}-{uuid.uuid4().hex[:8]}"
    if known:
        replace_text(file, json.dumps(known) + "\n")
    return known


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of its package
        return False
