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
from tests.faults.matrix import DEFAULT_DRIVER, Cell, Row, page, versions, write_row
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


def test_the_page_is_the_same_in_whatever_order_the_rows_come() -> None:
    shuffled = ROWS[:]
    random.Random(1).shuffle(shuffled)  # no secret
    assert page(shuffled, []) == page(ROWS, [])


def test_the_page_has_a_row_for_each_cell_driver_and_loop() -> None:
    lines = page(ROWS, []).splitlines()
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


def test_the_page_begins_with_what_it_comes_to() -> None:
    rows = [dataclasses.replace(one, records=1_000, acknowledged=900) for one in ROWS]
    rows[0] = dataclasses.replace(rows[0], failed={"DeliveryTimeout, not persisted": 100}, lost=2)
    rows[1] = dataclasses.replace(rows[1], withdrawn=3, never_accepted=4)
    assert (
        "8 cells in 32 rows, 32,000 records: 28,800 acknowledged, 100 failed with the truth told, "
        "7 withdrawn, 2 lost, 0 doubled, 0 reordered, 0 misreported. Run with A 1, B 2."
    ) in page(rows, ["A 1", "B 2"])


def test_rows_are_collected_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULT_ROWS", str(tmp_path / "rows"))
    for one in ROWS:
        write_row(one)
    command = [sys.executable, "-m", "tests.faults.matrix", str(tmp_path / "rows")]
    target = tmp_path / "page.md"
    subprocess.run([*command, str(target)], check=True, cwd=ROOT)
    assert target.read_text() == page(ROWS, versions())
    picture = target.with_suffix(".svg").read_text()
    assert picture == draw(page(ROWS, versions()))
    target.with_suffix(".svg").unlink()
    subprocess.run([*command[:3], "--draw", str(target)], check=True, cwd=ROOT)
    assert target.with_suffix(".svg").read_text() == picture
    printed = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    assert printed.stdout == page(ROWS, versions())
    assert subprocess.run(command[:3], check=False, cwd=ROOT, capture_output=True).returncode == 2


def test_a_row_has_the_outage_and_the_cpu_time_of_the_client_in_it() -> None:
    report = check(History(), [], delivery_timeout=1, time_to_exit=0.125)
    of_this_process = Row.of(Cell("wire", "a", "asyncio"), report, Outage(3.0, 0.25))
    of_another = Row.of(Cell("wire", "b", "asyncio"), report)
    head, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page([of_this_process, of_another], []).splitlines()
        if line.startswith("|")
    ]
    assert head[-2:] == ["outage", "CPU time"]
    assert [line[-2:] for line in lines] == [["3.00", "0.25"], ["", ""]]


class Times:
    """Stands in for the module `time`."""

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


def test_a_row_that_names_no_driver_is_of_the_default_one() -> None:
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
    return page(rows, [])


def test_a_cell_is_one_bar_of_all_its_rows() -> None:
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


def test_one_record_of_many_is_seen_and_no_bar_is_longer_than_all() -> None:
    wide = widths(
        draw(drawn(records=1_000_000, acknowledged=999_999, failed={"X, not persisted": 1}))
    )
    assert min(wide) == 2
    assert sum(wide) == pytest.approx(240)
    assert sum(widths(draw(drawn(records=1_000, acknowledged=500)))) == pytest.approx(120)


def test_a_longer_wait_is_further_to_the_right() -> None:
    def place(seconds: float) -> float:
        root = ET.fromstring(draw(drawn(longest_wait=seconds)))
        [circle] = root.iter("{http://www.w3.org/2000/svg}circle")
        return float(circle.attrib["cx"])

    places = [place(seconds) for seconds in (0.01, 0.02, 1, 30, 1_000)]
    assert places == sorted(places)
    assert len(set(places)) == 5


def test_the_picture_is_told_in_words_and_says_nothing_else_than_the_tables() -> None:
    picture = draw(drawn(records=10, acknowledged=10, longest_wait=1.5))
    assert "In 1 of them each record was acknowledged" in picture
    assert "The longest wait was 1.5 s, under: a &lt;cell&gt;." in picture
    with pytest.raises(ValueError, match="acknowledged"):
        draw("## Wire\n\n| cell | records |\n|---|---|\n| a | 1 |\n")


def test_the_documents_picture_is_of_their_page() -> None:
    target = ROOT / "docs/reference/fault-matrix.md"
    assert target.with_suffix(".svg").read_text(encoding="utf-8") == draw(
        target.read_text(encoding="utf-8")
    )
