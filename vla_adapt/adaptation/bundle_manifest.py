"""The manifest of a bundle: what its folder must hold, checked before anything in it is used."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from vla_adapt.adaptation.lora_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from vla_adapt.policy.heads import HEAD_JSON, HEAD_WEIGHTS

FORMAT = 1
MANIFEST = "bundle.json"
_KEYS = ("robot", "base_fingerprint", "adapter", "observation", "files", "facts")
_FILES = (HEAD_JSON, HEAD_WEIGHTS, "statistics.json", "embodiment.yaml", "README.md")


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a bundle folder.

    Raises:
        ValueError: no bundle, a newer format, or a manifest that lacks something or names foreign files.
    """
    file = Path(folder) / MANIFEST
    if not file.is_file():
        raise ValueError(f"{folder} is not a bundle: no {MANIFEST} in it")
    try:
        manifest = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid JSON ({error}); copy the bundle folder again") from None
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise ValueError(f"{file} is no manifest of a bundle; copy the bundle folder again")
    if manifest["format"] != FORMAT:
        raise ValueError(
            f"{file}: bundle format {manifest['format']}, this vla_adapt reads {FORMAT}; upgrade it"
        )
    lacks = [key for key in _KEYS if key not in manifest]
    needed = (*_FILES, ADAPTER_CONFIG, ADAPTER_WEIGHTS) if manifest.get("adapter") else _FILES
    lacks += [name for name in needed if name not in manifest.get("files", ())]
    if lacks:
        raise ValueError(f"{file} does not list {lacks[0]}; copy the bundle folder again")
    for name in manifest["files"]:
        if name == ".." or name != Path(name).name:
            raise ValueError(f"{file} lists {name!r}, which is no file of the bundle; do not use it")
    return manifest


def find_bundles(folder: str | Path) -> list[Path]:
    """Bundle folders at `folder` itself or directly inside it, sorted by name.

    Raises:
        ValueError: there is none.
    """
    folder = Path(folder)
    found = (
        [folder]
        if (folder / MANIFEST).is_file()
        else sorted(file.parent for file in folder.glob(f"*/{MANIFEST}"))
    )
    found = [path for path in found if not path.name.startswith(".")]
    if not found:
        raise ValueError(
            f"no bundle in {folder}: wanted a folder with {MANIFEST}, or a folder of such folders"
        )
    return found


def check_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise ValueError naming what of the manifest is missing in the folder, or not as it was saved."""
    missing = [name for name in manifest["files"] if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder}: {', '.join(missing)} missing; copy the whole bundle folder again")
    if manifest["adapter"]:
        _check_adapter_keys(folder, manifest["adapter"])
    for name, checksum in manifest["files"].items():
        if sha256(folder / name) != checksum:
            raise ValueError(
                f"{folder / name} was changed or damaged since it was saved; copy the bundle folder again"
            )


def _check_adapter_keys(folder: Path, expected: list[str]) -> None:
    try:
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as stored:
            got = set(stored.keys())
    except Exception as error:
        raise ValueError(
            f"{folder / ADAPTER_WEIGHTS} cannot be read ({error}); copy the bundle folder again"
        ) from error
    missing = sorted(set(expected) - got)
    if missing:
        raise ValueError(
            f"{folder / ADAPTER_WEIGHTS}: {len(missing)} of {len(expected)} tensors are missing "
            f"(first: {missing[0]}); copy the bundle folder again or train it again"
        )


def sha256(file: Path) -> str:
    """Checksum of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
