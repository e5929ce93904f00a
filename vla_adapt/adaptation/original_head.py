"""Is a head the original OpenVLA's own (one step of action tokens, no state)? Others have to travel along."""

from __future__ import annotations

import json
from pathlib import Path

from vla_adapt.policy.heads import HEAD_JSON, HeadConfig
from vla_adapt.suggest import validate_model

ORIGINAL_HEAD = HeadConfig(kind="tokens", horizon=1, proprio=False)


def is_originals(config: HeadConfig) -> bool:
    """Whether `predict_action` of the original does what this head does."""
    return (config.kind, config.horizon, config.proprio) == ("tokens", 1, False)


def describe(config: HeadConfig) -> str:
    """The head in a few words, e.g. "'parallel', horizon 8, with state"."""
    return f"'{config.kind}', horizon {config.horizon}{', with state' if config.proprio else ''}"


def stored_head(folder: str | Path) -> HeadConfig | None:
    """The head whose `head.json` lies in a folder, if there is one.

    Raises:
        ValueError: the file is none of a head.
    """
    file = Path(folder) / HEAD_JSON
    if not file.is_file():
        return None
    try:
        tree = json.loads(file.read_text())["config"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} describes no action head ({error}); copy it again") from None
    return validate_model(HeadConfig, tree, str(file))
