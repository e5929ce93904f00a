"""features.json to flat leaves and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vla_adapt.episodes.storage.feature_spec import Kind, LeafSpec, features_json, parse_features


def test_round_trip() -> None:
    leaves = {
        "steps/action": LeafSpec(Kind.NUMBER, (7,), "float32"),
        "steps/reward": LeafSpec(Kind.NUMBER, (), "float32"),
        "steps/observation/deep/image": LeafSpec(Kind.IMAGE, (8, 9, 3), "uint8", "jpeg"),
        "steps/language_instruction": LeafSpec(Kind.TEXT),
        "episode_metadata/seed": LeafSpec(Kind.NUMBER, (), "int64"),
    }
    assert parse_features(json.loads(json.dumps(features_json(leaves)))) == leaves


@pytest.mark.slow
def test_tfds_makes_the_same_leaves(tmp_path: Path) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")
    features = tfds.features
    tree = features.FeaturesDict(
        {
            "steps": features.Dataset(
                {
                    "observation": {
                        "depth": features.Image(
                            shape=(None, None, 1), dtype=np.float32, encoding_format="png"
                        ),
                        "tokens": features.Sequence(np.int32),
                    },
                    "label": features.ClassLabel(num_classes=3),
                    "words": features.Tensor(shape=(None,), dtype=np.str_),
                    "double": features.Tensor(shape=(2, 3), dtype=np.float64),
                }
            ),
            "id": features.Text(),
        }
    )
    leaves = parse_features(json.loads(json.dumps(_json_of(tree))))
    assert leaves["steps/observation/depth"] == LeafSpec(Kind.IMAGE, (-1, -1, 1), "float32", "png")
    assert leaves["steps/observation/tokens"].kind is Kind.RAGGED
    assert leaves["steps/words"].kind is Kind.RAGGED
    assert leaves["steps/label"] == LeafSpec(Kind.NUMBER, (), "int64")
    assert leaves["steps/double"] == LeafSpec(Kind.NUMBER, (2, 3), "float64")
    assert leaves["id"].kind is Kind.TEXT


def _json_of(tree) -> dict:
    from google.protobuf import json_format

    return json_format.MessageToDict(tree.to_proto())


def test_unknown_feature_is_named() -> None:
    tree = {"featuresDict": {"features": {"smell": {"pythonClassName": "x.Smell", "jsonFeature": {}}}}}
    with pytest.raises(ValueError, match=r"field 'smell' is a x\.Smell, not known here"):
        parse_features(tree)
    tree = {"featuresDict": {"features": {"a": {"tensor": {"dtype": "float8", "shape": {}}}}}}
    with pytest.raises(ValueError, match=r"field 'a' has dtype 'float8', not known here"):
        parse_features(tree)


@pytest.mark.parametrize(
    ("edit", "wanted"),
    [
        (lambda tree: tree.clear(), r"features\.json: has nothing, wanted 'featuresDict'"),
        (lambda tree: tree.update(featuresDict=3), r"the whole is not laid out as tfds"),
        (lambda tree: tree["featuresDict"]["features"].update(steps=[]), r"'steps' is not laid out as tfds"),
        (
            lambda tree: tree["featuresDict"]["features"].update(steps={"sequence": {}}),
            r"'steps' is not laid",
        ),
        (
            lambda tree: tree["featuresDict"]["features"].update(
                a={"tensor": {"dtype": "float32", "shape": {"dimensions": ["x"]}}}
            ),
            "field 'a' is not laid out as tfds",
        ),
    ],
)
def test_what_tfds_would_not_write(edit: Callable[[dict], None], wanted: str) -> None:
    tree = features_json({"steps/action": LeafSpec(Kind.NUMBER, (7,), "float32")})
    edit(tree)
    with pytest.raises(ValueError, match=wanted):
        parse_features(tree)
