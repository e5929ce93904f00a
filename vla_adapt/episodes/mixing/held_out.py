"""Which episodes are held out: by a hash of the episode's own name, the same wherever the data lies."""

from __future__ import annotations

import hashlib


def is_held_out(dataset: str, episode_id: str, fraction: float) -> bool:
    """True for about `fraction` of all episodes, decided for each by itself.

    Neither the order of the episodes nor other episodes that come or go change the answer, and what a
    fraction holds out every larger fraction holds out too.

    Args:
        dataset: lasting name of the dataset (`stable_name.StableName`).
        episode_id: the episode's lasting name in it.
        fraction: 0 none .. 1 all.
    """
    digest = hashlib.sha256(f"{dataset}\n{episode_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2.0**64
