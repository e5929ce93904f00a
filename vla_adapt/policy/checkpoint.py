"""Safetensors checkpoints on disk: one file or shards with an index, memory-mapped reads, atomic writes.

Also the fingerprint that ties an adapter to the base model it was trained on.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: file, safetensors dtype name, shape and byte range in the file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Checkpoint:
    """The tensors of a checkpoint folder by their original names; nothing is read before it is asked for.

    Raises:
        ValueError: when files are missing, truncated or of another format.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self.tensors: dict[str, StoredTensor] = {}
        for path in _weight_files(self.directory):
            self.tensors.update(_read_header(path))
        self._open: dict[Path, Any] = {}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape."""
        return {name: stored.shape for name, stored in self.tensors.items()}

    @property
    def total_bytes(self) -> int:
        """Size of all tensors together."""
        return sum(stored.stop - stored.start for stored in self.tensors.values())

    def read(self, name: str) -> torch.Tensor:
        """One tensor, backed by the memory-mapped file (copy it before the file may change)."""
        path = self.tensors[name].path
        if path not in self._open:  # one file at a time: converted shards give their pages back
            self._open = {path: safe_open(path, framework="pt")}
        return self._open[path].get_tensor(name)


def _weight_files(directory: Path) -> list[Path]:
    index = directory / INDEX_NAME
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            raise ValueError(f"{index} names {missing[0]}, which is not there; download the checkpoint again")
        return [directory / name for name in names]
    if (directory / SINGLE_NAME).is_file():
        return [directory / SINGLE_NAME]
    raise ValueError(f"no {SINGLE_NAME} or {INDEX_NAME} in {directory}; wanted an OpenVLA checkpoint folder")


def _read_header(path: Path) -> dict[str, StoredTensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise ValueError(f"{path} is not a whole safetensors file ({size} bytes); download it again")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    offset = 8 + length
    found = {
        name: StoredTensor(
            path, entry["dtype"], tuple(entry["shape"]), *(offset + at for at in entry["data_offsets"])
        )
        for name, entry in header.items()
    }
    wanted = max((stored.stop for stored in found.values()), default=offset)
    if wanted > size:
        raise ValueError(f"{path} is truncated: got {size} bytes, wanted {wanted}; download it again")
    return found


def fingerprint(directory: str | Path) -> str:
    """SHA-256 over (name, dtype, shape, bytes) of all tensors in name order, however they are sharded."""
    digest = hashlib.sha256()
    tensors = Checkpoint(directory).tensors
    maps: dict[Path, mmap.mmap] = {}
    for name in sorted(tensors):
        stored = tensors[name]
        if stored.path not in maps:
            with stored.path.open("rb") as file:
                maps[stored.path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        digest.update(f"{name}\0{stored.dtype}\0{list(stored.shape)}\0".encode())
        for start in range(stored.start, stored.stop, _CHUNK_BYTES):
            digest.update(maps[stored.path][start : min(start + _CHUNK_BYTES, stored.stop)])
    return digest.hexdigest()


def save_tensors(directory: Path, tensors: dict[str, torch.Tensor], max_shard_bytes: int = 5 * 10**9) -> None:
    """Write tensors as `model.safetensors`, or as numbered shards with an index when they are large."""
    shards = _split(tensors, max_shard_bytes)
    if len(shards) == 1:
        save_file(shards[0], directory / SINGLE_NAME, metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, directory / file_name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file_name))
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def _split(tensors: dict[str, torch.Tensor], max_shard_bytes: int) -> list[dict[str, torch.Tensor]]:
    shards: list[dict[str, torch.Tensor]] = [{}]
    used = 0
    for name, tensor in sorted(tensors.items()):
        if shards[-1] and used + tensor.nbytes > max_shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = tensor.detach().to("cpu").contiguous()
        used += tensor.nbytes
    return shards


@contextmanager
def atomic_files(directory: str | Path) -> Iterator[Path]:
    """Yield a scratch folder whose files move into `directory`, one rename each, when the block succeeds.

    Weight files of an earlier save are removed, so that no stale shard stays behind an index.
    """
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=target))
    try:
        yield scratch
        fresh = {path.name for path in scratch.iterdir()}
        for name in sorted(fresh):
            os.replace(scratch / name, target / name)
        if {SINGLE_NAME, INDEX_NAME} & fresh:
            for stale in [*target.glob("model*.safetensors"), target / INDEX_NAME]:
                if stale.name not in fresh:
                    stale.unlink(missing_ok=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
