"""The bank: every robot's bundle resident on one base model, one of them active at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vla_adapt.adaptation.bundle import Bundle
from vla_adapt.adaptation.bundle_manifest import find_bundles
from vla_adapt.adaptation.robot_policy import RobotPolicy
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.suggest import did_you_mean


class Bank:
    """Robots served from one resident base. Thread-safe: one inference at a time.

    Args:
        base: the resident model, in evaluation mode.
        bundles: one per robot; each replays its golden pair unless `verify` is False.

    Raises:
        ValueError: two bundles for one robot, a bundle of another base, a golden pair that differs.
    """

    def __init__(self, base: OpenVLA, bundles: list[Bundle], verify: bool = True) -> None:
        self._lock = threading.Lock()
        self._policies: dict[str, RobotPolicy] = {}
        self._metadata: dict[str, dict[str, Any]] = {}
        for bundle in bundles:
            if bundle.robot in self._policies:
                raise ValueError(
                    f"two bundles for robot '{bundle.robot}' (the second: {bundle.folder}); keep one"
                )
            policy = bundle.attach(base)
            self._policies[bundle.robot] = policy
            self._metadata[bundle.robot] = _metadata(bundle, policy)
        if verify:
            for bundle in bundles:
                bundle.verify_policy(self._policies[bundle.robot])

    @staticmethod
    def open(
        base: OpenVLA, folder: str | Path, verify: bool = True, progress: Callable[[str], None] | None = None
    ) -> Bank:
        """All bundles found in `folder` on `base`."""
        bundles = []
        for path in find_bundles(folder):
            if progress:
                progress(f"loading {path}")
            bundles.append(Bundle.load(path))
        return Bank(base, bundles, verify=verify)

    def robots(self) -> dict[str, dict[str, Any]]:
        """Name -> what a client needs to know (action layout, rate, horizon, cameras, base).

        `rate_hz`: at which to send the actions of a chunk; that of the training data, where it is known
        (`trained_rate_hz`), else the robot's.
        """
        return self._metadata

    def act(self, robot: str, observation: dict[str, Any]) -> tuple[np.ndarray, dict[str, float]]:
        """Action chunk [H, D] float32 in the robot's own units, and timings in milliseconds.

        Raises:
            ValueError: unknown robot or an observation that does not fit it.
        """
        if robot not in self._policies:
            known = sorted(self._policies)
            raise ValueError(
                f"no robot '{robot}' here; served: {', '.join(known)}; {did_you_mean(robot, known)}"
            )
        waited = time.perf_counter()
        with self._lock:
            start = time.perf_counter()
            actions = self._policies[robot].act(observation)
            end = time.perf_counter()
        return actions, {"queue_ms": 1e3 * (start - waited), "policy_ms": 1e3 * (end - start)}


def _metadata(bundle: Bundle, policy: RobotPolicy) -> dict[str, Any]:
    embodiment = bundle.embodiment
    cameras = dict.fromkeys(
        [*embodiment.cameras, bundle.observation.camera, *bundle.observation.more_cameras]
    )
    return {
        "robot": bundle.robot,
        "title": embodiment.title,
        "rate_hz": bundle.rate_hz or embodiment.rate_hz,
        "trained_rate_hz": bundle.rate_hz,
        "action_dim": embodiment.action_dim,
        "action_horizon": policy.horizon,
        "action": [component.name for component in embodiment.action],
        "constants": {name: list(numbers) for name, numbers in bundle.constants.items()},
        "state_dim": embodiment.proprio_dim if policy.reads_state else None,
        "state_required": policy.reads_state,
        "cameras": {name: {"required": name == bundle.observation.camera} for name in cameras},
        "base_fingerprint": bundle.base_fingerprint,
        "base_dtype": str(policy.model.dtype).removeprefix("torch."),
    }
