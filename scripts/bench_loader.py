"""How fast windows of generated Open X-Embodiment data are read, against bare decoding of the same JPEGs.

Four RLDS datasets in the field layouts of viola, berkeley_autolab_ur5 (with a float depth PNG),
utokyo_xarm_bimanual and fractal20220817_data are generated once (256 x 256 JPEGs of 10 to 20 kB), mixed
with equal weights, and drawn through `make_loader` in batches of 32 as `stack_windows` makes them. The
ceiling is what the same number of processes decodes of the same JPEGs held in memory: no reading, no actions,
no transport to another process. Page cache warm; loader and ceiling take turns, every run in a fresh process;
medians. Rates are of the second epoch; in the first one the actions of every episode are converted, once,
which its own column shows. Beside the rates stands the processor time of all processes for a sample, which
other programs disturb less.

    python scripts/bench_loader.py [--quick] [--json FILE] [--folder DIR]
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from vla_adapt.episodes import open_dataset
from vla_adapt.episodes.rlds.example_proto import encode_example
from vla_adapt.episodes.rlds.tfrecord import frame
from vla_adapt.episodes.storage.feature_spec import STEPS, Kind, LeafSpec, features_json

SIZE, BATCH, HORIZON = 256, 32, 8
JPEG = LeafSpec(Kind.IMAGE, (SIZE, SIZE, 3), "uint8", "jpeg")
DEPTH = LeafSpec(Kind.IMAGE, (SIZE, SIZE, 1), "float32", "png")
TEXT = LeafSpec(Kind.TEXT)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="less data, one run each: ends within 60 s")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench_loader"), help="where data is kept")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(json.loads(arguments.child))
        return
    episodes, repeats = (25, 1) if arguments.quick else (100, 3)
    load_before = os.getloadavg()[0]
    small = generate(arguments.folder / f"{episodes}", episodes)
    report: dict[str, Any] = {"index": measure_index(small)}
    report["workers"] = [measure(small, workers, episodes, repeats) for workers in (0, 1, 2)]
    best = report["workers"][-1]
    report |= {
        "samples_per_s": best["samples_per_s"],
        "decode_ceiling_per_s": best["ceiling_per_s"],
        "ratio_to_ceiling": best["ratio"],
        "first_batch_s": best["first_batch_s"],
        "peak_rss_mb": best["peak_rss_mb"],
        "ratio_per_core": best["ratio_per_core"],
        "cores": os.cpu_count(),
        "load_average": [load_before, os.getloadavg()[0]],
    }
    if not arguments.quick:
        report["memory"] = memory(arguments.folder, small, episodes)
    show(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))


# --- the data -----------------------------------------------------------------------------------------------


def layouts() -> dict[str, dict[str, LeafSpec]]:
    """Dataset name -> per-step fields as the public datasets have them."""

    def floats(*shape: int) -> LeafSpec:
        return LeafSpec(Kind.NUMBER, shape, "float32")

    ends = {key: LeafSpec(Kind.NUMBER, (), "bool") for key in ("is_first", "is_last", "is_terminal")}
    said = {
        "observation/natural_language_instruction": TEXT,
        "observation/natural_language_embedding": floats(512),
        "reward": floats(),
        **ends,
    }
    gripper_action = {"action/world_vector": floats(3), "action/rotation_delta": floats(3)}
    return {
        "viola": {
            **gripper_action,
            **said,
            "action/gripper_closedness_action": floats(),
            "action/terminate_episode": floats(),
            "observation/agentview_rgb": JPEG,
            "observation/eye_in_hand_rgb": JPEG,
            "observation/joint_states": floats(7),
            "observation/gripper_states": floats(1),
            "observation/ee_states": floats(16),
        },
        "berkeley_autolab_ur5": {
            **gripper_action,
            **said,
            "action/gripper_closedness_action": floats(),
            "action/terminate_episode": floats(),
            "observation/image": JPEG,
            "observation/hand_image": JPEG,
            "observation/image_with_depth": DEPTH,
            "observation/robot_state": floats(15),
        },
        "utokyo_xarm_bimanual_converted_externally_to_rlds": {
            "action": floats(14),
            "observation/image": JPEG,
            "observation/pose_l": floats(6),
            "observation/pose_r": floats(6),
            "language_instruction": TEXT,
            "language_embedding": floats(512),
            "discount": floats(),
            "reward": floats(),
            **ends,
        },
        "fractal20220817_data": {
            **gripper_action,
            **said,
            "action/gripper_closedness_action": floats(1),
            "action/base_displacement_vector": floats(2),
            "action/base_displacement_vertical_rotation": floats(1),
            "action/terminate_episode": LeafSpec(Kind.NUMBER, (3,), "int32"),
            "observation/image": JPEG,
            "observation/base_pose_tool_reached": floats(7),
            "observation/gripper_closed": floats(1),
            "observation/workspace_bounds": floats(3, 3),
        },
    }


def generate(folder: Path, episodes: int, shards: int = 4) -> Path:
    """Write the four datasets under `folder`, unless they are there."""
    if (folder / "complete").is_file():
        return folder
    for number, (name, fields) in enumerate(layouts().items()):
        print(f"generating {episodes} episodes of {name} ...", flush=True)
        version = folder / name / "0.1.0"
        version.mkdir(parents=True, exist_ok=True)
        leaves = {STEPS + field: leaf for field, leaf in fields.items()}
        (version / "features.json").write_text(json.dumps(features_json(leaves)))
        counts = [len(range(shard, episodes, shards)) for shard in range(shards)]
        split = {"name": "train", "shardLengths": [str(count) for count in counts]}
        info = {"name": name, "version": "0.1.0", "fileFormat": "tfrecord", "splits": [split]}
        (version / "dataset_info.json").write_text(json.dumps(info))
        rng = np.random.default_rng(number)
        pool, depth = [photograph(rng) for _ in range(48)], depth_png(rng)
        for shard, count in enumerate(counts):
            file = version / f"{name}-train.tfrecord-{shard:05d}-of-{shards:05d}"
            with file.open("wb") as out:
                for _ in range(count):
                    out.write(frame(encode_example(episode(leaves, rng, pool, depth))))
    (folder / "complete").touch()
    return folder


def episode(
    leaves: dict[str, LeafSpec], rng: np.random.Generator, pool: list[bytes], depth: bytes
) -> dict[str, Any]:
    """One record: about 60 steps of every field."""
    steps = int(rng.integers(50, 71))
    record: dict[str, Any] = {}
    for path, leaf in leaves.items():
        if leaf.kind is Kind.TEXT:
            record[path] = [b"pick up the red block and put it into the bowl"] * steps
        elif leaf.kind is Kind.IMAGE:
            record[path] = (
                [depth] * steps if leaf is DEPTH else [pool[i] for i in rng.integers(48, size=steps)]
            )
        elif leaf.dtype == "float32":
            record[path] = rng.uniform(0, 1, (steps, *leaf.shape)).astype(np.float32)
        else:
            record[path] = rng.integers(0, 2, (steps, *leaf.shape))
    return record


def photograph(rng: np.random.Generator) -> bytes:
    """A JPEG of 10 to 20 kB with the mix of smooth areas, edges and grain of a camera frame."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    image = np.zeros((SIZE, SIZE, 3))
    for _ in range(24):
        color, (cx, cy), radius = rng.uniform(0, 255, 3), rng.uniform(0, 1, 2), rng.uniform(0.03, 0.3)
        inside = (abs(x - cx) < radius) & (abs(y - cy) < radius * rng.uniform(0.3, 1))
        image[inside] = color * (0.6 + 0.4 * x[inside, None])
    image += rng.normal(0, rng.uniform(4, 9), image.shape)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image.clip(0, 255).astype(np.uint8)), quality=80)


