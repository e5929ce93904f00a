from __future__ import annotations

import asyncio
import logging
from typing import Any

import numpy as np
import pytest

from vla_adapt.serving.protocol import WireError
from vla_adapt.serving.resident import FakeBank
from vla_adapt.serving.service import PolicyService


class _StrangeBank(FakeBank):
    """Gives whatever actions the test wants."""

    actions: Any = None

    def expected(self, robot: str, observation: dict[str, Any]) -> Any:
        return self.actions


def _ask(service: PolicyService, robot: str, request: Any) -> dict[str, Any]:
    return asyncio.run(service.answer(lambda: (robot, request)))


def test_answer_and_timing(bank: FakeBank, observation: dict[str, Any]) -> None:
    service = PolicyService(bank)
    bank.latency_s = 0.02
    reply = _ask(service, "franka_panda", observation)
    np.testing.assert_allclose(reply["actions"], bank.expected("franka_panda", observation))
    assert reply["server_timing"]["model_ms"] == 20
    assert reply["server_timing"]["infer_ms"] >= 20
    assert 'requests_total{robot="franka_panda",outcome="ok"} 1' in service.metrics.text()
    service.close()


def test_a_value_error_is_the_clients_and_anything_else_ours(
    bank: FakeBank, observation: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    service = PolicyService(bank)
    bank.failure = ValueError("state width 8,\nwanted 9")
    with pytest.raises(WireError) as caught:
        _ask(service, "franka_panda", observation)
    assert (caught.value.code, caught.value.message) == ("bad_observation", "state width 8, wanted 9")
    bank.failure = RuntimeError("CUDA error in /secret/path.py")
    with caplog.at_level(logging.ERROR), pytest.raises(WireError) as caught:
        _ask(service, "franka_panda", observation)
    assert caught.value.code == "internal"
    assert "secret" not in caught.value.message
    incident = caught.value.message.rpartition(" ")[2]
    assert incident in caplog.text
    assert "/secret/path.py" in caplog.text
    bank.failure = None
    assert _ask(service, "franka_panda", observation)["actions"].shape == (4, 7)
    text = service.metrics.text()
    assert 'outcome="internal"} 1' in text
    assert 'outcome="bad_observation"} 1' in text
    service.close()


@pytest.mark.parametrize(
    "actions", [np.full((4, 7), np.nan), np.full((4, 7), 1e300), np.zeros(7), np.zeros((0, 7)), "no", None]
)
def test_unfit_actions_never_leave(actions: Any, observation: dict[str, Any]) -> None:
    bank = _StrangeBank({"ur5e": 6})
    bank.actions = actions
    service = PolicyService(bank)
    with np.errstate(over="ignore"), pytest.raises(WireError) as caught:
        _ask(service, "ur5e", observation)
    assert caught.value.code == "internal"
    service.close()


def test_overload_and_drain(bank: FakeBank) -> None:
    service = PolicyService(bank, max_waiting=1)
    assert service.is_ready
    with service.admitted(), pytest.raises(WireError) as caught, service.admitted():
        pass
    assert caught.value.code == "overloaded"
    with service.admitted():
        assert not asyncio.run(service.drain(0.05))
        assert asyncio.run(service.drain(5, hurry=lambda: True)) is False
    assert asyncio.run(service.drain(0.05))
    assert not service.is_ready
    with pytest.raises(WireError) as caught, service.admitted():
        pass
    assert caught.value.code == "draining"
    service.close()
