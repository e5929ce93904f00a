"""LeRobot's feature declarations as leaf specs."""

from __future__ import annotations

from typing import Any

import pytest

from vla_adapt.episodes.lerobot.lerobot_features import STANDARD, feature_of, parse_feature
from vla_adapt.episodes.storage.feature_spec import Kind, LeafSpec

HWC, CHW = ["height", "width", "channel"], ["channels", "height", "width"]
DEPTH = {"video.is_depth_map": True}


@pytest.mark.parametrize(
    ("feature", "wanted"),
    [
        ({"dtype": "float32", "shape": [7], "names": None}, "number float32[7]"),
        ({"dtype": "float32", "shape": [7], "names": {"motors": ["a"] * 7}}, "number float32[7]"),
        ({"dtype": "bool", "shape": [1], "names": None}, "number bool[]"),
        ({"dtype": "float32", "shape": [1], "names": ["gripper"]}, "number float32[1]"),
        ({"dtype": "float64", "shape": [3, 4], "names": None}, "number float64[3, 4]"),
        ({"dtype": "string", "shape": [1], "names": None}, "text string[]"),
        ({"dtype": "image", "shape": [48, 64, 3], "names": HWC}, "image uint8[48, 64, 3]"),
        ({"dtype": "video", "shape": [3, 48, 64], "names": CHW}, "image uint8[48, 64, 3]"),
        ({"dtype": "video", "shape": [3, 48, 64], "names": None}, "image uint8[48, 64, 3]"),
        ({"dtype": "video", "shape": [48, 64, 3]}, "image uint8[48, 64, 3]"),
        ({"dtype": "list", "shape": [2]}, "ragged list[2]"),
        ({"dtype": "video", "shape": [4, 4, 1], "info": {"is_depth_map": True}}, "ragged uint8[4, 4, 1]"),
        ({"dtype": "video", "shape": [4, 4, 3], "info": DEPTH}, "ragged uint8[4, 4, 3]"),
    ],
)  # fmt: skip
def test_declared_features(feature: dict[str, Any], wanted: str) -> None:
    leaf = parse_feature("x", feature, "info.json")
    assert str(leaf) == wanted
    assert leaf.encoding == ("video" if feature["dtype"] == "video" else "")


def test_what_is_written_is_read() -> None:
    leaves = [
        *STANDARD.values(),
        LeafSpec(Kind.NUMBER, (1,), "float32"),
        LeafSpec(Kind.NUMBER, (5,), "uint8"),
        LeafSpec(Kind.NUMBER, (2, 3), "bool"),
        LeafSpec(Kind.TEXT),
        LeafSpec(Kind.IMAGE, (4, 6, 3), "uint8"),
        LeafSpec(Kind.IMAGE, (4, 6, 3), "uint8", "video"),
    ]
    for leaf in leaves:
        assert parse_feature("x", feature_of(leaf, 10, "av1"), "info.json") == leaf


@pytest.mark.parametrize("feature", [{"dtype": "float32"}, {"shape": [1]}, {"dtype": "a", "shape": "b"}])
def test_refusals(feature: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"info\.json: feature 'x' is .*, wanted a dtype and a shape"):
        parse_feature("x", feature, "info.json")
