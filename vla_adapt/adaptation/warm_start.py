"""Start a robot from a bundle: another robot's through an action adapter, or its own from an earlier run.

The LoRA weights are copied. The output layer of a parallel or readout head is composed with the linear part
of the action adapter, fc2' = M fc2: the first predictions are the other robot's, mapped. That is exact where
the adapter is linear and the observation equal; proprio is normalized with the new robot's own statistics.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
import yaml
from jaxtyping import Float
from peft import LoraConfig

from vla_adapt.actions.normalize import Normalizer
from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.adaptation.action_adapter import (
    ActionAdapter,
    ActionAdapterConfig,
    Side,
    check_side,
    renormalization,
)
from vla_adapt.adaptation.action_pairs import PairingConfig, pair_actions
from vla_adapt.adaptation.attach import load_adapter
from vla_adapt.adaptation.bundle import Bundle, Golden
from vla_adapt.adaptation.card import CardFacts, model_card
from vla_adapt.adaptation.environment_facts import this_start
from vla_adapt.adaptation.fit_action_adapter import FitConfig, FitErrors, fit_action_adapter
from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.episode_facts import first_with_steps
from vla_adapt.episodes.measuring.statistics import RobotStatistics, robot_statistics
from vla_adapt.episodes.recorded_rate import pooled_rate_hz
from vla_adapt.episodes.source import EpisodeDataset
from vla_adapt.policy.heads import ActionHead, load_head
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.policy.parallel_head import ParallelHead
from vla_adapt.policy.readout_head import ReadoutHead

# Heads that end in a linear layer `fc2` over the slots.
_LINEAR = (ParallelHead, ReadoutHead)


def make_warm_bundle(
    bundle: Bundle,
    base: OpenVLA,
    source: Sequence[EpisodeDataset],
    target: Sequence[EpisodeDataset],
    pairing: PairingConfig | None = None,
    adapter_config: ActionAdapterConfig | None = None,
    fit: FitConfig | None = None,
    seed: int = 0,
) -> tuple[Bundle, FitErrors]:
    """Fit an action adapter from `bundle`'s robot to the robot of `target`; return where that one starts.

    Args:
        bundle: of the robot that is trained already.
        base: the base that `bundle` was trained on.
        source: episodes of the bundle's robot.
        target: episodes of the other robot, paired with them or of the same instructions.
        pairing: which steps belong together.
        adapter_config: linear or with an MLP; only the linear part reaches the head.
        fit: how to fit.
        seed: of the fit.

    Returns:
        A complete bundle of the other robot, golden pair included, and the adapter's held-out errors.

    Raises:
        ValueError: data of another robot than the bundle's, no state recorded, nothing to pair, a head that
            has no output layer to compose.
    """
    robot = target[0].embodiment
    if source[0].embodiment.name != bundle.robot or robot.name == bundle.robot:
        raise ValueError(
            f"the bundle is of '{bundle.robot}'; got data from '{source[0].embodiment.name}' to "
            f"'{robot.name}', wanted data from '{bundle.robot}' to another robot"
        )
    measured = robot_statistics(target)[robot.name]
    sides = Side.of(bundle.embodiment, bundle.action_statistics), Side.of(robot, measured.action)
    pairs = pair_actions(source, target, sides[0].normalizer, sides[1].normalizer, pairing)
    adapter, errors = fit_action_adapter(pairs, *sides, adapter_config, fit, seed)
    started = started_bundle(bundle, base, adapter, robot, measured)
    started.rate_hz = pooled_rate_hz(target)
    names = ", ".join(dataset.name for dataset in target)
    started.facts = {
        "warm_start": {"from": bundle.robot, "data": names, **adapter.facts}, "environment": [this_start()],
    }  # fmt: skip
    started.card = model_card(robot, _described(bundle, started, names, errors))
    episode, policy = first_with_steps(target), started.attach(base)
    image, state = episode.image(0, policy.camera), None
    if policy.reads_state:
        assert episode.state is not None, "robot_statistics measured one"
        state = np.asarray(episode.state[0])
    more = {c: episode.image(0, c) for c in policy.observation.more_cameras if c in episode.cameras}
    return started.with_golden(Golden.record(policy, image, state, episode.instruction, 1e-3, more)), errors


def started_bundle(
    bundle: Bundle, base: OpenVLA, adapter: ActionAdapter, robot: Embodiment, statistics: RobotStatistics
) -> Bundle:
    """The bundle from which `robot` starts; without golden pair and card.

    Raises:
        ValueError: an adapter between other robots, a head that cannot be composed.
    """
    check_side(adapter.source, bundle.embodiment, "source", "warm start")
    check_side(adapter.target, robot, "target", "warm start")
    before = Normalizer(bundle.action_statistics, adapter.source.mask)
    after = Normalizer(statistics.action, adapter.target.mask)
    head = _head_of(bundle, base)
    compose_output(head, *adapter.linear_between(before, after))
    return Bundle(
        embodiment=robot, action_statistics=statistics.action, proprio_statistics=statistics.proprio,
        observation=bundle.observation, base_fingerprint=bundle.base_fingerprint, head=head,
        adapter_config=bundle.adapter_config, adapter=bundle.adapter, action_adapter=adapter,
    )  # fmt: skip


@torch.no_grad()
def compose_output(
    head: ActionHead, matrix: Float[np.ndarray, "32 32"], offset: Float[np.ndarray, " 32"]
) -> None:
    """Make `head` predict matrix @ p + offset where it predicted p (normalized actions).

    Raises:
        ValueError: a head whose last step is not a linear layer over the 32 slots.
    """
    if not isinstance(head, _LINEAR):
        raise ValueError(
            f"a '{head.config.kind}' head has no linear output layer over the slots; warm starts between "
            "robots want the parallel or the readout head"
        )
    weight, bias = head.fc2.weight, head.fc2.bias
    factor = torch.from_numpy(matrix).to(weight.device)
    bias.copy_(factor @ bias.double() + torch.from_numpy(offset).to(bias.device))
    weight.copy_(factor @ weight.double())


def start_robot(
    bundle: Bundle,
    model: OpenVLA,
    head: ActionHead,
    embodiment: Embodiment,
    normalizer: Normalizer,
    lora: LoraConfig | None,
) -> None:
    """Copy `bundle`'s adapter into the fresh one of its robot in `model`, and its head into `head`.

    A parallel or readout head is rescaled where the run's statistics (`normalizer`) differ from the bundle's.

    Raises:
        ValueError: the bundle is of another robot, base, head or adapter configuration (`lora`; None: the run
            trains no adapter).
    """
    if bundle.robot != embodiment.name:
        raise ValueError(
            f"warm_start.{embodiment.name}: {bundle.folder} is a bundle of '{bundle.robot}'; make one of "
            f"'{embodiment.name}' from it with `vla-adapt adapters warm-start`"
        )
    _check_run(bundle, model, head, embodiment, lora)
    if lora is not None:
        load_adapter(model, bundle.robot, bundle.adapter)
    head.load_state_dict(_head_of(bundle, model).state_dict())
    scale, offset = renormalization(Normalizer(bundle.action_statistics, normalizer.mask), normalizer)
    changed = (np.abs(scale - normalizer.mask) > 1e-6).any() or (np.abs(offset) > 1e-6).any()
    if isinstance(head, _LINEAR) and changed:
        compose_output(head, np.diag(scale), offset)


def _check_run(
    bundle: Bundle, model: OpenVLA, head: ActionHead, embodiment: Embodiment, lora: LoraConfig | None
) -> None:
    where = f"warm_start.{bundle.robot}: {bundle.folder}"
    if bundle.base_fingerprint != model.fingerprint:
        raise ValueError(
            f"{where} is of base {bundle.base_fingerprint[:12]}, the recipe's is {model.fingerprint[:12]}; "
            "start from the same base"
        )
    before, now = (np.flatnonzero(ActionUnifier(e).mask).tolist() for e in (bundle.embodiment, embodiment))
    if before != now:
        raise ValueError(f"{where} was made when the robot had slots {before}, now it has {now}")
    got, wanted = (_shape_of(config) for config in (bundle.adapter_config, lora))
    if got != wanted:
        raise ValueError(
            f"{where} has {got}, the recipe trains {wanted}; make `adaptation` the same{_joined(bundle)}"
        )
    config = _head_of(bundle, model).config
    if config.served != head.config.served:
        raise ValueError(f"{where} has the head {config}, the recipe wants {head.config}; make them equal")


def _joined(bundle: Bundle) -> str:
    """Why a bundle's rank and alpha are not those of the recipe that made it, where they are not."""
    recipe = yaml.safe_load(bundle.facts.get("recipe", "")) or {}
    method = recipe.get("adaptation") or {}
    shared = method.get("shared")
    if not shared or bundle.adapter_config is None:
        return ""
    return (
        f": the bundle holds the robot's own adapter (rank {method['rank']}) and the shared one (rank "
        f"{shared['rank']}) side by side, as one of rank {bundle.adapter_config.r}"
    )


