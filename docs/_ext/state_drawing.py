"""Draws a table of transitions, a mapping of each state to a mapping of event names to next states.

The first state is the start, and a state without events is an end. The picture is SVG in the colour
of the text, so it fits a light and a dark page. This module does not import Sphinx, so that the
tests can check the pictures.
"""

from __future__ import annotations

import enum
import html
import itertools
import textwrap
from collections.abc import Mapping

from layered_layout import Box, Link, lay_out

Transitions = Mapping[enum.Enum, Mapping[str, enum.Enum]]

# In pixels. The text column of the theme has about 730 pixels.
_FONT = 13.0
_LINE = 16.0
_STATE_HEIGHT = 34.0
_STATE_PADDING = 16.0
_GAP = 11.0
_LAYER_GAP = 20.0
_MARGIN = 4.0
_START = 30.0
_LOOP = 26.0
#: The width of a letter and of a capital of a sans-serif font, from the height of the font.
_LETTER = 0.54 * _FONT
_CAPITAL = 0.72 * _FONT
#: The smallest scale of the picture, at which its text can be read. On a smaller screen, its
#: box scrolls. The pictures fit on a phone of 360 pixels.
_SMALLEST = 0.7
#: Labels are wrapped at this number of letters, so that the picture stays narrow.
_LABEL_LETTERS = 10


def draw(table: Transitions, *, title: str, name: str) -> str:
    """Draw a table of transitions.

    Args:
        table: the transitions.
        title: what a screen reader calls the picture.
        name: makes the ids in the picture unique on their page.

    Returns:
        An ``svg`` element.
    """
    labels = _labels(table)
    layout = lay_out(
        {state: _state_box(state, labels) for state in table},
        {ends: _label_box(events) for ends, events in labels.items()},
        gap=_GAP,
        layer_gap=_LAYER_GAP,
    )
    ident = name.replace(".", "-").replace("_", "-").lower()
    parts = [_edge(link, layout.links, layout.nodes, f"{ident}-arrow") for link in layout.links]
    parts += [_label(link, layout.nodes, labels[link.source, link.target]) for link in layout.links]
    parts += [_state(state, layout.nodes[state], end=not table[state]) for state in table]
    parts.append(_start(layout.nodes[next(iter(table))], f"{ident}-arrow"))

    width = layout.width + 2 * _MARGIN
    height = layout.height + _START + 2 * _MARGIN
    view = f"{-_MARGIN:g} {-_MARGIN - _START:g} {width:.0f} {height:.0f}"
    style = "display: block; margin: 1.5rem auto; width: 100%; height: auto"
    style += f"; min-width: {_SMALLEST * width:.0f}px; max-width: {width:.0f}px"
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" class="state-machine" viewBox="{view}"
 role="img" aria-labelledby="{ident}-title {ident}-desc"
 style="{style}" fill="none" stroke="currentColor" stroke-width="1.3"
 font-family="system-ui, sans-serif" font-size="{_FONT:g}">
<title id="{ident}-title">{html.escape(title)}</title>
<desc id="{ident}-desc">{html.escape(_describe(table))}</desc>
<defs>
<marker id="{ident}-arrow" viewBox="0 0 10 10" refX="9" refY="5"
 markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 1 L10 5 L0 9 z" fill="currentColor" stroke="none"/>