def depth_png(rng: np.random.Generator) -> bytes:
    """A float32 depth image as tfds stores it: four bytes a pixel as the channels of a PNG."""
    from io import BytesIO

    from PIL import Image

    depth = np.round(np.linspace(0.5, 2, SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE), 2)
    file = BytesIO()
    Image.fromarray(depth.view(np.uint8).reshape(SIZE, SIZE, 4), "RGBA").save(file, "PNG")
    return file.getvalue()


# --- what is measured ---------------------------------------------------------------------------------------


def measure_index(folder: Path) -> dict[str, float]:
    """Build every index anew, with CRC, page cache warm."""
    rows = frames = size = 0.0
    started = time.perf_counter()
    for name, fields in layouts().items():
        cache = folder / f"index-{os.getpid()}"
        dataset = open_dataset(folder / name, cache_dir=cache)
        frames += sum(leaf is JPEG for leaf in fields.values()) * int(dataset.lengths.sum())
        size += sum(file.stat().st_size for file in (folder / name).rglob("*tfrecord*"))
        rows += sum(file.stat().st_size for file in cache.rglob("*.npy"))
        subprocess.run(["rm", "-rf", str(cache)], check=True)
    seconds = time.perf_counter() - started
    return {"mb_per_s": size / 1e6 / seconds, "bytes_per_frame": rows / frames, "data_mb": size / 1e6}