def _shape_of(config: LoraConfig | None) -> str:
    if config is None:
        return "no adapter"
    scale = "rsLoRA " if config.use_rslora else ""
    return f"a {scale}LoRA of rank {config.r} and alpha {config.lora_alpha}"


def _head_of(bundle: Bundle, base: OpenVLA) -> ActionHead:
    if bundle.head is not None:
        return copy.deepcopy(bundle.head)
    assert bundle.folder is not None
    return load_head(bundle.folder, base)


def _described(before: Bundle, started: Bundle, names: str, errors: FitErrors) -> CardFacts:
    head = started.head
    assert head is not None
    return CardFacts(
        recipe="none: a start, not trained on this robot",
        base=started.base_fingerprint[:12],
        adaptation=f"copied from the bundle of '{before.robot}'",
        head=f"{head.config.kind}, horizon {head.horizon}, mapped from '{before.robot}'",
        image=str(started.observation),
        state="read" if head.config.proprio and started.proprio_statistics is not None else "not read",
        constants="none",
        data=f"{names} (for the map of actions only)",
        steps=0,
        held_out=f"of the map, given the other robot's actions: {errors.adapter:.3f} (copying shared "
        f"slots {errors.copy:.3f}, predict-the-mean {errors.mean:.3f})",
        statistics=started.action_statistics,
        horizon=head.horizon,
        rate_hz=started.rate_hz,
        adapted=started.adapter_config is not None,
    )
