from __future__ import annotations

import base64
import contextlib
import json
import select
import socket
import threading
import time
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest
import simplejpeg
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from vla_adapt.serving.client import Client
from vla_adapt.serving.protocol import pack, unpack
from vla_adapt.serving.resident import FakeBank
from vla_adapt.serving.routes import MAX_UPLOADS
from vla_adapt.serving.server import ServerThread


def _socket(server: ServerThread, path: str = "/robots/franka_panda", **headers: str) -> Any:
    address = server.url.replace("http", "ws") + path
    return connect(address, compression=None, proxy=None, additional_headers=headers)


def _post(server: ServerThread, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(server.url + "/act", content=content, headers=headers, timeout=60)


def _json_numpy(array: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(array.tobytes()).decode()
    return {"__numpy__": data, "dtype": array.dtype.str, "shape": array.shape}


@pytest.mark.parametrize("robot", ["franka_panda", "bimanual_panda"])
def test_openpi_client_works_unchanged(
    server: ServerThread, bank: FakeBank, observation: dict[str, Any], robot: str
) -> None:
    policy = pytest.importorskip("openpi_client.websocket_client_policy")
    broker = pytest.importorskip("openpi_client.action_chunk_broker")
    address = server.url.replace("http", "ws") + f"/robots/{robot}"
    client = policy.WebsocketClientPolicy(address, None, api_key="ignored")
    assert client.get_server_metadata()["robot"] == robot
    assert client.get_server_metadata()["action_dim"] == bank.action_dims[robot]
    expected = bank.expected(robot, observation)
    flat = {
        "observation/image": observation["images"]["primary"],
        "observation/state": observation["state"],
        "prompt": observation["prompt"],
    }
    for number in range(3):
        reply = client.infer(flat)
        np.testing.assert_allclose(reply["actions"], expected, rtol=1e-6)
        assert reply["actions"].dtype == np.float32
        assert ("prev_total_ms" in reply["server_timing"]) == (number > 0)
    with pytest.raises(RuntimeError, match='"code": "bad_prompt"'):
        client.infer({**flat, "prompt": ""})
    chunks = broker.ActionChunkBroker(client, action_horizon=4)
    for row in [0, 1, 2, 3, 0]:
        np.testing.assert_allclose(chunks.infer(flat)["actions"], expected[row], rtol=1e-6)
    client._ws.close()


def _wire_array(data: bytes, dtype: str, shape: list[int]) -> dict[bytes, Any]:
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}


SMALL = np.zeros((8, 8, 3), np.uint8)
FRAMES: list[tuple[Any, str]] = [
    ("text", "text_frame"),
    ('{"a": 1}', "text_frame"),
    (b"", "bad_message"),
    (b"\xc1garbage", "bad_message"),
    (msgpack.packb([1, 2]), "bad_observation"),
    (msgpack.packb(None), "bad_observation"),
    (msgpack.packb({}), "bad_observation"),
    (msgpack.packb(_wire_array(b"A" * 8, "|O", [1])), "bad_array"),
    (msgpack.packb({"image": _wire_array(b"", "|V8", [])}), "bad_array"),
    (msgpack.packb({"image": _wire_array(b"A", "|u1", [2**40])}), "bad_array"),
    (b"\x91" * 2000 + b"\x01", "bad_message"),
    (b"\x81\xa1a" * 20 + b"\x01", "too_complex"),
    (pack({"prompt": "go", "image": b"\xff\xd8\xff\xe0broken"}), "bad_image"),
    (pack({"prompt": "x" * 100_000, "image": SMALL}), "bad_prompt"),
    (pack({"prompt": "go", "image": SMALL, "state": np.full(8, np.nan)}), "bad_state"),
]


def test_every_bad_frame_is_one_line_and_the_connection_stays_usable(
    server: ServerThread, bank: FakeBank, observation: dict[str, Any]
) -> None:
    with _socket(server) as robot:
        assert unpack(robot.recv())["robot"] == "franka_panda"
        for frame, code in FRAMES:
            robot.send(frame)
            reply = robot.recv(timeout=60)
            assert isinstance(reply, str)
            content = json.loads(reply)
            assert content.keys() == {"code", "message"}
            assert content["code"] == code, (frame[:40], content)
            assert "\n" not in content["message"]
            assert "Traceback" not in reply
            assert ".py" not in reply
            robot.send(pack(observation))
            actions = unpack(robot.recv(timeout=60))["actions"]
            np.testing.assert_allclose(actions, bank.expected("franka_panda", observation), rtol=1e-6)


@pytest.mark.parametrize(
    "path",
    ["/robots/__base__", "/robots/../x", "/robots/a/b", "/robots/%2e%2e%2fx", "/robots/", "/", "/other"],
)
def test_unknown_robots_get_404_with_a_reason(server: ServerThread, path: str) -> None:
    with pytest.raises(InvalidStatus) as caught, _socket(server, path):
        pass
    assert caught.value.response.status_code == 404
    content = json.loads(caught.value.response.body or b"")
    assert content["code"] == "unknown_robot"
    assert "bimanual_panda, franka_panda" in content["message"]


def test_the_only_robot_is_served_at_the_root(observation: dict[str, Any]) -> None:
    with ServerThread(FakeBank({"ur5e": 6})) as server:
        with _socket(server, "/") as robot:
            assert unpack(robot.recv())["robot"] == "ur5e"
        reply = _post(
            server, {"images": {"primary": observation["images"]["primary"].tolist()}, "prompt": "go"}
        )
        assert np.shape(reply.json()["actions"]) == (4, 6)


def test_rest_in_openvlas_format(server: ServerThread, bank: FakeBank, observation: dict[str, Any]) -> None:
    image = observation["images"]["primary"]
    body = {"image": _json_numpy(image), "instruction": "lift", "unnorm_key": "bimanual_panda"}
    reply = _post(server, body)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    content = reply.json()
    action = np.frombuffer(base64.b64decode(content["__numpy__"]), content["dtype"]).reshape(content["shape"])
    expected = bank.expected("bimanual_panda", {"images": {"primary": image}, "prompt": "lift"})
    np.testing.assert_allclose(action, expected[0], rtol=1e-6)


def test_rest_with_jpeg(server: ServerThread, bank: FakeBank, observation: dict[str, Any]) -> None:
    jpeg = simplejpeg.encode_jpeg(observation["images"]["primary"], quality=90)
    body = {
        "images": {"primary": base64.b64encode(jpeg).decode()},
        "state": observation["state"].tolist(),
        "prompt": "lift",
        "robot": "franka_panda",
    }
    content = _post(server, body).json()
    decoded = {**observation, "prompt": "lift", "images": {"primary": simplejpeg.decode_jpeg(jpeg)}}
    np.testing.assert_allclose(content["actions"], bank.expected("franka_panda", decoded), rtol=1e-6)
    assert content["server_timing"]["infer_ms"] >= 0


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"not json", 400, "bad_message"),
        ({"prompt": "go", "robot": "franka_panda"}, 400, "bad_image"),
        ({"prompt": "go", "robot": "__base__"}, 404, "unknown_robot"),
        ({"prompt": "go", "robot": {"a": 1}}, 404, "unknown_robot"),
        ({"prompt": "go"}, 404, "unknown_robot"),
        (b"x" * (2**20 + 1), 413, "too_large"),
        (b"x" * (6 * 2**20), 413, "too_large"),
    ],
)
def test_rest_errors_are_http_codes(server: ServerThread, body: Any, status: int, code: str) -> None:
    reply = _post(server, body)
    assert reply.status_code == status
    assert reply.json().keys() == {"code", "message"}
    assert reply.json()["code"] == code
    assert reply.text.count("\n") == 1


