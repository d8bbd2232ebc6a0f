"""A report as blocks, written as Markdown or as one html file that needs nothing else."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; }
th, td { border-bottom: 1px solid #ddd; padding: 0.25rem 0.75rem; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #888; }
img { max-width: 100%; }
code { overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Items:
    """A bulleted list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """png: the file's bytes. Only html shows it; what it draws stands in a table, too."""

    caption: str
    png: bytes


_ENTITY = re.compile(r"&(?=#?\w+;)")
Block = Heading | Text | Items | Table | Picture


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    parts = [f"# {_line(title)}"]
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"## {_line(block.text)}")
        elif isinstance(block, Text):
            parts.append(_line(block.text))
        elif isinstance(block, Items):
            parts.append("\n".join(f"- {_line(item)}" for item in block.items))
        elif isinstance(block, Table):
            lines = [_row(block.header), _row(["---"] * len(block.header)), *map(_row, block.rows)]
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_line(cell).replace("|", "\\|") for cell in cells) + " |"


def _line(text: str) -> str:
    """In one line and without tags, which Markdown would hand on: names and categories come from elsewhere."""
    return " ".join(_ENTITY.sub("&amp;", text).replace("<", "&lt;").splitlines())


def to_html(title: str, blocks: Sequence[Block]) -> str:
    escape = html.escape
    parts = [f"<h1>{escape(title)}</h1>"]
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"<h2>{escape(block.text)}</h2>")
        elif isinstance(block, Text):
            parts.append(f"<p>{escape(block.text)}</p>")
        elif isinstance(block, Items):
            parts.append("<ul>" + "".join(f"<li>{escape(item)}</li>" for item in block.items) + "</ul>")
        elif isinstance(block, Table):
            head = "".join(f"<th>{escape(cell)}</th>" for cell in block.header)
            rows = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in block.rows)
            body = "\n".join(f"<tr>{row}</tr>" for row in rows)
            parts.append(f"<table>\n<tr>{head}</tr>\n{body}\n</table>")
        else:
            data = base64.b64encode(block.png).decode()
            parts.append(
                f'<figure><img alt="{escape(block.caption)}" src="data:image/png;base64,{data}">'
                f"<figcaption>{escape(block.caption)}</figcaption></figure>"
            )
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"
