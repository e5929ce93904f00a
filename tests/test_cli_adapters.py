"""`vla-adapt adapters ...`: what people type, what they read, mistakes in one line with exit code 2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vla_adapt import cli


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """`run(*words)` -> (exit code, stdout, stderr) of one command."""

    def vla_adapt(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["vla-adapt", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return vla_adapt


@pytest.fixture
def bundle(finished_run: Path) -> Path:
    return finished_run / "bundles" / "ur5e"


def test_list_show_and_verify(run, finished_run: Path, random_base: Path, tmp_path: Path):
    code, out, _ = run("adapters", "list", finished_run / "bundles")
    assert (code, "bimanual_panda" in out) == (0, True)
    code, out, _ = run("adapters", "show", finished_run / "bundles" / "ur5e")
    assert (code, "adapter bundle" in out) == (0, True)
    code, out, _ = run("adapters", "verify", finished_run / "bundles", "--base", random_base)
    assert (code, out.count("golden pair replayed")) == (0, 2)
    damaged = Path(shutil.copytree(finished_run / "bundles", tmp_path / "bundles"))
    (damaged / "ur5e" / "head.json").unlink()
    code, out, _ = run("adapters", "verify", damaged, "--base", random_base)
    assert code == 1
    assert "FAILED" in out
    assert "head.json missing" in out
    assert out.count("golden pair replayed") == 1


def test_bases_in_bfloat16(run, finished_run: Path, random_base: Path, monkeypatch: pytest.MonkeyPatch):
    """Verified by the tolerance of bfloat16, and served; what cannot be is one line."""
    words = (finished_run / "bundles", "--base", random_base)
    code, out, _ = run("adapters", "verify", *words)
    assert (code, out.count("(allowed 0.001)")) == (0, 2)
    code, out, _ = run("adapters", "verify", *words, "--dtype", "bfloat16", "--device", "cpu")
    assert (code, out.count("(allowed 0.1)")) == (0, 2)
    code, _, err = run("adapters", "verify", *words, "--dtype", "bfloat61")
    assert (code, "--dtype 'bfloat61': did you mean 'bfloat16'?" in err, err.count("\n")) == (2, True, 1)
    code, _, err = run("adapters", "verify", *words, "--device", "abacus")
    assert (code, "device 'abacus' cannot be used here" in err, err.count("\n")) == (2, True, 1)

    served = []
    monkeypatch.setattr("vla_adapt.serving.server.serve", lambda bank, *_, **__: served.append(bank))
    words = ("serve", "--adapters", *words, "--device", "cpu")
    assert [run(*words)[0], run(*words, "--dtype", "bfloat16")[0]] == [0, 0]
    cards = [bank.robots()["ur5e"]["base_dtype"] for bank in served]
    assert cards == ["float32", "bfloat16"]


def test_merge(run, bundle: Path, random_base: Path, tmp_path: Path):
    words = ("adapters", "merge", bundle, "--base", random_base, "--out", tmp_path / "m")
    code, out, _ = run(*words)
    assert (code, "'ur5e' merged into 24 weights, float32" in out) == (0, True)
    assert "difference from the adapted model: " in out
    assert "(allowed 0.0001; the adapter itself: " in out
    assert "note: the head is 'parallel'" in out
    code, _, err = run(*words)
    assert (code, "pass --overwrite" in err, err.count("\n")) == (2, True, 1)
    code, _, err = run(*words, "--overwrite", "--dtype", "bfloat61")
    assert (code, "--dtype 'bfloat61': did you mean 'bfloat16'?" in err) == (2, True)
    code, _, err = run(*words[:-1], tmp_path / "n", "--tolerance", "1e-12")
    assert (code, "nothing was written" in err, err.count("\n")) == (2, True, 1)
    assert not (tmp_path / "n").exists()


def test_export_to_the_original_and_import_again(run, bundle: Path, random_base: Path, tmp_path: Path):
    adapter, back = tmp_path / "adapter", tmp_path / "back"
    code, out, _ = run("adapters", "export", bundle, "--to", "openvla", "--out", adapter)
    assert (code, "adapter of 'ur5e' for openvla" in out) == (0, True)
    code, _, err = run("adapters", "export", bundle, "--to", "openvlaa", "--out", tmp_path / "x")
    assert (code, "--to 'openvlaa': did you mean 'openvla'?" in err) == (2, True)
    words = ("adapters", "import", adapter, "--robot", "ur5e", "--base", random_base, "--out", back)
    code, _, err = run(*words)
    assert (code, "was trained with a head of vla_adapt ('parallel'" in err, err.count("\n")) == (2, True, 1)
    (adapter / "head.json").unlink()
    words = ("adapters", "import", adapter, "--base", random_base, "--out", back)
    code, out, err = run(*words, "--robot", "ur5e", "--prompt", "open the drawer")
    assert (code, "bundle of 'ur5e', 24 modules, statistics 'ur5e'" in out) == (0, True), err
    assert run("adapters", "verify", back, "--base", random_base)[0] == 0
    assert "open the drawer" not in out
    code, _, err = run(*words)
    assert (code, "either --robot NAME or --embodiment FILE" in err) == (2, True)
    code, _, err = run(*words, "--robot", "ur5e")
    assert (code, "pass --overwrite" in err, err.count("\n")) == (2, True, 1)
    code, _, err = run(*words, "--robot", "ur5e", "--overwrite", "--statistics", tmp_path / "none.json")
    assert (code, "no statistics file" in err, err.count("\n")) == (2, True, 1)


def test_warm_start_writes_over_nothing_unasked(run, bundle: Path, tmp_path: Path):
    words = ("adapters", "warm-start", bundle, "--from", "a", "--to", "b", "--out")
    code, _, err = run(*words, bundle)
    assert (code, "exists; choose another folder, or pass --overwrite" in err, err.count("\n")) == (
        2,
        True,
        1,
    )
    code, _, err = run(*words, tmp_path, "--overwrite")
    assert "a: no such dataset" in err  # an empty folder is free
    (tmp_path / "thesis.txt").write_text("years of work")
    code, _, err = run(*words, tmp_path, "--overwrite")
    assert (code, "holds no bundle.json, so it is not replaced" in err) == (2, True)


def test_push_dry_run_lists_files_and_sends_nothing(run, bundle: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", None)
    code, out, _ = run(
        "adapters", "push", bundle, "me/ur5e", "--dry-run", "--private", "--base-model", "openvla/openvla-7b"
    )
    assert code == 0
    assert "adapter_model.safetensors" in out
    files = json.loads((bundle / "bundle.json").read_text())["files"]
    assert f"would upload {len(files) + 1} files" in out
    assert "to me/ur5e (private); nothing was sent" in out
    code, _, err = run("adapters", "push", bundle, "ur5e", "--dry-run")
    assert (code, "wanted owner/name" in err, err.count("\n")) == (2, True, 1)
