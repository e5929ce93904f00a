"""What to do about damaged episodes: refuse the dataset, or leave them out and say which."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

OnError = Literal["error", "skip"]


@dataclass
class DamageLog:
    """Damage met while reading a dataset.

    Attributes:
        on_error: "error": the first damage is raised; "skip": it is noted.
        notes: (what is wrong, how many episodes are lost by it), in the order met.
    """

    on_error: OnError = "error"
    notes: list[tuple[str, int]] = field(default_factory=list)

    def report(self, text: str, episodes: int = 1) -> None:
        """Raise or note one damage; `text` names file, record and reason.

        Raises:
            ValueError: `text`, when `on_error` is "error".
        """
        if self.on_error == "error":
            raise ValueError(text)
        self.notes.append((text, episodes))


def check_on_error(on_error: str) -> None:
    """Refuse anything but the two policies.

    Raises:
        ValueError: names what was got.
    """
    if on_error not in ("error", "skip"):
        raise ValueError(f"on_error '{on_error}': wanted 'error' or 'skip'")


def warn_skipped(where: str, skipped: Sequence[str], episodes: int, kept: int) -> None:
    """One warning that says how many episodes of `where` were left out and why the first of them was."""
    more = f" (and {len(skipped) - 1} more, see .skipped)" if len(skipped) > 1 else ""
    warnings.warn(
        f"{where}: skipped {episodes} damaged of {episodes + kept} episodes: {skipped[0]}{more}",
        stacklevel=3,
    )
