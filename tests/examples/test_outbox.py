"""The outbox in ``examples/``, in its own process.

``tests/kafka/test_examples.py`` kills the relay while it runs on Apache Kafka.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import socket
import sqlite3
import sys
from pathlib import Path

import pytest
from confluent_kafka import KafkaException

from anyio_sendproducer.testing import EmbeddedBroker
from examples import outbox
from tests.support.example_process import SOON, read, running
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


def fill(database: Path, first: int, count: int) -> None:
    """Put orders of ten customers into the outbox, in few database transactions."""
    with outbox.connect(database) as db:
        db.executemany(
            "INSERT INTO outbox (topic, key, value) VALUES ('orders', ?, ?)",
            [
                (b"customer %d" % (number % 10), b"%d" % number)
                for number in range(first, first + count)
            ],
        )


def rows_left(database: Path) -> int:
    with contextlib.closing(sqlite3.connect(database)) as db:
        return int(db.execute("SELECT count(*) FROM outbox").fetchone()[0])


async def assert_moved(broker: EmbeddedBroker, count: int) -> None:
    """Assert that each row is in the topic once, and that the rows of a customer are in order."""
    numbers: dict[bytes | None, list[int]] = collections.defaultdict(list)
    for one in await read(broker, "orders"):
        numbers[one.key].append(int(one.value or b""))
    assert sorted(itertools.chain.from_iterable(numbers.values())) == list(range(count))
    for of_customer in numbers.values():
        assert of_customer == sorted(of_customer)


async def test_rows_are_moved_and_ctrl_c_finishes_the_open_transaction(
    broker: EmbeddedBroker, anyio_backend_name: str, tmp_path: Path
) -> None:
    database = tmp_path / "shop.db"
    outbox.create_tables(database)
    outbox.place_order(database, "customer 0", "0")
    fill(database, 1, 1_199)
    arguments = [str(database), "--backend", anyio_backend_name]
    env = {"OUTBOX_BOOTSTRAP_SERVERS": str(broker)}

    async with running("outbox.py", *arguments, env=env) as example:
        await example.line("Kafka has the rows to 0")
        await until(lambda: rows_left(database) == 0)
        broker.pause()
        fill(database, 1_200, 700)
        await example.line("moving the rows from 1201 to ")
        example.interrupt()
        broker.resume()
        assert await example.code(within=SOON) == 0
    left = rows_left(database)
    assert 0 < left <= 700
    await assert_moved(broker, 1_900 - left)

    async with running("outbox.py", *arguments, env=env) as example:
        await example.line(f"Kafka has the rows to {1_900 - left}$")
        await until(lambda: rows_left(database) == 0)
        example.interrupt()
        assert await example.code(within=SOON) == 0
    await assert_moved(broker, 1_900)
    with contextlib.closing(sqlite3.connect(database)) as db:
        assert db.execute("SELECT customer, item FROM orders").fetchall() == [("customer 0", "0")]


async def test_a_second_ctrl_c_aborts_the_open_transaction(
    broker: EmbeddedBroker, anyio_backend_name: str, tmp_path: Path
) -> None:
    database = tmp_path / "shop.db"
    outbox.create_tables(database)
    env = {"OUTBOX_BOOTSTRAP_SERVERS": str(broker), "OUTBOX_CANCEL_TIMEOUT": "0.3"}
    arguments = [str(database), "--backend", anyio_backend_name]
    async with running("outbox.py", *arguments, env=env) as example:
        await example.line("Kafka has the rows to 0")
        broker.pause()
        fill(database, 0, 10)
        await example.line("moving the rows")
        example.interrupt()
        # Without this wait, the process could see both signals as one.
        await example.line("finishing the open transaction")
        example.interrupt()
        assert await example.code(within=SOON) == 130
        broker.resume()
    assert rows_left(database) == 10


async def test_the_error_names_the_row_that_kafka_refuses(
    broker: EmbeddedBroker, anyio_backend_name: str, tmp_path: Path
) -> None:
    database = tmp_path / "shop.db"
    outbox.create_tables(database)
    fill(database, 0, 3)
    with outbox.connect(database) as db:
        db.execute("INSERT INTO outbox (topic, value) VALUES ('two words', x'00')")
    arguments = [str(database), "--backend", anyio_backend_name]
    env = {"OUTBOX_BOOTSTRAP_SERVERS": str(broker)}
    async with running("outbox.py", *arguments, env=env) as example:
        assert await example.code(within=SOON) == 1
        assert "outbox: row 4 of the outbox: topic 'two words' has" in example.errors
    assert rows_left(database) == 4


async def test_the_outbox_does_not_start_without_a_broker(
    anyio_backend_name: str, tmp_path: Path
) -> None:
    env = {"OUTBOX_BOOTSTRAP_SERVERS": "127.0.0.1:1", "OUTBOX_START_TIMEOUT": "0.5"}
    arguments = [str(tmp_path / "shop.db"), "--backend", anyio_backend_name]
    async with running("outbox.py", *arguments, env=env) as example:
        assert await example.code(within=SOON) == 1
        assert "127.0.0.1:1" in example.errors


def test_a_cluster_that_is_silent_after_the_start_is_an_error_of_kafka(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outbox, "ANSWER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(KafkaException, match="Timed out"):
            outbox.create_positions(address)
