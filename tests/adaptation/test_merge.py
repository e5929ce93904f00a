"""Merging: PEFT's own merge is the judge, the written folder is checked, and what fails leaves nothing."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from vla_adapt.adaptation.bundle import Bundle, Golden
from vla_adapt.adaptation.factors import Factor
from vla_adapt.adaptation.merge import merge_bundle
from vla_adapt.adaptation.robot_policy import ObservationConfig
from vla_adapt.policy.heads import load_head
from vla_adapt.policy.naming import to_original
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.policy.tiny import build_tiny_base


def test_merged_weights_are_pefts_own(tiny_bundle: Path, random_base: Path, tmp_path: Path, same_tensors):
    steps: list[str] = []
    report = merge_bundle(
        tiny_bundle, random_base, tmp_path / "m", progress=lambda what, done, total: steps.append(what)
    )
    judge = PeftModel.from_pretrained(
        OpenVLA.from_pretrained(random_base), str(tiny_bundle)
    ).merge_and_unload()
    merged, wanted = load_file(tmp_path / "m" / "model.safetensors"), to_original(judge.state_dict())
    base = load_file(random_base / "model.safetensors")
    assert same_tensors({name: merged[name] for name in wanted}, wanted) < 1e-6
    idle = merged.keys() - wanted.keys()
    assert all(torch.equal(merged[name], base[name]) for name in idle)
    assert len(idle) == len(base) - len(wanted) > 0
    assert (report.modules, report.dtype) == (23, torch.float32)
    assert report.difference < 1e-5 < 1e-2 < report.effect
    assert report.chunk_difference < 1e-3
    assert list(dict.fromkeys(steps)) == [
        "running the adapted model", "merging", "writing", "checking what was written",
    ]  # fmt: skip


def test_the_folder_is_a_whole_original_checkpoint(tiny_bundle: Path, random_base: Path, tmp_path: Path):
    merge_bundle(tiny_bundle, random_base, tmp_path / "m")
    model = OpenVLA.from_pretrained(tmp_path / "m")
    stored = json.loads((tmp_path / "m" / "dataset_statistics.json").read_text())
    assert model.config.norm_stats["franka_panda"] == stored["franka_panda"]
    assert stored["franka_panda"]["action"]["mask"] == [True] * 6 + [False]
    assert model.get_action_dim("franka_panda") == 7
    assert (tmp_path / "m" / "tokenizer.json").read_bytes() == (random_base / "tokenizer.json").read_bytes()
    ours, theirs = load_head(tmp_path / "m", model), load_head(tiny_bundle, model)
    assert ours.config == theirs.config
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]


def test_notes_say_what_the_original_will_not_know(tiny_bundle: Path, random_base: Path, tmp_path: Path):
    notes = merge_bundle(tiny_bundle, random_base, tmp_path / "m").notes
    assert "SI units" in notes[0]
    assert "the head is 'parallel', horizon 4, with state (in head.json)" in notes[1]


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 2e-2), (torch.float16, 5e-3)])
def test_narrow_types_are_rounded_once(
    tiny_bundle: Path, random_base: Path, tmp_path: Path, dtype: torch.dtype, limit: float
):
    report = merge_bundle(tiny_bundle, random_base, tmp_path / "m", dtype=dtype, tolerance=5e-2)
    assert 0 < report.difference < limit
    merged = load_file(tmp_path / "m" / "model.safetensors")
    assert {tensor.dtype for tensor in merged.values()} == {dtype}
    judge = PeftModel.from_pretrained(
        OpenVLA.from_pretrained(random_base), str(tiny_bundle)
    ).merge_and_unload()
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(merged[name], judge.state_dict()[name].to(dtype))


def test_a_base_stored_in_bfloat16_stays_so(make_bundle: Callable[..., Path], tmp_path: Path):
    base = build_tiny_base(tmp_path / "base", seed=3, dtype=torch.bfloat16)
    bundle = make_bundle(base)
    for check in (torch.float32, torch.bfloat16):
        report = merge_bundle(bundle, base, tmp_path / "m", check_dtype=check, overwrite=True)
        assert report.dtype == torch.bfloat16
        assert report.difference < 5e-2 < report.effect


def test_several_cameras_and_constants_survive(tiny_bundle: Path, random_base: Path, tmp_path: Path):
    bundle = Bundle.load(tiny_bundle)
    base = OpenVLA.from_pretrained(random_base)
    bundle.head = load_head(tiny_bundle, base)
    bundle.observation = ObservationConfig(more_cameras=("wrist",))
    trained = bundle.action_statistics.mask.copy()
    trained[6] = False
    bundle.action_statistics = replace(bundle.action_statistics, mask=trained)
    bundle.constants = {"gripper": (-1.0,)}
    golden = bundle.golden
    assert golden is not None
    views = {"wrist": golden.image[::-1].copy()}
    policy = bundle.attach(base)
    record = Golden.record(policy, golden.image, golden.state, golden.prompt, 1e-3, views)
    bundle.with_golden(record).save(tmp_path / "b")
    report = merge_bundle(tmp_path / "b", random_base, tmp_path / "m")
    assert report.chunk_difference < 1e-3
    assert "not predicted, to be sent as constants: gripper" in report.notes
    assert OpenVLA.from_pretrained(tmp_path / "m").get_action_dim("franka_panda") == 6


def refused(words: str, *args: object, **options: object) -> None:
    out = Path(str(args[2]))
    out.parent.mkdir(exist_ok=True)
    before = sorted(out.parent.iterdir())
    with pytest.raises(ValueError, match=words):
        merge_bundle(*args, **options)  # type: ignore[arg-type]
    assert sorted(out.parent.iterdir()) == before


def test_a_difference_that_is_not_small_leaves_nothing(tiny_bundle: Path, random_base: Path, tmp_path: Path):
    refused(
        r"differs by .* of the largest output \(allowed 1e-12 in float32\).*nothing was written",
        tiny_bundle, random_base, tmp_path / "m", tolerance=1e-12,
    )  # fmt: skip


def test_an_update_added_twice_is_caught(
    tiny_bundle: Path, random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    once = Factor.delta
    monkeypatch.setattr(Factor, "delta", lambda self: 2 * once(self))
    refused("the merged model differs by", tiny_bundle, random_base, tmp_path / "m")


def test_an_update_that_rounding_swallows_is_caught(
    make_bundle: Callable[..., Path], random_base: Path, tmp_path: Path
):
    faint = make_bundle(random_base, std=1e-6)
    assert merge_bundle(faint, random_base, tmp_path / "wide").effect < 1e-4
    refused("rounding to bfloat16 swallows it", faint, random_base, tmp_path / "m", dtype=torch.bfloat16)


def test_other_bases_nan_and_bare_bundles_are_refused(
    tiny_bundle: Path, random_base: Path, tmp_path: Path, base_without_adapter: Path
):
    other = build_tiny_base(tmp_path / "other", seed=4)
    refused("belongs to base", tiny_bundle, other, tmp_path / "m")
    refused("nothing to merge", base_without_adapter, random_base, tmp_path / "m")
    bundle = Bundle.load(tiny_bundle)
    bundle.head = load_head(tiny_bundle, OpenVLA.from_pretrained(random_base))
    bundle.adapter[sorted(bundle.adapter)[0]][0, 0] = float("nan")
    bundle.save(tmp_path / "nan")
    refused("holds NaN", tmp_path / "nan", random_base, tmp_path / "m")
    refused("is not a bundle", tmp_path, random_base, tmp_path / "m")


@pytest.fixture
def base_without_adapter(tiny_bundle: Path, random_base: Path, tmp_path: Path) -> Path:
    bundle = Bundle.load(tiny_bundle)
    bundle.head = load_head(tiny_bundle, OpenVLA.from_pretrained(random_base))
    bundle.adapter, bundle.adapter_config = {}, None
    bundle.save(tmp_path / "bare")
    return tmp_path / "bare"


def test_what_is_there_stays_unless_asked(tiny_bundle: Path, random_base: Path, tmp_path: Path):
    out = tmp_path / "m"
    merge_bundle(tiny_bundle, random_base, out)
    stamp = (out / "model.safetensors").stat().st_mtime_ns
    refused("exists; choose another folder", tiny_bundle, random_base, out)
    merge_bundle(tiny_bundle, random_base, out, overwrite=True)
    assert (out / "model.safetensors").stat().st_mtime_ns != stamp
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "diary").write_text("mine")
    refused("holds no config.json", tiny_bundle, random_base, tmp_path / "home", overwrite=True)
    refused("is what is being merged", tiny_bundle, random_base, random_base, overwrite=True)


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 1 MB, so that writing weights fails half way as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_files")
def test_a_disk_that_fills_up_leaves_nothing(tiny_bundle: Path, random_base: Path, tmp_path: Path):
    refused("cannot write .*nothing was left behind", tiny_bundle, random_base, tmp_path / "m")


def test_too_little_room_is_said_before_anything_runs(
    tiny_bundle: Path, random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 1000})())
    refused(r"takes 0\.00\d GB, .* has 0\.000 GB free", tiny_bundle, random_base, tmp_path / "new" / "m")
