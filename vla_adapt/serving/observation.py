"""From what a robot sent to a checked observation: spellings of the keys, cameras, JPEG, state, prompt.

Accepted keys (one spelling each): `images` {camera: image} or `image`, `wrist_image`, `observation/image`,
`observation/wrist_image`, ... ; `state` or `observation/state`; `prompt` or `instruction`. An image is uint8
[height, width, 3] (RGB) or the bytes of a JPEG. Everything else is refused by name, before any model sees it.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import simplejpeg

from vla_adapt.serving.protocol import ObservationError, one_line

MIN_SIDE_PX = 8
MAX_SIDE_PX = 4096
MAX_PIXELS = 4096 * 2304
MAX_JPEG_SCANS = 64
MAX_PROMPT_CHARACTERS = 2000
MAX_STATE_VALUES = 256
MAX_CAMERAS = 8

_CAMERA_KEY = re.compile(r"(?:observation/)?(?:([A-Za-z0-9]{1,32})_)?image")
_PLAIN_KEYS = {
    "prompt": "prompt",
    "instruction": "prompt",
    "state": "state",
    "observation/state": "state",
    "images": "images",
}


def parse_observation(request: Any, card: dict[str, Any]) -> dict[str, Any]:
    """`{"images": {camera: uint8 [h, w, 3]}, "prompt": str}` plus `"state"` float32 [P] if it was sent.

    Args:
        request: the decoded message.
        card: the robot's entry of `Bank.robots()`; its `cameras`, `state_dim`, `state_required` are enforced.

    Raises:
        ObservationError: with code `bad_observation`, `bad_image`, `bad_state` or `bad_prompt`.
    """
    if not isinstance(request, dict):
        raise ObservationError(f"got a {type(request).__name__}, wanted a map with images, state and prompt")
    fields, images = _sorted_keys(request)
    if "prompt" not in fields:
        raise ObservationError(f"no 'prompt'; got keys {_names(request)}")
    prompt = _checked_prompt(fields["prompt"])
    state = _checked_state(fields.get("state"), card)
    _check_cameras(images, card)
    decoded = {camera: _checked_image(camera, image) for camera, image in images.items()}
    observation: dict[str, Any] = {"images": decoded, "prompt": prompt}
    return observation if state is None else {**observation, "state": state}


def _sorted_keys(request: dict) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a message into plain fields and images, whatever their spelling."""
    fields: dict[str, Any] = {}
    images: dict[str, Any] = {}
    for key, value in request.items():
        camera = _CAMERA_KEY.fullmatch(key) if isinstance(key, str) else None
        if camera is not None:
            name = camera[1] or "primary"
            target, name = images, "primary" if name == "full" else name
        elif key in _PLAIN_KEYS:
            target, name = fields, _PLAIN_KEYS[key]
        else:
            raise ObservationError(f"unknown key {one_line(repr(key), 60)}; wanted images, state, prompt")
        if name in target:
            raise ObservationError(f"{name} is given twice (keys {_names(request)}); send one spelling")
        target[name] = value
    grouped = fields.pop("images", {})
    if not isinstance(grouped, dict) or not all(isinstance(name, str) for name in grouped):
        raise ObservationError(
            f"'images' is a {type(grouped).__name__}, wanted a map of camera name to image"
        )
    if both := sorted(set(grouped) & set(images)):
        raise ObservationError(f"camera {both[0]} is given twice (keys {_names(request)}); send one spelling")
    return fields, {**grouped, **images}


def _check_cameras(images: dict[str, Any], card: dict[str, Any]) -> None:
    cameras = card.get("cameras")
    if len(images) > MAX_CAMERAS or (not images and cameras is None):
        raise ObservationError(f"got {len(images)} images, wanted 1 to {MAX_CAMERAS}", "bad_image")
    if cameras is None:
        return
    missing = [name for name, rule in cameras.items() if rule.get("required", True) and name not in images]
    if missing:
        raise ObservationError(f"no image of camera {missing[0]}; got {_names(images)}", "bad_image")
    if unknown := [name for name in images if name not in cameras]:
        shown = one_line(repr(unknown[0]), 40)
        raise ObservationError(
            f"this robot has no camera {shown}; its cameras are {_names(cameras)}", "bad_image"
        )


def _checked_prompt(prompt: Any) -> str:
    if not isinstance(prompt, str):
        raise ObservationError(f"prompt is a {type(prompt).__name__}, wanted text", "bad_prompt")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        wanted = f"at most {MAX_PROMPT_CHARACTERS} are accepted"
        raise ObservationError(f"prompt of {len(prompt)} characters, {wanted}", "bad_prompt")
    prompt = prompt.strip()
    if not prompt:
        raise ObservationError("prompt is empty; say what the robot shall do", "bad_prompt")
    return prompt


def _checked_state(state: Any, card: dict[str, Any]) -> np.ndarray | None:
    width = card.get("state_dim")
    if state is None:
        if card.get("state_required"):
            raise ObservationError(f"no 'state'; this robot needs its {width} proprio values", "bad_state")
        return None
    if isinstance(state, list) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in state):
        state = _as_array(state)
    if not isinstance(state, np.ndarray) or state.dtype.kind not in "iuf" or state.ndim != 1:
        raise ObservationError(f"state is {_described(state)}, wanted numbers [{width or 'P'}]", "bad_state")
    if len(state) > MAX_STATE_VALUES or (width is not None and len(state) != width):
        raise ObservationError(
            f"state has {len(state)} values, wanted {width or f'<= {MAX_STATE_VALUES}'}", "bad_state"
        )
    with np.errstate(over="ignore"):
        values = state.astype(np.float32)
    if not np.isfinite(values).all():
        where = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ObservationError(f"state[{where}] is {state[where]}, wanted finite numbers", "bad_state")
    return values


def _as_array(numbers: list) -> np.ndarray:
    try:
        return np.array([float(number) for number in numbers], dtype=np.float64)
    except OverflowError:
        raise ObservationError("state holds an integer too large for a float", "bad_state") from None


def _checked_image(camera: str, image: Any) -> np.ndarray:
    if isinstance(image, bytes):
        return _decoded_jpeg(camera, image)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        wanted = "uint8 [height, width, 3] RGB or JPEG bytes"
        raise ObservationError(f"image {camera} is {_described(image)}, wanted {wanted}", "bad_image")
    _check_size(camera, image.shape[0], image.shape[1])
    return image


def _decoded_jpeg(camera: str, data: bytes) -> np.ndarray:
    """Decodes after a look at the header: a small file must not become gigabytes of pixels."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise ObservationError(f"image {camera}: not a JPEG ({one_line(error, 80)})", "bad_image") from None
    _check_size(camera, int(height), int(width))
    if data.count(b"\xff\xda") > MAX_JPEG_SCANS:
        raise ObservationError(f"image {camera}: JPEG of more than {MAX_JPEG_SCANS} scans", "bad_image")
    try:
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:
        raise ObservationError(f"image {camera}: damaged JPEG ({one_line(error, 80)})", "bad_image") from None


def _check_size(camera: str, height: int, width: int) -> None:
    if min(height, width) < MIN_SIDE_PX or max(height, width) > MAX_SIDE_PX or height * width > MAX_PIXELS:
        wanted = f"{MIN_SIDE_PX} to {MAX_SIDE_PX} px a side and at most {MAX_PIXELS} pixels"
        raise ObservationError(f"image {camera} is {height} x {width} px, wanted {wanted}", "bad_image")


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return f"a {type(value).__name__}"


def _names(keys: Any) -> str:
    return one_line(", ".join(sorted(str(key) for key in keys)) or "none", 120)
