"""The schema of an RLDS dataset: `features.json` as tfds writes it, to and from flat field names.

Field names are those of the stored records: "steps/observation/image", "episode_metadata/file_path".
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_CORE = "tensorflow_datasets.core.features"
STEPS = "steps/"


class Kind(enum.Enum):
    """What a leaf feature holds."""

    IMAGE = "image"
    TEXT = "text"
    NUMBER = "number"
    RAGGED = "ragged"


@dataclass(frozen=True)
class LeafSpec:
    """One leaf of the schema: kind, shape of one value (-1: unknown size), dtype name, image encoding."""

    kind: Kind
    shape: tuple[int, ...] = ()
    dtype: str = "string"
    encoding: str = ""

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
        ValueError: a feature kind that is not known.
    """
    leaves: dict[str, LeafSpec] = {}
    _parse(tree, "", False, leaves)
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
    python_class = "tensor_feature.Tensor" if leaf.shape else "scalar.Scalar"
    return {
        "pythonClassName": f"{_CORE}.{python_class}",
        "tensor": {"shape": shape, "dtype": leaf.dtype, "encoding": "none"},
    }


def _parse(node: Mapping[str, Any], path: str, inside_sequence: bool, leaves: dict[str, LeafSpec]) -> None:
    if "featuresDict" in node:
        for key, child in node["featuresDict"]["features"].items():
            _parse(child, f"{path}/{key}" if path else key, inside_sequence, leaves)
    elif "sequence" in node:
        if inside_sequence:
            leaves[path] = LeafSpec(Kind.RAGGED)
        else:
            _parse(node["sequence"]["feature"], path, True, leaves)
    elif "image" in node:
        image = node["image"]
        encoding = image.get("encodingFormat", "")
        leaves[path] = LeafSpec(Kind.IMAGE, _shape(image), image.get("dtype", "uint8"), encoding)
    elif "text" in node:
        leaves[path] = LeafSpec(Kind.TEXT)
    elif "tensor" in node:
        dtype = node["tensor"]["dtype"]
        shape = _shape(node["tensor"])
        kind = Kind.NUMBER
        if dtype == "string":
            kind = Kind.TEXT if not shape else Kind.RAGGED
        elif -1 in shape or node["tensor"].get("encoding", "none") not in ("none", ""):
            kind = Kind.RAGGED
        leaves[path] = LeafSpec(kind, shape, dtype)
    elif "classLabel" in node:
        leaves[path] = LeafSpec(Kind.NUMBER, (), "int64")
    elif "boundingBox" in node or "bbox" in str(node.get("pythonClassName", "")).lower():
        leaves[path] = LeafSpec(Kind.NUMBER, (4,), "float32")
    else:
        raise ValueError(f"features.json: field '{path}' is a {node.get('pythonClassName')}, not known here")


def _shape(node: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(size) for size in node.get("shape", {}).get("dimensions", []))
