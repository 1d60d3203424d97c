"""The charts of the benchmark's page, as SVG.

A chart is 360 units wide, so that a phone shows its text at full size. Each bar, line and point has
its name beside it, so there is no legend. Text and axes have the colour of the page's text. The
other colours are visible on a light and on a dark page. A standalone file, for example the
README's, gets no colour from a page, so it has its own colours of text for both.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

WIDTH = 360
#: The left end of the bars, right of their names.
_LEFT = 166
#: The width of the number after the longest bar.
_NUMBER = 56
_ROW = 20
#: The distance between two names of lines.
_NAME = 13
#: The average width of a character, rounded up.
_CHARACTER = 6.0
#: The maximum width of a chart on a page, in pixels.
_SHOWN = 560

OURS, OTHERS = "#2f7fd1", "#888d96"
LIGHT_TEXT, DARK_TEXT = "#1f2328", "#e6edf3"


@dataclass(frozen=True)
class Value:
    """A figure of one client: the median of the rounds, with the least and the most."""

    name: str
    value: float
    least: float
    most: float
    is_ours: bool = False


@dataclass(frozen=True)
class Mark:
    """A value that bars are compared with."""

    name: str
    value: float


@dataclass(frozen=True)
class Series:
    """A line: the values of one client, or None for a missing value."""

    name: str
    values: tuple[float | None, ...]
    is_ours: bool = False


@dataclass(frozen=True)
class Range:
    """Two values of one client, such as the median and the 99th percentile."""

    name: str
    low: float
    high: float
    is_ours: bool = False


def shown(value: float) -> str:
    """Format a figure for readers, without the digits that differ between two runs."""
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    if value >= 9.95:  # 9.96 would become 10.0
        return f"{value:.0f}"
    if value >= 0.995:  # 0.996 would become 1.00
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.1g}"


def bars(
    title: str,
    unit: str,
    values: Sequence[Value],
    marks: Sequence[Mark] = (),
    *,
    limit: float | None = None,
    standalone: bool = False,
) -> str:
    """A bar for each value, and a line across them for each mark.

    Args:
        title: a description of the chart, for screen readers.
        unit: the unit of the numbers.
        values: the bars, from the top.
        marks: values to compare with. A mark that is off the scale gets an arrow.
        limit: the longest bar. A longer bar is cut off, and its number gets an arrow.
        standalone: whether the chart is a file of its own, and not part of a page.
    """
    most = max([min(one.most, limit or one.most) for one in values], default=1.0) or 1.0
    scale = (WIDTH - _LEFT - _NUMBER) / most
    top = 22.0
    bottom = top + _ROW * len(values)
    body = [_text(_LEFT, 12, unit, 'opacity="0.8"')]
    for number, one in enumerate(values):
        body += _bar(one, top + _ROW * number, scale, most)
    height = bottom + 4
    for mark in marks:
        height += 15
        x = _LEFT + mark.value * scale
        label = f"{mark.name}: {shown(mark.value)}"
        if x > WIDTH - 4:
            body.append(_text(WIDTH, height - 4, f"{label} →", 'text-anchor="end"'))
        else:
            body.append(_path(f"M{x:.1f} {top:.0f} V{height - 14:.0f}", 'stroke-dasharray="3 2"'))
            # The label is below its line, and within the edges.
            width = _CHARACTER * len(label)
            body.append(_text(max(0, min(x - width / 2, WIDTH - width)), height - 4, label))
    numbers = [f"{one.name}: {shown(one.value)}" for one in (*values, *marks)]
    return _svg(title, f"{unit}. {'; '.join(numbers)}.", height + 4, body, standalone=standalone)


def _bar(one: Value, y: float, scale: float, most: float) -> Iterator[str]:
    cut = one.value > most
    width = (most if cut else one.value) * scale
    number = shown(one.value) + (" →" if cut else "")
    yield f"<g><title>{html.escape(one.name)}: {number}</title>"
    yield _text(_LEFT - 6, y + 12, one.name, 'text-anchor="end"')
    colour = OURS if one.is_ours else OTHERS
    yield (
        f'<rect x="{_LEFT}" y="{y + 2:.1f}" width="{max(width, 0.5):.1f}" height="13" '
        f'fill="{colour}"/>'
    )
    end = _LEFT + width
    if not cut:
        low, high = _LEFT + one.least * scale, _LEFT + min(one.most, most) * scale
        yield _path(f"M{low:.1f} {y + 8.5:.1f} H{high:.1f}", 'stroke-width="1.2"')
        end = max(end, high)
    yield _text(end + 4, y + 12, number, "")
    yield "</g>"


def lines(
    title: str, unit: str, categories: Sequence[str], series: Sequence[Series], across: str
) -> str:
    """A line for each series, named at its right end.

    Args:
        title: a description of the chart, for screen readers.
        unit: the unit of the numbers.
        categories: the labels of the horizontal axis, from the left.
        series: the lines. Each line has a value, or None, for each category.
        across: the title of the horizontal axis.
    """
    left, right, top, bottom = 52.0, WIDTH - 154.0, 24.0, 196.0
    most = max((value for one in series for value in one.values if value), default=1.0)
    step = _nice(most / 3)
    most = step * math.ceil(most / step)
    body = [_text(0, 12, unit, 'opacity="0.8"')]
    for tick in range(round(most / step) + 1):
        y = bottom - tick * step / most * (bottom - top)
        body.append(_path(f"M{left:.0f} {y:.1f} H{right:.0f}", 'stroke-opacity="0.2"'))
        body.append(_text(left - 4, y + 4, shown(tick * step), 'text-anchor="end"'))
    places = [
        left + 12 + number * (right - left - 24) / max(1, len(categories) - 1)
        for number in range(len(categories))
    ]
    for x, category in zip(places, categories, strict=True):
        body.append(_text(x, bottom + 15, category, 'text-anchor="middle"'))
    body.append(_text((left + right) / 2, bottom + 30, across, 'text-anchor="middle"'))
    ends: list[tuple[float, Series]] = []
    for one in series:
        points = [
            (x, bottom - value / most * (bottom - top))
            for x, value in zip(places, one.values, strict=True)
            if value is not None
        ]
        if not points:
            continue
        colour = OURS if one.is_ours else OTHERS
        way = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        body.append(f"<g><title>{html.escape(_listed(one, categories))}</title>")
        body.append(f'<path d="M{way}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>' for x, y in points]
        body.append("</g>")
        ends.append((points[-1][1], one))
    body += _names(ends, places[-1], right + 6, bottom)
    listed = "; ".join(_listed(one, categories) for one in series)
    return _svg(title, f"{unit}, by {across}. {listed}.", bottom + 38, body)


def _listed(one: Series, categories: Sequence[str]) -> str:
    pairs = zip(categories, one.values, strict=True)
    return f"{one.name}: " + ", ".join(
        f"{shown(value)} ({category})" for category, value in pairs if value is not None
    )


def _names(
    ends: Sequence[tuple[float, Series]], x: float, left: float, bottom: float
) -> Iterator[str]:
    """Yield the names of lines beside their ends, with space between names that are close."""
    ordered = sorted(ends, key=lambda end: end[0])
    places: list[float] = []
    for number, (y, _) in enumerate(ordered):
        lowest = bottom - _NAME * (len(ordered) - 1 - number)
        places.append(min(max(y, places[-1] + _NAME if places else y), lowest))
    for (y, one), place in zip(ordered, places, strict=True):
        yield _path(f"M{x + 4:.1f} {y:.1f} L{left - 2:.1f} {place:.1f}", 'stroke-opacity="0.4"')
        weight = 'font-weight="600"' if one.is_ours else ""
        yield _text(left, place + 4, one.name, weight)


def ranges(
    title: str, unit: str, ends: tuple[str, str], groups: Sequence[tuple[str, Sequence[Range]]]
) -> str:
    """Two points for each client on a logarithmic scale, in groups with headings.

    Args:
        title: a description of the chart, for screen readers.
        unit: the unit of the numbers.
        ends: the meanings of the left and the right points.
        groups: the headings, each with its clients.
    """
    values = [value for _, rows in groups for one in rows for value in (one.low, one.high)]
    least, most = min(values, default=1.0), max(values, default=1.0)
    # The numbers beside the points need space.
    left, right = _LEFT + 36, WIDTH - _NUMBER
    width = math.log(most / least) or 1.0

    def place(value: float) -> float:
        return left + math.log(value / least) / width * (right - left)

    body = [_text(_LEFT, 12, f"{unit}: {ends[0]} ● and {ends[1]} ○", 'opacity="0.8"')]
    y = 18.0
    for heading, rows in groups:
        y += 20
        body.append(_text(0, y - 4, heading, 'font-weight="600"'))
        for one in rows:
            body += _range(one, y, place(one.low), place(one.high))
            y += 18
    listed = "; ".join(
        f"{heading}: "
        + ", ".join(f"{one.name} {shown(one.low)} and {shown(one.high)}" for one in rows)
        for heading, rows in groups
    )
    return _svg(title, f"{unit}, {ends[0]} and {ends[1]}. {listed}.", y + 6, body)


def _range(one: Range, y: float, low: float, high: float) -> Iterator[str]:
    colour = OURS if one.is_ours else OTHERS
    numbers = shown(one.low), shown(one.high)
    yield f"<g><title>{html.escape(one.name)}: {numbers[0]} and {numbers[1]}</title>"
    yield _text(_LEFT - 6, y + 12, one.name, 'text-anchor="end"')
    yield f'<path d="M{low:.1f} {y + 8:.1f} H{high:.1f}" stroke="{colour}" stroke-width="2"/>'
    yield f'<circle cx="{low:.1f}" cy="{y + 8:.1f}" r="4" fill="{colour}"/>'
    yield (
        f'<circle cx="{high:.1f}" cy="{y + 8:.1f}" r="3.2" fill="none" stroke="{colour}" '
        'stroke-width="1.6"/>'
    )
    yield _text(low - 7, y + 12, numbers[0], 'text-anchor="end"')
    yield _text(high + 7, y + 12, numbers[1])
    yield "</g>"


def _nice(step: float) -> float:
    """Return the smallest of 1, 2, 5, 10, 20 ... that is at least as large as the step."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(one * power for one in (1, 2, 5, 10) if one * power >= step * 0.999)


def _path(way: str, attributes: str) -> str:
    return f'<path d="{way}" stroke="currentColor" fill="none" {attributes}/>'


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{html.escape(text)}</text>'


def _svg(
    title: str, description: str, height: float, body: Sequence[str], *, standalone: bool = False
) -> str:
    style = f"display: block; width: 100%; max-width: {_SHOWN}px; height: auto"
    colours = ""
    if standalone:
        colours = (
            f"<style>svg {{ color: {LIGHT_TEXT} }} @media (prefers-color-scheme: dark) "
            f"{{ svg {{ color: {DARK_TEXT} }} }}</style>\n"
        )
    # No element has an id, because several charts are part of one page.
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img"
 aria-label="{html.escape(f"{title}. {description}")}" fill="currentColor" style="{style}"
 font-family="system-ui, sans-serif" font-size="11">
{colours}{chr(10).join(body)}
</svg>
"""