def test_bodies_that_never_end_take_bounded_memory(observation: dict[str, Any]) -> None:
    limit, body = 2**16, {"images": {"primary": SMALL.tolist()}, "prompt": "go"}
    with ServerThread(FakeBank({"ur5e": 6}), max_message_bytes=limit) as server:
        address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        head = f"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: {limit}\r\n\r\n".encode()
        with contextlib.ExitStack() as stack:
            senders = []
            for _ in range(MAX_UPLOADS + 2):
                senders.append(stack.enter_context(socket.create_connection(address, timeout=60)))
                senders[-1].sendall(head + b"x" * (limit - 1))
            refused = select.select(senders, [], [], 60)[0]
            assert [sender.recv(12) for sender in refused] == [b"HTTP/1.1 503"] * len(refused)
            assert refused
            with Client(server.url) as client:  # robots are served meanwhile
                assert client.act(observation).shape == (4, 6)
        deadline = time.monotonic() + 30
        while _post(server, body).status_code != 200:  # their places come back
            assert time.monotonic() < deadline


def test_health_robots_and_metrics(server: ServerThread, bank: FakeBank) -> None:
    assert httpx.get(server.url + "/healthz").text == "OK\n"
    assert httpx.get(server.url + "/readyz").status_code == 200
    assert httpx.get(server.url + "/v1/robots").json() == {"robots": bank.robots()}
    text = httpx.get(server.url + "/metrics").text
    assert "vla_adapt_connections" in text
    assert "# TYPE vla_adapt_requests_total counter" in text
    missing = httpx.get(server.url + "/nope")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    assert "POST /act" in missing.json()["message"]
    assert httpx.get(server.url + "/act").json()["code"] == "method_not_allowed"


