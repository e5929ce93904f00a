"""One fake server for all serving tests, and an observation it accepts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from vla_adapt.serving.resident import FakeBank
from vla_adapt.serving.server import ServerThread

ROBOTS = {"franka_panda": 7, "bimanual_panda": 14}


@pytest.fixture
def bank() -> FakeBank:
    return FakeBank(ROBOTS)


@pytest.fixture(scope="session")
def server() -> Iterator[ServerThread]:
    with ServerThread(FakeBank(ROBOTS), max_message_bytes=2**20) as running:
        yield running


@pytest.fixture
def observation() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return {"images": {"primary": image}, "state": np.arange(8, dtype=np.float32), "prompt": "lift the cube"}
