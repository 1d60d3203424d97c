"""The picture of the fault matrix: the outcomes of the records of each cell, and the longest wait.

It is drawn from the page of all rows, so it agrees with that page. It is SVG inside the page, in
the colour of the text, so it suits both a light and a dark page.
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

# In the picture's own pixels. It is narrow enough that its text can be read on a phone.
_WIDTH: Final = 400
_SHARES: Final = 200
_GAP: Final = 16
_WAITS: Final = _WIDTH - _SHARES - _GAP - 18  # half of the last mark's text
#: From the last line of a label to the next label.
_ROW: Final = 20
#: Characters of a label in one line.
_LABEL: Final = 66
_LINE: Final = 12
_HEAD: Final = 62
_GROUP: Final = 34
#: The minimal width, so that one record of many thousands is visible.
_LEAST: Final = 2.0
#: The scale of the waits, in seconds.
_SHORTEST, _LONGEST = 0.01, 100.0
_MARKS: Final = (0.01, 0.1, 1.0, 10.0, 100.0)

#: The outcomes of records, each with a colour that is visible on a white and on a black page.
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
        ValueError: a table does not have the required columns.
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
    """The picture of a page, as an ``svg`` element."""
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
                y += _ROW + _LINE * len(label)
    height = y + 8
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" role="img"
 aria-labelledby="fault-matrix-title fault-matrix-desc" fill="currentColor"
 style="display: block; width: 100%; max-width: {_WIDTH * 1.5:.0f}px; height: auto"
 font-family="system-ui, sans-serif" font-size="11">
<title id="fault-matrix-title">Outcomes of the records under each fault</title>
<desc id="fault-matrix-desc">{html.escape(_describe(drawn))}</desc>
{_legend()}
{_scale()}
{chr(10).join(body)}
</svg>
"""


def _bar(bar: Bar, label: Sequence[str], y: float) -> Iterator[str]:
    yield f"<g><title>{html.escape(str(bar))}</title>"
    for line in label:
        yield _text(0, y + 10, line)
        y += _LINE
    x = 0.0
    for width, colour in zip(_widths(bar), _PARTS.values(), strict=True):
        if width:
            yield f'<rect x="{x:.1f}" y="{y + 2}" width="{width:.1f}" height="10" fill="{colour}"/>'
            x += width
    marks = "".join(f"M{_place(seconds):.1f} {y + 1:.0f}v12" for seconds in _MARKS)
    yield f'<path d="{marks}" stroke="currentColor" stroke-opacity="0.4" stroke-width="0.7"/>'
    if bar.longest_wait:
        yield _circle(_place(bar.longest_wait), y + 7)
    yield "</g>"


def _circle(x: float, y: float) -> str:
    return (
        f'<circle cx="{x:.1f}" cy="{y:g}" r="3.2" '
        'stroke="currentColor" stroke-width="1" fill-opacity="0.55"/>'
    )


def _widths(bar: Bar) -> list[float]:
    """The width of each part. Small parts have the minimal width, at the cost of the widest."""
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
    return _SHARES + _GAP + part * _WAITS


def _legend() -> str:
    parts: list[str] = []
    x, y = 0.0, 2.0
    for part, colour in {**_PARTS, "longest wait": ""}.items():
        width = 36 + 5.8 * len(part)
        if x + width > _WIDTH:
            x, y = 0.0, y + 18
        if colour:
            square = f'<rect x="{x:.0f}" y="{y:.0f}" width="10" height="10" fill="{colour}"/>'
            parts.append(square)
        else:
            parts.append(_circle(x + 5, y + 5))
        parts.append(_text(x + 15, y + 9, part))
        x += width
    return "\n".join(parts)


def _scale() -> str:
    lines = [
        _text(0, _HEAD - 8, "share of the records"),
        _text(_SHARES + _GAP, _HEAD - 8, "longest wait for an outcome"),
    ]
    lines += [
        _text(_place(seconds), _HEAD + 10, f"{seconds:g} s", 'text-anchor="middle"')
        for seconds in _MARKS
    ]
    return "\n".join(lines)


def _describe(drawn: Sequence[Bar]) -> str:
    """Describe the picture in words, for screen readers. The page of all rows has all numbers."""
    whole = sum(bar.parts["acknowledged"] == bar.records for bar in drawn)
    slowest = max(drawn, key=lambda bar: bar.longest_wait, default=None)
    text = (
        f"There is a bar for each of {len(drawn)} faults. In {whole} of them, each record was "
        "acknowledged. In the others, some records failed or were withdrawn."
    )
    if slowest is not None:
        text += f" The longest wait was {slowest.longest_wait:g} s, for the fault: {slowest.cell}."
    return text


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{html.escape(text)}</text>'