def test_token_guards_everything_but_health(observation: dict[str, Any]) -> None:
    with ServerThread(FakeBank({"ur5e": 6}), token="s3") as server:
        for path in ("/v1/robots", "/metrics"):
            refused = httpx.get(server.url + path)
            assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
            assert httpx.get(server.url + path, headers={"Authorization": "Bearer s3"}).status_code == 200
        assert _post(server, {}).status_code == 401
        assert _post(server, {}, Authorization="Api-Key s3").json()["code"] == "bad_observation"
        assert httpx.get(server.url + "/healthz").status_code == 200
        assert httpx.get(server.url + "/readyz").status_code == 200
        for headers in ({}, {"Authorization": "Api-Key s4"}):
            with pytest.raises(InvalidStatus) as caught, _socket(server, "/robots/ur5e", **headers):
                pass
            assert caught.value.response.status_code == 401
        with _socket(server, "/robots/ur5e", Authorization="Api-Key s3") as robot:
            assert unpack(robot.recv())["robot"] == "ur5e"


def test_web_pages_cannot_drive_the_robot(server: ServerThread) -> None:
    with pytest.raises(InvalidStatus) as caught, _socket(server, Origin="http://evil.example"):
        pass
    assert caught.value.response.status_code == 403
    assert _post(server, {}, Origin="http://evil.example").json()["code"] == "forbidden_origin"


def test_health_answers_while_inference_is_busy_and_robots_do_not_mix(observation: dict[str, Any]) -> None:
    bank = FakeBank({"franka_panda": 7, "ur5e": 6})
    bank.gate.clear()
    results: dict[str, np.ndarray] = {}

    def drive(server: ServerThread, robot: str) -> None:
        with Client(server.url, robot=robot) as client:
            results[robot] = client.act(observation)

    with ServerThread(bank) as server:
        threads = [threading.Thread(target=drive, args=(server, robot)) for robot in bank.action_dims]
        for thread in threads:
            thread.start()
        assert bank.busy.wait(60)
        assert httpx.get(server.url + "/healthz", timeout=30).status_code == 200
        assert httpx.get(server.url + "/metrics", timeout=30).status_code == 200
        assert bank.busy.is_set()
        assert not results
        bank.gate.set()
        for thread in threads:
            thread.join(60)
    for robot in bank.action_dims:
        np.testing.assert_allclose(results[robot], bank.expected(robot, observation), rtol=1e-6)
    assert len(bank.threads) == 1


def test_a_client_that_vanishes_during_inference_harms_nobody(observation: dict[str, Any]) -> None:
    bank = FakeBank({"ur5e": 6})
    bank.gate.clear()
    with ServerThread(bank) as server:
        robot = _socket(server, "/").__enter__()
        robot.recv()
        robot.send(pack(observation))
        assert bank.busy.wait(60)
        robot.socket.close()
        bank.gate.set()
        with Client(server.url) as client:
            np.testing.assert_allclose(client.act(observation), bank.expected("ur5e", observation), rtol=1e-6)
        assert server.service.metrics.in_flight == 0


def test_a_crash_of_the_policy_tells_nothing_but_an_id(observation: dict[str, Any]) -> None:
    bank = FakeBank({"ur5e": 6})
    bank.failure = RuntimeError("/secret/weights.bin")
    with ServerThread(bank) as server, _socket(server, "/") as robot:
        robot.recv()
        robot.send(pack(observation))
        reply = robot.recv(timeout=60)
        assert isinstance(reply, str)
        assert json.loads(reply)["code"] == "internal"
        assert "secret" not in reply
        bank.failure = None
        robot.send(pack(observation))
        assert unpack(robot.recv(timeout=60))["actions"].shape == (4, 6)
