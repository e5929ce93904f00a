"""Which files make up a split: name templates, missing and unknown ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vla_adapt.episodes import EpisodeData, open_dataset
from vla_adapt.episodes.rlds.shards import RldsFolder, shard_names


def names(template: str | None, shards: int, split: str = "train") -> list[str]:
    info: dict[str, Any] = {"name": split, "shardLengths": ["1"] * shards}
    if template is not None:
        info["filepathTemplate"] = template
    return [name for name, _ in shard_names("viola", info, Path("here"))]


def test_templates() -> None:
    assert names(None, 2) == ["viola-train.tfrecord-00000-of-00002", "viola-train.tfrecord-00001-of-00002"]
    assert names("{SPLIT}/part_{SHARD_INDEX}.{FILEFORMAT}", 1, "val") == ["val/part_00000.tfrecord"]
    assert names("{DATASET}.{SHARD_INDEX}of{NUM_SHARDS}", 3)[2] == "viola.00002of00003"


def test_template_with_an_unknown_part() -> None:
    with pytest.raises(ValueError, match=r"here: file name template '\{SPLIT\}-\{DAY\}': wanted parts of"):
        names("{SPLIT}-{DAY}", 1)


@pytest.mark.slow
def test_templates_as_tfds_fills_them(tmp_path: Path) -> None:
    naming = pytest.importorskip("tensorflow_datasets.core.naming")
    for template in ("{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", "{SPLIT}/{SHARD_INDEX}.{FILEFORMAT}"):
        for count in (1, 100_001):
            theirs = naming.ShardedFileTemplate(tmp_path, template, "viola", "train", "tfrecord")
            wanted = [str(path.relative_to(tmp_path)) for path in theirs.sharded_filepaths(count)]
            assert names(template, count) == wanted


def test_a_custom_template_is_followed(written: Path, recordings: dict[str, list[EpisodeData]]) -> None:
    info = json.loads((written / "dataset_info.json").read_text())
    (written / "train").mkdir()
    for i, path in enumerate(sorted(written.glob("*-train.tfrecord-*"))):
        path.rename(written / "train" / f"{i:05d}.bin")
    next(s for s in info["splits"] if s["name"] == "train")["filepathTemplate"] = "{SPLIT}/{SHARD_INDEX}.bin"
    (written / "dataset_info.json").write_text(json.dumps(info))
    dataset = open_dataset(written)
    assert dataset.lengths.tolist() == [len(data) for data in recordings["train"]]
    assert dataset[4].image(1).shape == (32, 32, 3)


def test_unknown_and_empty_splits(written: Path) -> None:
    folder = RldsFolder.open(written)
    with pytest.raises(ValueError, match=r"no split 'trian'; did you mean 'train'\?"):
        folder.shards("trian")
    info = json.loads((written / "dataset_info.json").read_text())
    info["splits"].append({"name": "test", "shardLengths": []})
    (written / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"split 'test' is empty; choose one of train, val"):
        RldsFolder.open(written).shards("test")


@pytest.mark.parametrize(
    ("file", "tree", "wanted"),
    [
        ("dataset_info.json", [], "holds a list, wanted a JSON object"),
        ("dataset_info.json", {"splits": 3}, "splits: got 3; input should be a valid list"),
        ("dataset_info.json", {"splits": [{}]}, r"missing key 'name' in splits\[0\]"),
        (
            "dataset_info.json",
            {"splits": [{"name": "train", "shardLengths": ["x"]}]},
            r"splits\[0\]\.shardLengths\[0\]: got 'x'",
        ),
        ("dataset_info.json", {"splits": [{"name": "train", "shardLengths": [-1]}]}, ".*: got -1"),
        ("features.json", {}, "has nothing, wanted 'featuresDict'"),
        ("features.json", "text", "holds a str, wanted a JSON object"),
    ],
)
def test_malformed_descriptions_are_named(written: Path, file: str, tree: Any, wanted: str) -> None:
    (written / file).write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=f"{written / file}: {wanted}") as caught:
        RldsFolder.open(written)
    assert "\n" not in str(caught.value)


def test_a_missing_shard_has_no_size(written: Path) -> None:
    path = sorted(written.glob("*-train.tfrecord-*"))[1]
    path.unlink()
    sizes = [shard.size for shard in RldsFolder.open(written).shards("train")]
    assert [size is None for size in sizes] == [False, True, False]
