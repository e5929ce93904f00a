"""The tables of an ablation: losses as loud as gains, no number without its interval."""

from __future__ import annotations

import io
from collections.abc import Callable

from rich.console import Console

from vla_adapt.evaluation.ablation_table import ERROR_HEAD, error_rows, markdown, probe_head, rich_tables
from vla_adapt.evaluation.seed_comparison import Comparison

Compare = Callable[..., Comparison]


def test_losses_are_as_loud_as_gains_and_come_first(compare: Compare):
    text = markdown(compare(4))
    loss, gain = text.index("**WORSE**: harm on ur5e"), text.index("**BETTER**: help on ur5e")
    assert loss < gain < text.index("| variant")
    assert "| **WORSE** |" in text
    assert "| **BETTER** |" in text
    assert "| (base, before training) | - | 99.0 [99.0, 99.0] |" in text


def test_a_terminal_shows_losses_in_red(compare: Compare):
    shown = io.StringIO()
    console = Console(width=160, file=shown, force_terminal=True, color_system="standard", highlight=False)
    for table in rich_tables(compare(4)):
        console.print(table)
    lines = shown.getvalue().splitlines()
    assert all("\x1b[1;31m" in line for line in lines if "WORSE" in line)
    assert all("\x1b[1;32m" in line for line in lines if "BETTER" in line)
    assert any("WORSE" in line for line in lines)


def test_rows_fit_their_head(compare: Compare):
    found = compare(2, success=True)
    assert {len(cells) for cells in error_rows(found)} == {len(ERROR_HEAD)}
    assert len(error_rows(found)) == 3 * 3
    assert probe_head(found) == ["variant", "mean error", "robot told from patches, %"]
    assert "1/8 = 12 %" in markdown(found)


def test_one_seed_has_no_interval(compare: Compare):
    assert "[one seed]" in markdown(compare(1))
