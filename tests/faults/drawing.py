"""The picture of the fault matrix: what became of the records of each cell, and the longest wait.

It is drawn from the page of all rows, so it shows what that says. It is SVG in the text's own
colour, in the page itself, so that it follows the reader's choice of a light or a dark page.
"""

from __future__ import annotations

import dataclasses
import html
import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Final

__all__ = ["Bar", "bars", "draw"]

# In pixels.
_WIDTH: Final = 800
_LABELS: Final = 320
_SHARES: Final = 240
_GAP: Final = 20
_WAITS: Final = _WIDTH - _LABELS - _SHARES - 2 * _GAP - 18  # half of the last mark's text
_ROW: Final = 15
#: Characters of a label in one line.
_LABEL: Final = 54
_LINE: Final = 12
_HEAD: Final = 44
_GROUP: Final = 30
#: What there is of at all is seen, be it one record of many thousands.
_LEAST: Final = 2.0
#: The scale of the waits, in seconds.
_SHORTEST, _LONGEST = 0.01, 100.0

#: What becomes of records, and a colour that is told from both a white and a black page.
_PARTS: Final = {
    "acknowledged": "#2a8f5b",
    "failed, not persisted": "#c47f00",
    "failed, possibly persisted": "#d0454c",
    "withdrawn": "#8a8f98",
}


@dataclasses.dataclass
class Bar:
    """One cell, with all its loops and drivers."""

    group: str
    cell: str
    records: int = 0
    parts: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(_PARTS, 0))
    longest_wait: float = 0.0

    def __str__(self) -> str:
        parts = [f"{count:,} {part}" for part, count in self.parts.items() if count]
        return (
            f"{self.cell}: {self.records:,} records, {'; '.join(parts) or 'none accounted for'}; "
            f"longest wait {self.longest_wait:g} s"
        )


def bars(page: str) -> list[Bar]:
    """The cells of a page, in its order.

    Raises:
        ValueError: a table has not the columns that are drawn.
    """
    found: dict[tuple[str, str], Bar] = {}
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        group = section.partition("\n")[0]
        for row in _rows(section):
            cell = re.sub(r" \(\d+\)$", "", row["cell"])
            bar = found.setdefault((group, cell), Bar(group, cell))
            bar.records += _number(row["records"])
            bar.parts["acknowledged"] += _number(row["acknowledged"])
            bar.parts["withdrawn"] += _number(row["withdrawn"])
            for count, persistence in re.findall(
                r"([\d,]+) \w+, ((?:not|possibly) persisted)", row["failed"]
            ):
                bar.parts[f"failed, {persistence}"] += _number(count)
            bar.longest_wait = max(bar.longest_wait, float(row["longest wait"]))
    return list(found.values())


def _rows(section: str) -> Iterator[dict[str, str]]:
    lines = [line for line in section.splitlines() if line.startswith("|")]
    if not lines:
        return
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    needed = {"cell", "records", "acknowledged", "failed", "withdrawn", "longest wait"}
    if not needed <= set(table[0]):
        raise ValueError(f"a table without {sorted(needed - set(table[0]))}: {lines[0]}")
    for cells in table[2:]:
        yield dict(zip(table[0], cells, strict=True))


def _number(text: str) -> int:
    return int(text.replace(",", ""))


def draw(page: str) -> str:
    """The picture of a page, as an ``svg`` element. Its box has to scroll where it is narrow."""
    drawn = bars(page)
    groups = list(dict.fromkeys(bar.group for bar in drawn))
    body: list[str] = []
    y = float(_HEAD)
    for group in groups:
        y += _GROUP
        body.append(_text(0, y - 9, group, 'font-weight="600" font-size="13"'))
        for bar in drawn:
            if bar.group == group:
                label = textwrap.wrap(bar.cell, _LABEL)
                body += _bar(bar, label, y)
                y += _ROW + _LINE * (len(label) - 1)
    height = y + 8
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" role="img"
 aria-labelledby="fault-matrix-title fault-matrix-desc" fill="currentColor"
 style="display: block; width: 100%; min-width: {_WIDTH * 0.85:.0f}px; height: auto"
 font-family="system-ui, sans-serif" font-size="11">