</marker>
</defs>
{chr(10).join(parts)}
</svg>"""


def _labels(table: Transitions) -> dict[tuple[enum.Enum, enum.Enum], list[str]]:
    """The lines of text beside each arrow. Events with the same effect share an arrow."""
    labels: dict[tuple[enum.Enum, enum.Enum], list[str]] = {}
    for state, events in table.items():
        for event, following in events.items():
            lines = textwrap.wrap(event, _LABEL_LETTERS, break_long_words=False)
            labels.setdefault((state, following), []).extend(lines)
    return labels


def _half_width(state: enum.Enum) -> float:
    return len(state.name) * _CAPITAL / 2 + _STATE_PADDING


def _state_box(state: enum.Enum, labels: Mapping[tuple[enum.Enum, enum.Enum], list[str]]) -> Box:
    half = _half_width(state)
    loop = labels.get((state, state))
    return Box(half, half + (_LOOP + _text_width(loop) if loop else 0), _STATE_HEIGHT)


def _label_box(lines: list[str]) -> Box:
    return Box(3, 8 + _text_width(lines), len(lines) * _LINE)


def _text_width(lines: list[str]) -> float:
    return max(map(len, lines)) * _LETTER


def _state(state: enum.Enum, box: Box, *, end: bool) -> str:
    def outline(inset: float, fill: str) -> str:
        return (
            f'<rect x="{box.x - box.left + inset:.1f}" y="{box.y - _STATE_HEIGHT / 2 + inset:.1f}" '
            f'width="{2 * (box.left - inset):.1f}" height="{_STATE_HEIGHT - 2 * inset:.1f}" '
            f'rx="{9 - inset:g}" {fill}/>'
        )

    frame = outline(0, 'fill="currentColor" fill-opacity="0.07"')
    if end:
        frame += outline(3.5, 'stroke-width="0.8"')
    return frame + _text(box.x, box.y, [state.name], 'text-anchor="middle" font-weight="600"')


def _start(box: Box, arrow: str) -> str:
    top = box.y - _STATE_HEIGHT / 2
    return (
        f'<circle cx="{box.x:.1f}" cy="{top - _START + 5:.1f}" r="5" fill="currentColor" '
        f'stroke="none"/><path d="M{box.x:.1f} {top - _START + 10:.1f} V{top:.1f}" '
        f'marker-end="url(#{arrow})"/>'
    )


def _edge(
    link: Link[enum.Enum],
    links: list[Link[enum.Enum]],
    boxes: Mapping[enum.Enum, Box],
    arrow: str,
) -> str:
    """An arrow that is straight within the rows, and bends only between them."""
    source = boxes[link.source]
    if link.source == link.target:
        x, y = source.x + _half_width(link.source), source.y
        path = f"M{x:.1f} {y - 8:.1f} c{_LOOP:g} -10 {_LOOP:g} 26 0 16"
        return f'<path d="{path}" marker-end="url(#{arrow})"/>'
    start = _port(link, link.source, links, boxes)
    down = 1 if link.path[0].y > start[1] else -1
    points = [start]
    for box in link.path:
        points += [(box.x, box.y - down * box.row / 2), (box.x, box.y + down * box.row / 2)]
    points.append(_port(link, link.target, links, boxes))
    path = f"M{start[0]:.1f} {start[1]:.1f}"
    for number, ((x, y), (to_x, to_y)) in enumerate(itertools.pairwise(points)):
        if number % 2:
            path += f" V{to_y:.1f}"
        else:
            middle = (y + to_y) / 2
            path += f" C{x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {to_y:.1f}"
    return f'<path d="{path}" marker-end="url(#{arrow})"/>'


def _port(
    link: Link[enum.Enum],
    state: enum.Enum,
    links: list[Link[enum.Enum]],
    boxes: Mapping[enum.Enum, Box],
) -> tuple[float, float]:
    """Find where a link meets a state. The links on one side of a state share that side evenly, in
    order."""
    box = boxes[state]

    def nearest(other: Link[enum.Enum]) -> Box:
        return other.path[0] if other.source == state else other.path[-1]

    below = nearest(link).layer > box.layer
    side = sorted(
        (
            other
            for other in links
            if other.path
            and state in (other.source, other.target)
            and (nearest(other).layer > box.layer) == below
        ),
        key=lambda other: nearest(other).x,
    )
    width = 2 * (_half_width(state) - _STATE_PADDING)
    x = box.x + width * ((side.index(link) + 0.5) / len(side) - 0.5)
    return x, box.y + (_STATE_HEIGHT / 2 if below else -_STATE_HEIGHT / 2)


def _label(link: Link[enum.Enum], boxes: Mapping[enum.Enum, Box], lines: list[str]) -> str:
    if link.label is None:
        box = boxes[link.source]
        return _text(box.x + _half_width(link.source) + _LOOP, box.y, lines)
    return _text(link.label.x + 8, link.label.y, lines)


def _text(x: float, y: float, lines: list[str], attributes: str = "") -> str:
    first = y - (len(lines) - 1) * _LINE / 2
    spans = "".join(
        f'<tspan x="{x:.1f}" y="{first + number * _LINE:.1f}">{html.escape(line)}</tspan>'
        for number, line in enumerate(lines)
    )
    return (
        f'<text fill="currentColor" stroke="none" dominant-baseline="central" {attributes}>'
        f"{spans}</text>"
    )


def _describe(table: Transitions) -> str:
    """Describe the picture in words, for screen readers."""
    return " ".join(f"{sentence}." for sentence in sentences(table))


def sentences(table: Transitions) -> list[str]:
    """Describe the start, each transition and the ends in words."""
    described = [f"It starts in {next(iter(table)).name}"]
    for state, events in table.items():
        described += [
            f"From {state.name}, on “{event}”, to {following.name}"
            for event, following in events.items()
        ]
    ends = [state.name for state, events in table.items() if not events]
    if ends:
        described.append(f"It ends in {', '.join(ends)}")
    return described
