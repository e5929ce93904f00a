"""The Python part of scripts/check_remote: RLDS in buckets (S3, Google Cloud Storage) read as from a folder.

Both servers run on this machine (moto, gcp-storage-emulator); the clients are what users have (s3fs, gcsfs).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import fsspec
import numpy as np

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import fake_data, open_dataset
from vla_adapt.episodes.mixing.loader import make_loader
from vla_adapt.episodes.mixing.mixture import Mixture
from vla_adapt.episodes.rlds.write import RldsWriter
from vla_adapt.episodes.source import EpisodeDataset

ROBOT = "franka_panda"
BATCHES, BATCH = 12, 8
# Protocol -> module and options of its server; the port comes last.
SERVERS = {
    "s3": ["moto.server", "-H", "127.0.0.1", "-p"],
    "gs": ["gcp_storage_emulator", "start", "--in-memory", "--host=127.0.0.1", "--port"],
}
ENVIRONMENT = {
    "s3": {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_ENDPOINT_URL": "{url}"},
    "gs": {"STORAGE_EMULATOR_HOST": "{url}", "FSSPEC_GS_TOKEN": "anon"},
}


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        os.environ["VLA_ADAPT_CACHE"] = f"{work}/cache"
        folder = write(Path(work))
        wanted = drawn(open_dataset(folder), workers=0)
        for protocol in SERVERS:
            with server(protocol):
                url = upload(folder, protocol)
                for workers in (0, 2):
                    same(drawn(open_dataset(url), workers), wanted, f"{url}, {workers} workers")
                    print(f"{url}: {BATCHES * BATCH} windows with {workers} workers as from the folder")
                refuses(url, folder)


def write(folder: Path) -> Path:
    """A dataset of several shards, each of several of the blocks that remote files are read by."""
    rng = np.random.default_rng(0)
    robot = Embodiment.load(ROBOT)
    with RldsWriter(folder, "remote", robot, shard_bytes=1 << 20) as writer:
        for _ in range(12):
            writer.add("train", fake_data(robot, rng, length=20, image_size=96))
    return writer.path


@contextmanager
def server(protocol: str) -> Iterator[None]:
    """The protocol's server, and where its clients look for it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", *SERVERS[protocol], str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ.update({key: value.format(url=url) for key, value in ENVIRONMENT[protocol].items()})
    try:
        wait_for(url, process)
        yield
    finally:
        process.kill()
        process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Until something answers at `url`."""
    for _ in range(150):
        with suppress(OSError):
            with suppress(HTTPError):
                urllib.request.urlopen(url, timeout=5)
            return
        if process.poll() is not None:
            break
        time.sleep(0.2)
    raise SystemExit(f"{' '.join(map(str, process.args))} does not answer at {url}")  # type: ignore[arg-type]


def upload(folder: Path, protocol: str) -> str:
    """The dataset's URL in a new bucket."""
    filesystem = fsspec.filesystem(protocol)
    filesystem.mkdir("episodes")
    for file in filter(Path.is_file, folder.iterdir()):
        filesystem.pipe_file(f"episodes/data/remote/1.0.0/{file.name}", file.read_bytes())
    return f"{protocol}://episodes/data/remote"


def drawn(dataset: EpisodeDataset, workers: int) -> list[Any]:
    """Windows that a loader gives."""
    mixture = Mixture([(dataset, 1.0)], seed=0, horizon=4)
    batches = list(make_loader(mixture, BATCH, steps=BATCHES, num_workers=workers))
    return [window for batch in batches for window in batch]


def same(got: list[Any], wanted: list[Any], what: str) -> None:
    """Stop unless both hold the same."""
    for one, two in zip(got, wanted, strict=True):
        alike = all(np.array_equal(one["images"][name], two["images"][name]) for name in two["images"])
        alike &= all(np.array_equal(one[key], two[key]) for key in ("action", "action_mask", "proprio"))
        if not alike or one["drawn"] != two["drawn"]:
            raise SystemExit(f"{what}: sample {two['ids']} differs from the one in the folder")


def refuses(url: str, folder: Path) -> None:
    """A shard that was changed or is gone since the dataset was opened is told; so is a missing bucket."""
    filesystem, path = fsspec.url_to_fs(url)
    shard = min(file.name for file in folder.glob("*tfrecord*"))
    place = f"{path}/1.0.0/{shard}"
    filesystem.pipe_file(place, b"x" * (folder / shard).stat().st_size)
    says(lambda: open_dataset(url), shard)
    filesystem.rm(place)
    filesystem.invalidate_cache()
    says(lambda: open_dataset(url), shard)
    says(lambda: open_dataset(url.replace("episodes", "nowhere")), "nowhere")


def says(call: Callable[[], Any], words: str) -> None:
    """Stop unless `call` refuses and its message has `words`."""
    try:
        call()
    except ValueError as error:
        if words not in str(error):
            raise SystemExit(f"the message does not say '{words}': {error}") from None
        print(f"refused: {error}")
    else:
        raise SystemExit(f"no refusal that says '{words}'")


if __name__ == "__main__":
    main()
