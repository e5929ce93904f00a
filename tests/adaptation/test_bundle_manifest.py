"""Manifests: found, read, and refused in one line when they are broken or name what is not the bundle's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vla_adapt.adaptation.bundle import Bundle
from vla_adapt.adaptation.bundle_manifest import find_bundles, read_manifest


@pytest.fixture
def manifest(tiny_bundle: Path) -> dict[str, Any]:
    return read_manifest(tiny_bundle)


def write(folder: Path, content: Any) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "bundle.json").write_text(text)
    return folder


def test_bundles_are_found_in_a_folder_or_as_it(tiny_bundle: Path, tmp_path: Path):
    assert find_bundles(tiny_bundle) == [tiny_bundle]
    assert find_bundles(tiny_bundle.parent) == [tiny_bundle]
    with pytest.raises(ValueError, match="no bundle in"):
        find_bundles(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"not a bundle: no bundle\.json"):
        read_manifest(tmp_path)


def test_newer_format_is_refused(tmp_path: Path, manifest: dict[str, Any]):
    with pytest.raises(ValueError, match="bundle format 99, this vla_adapt reads 1"):
        read_manifest(write(tmp_path, manifest | {"format": 99}))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '"x"'])
def test_what_is_no_manifest_is_named(tmp_path: Path, content: str):
    with pytest.raises(ValueError, match=r"bundle\.json is (not valid JSON|no manifest).*copy the bundle"):
        read_manifest(write(tmp_path, content))


def test_what_a_manifest_lacks_is_named(tmp_path: Path, manifest: dict[str, Any]):
    for key in manifest.keys() - {"format", "constants", "rate_hz"}:
        rest = {name: value for name, value in manifest.items() if name != key}
        with pytest.raises(ValueError, match="does not list"):
            read_manifest(write(tmp_path, rest))
    for name in ("statistics.json", "adapter_config.json"):
        files = {file: checksum for file, checksum in manifest["files"].items() if file != name}
        with pytest.raises(ValueError, match=f"does not list {name}"):
            read_manifest(write(tmp_path, manifest | {"files": files}))


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/b", ".."])
def test_files_elsewhere_are_not_touched(tmp_path: Path, manifest: dict[str, Any], name: str):
    files = manifest["files"] | {name: "0" * 64}
    with pytest.raises(ValueError, match=r"lists .*, which is no file of the bundle"):
        Bundle.load(write(tmp_path, manifest | {"files": files}))