def epoch_of(episodes: int) -> int:
    """Batches of an epoch over `episodes` episodes of each layout."""
    return episodes * 60 * len(layouts()) // BATCH


def measure(folder: Path, workers: int, episodes: int, repeats: int) -> dict[str, Any]:
    """Loader and ceiling with the same number of processes, in turns, `repeats` times."""
    epoch = epoch_of(episodes)
    asked = {"folder": str(folder), "workers": workers, "batches": epoch, "warm": epoch}
    warm_page_cache(folder)
    runs = [
        (run_child({**asked, "what": "ceiling"}), run_child({**asked, "what": "load"}))
        for _ in range(repeats)
    ]
    ceiling, load = (
        {key: statistics.median(run[side][key] for run in runs) for key in runs[0][side]} for side in (0, 1)
    )
    loads = [load for _, load in runs]
    return {
        "workers": workers,
        "samples_per_s": load["samples_per_s"],
        "ceiling_per_s": ceiling["samples_per_s"],
        "ratio": load["samples_per_s"] / ceiling["samples_per_s"],
        "cpu_us": load["cpu_us"],
        "ceiling_cpu_us": ceiling["cpu_us"],
        "ratio_per_core": ceiling["cpu_us"] / load["cpu_us"],
        "first_epoch_cpu_us": load["first_epoch_cpu_us"],
        "first_batch_s": load["first_batch_s"],
        "peak_rss_mb": max(run["peak_rss_mb"] for run in loads),
        "peak_pss_mb": max(run["peak_pss_mb"] for run in loads),
    }


def warm_page_cache(folder: Path) -> None:
    """Read every shard once: reading is compared with decoding, not with the disk."""
    for file in folder.rglob("*tfrecord*"):
        with file.open("rb") as shard:
            while shard.read(1 << 20):
                pass


def memory(folder: Path, small: Path, episodes: int) -> dict[str, float]:
    """Peak memory after one and ten epochs, and with ten times the data (links to the same bytes)."""
    large = folder / f"{episodes}x10"
    multiply(small, large, 10)
    epoch = epoch_of(episodes)
    report = {}
    for workers in (0, 2):
        for what, data, batches in (
            ("one_epoch", small, epoch), ("ten_epochs", small, 10 * epoch), ("tenfold_data", large, 2 * epoch)
        ):  # fmt: skip
            asked = {"what": "load", "workers": workers, "warm": 8, "folder": str(data), "batches": batches}
            run_child({**asked, "batches": 1})  # the index is built by another process
            found = run_child(asked)
            key = f"{what}_{workers}_workers"
            report[f"{key}_mb"] = found["peak_pss_mb"]
            report[f"{key}_cpu_us"] = found["cpu_us"]
    return report


