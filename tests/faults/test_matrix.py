"""The page of the fault matrix."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.matrix import DEFAULT_DRIVER, Cell, Row, page, versions, write_row
from tests.history import History, check

ROOT = Path(__file__).parents[2]


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
    assert (
        "8 cells in 32 rows, 32,000 records: 28,800 acknowledged, 100 failed with the truth told, "
        "2 lost, 0 doubled, 0 reordered, 0 misreported. Run with A 1, B 2."
    ) in page(rows, ["A 1", "B 2"])


def test_rows_are_collected_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULT_ROWS", str(tmp_path / "rows"))
    for one in ROWS:
        write_row(one)
    command = [sys.executable, "-m", "tests.faults.matrix", str(tmp_path / "rows")]
    target = tmp_path / "page.md"
    subprocess.run([*command, str(target)], check=True, cwd=ROOT)
    assert target.read_text() == page(ROWS, versions())
    printed = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    assert printed.stdout == page(ROWS, versions())
    assert subprocess.run(command[:3], check=False, cwd=ROOT, capture_output=True).returncode == 2


def test_a_row_that_names_no_driver_is_of_the_default_one() -> None:
    old = dataclasses.asdict(ROWS[0])
    del old["driver"]
    assert Row(**old).driver == "kafka-python"
