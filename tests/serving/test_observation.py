from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import simplejpeg

from vla_adapt.serving.observation import MAX_PROMPT_CHARACTERS, parse_observation
from vla_adapt.serving.protocol import ObservationError
from vla_adapt.serving.resident import FakeBank

CARD = FakeBank({"franka_panda": 7}).robots()["franka_panda"]
IMAGE = np.full((48, 64, 3), 128, np.uint8)
STATE = np.arange(8, dtype=np.float64)


def _jpeg(height: int = 48, width: int = 64) -> bytes:
    return simplejpeg.encode_jpeg(np.full((height, width, 3), 128, np.uint8), quality=95)


def _resized_header(data: bytes, height: int, width: int) -> bytes:
    """The same JPEG claiming another size in its start-of-frame segment."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[at + 4 :]


@pytest.mark.parametrize(
    "keys",
    [
        ("images", "state", "prompt"),
        ("image", "state", "instruction"),
        ("observation/image", "observation/state", "prompt"),
        ("full_image", "state", "instruction"),
        ("primary_image", "state", "prompt"),
        ("observation/primary_image", "observation/state", "prompt"),
    ],
)
def test_all_spellings_give_the_same_observation(keys: tuple[str, str, str]) -> None:
    request = {keys[0]: {"primary": IMAGE} if keys[0] == "images" else IMAGE, keys[1]: STATE, keys[2]: " go "}
    parsed = parse_observation(request, CARD)
    assert set(parsed) == {"images", "state", "prompt"}
    np.testing.assert_array_equal(parsed["images"]["primary"], IMAGE)
    assert parsed["state"].dtype == np.float32
    np.testing.assert_array_equal(parsed["state"], STATE)
    assert parsed["prompt"] == "go"


def test_wrist_camera_beside_the_grouped_images() -> None:
    parsed = parse_observation({"images": {"primary": IMAGE}, "wrist_image": IMAGE, "prompt": "go"}, CARD)
    assert sorted(parsed["images"]) == ["primary", "wrist"]
    assert "state" not in parsed


def test_jpeg_is_decoded() -> None:
    parsed = parse_observation({"image": _jpeg(), "prompt": "go"}, CARD)
    assert parsed["images"]["primary"].shape == (48, 64, 3)
    assert abs(int(parsed["images"]["primary"].mean()) - 128) <= 1


def test_a_card_without_rules_takes_any_camera_and_width() -> None:
    parsed = parse_observation({"images": {"left": IMAGE}, "state": [1, 2.5], "prompt": "go"}, {})
    assert list(parsed["images"]) == ["left"]
    np.testing.assert_array_equal(parsed["state"], np.float32([1, 2.5]))


BAD: list[tuple[dict[Any, Any], str, str]] = [
    ({"prompt": None}, "bad_prompt", "prompt is a NoneType, wanted text"),
    ({"prompt": b"go"}, "bad_prompt", "prompt is a bytes"),
    ({"prompt": "  "}, "bad_prompt", "prompt is empty"),
    ({"prompt": "x" * 100_000}, "bad_prompt", f"100000 characters, at most {MAX_PROMPT_CHARACTERS}"),
    ({"instruction": "go"}, "bad_observation", "prompt is given twice"),
    ({"images": {"primary": IMAGE}}, "bad_observation", "camera primary is given twice"),
    ({"full_image": IMAGE}, "bad_observation", "primary is given twice"),
    ({"actions": STATE}, "bad_observation", "unknown key 'actions'"),
    ({"a\nb": 1}, "bad_observation", "unknown key"),
    ({7: 1}, "bad_observation", "unknown key 7"),
    ({"images": [IMAGE]}, "bad_observation", "'images' is a list"),
    ({"images": {1: IMAGE}}, "bad_observation", "wanted a map of camera name"),
    ({"images": {"chest": IMAGE}}, "bad_image", "no camera 'chest'; its cameras are primary, wrist"),
    ({"image": IMAGE[0]}, "bad_image", "image primary is uint8 [64, 3], wanted uint8 [height, width, 3]"),
    ({"image": IMAGE[None]}, "bad_image", "uint8 [1, 48, 64, 3]"),
    ({"image": IMAGE.astype(np.float32)}, "bad_image", "float32 [48, 64, 3]"),
    ({"image": IMAGE[..., :1]}, "bad_image", "uint8 [48, 64, 1]"),
    ({"image": IMAGE.transpose(2, 0, 1)}, "bad_image", "uint8 [3, 48, 64]"),
    ({"image": IMAGE[:2]}, "bad_image", "2 x 64 px"),
    ({"image": "text"}, "bad_image", "a str"),
    ({"image": None}, "bad_image", "a NoneType"),
    ({"image": b"not a jpeg"}, "bad_image", "not a JPEG"),
    ({"image": b""}, "bad_image", "not a JPEG"),
    ({"image": _jpeg()[:-200]}, "bad_image", "JPEG"),
    ({"image": _resized_header(_jpeg(), 65000, 65000)}, "bad_image", "65000 x 65000 px"),
    ({"image": _resized_header(_jpeg(), 4000, 4000)}, "bad_image", "4000 x 4000 px"),
    ({"image": _jpeg() + b"\xff\xda" * 100}, "bad_image", "more than 64 scans"),
    ({"state": STATE[:7]}, "bad_state", "state has 7 values, wanted 8"),
    ({"state": STATE[None]}, "bad_state", "state is float64 [1, 8]"),
    ({"state": STATE > 2}, "bad_state", "state is bool [8]"),
    ({"state": "01234567"}, "bad_state", "state is a str"),
    ({"state": ["a"] * 8}, "bad_state", "state is a list"),
    ({"state": [True] * 8}, "bad_state", "state is a list"),
    ({"state": [10**400] * 8}, "bad_state", "too large"),
    ({"state": np.array([0, 1, np.nan, 3, 4, 5, 6, 7])}, "bad_state", "state[2] is nan"),
    ({"state": np.array([0, 1, 2, 3, 4, 5, 6, -np.inf])}, "bad_state", "state[7] is -inf"),
    ({"state": np.full(8, 1e300)}, "bad_state", "state[0] is 1e+300"),
]


@pytest.mark.parametrize(
    ("change", "code", "text"), BAD, ids=[f"{i}-{row[2][:30]}" for i, row in enumerate(BAD)]
)
def test_bad_observations_are_named(change: dict[Any, Any], code: str, text: str) -> None:
    request: dict[Any, Any] = {"image": IMAGE, "state": STATE, "prompt": "go"}
    if change.keys() & {"images"} and text != "camera primary is given twice":
        request.pop("image")
        if isinstance(change["images"], dict) and "chest" in change["images"]:
            change = {"images": {"primary": IMAGE, **change["images"]}}
    with pytest.raises(ObservationError) as caught:
        parse_observation({**request, **change}, CARD)
    assert caught.value.code == code
    assert text in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("request_", [None, 5, "text", [1], np.zeros(3)])
def test_what_is_not_a_map_is_refused(request_: Any) -> None:
    with pytest.raises(ObservationError, match="wanted a map with images, state and prompt"):
        parse_observation(request_, CARD)


def test_missing_parts_are_named() -> None:
    with pytest.raises(ObservationError, match="no 'prompt'; got keys image"):
        parse_observation({"image": IMAGE}, CARD)
    with pytest.raises(ObservationError, match="no image of camera primary; got wrist"):
        parse_observation({"wrist_image": IMAGE, "prompt": "go"}, CARD)
    with pytest.raises(ObservationError, match="got 0 images"):
        parse_observation({"prompt": "go"}, {})
    with pytest.raises(ObservationError, match="no 'state'; this robot needs its 8 proprio values"):
        parse_observation({"image": IMAGE, "prompt": "go"}, {**CARD, "state_required": True})
