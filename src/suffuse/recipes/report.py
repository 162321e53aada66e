"""A report: one self-contained HTML page with pictures, and numbers explained."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from suffuse import __version__
from suffuse.training.files import write_text

__all__ = ["Page"]

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-weight: 600; } h2 { margin-top: 2.2rem; font-weight: 600; font-size: 1.2rem; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; vertical-align: top; padding: .5rem .8rem;
border-bottom: 1px solid #ddd; } td.number { font-variant-numeric: tabular-nums;
white-space: nowrap; font-weight: 600; }
img { max-width: 100%; image-rendering: pixelated; border-radius: 4px; } .plot { image-rendering: auto; }
.note { color: #666; font-size: .9rem; }
"""


class Page:
    """A page that is written from top to bottom; everything that is no method's `markup` is escaped.

    Args:
        title: of the page. lead: the paragraph under it.
    """

    def __init__(self, title: str, lead: str) -> None:
        self.title = html.escape(title)
        self.parts = [f"<h1>{self.title}</h1><p>{html.escape(lead)}</p>"]

    def section(self, title: str, text: str = "") -> None:
        """A heading, and a paragraph under it."""
        self.parts.append(f"<h2>{html.escape(title)}</h2>")
        if text:
            self.parts.append(f"<p>{html.escape(text)}</p>")

    def picture(self, path: Path, alt: str, *, plot: bool = False) -> None:
        """A picture, inside the page; a plot is smoothed where it is scaled, pixels are not."""
        mime = "gif" if path.suffix == ".gif" else "png"
        data = base64.b64encode(path.read_bytes()).decode()
        kind = "plot" if plot else ""
        self.parts.append(f'<img class="{kind}" alt="{html.escape(alt)}" src="data:image/{mime};base64,{data}">')

    def measurements(self, rows: Iterable[tuple[str, Mapping[str, Any], str]]) -> None:
        """A table of measurements: (title, {"value", "interval", "n", "how"}, what it means)."""
        lines = []
        for title, m, text in rows:
            low, high = m["interval"]
            lines.append(
                f'<tr><td>{html.escape(title)}</td><td class="number">{m["value"]:.3f}</td>'
                f'<td class="number">{low:.3f} to {high:.3f}</td><td>{m["n"]:,}</td>'
                f'<td>{html.escape(text)}<br><span class="note">{html.escape(m["how"])}</span></td></tr>'
            )
        head = "<tr><th></th><th>value</th><th>95 % interval</th><th>n</th><th>what it means</th></tr>"
        self.parts.append(f"<table>{head}{''.join(lines)}</table>")

    def table(self, head: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
        """A table of text."""
        top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
        self.parts.append(f"<table><tr>{top}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>")

    def note(self, text: str) -> None:
        """A line in small print."""
        self.parts.append(f'<p class="note">{html.escape(text)}</p>')

    def write(self, path: Path) -> Path:
        """Write the page and return its path."""
        body = "\n".join([*self.parts, f'<p class="note">suffuse {__version__}</p>'])
        write_text(
            path,
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>suffuse: {self.title}</title>'
            f"<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n",
        )
        return path
