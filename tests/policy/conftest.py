"""Fixtures of the policy tests: the parity data, a tiny base folder, and batches of made-up windows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vla_adapt.policy.batch import PolicyBatch
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.policy.prompt import PromptTokenizer
from vla_adapt.policy.tiny import build_tiny_base

SLOTS = {"franka_panda": range(7), "mobile_panda": (*range(7), 28, 29, 30), "base_only": range(28, 31)}
INSTRUCTIONS = ("lift the cube", "pick up the small red block and put it on the table", "push the button")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def parity(shared_dir: Path) -> SimpleNamespace:
    """What the original computed: `.directory`, `.inputs`, `.expected`."""
    directory = shared_dir / "openvla_parity"
    return SimpleNamespace(
        directory=directory,
        inputs=dict(np.load(directory / "inputs.npz")),
        expected=dict(np.load(directory / "expected.npz")),
    )


@pytest.fixture
def parity_model(parity: SimpleNamespace) -> OpenVLA:
    model = OpenVLA.from_pretrained(parity.directory)
    model.config.empty_token_id = 700
    return model


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_base(tmp_path_factory.mktemp("tiny") / "base", seed=3)


@pytest.fixture
def tiny_model(tiny_dir: Path) -> OpenVLA:
    return OpenVLA.from_pretrained(tiny_dir)


@pytest.fixture(scope="session")
def make_batch(tiny_dir: Path) -> Callable[..., PolicyBatch]:
    """`make_batch(horizon, robots, seed, padded_steps)`: random images, states, actions; varied text."""
    tokenizer = PromptTokenizer.from_pretrained(tiny_dir)

    def make(
        horizon: int = 4,
        robots: tuple[str, ...] = ("franka_panda",) * 3,
        seed: int = 0,
        padded_steps: int = 0,
    ) -> PolicyBatch:
        draw = torch.Generator().manual_seed(seed)
        rows = len(robots)
        ids, mask = tokenizer([INSTRUCTIONS[row % len(INSTRUCTIONS)] for row in range(rows)])
        slots = torch.zeros(rows, 32, dtype=torch.bool)
        for row, robot in enumerate(robots):
            slots[row, list(SLOTS[robot])] = True
        action_mask = slots[:, None].repeat(1, horizon, 1)
        if padded_steps:
            action_mask[0, -padded_steps:] = False
        action = torch.rand(rows, horizon, 32, generator=draw) * 2 - 1
        return PolicyBatch(
            input_ids=ids,
            attention_mask=mask,
            pixel_values=torch.randn(rows, 6, 84, 84, generator=draw),
            proprio=torch.rand(rows, 32, generator=draw).masked_fill(~slots, 0.0),
            proprio_mask=slots.clone(),
            slot_mask=slots,
            action=action.masked_fill(~action_mask, 0.0),
            action_mask=action_mask,
            robots=list(robots),
        )

    return make
