"""Pieces of the HTML pages about runs: style, tables, pictures embedded in the page."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2em auto;padding:0 1em;color:#222}
pre{overflow:auto;font-size:12px}
table{border-collapse:collapse;margin:.6em 0}td,th{border:1px solid #ccc;padding:.25em .7em;text-align:right}
td:first-child,th:first-child{text-align:left}img{max-width:100%}
h2{margin-top:2em;border-bottom:1px solid #ddd}
.bad{color:#b00}.good{color:#070}.loud{font-weight:bold}small{color:#666}
"""


def page_head(title: str) -> str:
    """What a page starts with; `title` is HTML."""
    return f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML."""
    lines = ["<table><tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    return "".join(lines) + "</table>"


def folded(title: str, content: str) -> str:
    """Content (HTML) that shows when its title (text) is clicked."""
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"


def embed(png: bytes) -> str:
    """A picture inside the page."""
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def embed_figure(figure: Figure) -> str:
    """A figure as a picture inside the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return embed(buffer.getvalue())
