"""Places the nodes of a small directed graph in layers, after Sugiyama, Tagawa and Toda.

This module avoids a dependency on an external program such as Graphviz. It has no knowledge of
states or SVG: it takes boxes and links, and returns coordinates. The same graph always gives the
same picture.

Labels are also boxes. Each label has its own layer, between the layers of the nodes that its link
joins. So a label never overlaps a node, another label, or the line of another link.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

N = TypeVar("N", bound=Hashable)

#: The number of sweeps over the layers, down and up. The orders are stable after four or five.
_SWEEPS = 8
#: The number of random orders to start from: one start often ends in a local optimum.
_STARTS = 60
#: The weight of a long link's straightness, relative to the straightness at one of its ends.
_LONG = 30


@dataclass(eq=False)
class Box:
    """A place on a layer: a node, a label, or a point where a long link passes.

    ``left`` and ``right`` are the widths that it needs on each side of ``x``. ``row`` is the height
    of its layer. A link that is straight within the rows, and bends only between them, touches no
    box.
    """

    left: float
    right: float
    height: float
    layer: int = 0
    x: float = 0.0
    y: float = 0.0
    row: float = 0.0
    passing: bool = False
    above: list[Box] = field(default_factory=list["Box"])
    below: list[Box] = field(default_factory=list["Box"])


@dataclass
class Link(Generic[N]):
    """A link as drawn: from ``source`` through the boxes of ``path`` to ``target``.

    ``label`` is the box of the path that has the label's size. It is None for a link from a node to
    itself, which is not laid out.
    """

    source: N
    target: N
    path: list[Box] = field(default_factory=list[Box])
    label: Box | None = None


@dataclass
class Layout(Generic[N]):
    """The places of all boxes and links; the origin is at the top left."""

    nodes: dict[N, Box]
    links: list[Link[N]]
    width: float
    height: float


def lay_out(
    nodes: Mapping[N, Box],
    links: Mapping[tuple[N, N], Box],
    *,
    gap: float,
    layer_gap: float,
) -> Layout[N]:
    """Place nodes and the labels of their links.

    Args:
        nodes: a box for each node, of the node's size; the first one goes to the top.
        links: a box for each link's label, of the label's size.
        gap: the least distance between boxes of one layer.
        layer_gap: the distance between layers.
    """
    back = _back_links(nodes, [ends for ends in links if ends[0] != ends[1]])
    down = {ends: ends[::-1] if ends in back else ends for ends in links if ends[0] != ends[1]}
    for node, rank in _ranks(nodes, down.values()).items():
        nodes[node].layer = 2 * rank  # the odd layers are for the labels

    drawn: list[Link[N]] = []
    passing: list[Box] = []
    for (source, target), label in links.items():
        link = Link(source, target)
        drawn.append(link)
        if source == target:
            continue
        upper, lower = (nodes[node] for node in down[source, target])
        # Beside the node that it leaves, a label is read as one of that node's events.
        beside = upper.layer + 1 if upper is nodes[source] else lower.layer - 1
        path = [
            label if layer == beside else Box(0, 0, 0)
            for layer in range(upper.layer + 1, lower.layer)
        ]
        for layer, box in enumerate(path, upper.layer + 1):
            box.layer = layer
            box.passing = True
        for one, other in itertools.pairwise([upper, *path, lower]):
            one.below.append(other)
            other.above.append(one)
        passing += path
        link.path = path if upper is nodes[source] else path[::-1]
        link.label = label

    layers = _in_layers([*nodes.values(), *passing])
    _order(layers)
    _place_across(layers, gap)
    height = _place_down(layers, layer_gap)
    width = max(box.x + box.right for layer in layers for box in layer)
    return Layout(dict(nodes), drawn, width, height)


def _back_links(nodes: Iterable[N], links: Sequence[tuple[N, N]]) -> set[tuple[N, N]]:
    """Find the links that lead back to a node on the path from the first node."""
    back: set[tuple[N, N]] = set()
    done: set[N] = set()

    def walk(node: N, on_the_way: frozenset[N]) -> None:
        for source, target in links:
            if source != node:
                continue
            if target in on_the_way:
                back.add((source, target))
            elif target not in done:
                walk(target, on_the_way | {target})
        done.add(node)

    for node in nodes:
        if node not in done:
            walk(node, frozenset([node]))
    return back


def _ranks(nodes: Iterable[N], links: Iterable[tuple[N, N]]) -> dict[N, int]:
    """Find the layer of each node: one below the lowest node that leads to it.

    All nodes without outgoing links are in the bottom layer: they are the ends.
    """
    links = list(links)
    ranks = dict.fromkeys(nodes, 0)
    for _ in ranks:
        for source, target in links:
            ranks[target] = max(ranks[target], ranks[source] + 1)
    bottom = max(ranks.values())
    ends = set(ranks) - {source for source, _ in links}
    return {node: bottom if node in ends else rank for node, rank in ranks.items()}


def _in_layers(boxes: Iterable[Box]) -> list[list[Box]]:
    layers: dict[int, list[Box]] = {}
    for box in boxes:
        layers.setdefault(box.layer, []).append(box)
    return [layers[number] for number in sorted(layers)]


def _order(layers: list[list[Box]]) -> None:
    """Order each layer so that few links cross."""
    shuffle = random.Random(0).shuffle  # noqa: S311  # not for cryptography
    best = [list(layer) for layer in layers]
    fewest = _crossings(layers)
    for _ in range(_STARTS):
        for sweep in range(_SWEEPS):
            _sweep(layers, downwards=sweep % 2 == 0)
            if (crossings := _crossings(layers)) < fewest:
                fewest = crossings
                best = [list(layer) for layer in layers]
        if fewest == 0:
            break
        for layer in layers:
            shuffle(layer)
    layers[:] = best


def _sweep(layers: list[list[Box]], *, downwards: bool) -> None:
    """Put each box at the mean of its neighbours' places; then swap boxes if that helps."""
    before: list[Box] = []
    for layer in layers if downwards else reversed(layers):
        place = {box: number for number, box in enumerate(before)}
        own = {box: number for number, box in enumerate(layer)}

        def mean(box: Box, place: dict[Box, int] = place, own: dict[Box, int] = own) -> float:
            near = box.above if downwards else box.below
            return _mean([place[other] for other in near]) if near else own[box]

        layer.sort(key=mean)
        before = layer
    _swap_neighbours(layers)


