from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from vla_adapt.serving.protocol import WireError
from vla_adapt.serving.rest import act_reply, read_act_body

IMAGE = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)
ANSWER = {"actions": np.arange(6, dtype=np.float32).reshape(2, 3), "server_timing": {"infer_ms": 1.5}}


def _packed(array: np.ndarray) -> dict[str, Any]:
    """An array as json_numpy writes it."""
    data = base64.b64encode(array.tobytes()).decode()
    return {"__numpy__": data, "dtype": array.dtype.str, "shape": array.shape}


def _unpacked(value: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(value["__numpy__"]), value["dtype"]).reshape(value["shape"])


def test_openvla_deploy_body_gets_the_next_action() -> None:
    body = {"image": _packed(IMAGE), "instruction": "go", "unnorm_key": "ur5e"}
    request = read_act_body(json.dumps(body).encode())
    assert request.robot == "ur5e"
    assert sorted(request.observation) == ["image", "instruction"]
    np.testing.assert_array_equal(request.observation["image"], IMAGE)
    reply = json.loads(act_reply(request, ANSWER))
    np.testing.assert_array_equal(_unpacked(reply), [0, 1, 2])
    assert reply["dtype"] == "<f4"


def test_double_encoded_body_gets_a_double_encoded_reply() -> None:
    inner = json.dumps({"image": _packed(IMAGE), "instruction": "go"})
    request = read_act_body(json.dumps({"encoded": inner}).encode())
    assert request.robot is None
    np.testing.assert_array_equal(_unpacked(json.loads(json.loads(act_reply(request, ANSWER)))), [0, 1, 2])


def test_oft_body_gets_the_chunk() -> None:
    state = np.arange(8.0)
    body = {
        "full_image": _packed(IMAGE),
        "wrist_image": _packed(IMAGE),
        "state": _packed(state),
        "instruction": "go",
    }
    request = read_act_body(json.dumps(body).encode())
    np.testing.assert_array_equal(request.observation["state"], state)
    np.testing.assert_array_equal(request.observation["wrist_image"], IMAGE)
    rows = json.loads(act_reply(request, ANSWER))
    np.testing.assert_array_equal([_unpacked(row) for row in rows], ANSWER["actions"])


@pytest.mark.parametrize(
    "image",
    [
        base64.b64encode(b"\xff\xd8jpeg").decode(),
        "data:image/jpeg;base64," + base64.b64encode(b"\xff\xd8jpeg").decode(),
    ],
)
def test_plain_body_with_base64_gets_lists(image: str) -> None:
    body = {"images": {"primary": image}, "state": [1, 2], "prompt": "go", "robot": "ur5e"}
    request = read_act_body(json.dumps(body).encode())
    assert request.observation == {"images": {"primary": b"\xff\xd8jpeg"}, "state": [1, 2], "prompt": "go"}
    reply = json.loads(act_reply(request, ANSWER))
    assert reply == {"actions": [[0, 1, 2], [3, 4, 5]], "server_timing": {"infer_ms": 1.5}}


def test_an_image_as_nested_lists() -> None:
    request = read_act_body(json.dumps({"image": IMAGE.tolist(), "prompt": "go"}).encode())
    np.testing.assert_array_equal(request.observation["image"], IMAGE)
    assert request.observation["image"].dtype == np.uint8


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        (b"", "bad_message", "not JSON"),
        (b"{", "bad_message", "not JSON"),
        (b"\xff\xfe", "bad_message", "not JSON"),
        (b"[1]", "bad_message", "JSON list, wanted an object"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "bad_message", "not JSON"),
        (b'{"encoded": 3}', "bad_message", "'encoded' must be the only key"),
        (b'{"encoded": "{}", "image": 1}', "bad_message", "'encoded' must be the only key"),
        (b'{"encoded": "["}', "bad_message", "not JSON"),
        (b'{"a": ' * 50 + b"1" + b"}" * 50, "too_complex", "nested deeper"),
        (b"[" * 100_000, "too_complex", "nested"),
        (b"[" + b"1," * 1_000_001 + b"1]", "too_complex", "JSON items"),
        (b'{"image": "@@@"}', "bad_image", "not valid base64"),
        (b'{"image": {"__numpy__": "AAAA", "dtype": "|O", "shape": [1]}}', "bad_array", "dtype '|O'"),
        (b'{"image": {"__numpy__": "AAAA", "dtype": "|u1", "shape": [-1]}}', "bad_array", "non-negative"),
        (b'{"image": {"__numpy__": "AAAA", "dtype": "|u1"}}', "bad_array", "shape must be"),
        (b'{"image": {"__numpy__": 4, "dtype": "|u1", "shape": [1]}}', "bad_array", "base64 text, got int"),
        (b'{"image": [[1, 2], [3]]}', "bad_image", "equal rows"),
        (b'{"image": [[1, 256]]}', "bad_image", "0 to 255"),
        (b'{"image": [0.5]}', "bad_image", "integers"),
    ],
)
def test_bad_bodies_are_named(body: bytes, code: str, text: str) -> None:
    with pytest.raises(WireError) as caught:
        read_act_body(body)
    assert caught.value.code == code
    assert text in caught.value.message
    assert "\n" not in caught.value.message
