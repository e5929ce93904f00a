"""The bodies of `POST /act`: OpenVLA's deploy script, OpenVLA-OFT's, and our own plain JSON.

| request                                              | reply                                          |
|------------------------------------------------------|------------------------------------------------|
| `{"image", "instruction", "unnorm_key"?}` (OpenVLA)  | the next action, one array [D] as json_numpy   |
| `{"full_image", "instruction", "state"?}` (OFT)      | the chunk, a list of H such arrays             |
| `{"images", "prompt", "state"?, "robot"?}`           | `{"actions": [[...]], "server_timing": {...}}` |
| `{"encoded": "<one of these as a string>"}`          | the same reply as a string of JSON             |

An image is json_numpy's `{"__numpy__": base64, "dtype", "shape"}`, a base64 JPEG (with or without a `data:`
prefix), or nested lists. The robot is named by `robot` or `unnorm_key`, or left out when there is only one.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_adapt.serving.protocol import ObservationError, WireError, array_from_wire, check_depth, one_line

MAX_JSON_ITEMS = 1_000_000


@dataclass(frozen=True)
class ActRequest:
    """A decoded body: the robot asked for, the observation as sent, and which reply is expected."""

    robot: Any
    observation: dict[str, Any]
    reply: str  # "action", "chunk" or "plain"
    encoded: bool


def read_act_body(body: bytes) -> ActRequest:
    """Decodes the body of `POST /act`.

    Raises:
        WireError: `bad_message`, `too_complex`, `bad_array`, `bad_image`.
    """
    content = _load_json(body)
    encoded = isinstance(content, dict) and "encoded" in content
    if encoded:
        if len(content) != 1 or not isinstance(content["encoded"], str):
            raise WireError("bad_message", "'encoded' must be the only key, with a string of JSON")
        content = _load_json(content["encoded"].encode())
    if not isinstance(content, dict):
        raise WireError("bad_message", f"got a JSON {type(content).__name__}, wanted an object")
    reply = "chunk" if "full_image" in content else "action" if "image" in content else "plain"
    robot = content.pop("robot", None)
    unnorm_key = content.pop("unnorm_key", None)
    observation = {key: _field(key, value) for key, value in content.items()}
    return ActRequest(robot if robot is not None else unnorm_key, observation, reply, encoded)


def act_reply(request: ActRequest, answer: dict[str, Any]) -> bytes:
    """The JSON body that the sender of `request` understands."""
    actions: np.ndarray = answer["actions"]
    if request.reply == "action":
        content: Any = _json_numpy(actions[0])
    elif request.reply == "chunk":
        content = [_json_numpy(row) for row in actions]
    else:
        content = {"actions": actions.tolist(), "server_timing": answer["server_timing"]}
    text = json.dumps(content)
    return json.dumps(text).encode() if request.encoded else text.encode()


def _load_json(body: bytes) -> Any:
    if body.count(b",") + body.count(b"[") + body.count(b"{") > MAX_JSON_ITEMS:
        raise WireError("too_complex", f"more than {MAX_JSON_ITEMS} JSON items; send images as base64")
    try:
        content = json.loads(body)
    except RecursionError:
        raise WireError("too_complex", "JSON nested too deep; send a flat observation") from None
    except ValueError as error:
        raise WireError("bad_message", f"the body is not JSON ({one_line(error, 120)})") from None
    check_depth(content)
    return content


def _field(key: str, value: Any) -> Any:
    if key == "images" and isinstance(value, dict) and "__numpy__" not in value:
        return {camera: _image(image) for camera, image in value.items()}
    if key == "image" or key.endswith(("_image", "/image")):
        return _image(value)
    return _array(value)


def _image(value: Any) -> Any:
    """A uint8 array or the bytes of a JPEG; whatever it is not is left for the observation check to name."""
    if isinstance(value, str):
        return _base64(re.sub(r"\Adata:image/jpeg;base64,", "", value))
    if isinstance(value, list):
        return _nested_list(value)
    return _array(value)


def _array(value: Any) -> Any:
    if not isinstance(value, dict) or "__numpy__" not in value:
        return value
    data, dtype = value["__numpy__"], value.get("dtype")
    if not isinstance(data, str):
        raise WireError("bad_array", f"'__numpy__' must be base64 text, got {type(data).__name__}")
    return array_from_wire(_base64(data), dtype, value.get("shape"))


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ObservationError("an image or array is not valid base64", "bad_image") from None


def _nested_list(rows: list) -> np.ndarray:
    try:
        values = np.array(rows)
    except (ValueError, OverflowError):
        values = np.array([])
    if values.dtype.kind not in "iu" or values.size == 0 or values.min() < 0 or values.max() > 255:
        raise ObservationError(
            "an image given as lists must hold integers 0 to 255 in equal rows", "bad_image"
        )
    return values.astype(np.uint8)


def _json_numpy(array: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(array.tobytes()).decode()
    return {"__numpy__": data, "dtype": array.dtype.str, "shape": list(array.shape)}
