"""Checkpoint files: fingerprint, shards, truncation, atomic replacement."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vla_adapt.policy.checkpoint import INDEX_NAME, Checkpoint, atomic_files, fingerprint, save_tensors


def tensors() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {f"part.{index}": torch.randn(5, index + 1, generator=draw) for index in range(6)}


@settings(max_examples=15, deadline=None)
@given(limit=st.integers(min_value=1, max_value=600))
def test_shards_hold_the_same_bytes_and_give_the_same_fingerprint(tmp_path_factory, limit):
    whole, split = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("split")
    save_tensors(whole, tensors())
    save_tensors(split, tensors(), max_shard_bytes=limit)
    assert fingerprint(whole) == fingerprint(split)
    read = Checkpoint(split)
    assert read.tensors.keys() == tensors().keys()
    assert all(torch.equal(read.read(name), tensor) for name, tensor in tensors().items())


@pytest.mark.parametrize("what", ["value", "name", "dtype", "shape"])
def test_fingerprint_notices_any_change(tmp_path, what):
    save_file({"a": torch.zeros(2, 2), "b": torch.ones(3)}, tmp_path / "model.safetensors")
    before = fingerprint(tmp_path)
    changed = {
        "value": {"a": torch.tensor([[0.0, 0.0], [0.0, 1e-30]]), "b": torch.ones(3)},
        "name": {"c": torch.zeros(2, 2), "b": torch.ones(3)},
        "dtype": {"a": torch.zeros(2, 2, dtype=torch.int32), "b": torch.ones(3)},
        "shape": {"a": torch.zeros(4), "b": torch.ones(3)},
    }[what]
    save_file(changed, tmp_path / "model.safetensors")
    assert fingerprint(tmp_path) != before


def test_broken_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no model\.safetensors or"):
        Checkpoint(tmp_path)
    save_tensors(tmp_path, tensors())
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with pytest.raises(ValueError, match=f"truncated: got {len(whole) - 7} bytes, wanted {len(whole)}"):
        Checkpoint(tmp_path)
    path.write_bytes(whole[:5])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        Checkpoint(tmp_path)


def test_missing_shard_is_named(tmp_path):
    save_tensors(tmp_path, tensors(), max_shard_bytes=100)
    victim = next(tmp_path.glob("model-00002-*"))
    victim.unlink()
    with pytest.raises(ValueError, match=victim.name):
        Checkpoint(tmp_path)


def test_saving_over_shards_leaves_no_stale_ones(tmp_path):
    for limit in (100, 10**9, 200):
        with atomic_files(tmp_path) as scratch:
            save_tensors(scratch, tensors(), max_shard_bytes=limit)
        assert Checkpoint(tmp_path).tensors.keys() == tensors().keys()
        files = {path.name for path in tmp_path.iterdir()}
        if (tmp_path / INDEX_NAME).exists():
            wanted = set(json.loads((tmp_path / INDEX_NAME).read_text())["weight_map"].values()) | {
                INDEX_NAME
            }
        else:
            wanted = {"model.safetensors"}
        assert files == wanted


def test_a_failed_write_changes_nothing(tmp_path):
    save_tensors(tmp_path, tensors())

    def fail() -> None:
        with atomic_files(tmp_path) as scratch:
            save_tensors(scratch, {"other": torch.zeros(1)})
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail()
    assert load_file(tmp_path / "model.safetensors").keys() == tensors().keys()
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
