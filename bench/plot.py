"""Horizontal bars as SVG: a bar ends at the median, and every round is a dot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape

LEFT, WIDTH, RIGHT = 240, 440, 80  # pixels: names, bars, figures
HEAD, ROW, THICK = 34, 24, 14
STYLE = (
    "text { font: 12px sans-serif; fill: #222 } .title { font-weight: bold } .bar { fill: #b8c4d6 } "
    ".ours { fill: #6a8fc8 } .dot { fill: #222; fill-opacity: 0.35 } .back { fill: #fff }"
)


def bars(title: str, rows: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Names and their values; those of nfqlb stand out."""
    most = max(value for _, values in rows for value in values)
    wide, high = LEFT + WIDTH + RIGHT, HEAD + ROW * len(rows) + 6
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" viewBox="0 0 {wide} {high}">',
        f"<style>{STYLE}</style>",
        f'<rect class="back" width="{wide}" height="{high}"/>',
        f'<text class="title" x="8" y="20">{escape(title)}</text>',
    ]
    for number, (name, values) in enumerate(rows):
        top, middle = HEAD + ROW * number, statistics.median(values)
        centre = top + THICK / 2
        kind = "ours" if name.startswith("nfqlb") else "bar"
        parts += [
            f'<text x="{LEFT - 8}" y="{top + 11}" text-anchor="end">{escape(name)}</text>',
            f'<rect class="{kind}" x="{LEFT}" y="{top}" width="{WIDTH * middle / most:.1f}" height="{THICK}"/>',
            *(f'<circle class="dot" cx="{LEFT + WIDTH * v / most:.1f}" cy="{centre}" r="2.5"/>' for v in values),
            f'<text x="{LEFT + WIDTH + 10}" y="{top + 11}">{middle:,.1f}</text>',
        ]
    return "\n".join([*parts, "</svg>\n"])
