"""Held out by hash: fixed for ever, by each episode alone, in the wanted number."""

from __future__ import annotations

import hashlib

from vla_adapt.episodes.mixing.held_out import is_held_out


def test_known_answers() -> None:
    """Would a release change one, episodes once trained on would be judged on."""
    held = [number for number in range(60) if is_held_out("bridge_orig", f"train/{number}", 0.1)]
    assert held == [25, 53, 54]
    digest = hashlib.sha256(b"bridge_orig\ntrain/0").digest()
    place = sum(byte / 256.0 ** (i + 1) for i, byte in enumerate(digest[:8]))
    assert not is_held_out("bridge_orig", "train/0", place - 1e-9)
    assert is_held_out("bridge_orig", "train/0", place + 1e-9)


def test_fraction_is_kept_and_nested() -> None:
    names = [f"train/{number}" for number in range(20_000)]
    held = {
        fraction: {name for name in names if is_held_out("set", name, fraction)}
        for fraction in (0.0, 0.05, 0.2, 1.0)
    }
    assert not held[0.0]
    assert len(held[1.0]) == 20_000
    assert abs(len(held[0.05]) - 1000) < 5 * (20_000 * 0.05 * 0.95) ** 0.5
    assert held[0.05] < held[0.2]


def test_datasets_are_independent() -> None:
    one, two = ({n for n in range(2000) if is_held_out(name, str(n), 0.5)} for name in ("a", "b"))
    assert abs(len(one & two) - 500) < 100