<title id="fault-matrix-title">What became of the records under each fault</title>
<desc id="fault-matrix-desc">{html.escape(_describe(drawn))}</desc>
{_legend()}
{_scale(height)}
{chr(10).join(body)}
</svg>
"""


def _bar(bar: Bar, label: Sequence[str], y: float) -> Iterator[str]:
    yield f"<g><title>{html.escape(str(bar))}</title>"
    for number, line in enumerate(label):
        yield _text(_LABELS - 8, y + 10 + number * _LINE, line, 'text-anchor="end"')
    x = float(_LABELS)
    for width, colour in zip(_widths(bar), _PARTS.values(), strict=True):
        if width:
            yield f'<rect x="{x:.1f}" y="{y + 2}" width="{width:.1f}" height="10" fill="{colour}"/>'
            x += width
    if bar.longest_wait:
        yield _circle(_place(bar.longest_wait), y + 7)
    yield "</g>"


def _circle(x: float, y: float) -> str:
    return (
        f'<circle cx="{x:.1f}" cy="{y:g}" r="3.2" '
        'stroke="currentColor" stroke-width="1" fill-opacity="0.55"/>'
    )


def _widths(bar: Bar) -> list[float]:
    """How wide each part is. What there is of at all is seen, at the cost of the widest."""
    counts = [*bar.parts.values()]
    if not bar.records:
        return [0.0] * len(counts)
    widths = [max(_LEAST, count / bar.records * _SHARES) if count else 0.0 for count in counts]
    over = sum(widths) - _SHARES
    if over > 0:
        widths[widths.index(max(widths))] -= over
    return widths


def _place(seconds: float) -> float:
    clipped = min(max(seconds, _SHORTEST), _LONGEST)
    part = math.log(clipped / _SHORTEST) / math.log(_LONGEST / _SHORTEST)
    return _LABELS + _SHARES + _GAP + part * _WAITS


def _legend() -> str:
    parts: list[str] = []
    x = 0.0
    for part, colour in _PARTS.items():
        parts.append(f'<rect x="{x:.0f}" y="2" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(x + 15, 11, part))
        x += 36 + 5.8 * len(part)
    parts.append(_circle(x + 5, 7))
    parts.append(_text(x + 15, 11, "longest wait"))
    return "\n".join(parts)


def _scale(height: float) -> str:
    lines = [
        _text(_LABELS, _HEAD - 12, "share of the records"),
        _text(_LABELS + _SHARES + _GAP, _HEAD - 12, "longest wait for an outcome"),
    ]
    for seconds in (0.01, 0.1, 1.0, 10.0, 100.0):
        x = _place(seconds)
        lines.append(
            f'<path d="M{x:.1f} {_HEAD + 10} V{height - 4:.0f}" stroke="currentColor" '
            'stroke-opacity="0.25" stroke-width="0.7"/>'
        )
        lines.append(_text(x, _HEAD + 6, f"{seconds:g} s", 'text-anchor="middle"'))
    return "\n".join(lines)


def _describe(drawn: Sequence[Bar]) -> str:
    """The picture in words, for those who cannot see it; the page of all rows has all of it."""
    whole = sum(bar.parts["acknowledged"] == bar.records for bar in drawn)
    slowest = max(drawn, key=lambda bar: bar.longest_wait, default=None)
    text = (
        f"A bar for each of {len(drawn)} cells. In {whole} of them each record was acknowledged; "
        "in the others some failed or were withdrawn, as their bars show."
    )
    if slowest is not None:
        text += f" The longest wait was {slowest.longest_wait:g} s, under: {slowest.cell}."
    return text


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{html.escape(text)}</text>'
