"""Pieces of HTML pages."""

from __future__ import annotations

import base64
import re

from matplotlib.figure import Figure

from vla_adapt.evaluation.html_parts import embed, embed_figure, page_head, table


def test_table():
    assert table(["a", "b"], [["1", "2"]]) == (
        "<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>"
    )


def test_pictures_lie_in_the_page():
    assert embed(b"x") == '<img src="data:image/png;base64,eA==">'
    found = re.search(r"base64,([^\"]+)", embed_figure(Figure(figsize=(1, 1))))
    assert found
    assert base64.b64decode(found[1]).startswith(b"\x89PNG")


def test_a_page_starts_with_its_title():
    assert "<title>runs</title>" in page_head("runs")