def multiply(source: Path, target: Path, times: int) -> None:
    """Datasets of `times` the shards, hard links to the files of `source`."""
    if (target / "complete").is_file():
        return
    for name in layouts():
        old, new = source / name / "0.1.0", target / name / "0.1.0"
        new.mkdir(parents=True, exist_ok=True)
        info = json.loads((old / "dataset_info.json").read_text())
        shards = sorted(old.glob("*tfrecord*")) * times
        info["splits"][0]["shardLengths"] *= times
        (new / "dataset_info.json").write_text(json.dumps(info))
        (new / "features.json").write_text((old / "features.json").read_text())
        for i, shard in enumerate(shards):
            link = new / f"{name}-train.tfrecord-{i:05d}-of-{len(shards):05d}"
            link.unlink(missing_ok=True)
            os.link(shard, link)
    (target / "complete").touch()


# --- in a fresh process -------------------------------------------------------------------------------------


def run_child(asked: dict[str, Any]) -> dict[str, float]:
    """Run `child` in a fresh interpreter while watching the memory of its whole process tree."""
    command = [sys.executable, __file__, "--child", json.dumps({**asked, "started": time.time()})]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peaks = {"rss": 0.0, "pss": 0.0}
    watcher = threading.Thread(target=watch, args=(process, peaks), daemon=True)
    watcher.start()
    output = process.communicate()[0]
    watcher.join()
    if process.returncode:
        raise SystemExit(f"measuring {asked} failed; its message is above")
    found = json.loads(output.splitlines()[-1])
    return {**found, "peak_rss_mb": peaks["rss"] / 1e6, "peak_pss_mb": peaks["pss"] / 1e6}


def watch(process: subprocess.Popen[str], peaks: dict[str, float]) -> None:
    """Sum of resident (RSS) and of proportional (PSS: shared pages counted once) memory over the tree."""
    while process.poll() is None:
        sums = {"rss": 0.0, "pss": 0.0}
        for pid in tree(process.pid):
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except OSError:
                continue
            for line in lines:
                key = line.split(":")[0].lower()
                if key in sums:
                    sums[key] += 1024 * int(line.split()[1])
        for key, value in sums.items():
            peaks[key] = max(peaks[key], value)
        time.sleep(0.2)


