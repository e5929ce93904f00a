"""The schema of an RLDS dataset: `features.json` as tfds writes it, to and from flat field names.

Field names are those of the stored records: "steps/observation/image", "episode_metadata/file_path".
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

_CORE = "tensorflow_datasets.core.features"
STEPS = "steps/"
COMPRESSED = ("bytes", "zlib")


class Kind(enum.Enum):
    """What a leaf feature holds: one fixed-size value a step, or (RAGGED) any number of them."""

    IMAGE = "image"
    TEXT = "text"
    NUMBER = "number"
    RAGGED = "ragged"


@dataclass(frozen=True)
class LeafSpec:
    """One leaf of the schema.

    Attributes:
        kind: what one step (or the episode, for an episode-level leaf) holds.
        shape: of one value, -1: unknown size. For RAGGED, of one innermost item.
        dtype: tfds' dtype name; "string" for text.
        encoding: of an image "jpeg" or "png", of numbers "" or how their bytes are stored: "bytes", "zlib".
        levels: sequences around an item inside a step (or inside the episode).
        item: what a RAGGED leaf holds.
        optional: a record may lack it.
    """

    kind: Kind
    shape: tuple[int, ...] = ()
    dtype: str = "string"
    encoding: str = ""
    levels: int = 0
    item: Kind | None = None
    optional: bool = False

    @property
    def holds(self) -> Kind:
        """IMAGE, TEXT or NUMBER, also for ragged leaves."""
        return self.item or self.kind

    @property
    def stores_shape(self) -> bool:
        """Whether every value's shape is stored beside it: several unknown sizes."""
        return self.holds is Kind.NUMBER and self.encoding in COMPRESSED and self.shape.count(-1) > 1

    def __str__(self) -> str:
        return f"{self.kind.value} {self.dtype}{list(self.shape)}"


