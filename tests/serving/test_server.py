from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from vla_adapt.serving.client import Client, RobotConnectionError, RobotServerError
from vla_adapt.serving.resident import FakeBank
from vla_adapt.serving.server import ServerThread, base_url, check_bank, serve

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys, threading, time
from pathlib import Path
from vla_adapt.serving.resident import FakeBank
from vla_adapt.serving.server import serve
folder = Path(sys.argv[1])
bank = FakeBank({"ur5e": 6})
bank.gate.clear()

def watch():
    bank.busy.wait()
    (folder / "busy").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    bank.gate.set()

threading.Thread(target=watch, daemon=True).start()
serve(bank, port=0, ready_file=folder / "run" / "url", ready=lambda url: print("ready", url), drain_s=100)
print("ended", flush=True)
"""


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_is_under_way(
    tmp_path: Path, observation: dict[str, Any], number: signal.Signals
) -> None:
    ready_file = tmp_path / "run" / "url"
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        _wait_for(ready_file.exists, process)
        url = ready_file.read_text().strip()
        results: list[np.ndarray] = []
        client = Client(url, timeout_s=120)
        thread = threading.Thread(target=lambda: results.append(client.act(observation)))
        thread.start()
        _wait_for((tmp_path / "busy").exists, process)
        process.send_signal(number)
        _wait_for(lambda: httpx.get(url + "/readyz", timeout=60).status_code == 503, process)
        assert httpx.get(url + "/healthz", timeout=60).status_code == 200
        with pytest.raises(RobotServerError) as caught:
            Client(url)
        assert caught.value.code == "draining"
        assert not results
        (tmp_path / "go").touch()
        thread.join(60)
        assert results[0].shape == (4, 6)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert output == f"serving ur5e on {url}\nready {url}\nended\n"
        assert errors == ""
        assert not ready_file.exists()
        with pytest.raises(RobotConnectionError):
            client.act(observation)
    finally:
        process.kill()
        process.communicate()


def test_drain_does_not_wait_for_ever(observation: dict[str, Any]) -> None:
    bank = FakeBank({"ur5e": 6})
    bank.gate.clear()
    failures: list[Exception] = []
    with ServerThread(bank, drain_s=0.1) as server:
        client = Client(server.url, timeout_s=60)

        def drive() -> None:
            try:
                client.act(observation)
            except RobotServerError as error:
                failures.append(error)

        thread = threading.Thread(target=drive)
        thread.start()
        assert bank.busy.wait(60)
        server.stop()
        thread.join(60)
        assert bank.busy.is_set()
    bank.gate.set()
    assert [type(error) for error in failures] == [RobotConnectionError]


def test_a_taken_port_is_a_one_line_error(bank: FakeBank) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"cannot listen on 127.0.0.1:{port} .*--port"):
            serve(bank, port=port)
    with pytest.raises(ValueError, match=r"cannot listen on 127\.0\.0\.1:99999"):
        serve(bank, port=99999)
    with pytest.raises(ValueError, match=r"cannot listen on no.such.host.invalid:0"):
        serve(bank, host="no.such.host.invalid", port=0, token="s3")


def test_serving_the_network_without_a_token_warns(bank: FakeBank) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.warns(UserWarning, match="without a token"),
        pytest.raises(ValueError, match="cannot listen"),
    ):
        serve(bank, host="192.0.2.1", port=taken.getsockname()[1])


class _CardBank(FakeBank):
    """Has the one card the test wants."""

    card: Any = None

    def robots(self) -> dict[str, dict[str, Any]]:
        return {name: self.card or {} for name in self.action_dims}


def test_banks_nobody_could_use_are_refused() -> None:
    with pytest.raises(ValueError, match="no robots to serve"):
        check_bank(FakeBank({}))
    for name in ("__base__", "a/b", ".."):
        with pytest.raises(ValueError, match=f"robot name '{name}'"):
            check_bank(FakeBank({name: 7}))
    bank = _CardBank({"ur5e": 6})
    for card in ({"path": Path()}, {"array": np.zeros(2)}):
        bank.card = card
        with pytest.raises(ValueError, match="card of robot ur5e"):
            check_bank(bank)


def test_base_url() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert base_url(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
    with socket.create_server(("0.0.0.0", 0)) as listener:
        assert base_url(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_ipv6() -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with listener:
        assert base_url(listener) == f"http://[::1]:{listener.getsockname()[1]}"
