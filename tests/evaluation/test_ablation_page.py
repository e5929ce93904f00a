"""The page of an ablation: losses are red, everything is in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from vla_adapt.evaluation.ablation_page import ablation_picture, write_page
from vla_adapt.evaluation.seed_comparison import Comparison

Compare = Callable[..., Comparison]


def test_the_page(compare: Compare, tmp_path: Path):
    write_page(compare(4), tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "<p class='bad loud'>WORSE: harm on ur5e" in page
    assert "<p class='good loud'>BETTER: help on ur5e" in page
    assert "<td><span class='bad loud'>WORSE</span></td>" in page
    assert "data:image/png;base64" in page
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_marks_losses_and_gains_and_shows_chance(compare: Compare):
    left, right = ablation_picture(compare(4)).axes
    words = [text.get_text() for text in left.texts]
    assert "WORSE" in words
    assert "BETTER" in words
    assert len(left.containers) == 3
    assert any(np.array_equal(line.get_ydata(), [0.5, 0.5]) for line in right.lines)


def test_one_seed_has_no_bars(compare: Compare):
    left = ablation_picture(compare(1)).axes[0]
    assert all(path.get_extents().height == 0 for bars in left.collections for path in bars.get_paths())
