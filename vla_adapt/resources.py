"""Where the data files of the package live: embodiments, recipes and the embedded tiny base.

In a checkout they are top-level folders; in a wheel they are copied under `vla_adapt/resources/`.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _data_dir(kind: str) -> Path:
    packaged = _PACKAGE / "resources" / kind
    return packaged if packaged.is_dir() else _PACKAGE.parent / kind


def embodiments_dir() -> Path:
    """Folder of the built-in embodiments, one YAML file each."""
    return _data_dir("embodiments")


def recipes_dir() -> Path:
    """Folder of the built-in recipes."""
    return _data_dir("recipes")


def base_dir(base: str) -> Path:
    """Checkpoint folder of `base`: "tiny" is the shipped one, anything else a path."""
    return tiny_base_dir() if base == "tiny" else Path(base).expanduser()


def tiny_base_dir() -> Path:
    """Folder of the shipped, pre-trained tiny OpenVLA (original checkpoint layout)."""
    return _PACKAGE / "policy" / "tiny_base"