def features_json(leaves: Mapping[str, LeafSpec]) -> dict[str, Any]:
    """The `features.json` tree of flat leaves; "steps/..." become a nested tfds Dataset."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        *folders, name = path.split("/")
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    nested = {key: _encode(value) for key, value in tree.items()}
    if "steps" in tree:
        nested["steps"] = {
            "pythonClassName": f"{_CORE}.dataset_feature.Dataset",
            "sequence": {"feature": nested["steps"], "length": "-1"},
        }
    return _features_dict(nested)


def parse_features(tree: Mapping[str, Any]) -> dict[str, LeafSpec]:
    """Flat leaves of a `features.json` tree.

    Raises:
        ValueError: a feature kind or dtype that is not known, or no tree of features; starts with
            "features.json:" and names the field.
    """
    if "featuresDict" not in tree:
        raise ValueError(f"features.json: has {', '.join(tree) or 'nothing'}, wanted 'featuresDict' and more")
    leaves: dict[str, LeafSpec] = {}
    _parse(tree, "", 0, leaves)
    return leaves


def _encode(node: Any) -> dict[str, Any]:
    if isinstance(node, LeafSpec):
        return _encode_leaf(node)
    return _features_dict({key: _encode(value) for key, value in node.items()})


def _features_dict(features: dict[str, Any]) -> dict[str, Any]:
    return {
        "pythonClassName": f"{_CORE}.features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }


def _encode_leaf(leaf: LeafSpec) -> dict[str, Any]:
    if leaf.kind is Kind.TEXT:
        return {"pythonClassName": f"{_CORE}.text_feature.Text", "text": {}}
    shape = {"dimensions": [str(size) for size in leaf.shape]} if leaf.shape else {}
    if leaf.kind is Kind.IMAGE:
        image = {"shape": shape, "dtype": leaf.dtype, "encodingFormat": leaf.encoding}
        return {"pythonClassName": f"{_CORE}.image_feature.Image", "image": image}
    assert leaf.kind is Kind.NUMBER
    assert not leaf.encoding
    python_class = "tensor_feature.Tensor" if leaf.shape else "scalar.Scalar"
    return {
        "pythonClassName": f"{_CORE}.{python_class}",
        "tensor": {"shape": shape, "dtype": leaf.dtype, "encoding": "none"},
    }


def _parse(node: Any, path: str, levels: int, leaves: dict[str, LeafSpec]) -> None:
    """Add the leaves of `node`, which lies at `path` inside `levels` sequences (not counting the steps)."""
    try:
        inside = _inside(node, path, levels)
        if inside is None:
            leaves[path] = _leaf(node, path, levels)
    except (AttributeError, KeyError, TypeError):
        what = f"field '{path}'" if path else "the whole"
        raise ValueError(f"features.json: {what} is not laid out as tfds does it") from None
    for name, child, deeper in inside or ():
        _parse(child, name, deeper, leaves)


def _inside(node: Any, path: str, levels: int) -> list[tuple[str, Any, int]] | None:
    """What `node` holds: path, node and sequences around each; None: it is a leaf."""
    if "featuresDict" in node:
        children = node["featuresDict"].get("features", {}).items()
        return [(f"{path}/{key}" if path else key, child, levels) for key, child in children]
    if "translation" in node:
        languages = node["translation"].get("languages", [])
        return [(f"{path}/{language}", {"text": {}}, levels) for language in languages]
    if "sequence" in node:
        inner = levels if f"{path}/" == STEPS else levels + 1
        return [(path, node["sequence"]["feature"], inner)]
    return None


def _leaf(node: Any, path: str, levels: int) -> LeafSpec:
    """The spec of a leaf node inside `levels` sequences."""
    if "video" in node:  # stored as a sequence of images
        video = _image(node["video"])
        return _ragged(replace(video, shape=video.shape[1:]), levels + 1)
    leaf = _plain_leaf(node, path)
    unknown = -1 in leaf.shape and leaf.kind is not Kind.IMAGE
    several_texts = leaf.kind is Kind.TEXT and leaf.shape != ()
    return _ragged(leaf, levels) if levels or unknown or several_texts else leaf


def _ragged(leaf: LeafSpec, levels: int) -> LeafSpec:
    return replace(leaf, kind=Kind.RAGGED, item=leaf.kind, levels=levels)


def _plain_leaf(node: Any, path: str) -> LeafSpec:
    if "image" in node:
        return _image(node["image"])
    if "text" in node:
        return LeafSpec(Kind.TEXT)
    if "tensor" in node:
        return _tensor(node["tensor"], path)
    if "audio" in node and not node["audio"].get("lazyDecode"):
        return _tensor(node["audio"], path)
    if "classLabel" in node:
        return LeafSpec(Kind.NUMBER, (), "int64")
    if "boundingBox" in node or "bbox" in str(node.get("pythonClassName", "")).lower():
        return LeafSpec(Kind.NUMBER, (4,), "float32")
    raise ValueError(f"features.json: field '{path}' is a {node.get('pythonClassName')}, not known here")


def _image(node: Any) -> LeafSpec:
    return LeafSpec(Kind.IMAGE, _shape(node), node.get("dtype", "uint8"), node.get("encodingFormat", ""))


def _tensor(node: Any, path: str) -> LeafSpec:
    dtype, optional = node.get("dtype", ""), bool(node.get("optional", False))
    if dtype == "string":
        return LeafSpec(Kind.TEXT, _shape(node), optional=optional)
    encoding = node.get("encoding", "none")
    encoding = "" if encoding == "none" else encoding
    if encoding not in ("", *COMPRESSED):
        raise ValueError(f"features.json: field '{path}' has encoding '{encoding}', not known here")
    try:
        known = dtype == "bfloat16" or np.dtype(dtype).kind in "biufc"
    except TypeError:
        known = False
    if not known:
        raise ValueError(f"features.json: field '{path}' has dtype '{dtype}', not known here")
    return LeafSpec(Kind.NUMBER, _shape(node), dtype, encoding, optional=optional)


def _shape(node: Any) -> tuple[int, ...]:
    sizes = node.get("shape", {}).get("dimensions", [])
    try:
        return tuple(int(size) for size in sizes)
    except ValueError:
        raise TypeError(f"dimensions {sizes}") from None
