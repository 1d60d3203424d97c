"""The page of the fault matrix."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree as ET

import pytest

from anyio_sendproducer import RecordMetadata
from tests.faults.drawing import bars, draw
from tests.faults.matrix import (
    DEFAULT_DRIVER,
    Cell,
    Row,
    page,
    rows_page,
    versions,
    write_row,
)
from tests.support.history import WITHDRAWN, History, check
from tests.support.load import Load, Outage, Running
from tests.support.paths import ROOT


def row(group: str, cell: str, loop: str, driver: str = DEFAULT_DRIVER, note: str = "") -> Row:
    report = check(History(), [], delivery_timeout=1, time_to_exit=0.125)
    return Row.of(Cell(group, cell, loop, driver, note), report)


ROWS = [
    row(group, cell, loop, driver, note)
    for group in ("cluster", "process", "wire", "injected")
    for cell, note in (("a", ""), ("b", "About b."))
    for driver in ("confluent", "kafka-python")
    for loop in ("asyncio", "trio")
]


def test_the_page_does_not_depend_on_the_order_of_the_rows() -> None:
    shuffled = ROWS[:]
    random.Random(1).shuffle(shuffled)  # not for security
    assert page(shuffled, []) == page(ROWS, [])
    assert rows_page(shuffled) == rows_page(ROWS)


def test_the_page_has_a_row_for_each_cell_driver_and_loop() -> None:
    lines = rows_page(ROWS).splitlines()
    heads = [line for line in lines if line.startswith("## ")]
    assert heads == ["## Cluster", "## Injected", "## Wire", "## Process"]
    table = lines[lines.index("## Wire") : lines.index("## Process")]
    assert [line.split("|")[1:4] for line in table if line.startswith("| ")] == [
        [" cell ", " driver ", " loop "],
        [" a ", " kafka-python ", " asyncio "],
        [" a ", " kafka-python ", " trio "],
        [" a ", " confluent ", " asyncio "],
        [" a ", " confluent ", " trio "],
        [" b (1) ", " kafka-python ", " asyncio "],
        [" b (1) ", " kafka-python ", " trio "],
        [" b (1) ", " confluent ", " asyncio "],
        [" b (1) ", " confluent ", " trio "],
    ]
    assert "1. About b." in table


def test_the_page_starts_with_the_totals() -> None:
    rows = [dataclasses.replace(one, records=1_000, acknowledged=900) for one in ROWS]
    rows[0] = dataclasses.replace(rows[0], failed={"DeliveryTimeout, not persisted": 100}, lost=2)
    rows[1] = dataclasses.replace(rows[1], withdrawn=3, never_accepted=4)
    rows[-1] = dataclasses.replace(rows[-1], misreported=1, damaged=1, doubled=5, reordered=6)
    lines = page(rows, ["A 1", "B 2"]).splitlines()
    assert (
        "The table covers 8 faults and 32 runs, with A 1 and B 2. These runs sent 32,000 records:"
    ) in lines
    assert [line for line in lines if line.startswith("| ") and "runs" not in line] == [
        "| cluster | kafka-python | 4 | 3,600 | 0 | 0 | 0 |",
        "| cluster | confluent | 4 | 3,600 | 100 | 7 | 2 lost |",
        "| injected | kafka-python | 4 | 3,600 | 0 | 0 | 5 doubled, 6 reordered, 2 misreported |",
        "| injected | confluent | 4 | 3,600 | 0 | 0 | 0 |",
        "| wire | kafka-python | 4 | 3,600 | 0 | 0 | 0 |",
        "| wire | confluent | 4 | 3,600 | 0 | 0 | 0 |",
        "| process | kafka-python | 4 | 3,600 | 0 | 0 | 0 |",
        "| process | confluent | 4 | 3,600 | 0 | 0 | 0 |",
    ]


def test_the_page_explains_each_broken_promise_once() -> None:
    known = dataclasses.replace(row("wire", "b", "asyncio", "confluent", "A reason."), doubled=1)
    text = page([*ROWS, known, dataclasses.replace(known, loop="trio")], [])
    says = "Under the fault *b*, the driver `confluent` broke a promise. A reason. See {doc}"
    assert text.count(says) == 1
    assert "broke a promise" not in page(ROWS, [])


def test_the_page_omits_a_driver_without_rows() -> None:
    assert "| confluent |" not in page([row("wire", "a", "asyncio", "kafka-python")], [])


def test_rows_are_collected_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULT_ROWS", str(tmp_path / "rows"))
    for one in ROWS:
        write_row(one)
    command = [sys.executable, "-m", "tests.faults.matrix"]
    target = tmp_path / "page.md"
    subprocess.run([*command, str(tmp_path / "rows"), str(target)], check=True, cwd=ROOT)
    assert target.read_text() == page(ROWS, versions())
    assert (tmp_path / "page-rows.md").read_text() == rows_page(ROWS)
    picture = target.with_suffix(".svg").read_text()
    assert picture == draw(rows_page(ROWS))
    target.with_suffix(".svg").unlink()
    subprocess.run([*command, "--draw", str(target)], check=True, cwd=ROOT)
    assert target.with_suffix(".svg").read_text() == picture
    assert subprocess.run(command, check=False, cwd=ROOT, capture_output=True).returncode == 2


def test_a_row_has_the_outage_and_the_cpu_time_of_its_client() -> None:
    report = check(History(), [], delivery_timeout=1, time_to_exit=0.125)
    of_this_process = Row.of(Cell("wire", "a", "asyncio"), report, Outage(3.0, 0.25))
    of_another = Row.of(Cell("wire", "b", "asyncio"), report)
    head, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in rows_page([of_this_process, of_another]).splitlines()
        if line.startswith("|")
    ]
    assert head[-2:] == ["outage", "CPU time"]
    assert [line[-2:] for line in lines] == [["3.00", "0.25"], ["", ""]]


class Times:
    """Replaces the module `time`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = self.cpu = 0.0
        monkeypatch.setattr("tests.support.load.time", self)

    def monotonic(self) -> float:
        return self.seconds

    def process_time(self) -> float:
        return self.cpu

    def go_on(self, seconds: float, cpu: float) -> None:
        self.seconds += seconds
        self.cpu += cpu