def tree(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = file.read_text().split()
        except OSError:
            continue
        for child_pid in children:
            yield from tree(int(child_pid))


def child(asked: dict[str, Any]) -> None:
    """Measure one thing and print it as JSON."""
    folder, workers, batches = Path(asked["folder"]), asked["workers"], asked["batches"]
    measured = ceiling(folder, max(workers, 1), batches) if asked["what"] == "ceiling" else load(asked)
    print(json.dumps(measured))


def load(asked: dict[str, Any]) -> dict[str, float]:
    """Draw batches and let go of them; the first few do not count."""
    from vla_adapt.episodes.mixing.loader import make_loader
    from vla_adapt.episodes.mixing.mixture import Mixture
    from vla_adapt.episodes.mixing.stack_windows import stack_windows

    parts = [(open_dataset(Path(asked["folder"]) / name), 1.0) for name in layouts()]
    warm = asked.get("warm", 8)
    mixture = Mixture(parts, seed=0, horizon=HORIZON, proprio=False)
    steps = asked["batches"] + warm
    batches = iter(
        make_loader(mixture, BATCH, num_workers=asked["workers"], steps=steps, collate=stack_windows)
    )
    next(batches)
    first = time.time() - asked["started"]
    before = cpu_seconds()
    for _ in range(warm - 1):
        next(batches)
    warming = (cpu_seconds() - before) / ((warm - 1) * BATCH)
    started, spent, count = time.perf_counter(), cpu_seconds(), 0
    for step in range(asked["batches"]):
        count += len(next(batches)["action"])
        if step == asked["batches"] - 1:  # before the workers end
            spent = cpu_seconds() - spent
    seconds = time.perf_counter() - started
    return {
        "samples_per_s": count / seconds,
        "cpu_us": 1e6 * spent / count,
        "first_epoch_cpu_us": 1e6 * warming,
        "first_batch_s": first,
    }


def cpu_seconds() -> float:
    """Processor time of this process and all below it."""
    ticks = 0
    for pid in tree(os.getpid()):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def ceiling(folder: Path, processes: int, batches: int) -> dict[str, float]:
    """Frames a second that bare decoding reaches in `processes` processes at once."""
    frames = jpegs(folder)
    count = batches * BATCH // processes
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(processes + 1)
    spent: Any = context.Array("d", processes)
    running = [
        context.Process(target=decode, args=(frames, count, barrier.wait, spent, number))
        for number in range(processes)
    ]
    for process in running:
        process.start()
    barrier.wait()
    started = time.perf_counter()
    barrier.wait()
    seconds = time.perf_counter() - started
    for process in running:
        process.join()
    total = count * processes
    return {"samples_per_s": total / seconds, "cpu_us": 1e6 * sum(spent) / total}


def decode(frames: list[bytes], count: int, wait: Callable[[], int], spent: Any, number: int) -> None:
    """Decode `count` frames between two meetings of all processes."""
    memory = np.zeros(SIZE * SIZE * 3 + 64, np.uint8)
    place = memory[(16 - memory.ctypes.data) % 32 :].data  # where it is fastest: see `frame_blocks`
    wait()
    before = time.process_time()
    for i in range(count):
        simplejpeg.decode_jpeg(frames[i % len(frames)], "RGB", fastdct=True, fastupsample=False, buffer=place)
    spent[number] = time.process_time() - before
    wait()


def jpegs(folder: Path) -> list[bytes]:
    """The same frames that the loader draws from, undecoded, a few hundred of them."""
    found = []
    for name in layouts():
        file = min((folder / name / "0.1.0").glob("*tfrecord*"))
        data = file.read_bytes()[: 8 << 20]
        starts = [i for i in range(len(data) - 2) if data[i : i + 3] == b"\xff\xd8\xff"][:64]
        found += [data[a:b] for a, b in itertools.pairwise(starts)]
    return found


# --- what is printed ----------------------------------------------------------------------------------------


def show(report: dict[str, Any]) -> None:
    """The table."""
    index = report["index"]
    print(
        f"\nindex: {index['mb_per_s']:.0f} MB/s with CRC ({index['data_mb']:.0f} MB), "
        f"{index['bytes_per_frame']:.0f} bytes a frame"
    )
    print(
        "workers  samples/s  decode only/s  ratio  CPU us (1st epoch)  decode only us  ratio  first batch s  "
        "memory MB"
    )
    for row in report["workers"]:
        print(
            f"{row['workers']:7d} {row['samples_per_s']:10.0f} {row['ceiling_per_s']:14.0f} "
            f"{row['ratio']:6.2f} {row['cpu_us']:7.0f} ({row['first_epoch_cpu_us']:9.0f}) "
            f"{row['ceiling_cpu_us']:15.0f} "
            f"{row['ratio_per_core']:6.2f}{row['first_batch_s']:15.2f}  "
            f"{row['peak_pss_mb']:.0f} ({row['peak_rss_mb']:.0f})"
        )
    print("memory: peak of all processes, shared pages counted once (resident memory summed)")
    print(f"load average: {report['load_average'][0]:.1f} before, {report['load_average'][1]:.1f} after")
    for key, value in report.get("memory", {}).items():
        print(f"{key} {value:.0f}")


if __name__ == "__main__":
    main()
