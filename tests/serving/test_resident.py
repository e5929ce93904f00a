from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vla_adapt.serving.protocol import ObservationError
from vla_adapt.serving.resident import FakeBank


def test_the_fake_tells_its_inputs_apart(bank: FakeBank, observation: dict[str, Any]) -> None:
    actions, timing = bank.act("franka_panda", observation)
    assert actions.shape == (4, 7)
    assert actions.dtype == np.float32
    assert timing == {"model_ms": 0}
    assert bank.act("bimanual_panda", observation)[0].shape == (4, 14)
    for change in ({"prompt": "lift"}, {"state": observation["state"] + 1}):
        assert not np.array_equal(bank.act("franka_panda", {**observation, **change})[0], actions)
    darker = {**observation, "images": {"primary": observation["images"]["primary"] // 2}}
    assert not np.array_equal(bank.act("franka_panda", darker)[0], actions)


def test_the_fake_can_refuse(bank: FakeBank, observation: dict[str, Any]) -> None:
    with pytest.raises(ObservationError, match="impossible"):
        bank.act("franka_panda", {**observation, "prompt": "impossible"})