async def test_the_longest_time_without_an_acknowledgement_is_the_outage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = Times(monkeypatch)
    running = Running(Load(topic="t"), cast("Any", None), History())
    acknowledged = RecordMetadata("t", 0, 0, None, None, None)
    times.go_on(1.0, 0.5)
    running.end(acknowledged)
    assert running.longest_outage == Outage(1.0, 0.5)
    times.go_on(1.0, 0.25)
    # A failure does not end an outage.
    running.end(WITHDRAWN)
    times.go_on(1.0, 0.25)
    running.end(acknowledged)
    times.go_on(1.5, 1.0)
    running.end(acknowledged)
    assert running.longest_outage == Outage(2.0, 0.5)
    # A test can say when the outage begins and ends.
    with running.outage():
        times.go_on(0.5, 0.0)
        running.end(acknowledged)
    assert running.longest_outage == Outage(0.5, 0.0)


def test_a_row_without_a_driver_belongs_to_the_default_driver() -> None:
    old = dataclasses.asdict(ROWS[0])
    del old["driver"]
    assert Row(**old).driver == "kafka-python"


# --- the picture ---------------------------------------------------------------------------------

FAILED = {"DeliveryTimeout, not persisted": 300, "DeliveryError, possibly persisted": 1}


def drawn(**changes: Any) -> str:
    rows = [
        dataclasses.replace(row("wire", "a <cell>", loop, driver, "A note."), **changes)
        for driver in ("confluent", "kafka-python")
        for loop in ("asyncio", "trio")
    ]
    return rows_page(rows)


def test_one_bar_adds_up_all_rows_of_a_cell() -> None:
    [bar] = bars(drawn(records=1_000, acknowledged=600, failed=FAILED, withdrawn=99))
    assert (bar.group, bar.cell, bar.records) == ("Wire", "a <cell>", 4_000)
    assert bar.parts == {
        "acknowledged": 2_400,
        "failed, not persisted": 1_200,
        "failed, possibly persisted": 4,
        "withdrawn": 396,
    }


def widths(picture: str) -> list[float]:
    root = ET.fromstring(picture)
    rows = root.iter("{http://www.w3.org/2000/svg}g")
    return [
        float(rect.attrib["width"]) for row in rows for rect in row.iter() if "width" in rect.attrib
    ]


def test_a_single_record_is_visible_and_the_parts_fill_the_width_of_the_bar() -> None:
    wide = widths(
        draw(drawn(records=1_000_000, acknowledged=999_999, failed={"X, not persisted": 1}))
    )
    assert min(wide) == 2
    assert sum(wide) == pytest.approx(200)
    assert sum(widths(draw(drawn(records=1_000, acknowledged=500)))) == pytest.approx(100)


def test_a_longer_wait_is_further_to_the_right() -> None:
    def place(seconds: float) -> float:
        root = ET.fromstring(draw(drawn(longest_wait=seconds)))
        [circle] = [
            mark
            for bar in root.iter("{http://www.w3.org/2000/svg}g")
            for mark in bar.iter("{http://www.w3.org/2000/svg}circle")
        ]
        return float(circle.attrib["cx"])

    places = [place(seconds) for seconds in (0.01, 0.02, 1, 30, 1_000)]
    assert places == sorted(places)
    assert len(set(places)) == 5


def test_the_picture_has_a_description_and_needs_complete_tables() -> None:
    picture = draw(drawn(records=10, acknowledged=10, longest_wait=1.5))
    assert "In 1 of them, each record was acknowledged" in picture
    assert "The longest wait was 1.5 s, for the fault: a &lt;cell&gt;." in picture
    with pytest.raises(ValueError, match="acknowledged"):
        draw("## Wire\n\n| cell | records |\n|---|---|\n| a | 1 |\n")


def test_the_picture_in_the_documents_matches_their_page() -> None:
    reference = ROOT / "docs/reference"
    assert (reference / "fault-matrix.svg").read_text(encoding="utf-8") == draw(
        (reference / "fault-matrix-rows.md").read_text(encoding="utf-8")
    )


def test_the_legend_explains_the_mark_and_long_labels_are_complete() -> None:
    long = "a fault with a name that is too long for one line of the picture, as some are, and more"
    picture = draw(rows_page([row("wire", long, "asyncio"), row("wire", f"{long}!", "asyncio")]))
    labels = [
        " ".join(text.text or "" for text in group.iter("{http://www.w3.org/2000/svg}text"))
        for group in ET.fromstring(picture).iter("{http://www.w3.org/2000/svg}g")
    ]
    assert labels == [long, f"{long}!"]
    assert ">longest wait</text>" in picture