def _swap_neighbours(layers: list[list[Box]]) -> None:
    for layer in layers:
        for i in range(len(layer) - 1):
            before = _crossings(layers)
            layer[i : i + 2] = layer[i + 1], layer[i]
            if _crossings(layers) >= before:
                layer[i : i + 2] = layer[i + 1], layer[i]


def _crossings(layers: list[list[Box]]) -> int:
    place = {box: number for layer in layers for number, box in enumerate(layer)}
    return sum(
        (place[a] - place[b]) * (place[under_a] - place[under_b]) < 0
        for layer in layers
        for a, b in itertools.combinations(layer, 2)
        for under_a in a.below
        for under_b in b.below
    )


def _place_across(layers: list[list[Box]], gap: float) -> None:
    """Give each box its x: as near to its neighbours' as its layer's order and widths allow."""
    for layer in layers:
        _settle(layer, [0.0] * len(layer), gap)
    for sweep in range(8 * _SWEEPS):
        for layer in layers if sweep % 2 else reversed(layers):
            _settle(layer, list(map(_wanted, layer)), gap)
    leftmost = min(box.x - box.left for layer in layers for box in layer)
    for box in itertools.chain.from_iterable(layers):
        box.x -= leftmost


def _wanted(box: Box) -> float:
    """Find the place where a box is straight below or above its neighbours: at their mean.

    If a long link passes through a box, its next box has a larger weight, so that long links are
    straight.
    """
    weights = {
        other: _LONG if box.passing and other.passing else 1 for other in box.above + box.below
    }
    if not weights:
        return box.x
    return sum(other.x * weight for other, weight in weights.items()) / sum(weights.values())


def _settle(layer: list[Box], wanted: list[float], gap: float) -> None:
    """Move each box as little as possible from its wanted place (least squares, in order).

    Pool adjacent violators: boxes that would overlap become one block, which goes to the mean.
    """
    offsets = [0.0]
    for one, other in itertools.pairwise(layer):
        offsets.append(offsets[-1] + one.right + gap + other.left)
    blocks: list[list[float]] = []
    for want, offset in zip(wanted, offsets, strict=True):
        blocks.append([want - offset])
        while len(blocks) > 1 and _mean(blocks[-2]) >= _mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    places = [_mean(block) for block in blocks for _ in block]
    for box, place, offset in zip(layer, places, offsets, strict=True):
        box.x = place + offset


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _place_down(layers: list[list[Box]], layer_gap: float) -> float:
    """Give each layer its y, the middle of its highest box; return the total height."""
    y = 0.0
    for layer in layers:
        height = max(box.height for box in layer)
        for box in layer:
            box.y = y + height / 2
            box.row = height
        y += height + layer_gap
    return y - layer_gap
