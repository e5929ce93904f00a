"""LeRobot's feature declarations (`features` of `meta/info.json`) as leaf specs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vla_adapt.episodes.storage.feature_spec import Kind, LeafSpec

VIDEO = "video"
# Every dataset has these, one number a step; readers derive those that a file lacks.
STANDARD = {
    "timestamp": LeafSpec(Kind.NUMBER, (), "float32"),
    "frame_index": LeafSpec(Kind.NUMBER, (), "int64"),
    "episode_index": LeafSpec(Kind.NUMBER, (), "int64"),
    "index": LeafSpec(Kind.NUMBER, (), "int64"),
    "task_index": LeafSpec(Kind.NUMBER, (), "int64"),
}
# The instruction of a step, looked up by its task_index.
TASK = "task"
CAMERA = "observation.images."


def parse_feature(name: str, feature: Mapping[str, Any], where: str) -> LeafSpec:
    """The spec of one declared feature.

    Images and videos get shape (h, w, c) whichever way round they are declared, and encoding "video" when
    their frames lie in an mp4. A number of shape [1] without names is a plain number a step, as `lerobot`
    returns it; with names it is a vector of one. What cannot be read as any of these (depth maps, nested
    lists) is RAGGED.

    Raises:
        ValueError: no dtype or shape; names `where` and the feature.
    """
    try:
        dtype, shape = str(feature["dtype"]), tuple(int(size) for size in feature["shape"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{where}: feature '{name}' is {feature}, wanted a dtype and a shape") from None
    names = feature.get("names")
    if dtype in ("image", VIDEO):
        kind = Kind.RAGGED if _is_depth(feature) else Kind.IMAGE
        item = Kind.IMAGE if kind is Kind.RAGGED else None
        return LeafSpec(kind, _height_width_channels(shape, names), "uint8", _encoding(dtype), item=item)
    if dtype == "string":
        return LeafSpec(Kind.TEXT)
    try:
        known = np.dtype(dtype).kind in "biuf"
    except TypeError:
        known = False
    if not known:
        return LeafSpec(Kind.RAGGED, shape, dtype, item=Kind.NUMBER)
    return LeafSpec(Kind.NUMBER, () if shape == (1,) and not names else shape, dtype)


def feature_of(leaf: LeafSpec, rate_hz: float | int = 0, codec: str = "") -> dict[str, Any]:
    """The declaration that `parse_feature` reads back as `leaf` (encoding "video" or not)."""
    if leaf.kind is Kind.IMAGE:
        names = ["height", "width", "channels"]
        feature = {"dtype": _dtype(leaf), "shape": list(leaf.shape), "names": names}
        return feature | ({"info": _video_info(leaf, rate_hz, codec)} if leaf.encoding == VIDEO else {})
    if leaf.kind is Kind.TEXT:
        return {"dtype": "string", "shape": [1], "names": None}
    assert leaf.kind is Kind.NUMBER
    names = [str(i) for i in range(leaf.shape[0])] if len(leaf.shape) == 1 else None
    return {"dtype": leaf.dtype, "shape": list(leaf.shape) or [1], "names": names}


def _encoding(dtype: str) -> str:
    return VIDEO if dtype == VIDEO else ""


def _dtype(leaf: LeafSpec) -> str:
    return VIDEO if leaf.encoding == VIDEO else "image"


def _video_info(leaf: LeafSpec, rate_hz: float | int, codec: str) -> dict[str, Any]:
    height, width, channels = leaf.shape
    return {
        "video.height": height,
        "video.width": width,
        "video.codec": codec,
        "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False,
        "video.fps": rate_hz,
        "video.channels": channels,
        "has_audio": False,
    }


def _is_depth(feature: Mapping[str, Any]) -> bool:
    info = feature.get("info") or feature.get("video_info") or {}
    return bool(info.get("is_depth_map") or info.get("video.is_depth_map"))


def _height_width_channels(shape: tuple[int, ...], names: Any) -> tuple[int, ...]:
    """Declared image shape with the channels last; their place is named, else it is the small number."""
    if len(shape) != 3:
        return shape
    words = [str(name) for name in names] if isinstance(names, list | tuple) else []
    first = [word.startswith("channel") or word in ("c", "rgb") for word in words]
    if len(words) == 3 and any(first):
        channels = first.index(True)
    else:
        channels = 0 if shape[0] in (1, 3) and shape[2] not in (1, 3) else 2
    height, width = (size for i, size in enumerate(shape) if i != channels)
    return (height, width, shape[channels])
