"""Moves the rows of an outbox, a table of SQLite, to Kafka: each of them exactly once, in order.

    OUTBOX_BOOTSTRAP_SERVERS=localhost:9092 python outbox.py shop.db --name shop

A service writes what it has to tell into the table, in the database transaction that changes
everything else, as ``place_order`` does here. This program, the relay, takes the rows to Kafka.

A row's record and the row's id are sent in one transaction of Kafka's: the id goes to a topic of
its own, ``outbox-positions``. So Kafka itself knows how far it has got, and no crash comes between
the two. Rows leave the table when Kafka has them, and it does not matter when. Whoever starts, or
does not know how a transaction ended, first has the brokers decide it, by beginning another one,
and then reads on from the position that was committed.

Exactly once holds for consumers that read with ``isolation.level=read_committed``. Two relays of
one name do no harm: the later one fences off the earlier one, which ends.

Ctrl-C or SIGTERM: the transaction that is open is finished, then it ends. A second one aborts it.
Exit codes: 0 after a signal, 130 after a second one, 1 where it can't go on, and it says why.
Variables that begin with OUTBOX_ are settings of the producer.

The standard library's sqlite3 is used in worker threads, and no aiosqlite, which knows asyncio
alone: this runs on asyncio and on Trio.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sqlite3
import sys
from collections.abc import Generator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import anyio
import anyio.abc
from anyio.to_thread import run_sync
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from anyio_sendproducer import (
    MultiDeliveryError,
    ProducerBroken,
    ProducerFenced,
    ProducerRecord,
    ProducerSettings,
    ProducerStartError,
    RecordRejected,
    SendProducer,
    TransactionError,
    open_send_producer,
)

log = logging.getLogger("outbox")

#: How far each relay has got. Compacted, so that Kafka keeps the last position of each for ever; a
#: consumer group's offsets are forgotten after a week in which nothing was moved.
POSITIONS: Final = "outbox-positions"

#: Rows in a transaction, and in memory.
BATCH: Final = 500

#: Seconds between two looks at a table that has nothing new.
POLL_SECONDS: Final = 0.2

#: Seconds until another try, where Kafka is away.
RETRY_SECONDS: Final = 1.0

#: Seconds that the consumer waits for an answer.
ANSWER_SECONDS: Final = 10.0

DEFAULTS: Final[Mapping[str, str]] = {
    "OUTBOX_BOOTSTRAP_SERVERS": "localhost:9092",
    "OUTBOX_DELIVERY_TIMEOUT": "20",
}


# --- the table -----------------------------------------------------------------------------------


class Row(NamedTuple):
    """A row of the outbox."""

    id: int
    topic: str
    key: bytes | None
    value: bytes | None


class RowRefused(Exception):
    """Kafka will never take this row, and those behind it must wait: somebody has to look."""


@contextlib.contextmanager
def connect(database: Path) -> Generator[sqlite3.Connection]:
    """A connection for one database transaction, which is committed unless the block raises."""
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as db, db:
        yield db


def create_tables(database: Path) -> None:
    """Make what is not there yet."""
    with contextlib.closing(sqlite3.connect(database)) as db:
        # Who reads does not hold up who writes.
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, customer, item)")
        # AUTOINCREMENT: an id is never given twice, although rows are deleted. SQLite has one
        # writer at a time, so no row appears before another one whose id is lower.
        db.execute(
            "CREATE TABLE IF NOT EXISTS outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, "
            "topic TEXT NOT NULL, key BLOB, value BLOB)"
        )


def place_order(database: Path, customer: str, item: str) -> None:
    """What the service does: the order and the word of it are there together, or neither is."""
    with connect(database) as db:
        db.execute("INSERT INTO orders (customer, item) VALUES (?, ?)", (customer, item))
        db.execute(
            "INSERT INTO outbox (topic, key, value) VALUES ('orders', ?, ?)",
            (customer.encode(), item.encode()),
        )


def read_rows(database: Path, position: int) -> list[Row]:
    """The next rows behind a position."""
    with connect(database) as db:
        found = db.execute(
            "SELECT id, topic, key, value FROM outbox WHERE id > ? ORDER BY id LIMIT ?",
            (position, BATCH),
        )
        return [Row(*row) for row in found]


def forget_rows(database: Path, position: int) -> None:
    """Delete what Kafka has."""
    with connect(database) as db:
        db.execute("DELETE FROM outbox WHERE id <= ?", (position,))


# --- the position --------------------------------------------------------------------------------


def create_positions(servers: str) -> None:
    """Make the topic of the positions, where it is not there yet. Blocks."""
    admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
    topic = NewTopic(POSITIONS, num_partitions=1, config={"cleanup.policy": "compact"})
    created = cast("dict[str, Any]", admin.create_topics([topic]))  # pyright: ignore[reportUnknownMemberType]
    try:
        created[POSITIONS].result(ANSWER_SECONDS)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise


def read_position(servers: str, name: str) -> int:
    """The id of the last row whose transaction was committed; 0 for none. Blocks."""
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": "outbox",  # required by the client; nothing is committed under it
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "log_level": 0,
        }
    )
    position = 0
    try:
        consumer.assign([TopicPartition(POSITIONS, 0, OFFSET_BEGINNING)])
        while True:
            message = consumer.poll(ANSWER_SECONDS)
            if message is None:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
            error = message.error()
            if error is None:
                if message.key() == name.encode():
                    position = int(message.value() or b"0")
            elif error.code() == KafkaError._PARTITION_EOF:
                return position
            elif not error.retriable() and error.code() > 0:
                raise KafkaException(error)
    finally:
        consumer.close()


async def find_position(producer: SendProducer, servers: str, name: str) -> int:
    """How far the relay of this name has got, when that can't change any more."""
    async with producer.transaction():
        pass  # when it has begun, the one before is decided, whoever began that
    return await run_sync(read_position, servers, name)


# --- the relay -----------------------------------------------------------------------------------


async def move_rows(producer: SendProducer, name: str, rows: list[Row]) -> None:
    """Send rows, and the position behind them, in one transaction."""
    async with producer.transaction() as tx:
        try:
            await tx.send_many(
                [
                    *(ProducerRecord(row.topic, row.value, row.key) for row in rows),
                    ProducerRecord(POSITIONS, b"%d" % rows[-1].id, name.encode(), partition=0),
                ]
            )
        except MultiDeliveryError as error:
            for row, part in zip(rows, error.parts):  # noqa: B905  # the last part is no row's
                if isinstance(part, RecordRejected):
                    raise RowRefused(f"row {row.id} of the outbox: {part}") from error
            raise


async def relay(
    producer: SendProducer, servers: str, database: Path, name: str, stopping: anyio.Event
) -> None:
    """Move rows until it is time to stop."""
    position: int | None = None
    while not stopping.is_set():
        try:
            if position is None:
                position = await find_position(producer, servers, name)
                log.info("Kafka has the rows to %d", position)
                await run_sync(forget_rows, database, position)
            rows: list[Row] = await run_sync(read_rows, database, position)
            if not rows:
                await pause(stopping, POLL_SECONDS)
                continue
            log.info("moving the rows from %d to %d", rows[0].id, rows[-1].id)
            await move_rows(producer, name, rows)
        except ProducerFenced:
            raise
        except (MultiDeliveryError, TransactionError, KafkaException) as error:
            # It was aborted, or nobody knows: Kafka does.
            log.warning("again from where Kafka is: %s", error)
            position = None
            await pause(stopping, RETRY_SECONDS)
        else:
            position = rows[-1].id
            await run_sync(forget_rows, database, position)


async def pause(stopping: anyio.Event, seconds: float) -> None:
    """Wait, unless it is time to stop."""
    with anyio.move_on_after(seconds):
        await stopping.wait()


async def stop_on_signal(
    stopping: anyio.Event,
    scope: anyio.CancelScope,
    *,
    task_status: anyio.abc.TaskStatus[None],
) -> None:
    """The first Ctrl-C or SIGTERM asks for the end, and the second one insists on it."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            if stopping.is_set():
                scope.cancel()
            else:
                log.info("finishing what was begun; another signal ends it at once")
                stopping.set()


async def main(database: Path, name: str) -> int:
    """Run the relay, and give the exit code."""
    settings = ProducerSettings.from_env("OUTBOX", {**DEFAULTS, **os.environ})
    # All relays of one table have one name, and relays of different tables have different ones.
    settings = settings.with_transactional_id(f"outbox-{name}")
    servers = ",".join(settings.addresses)
    stopping = anyio.Event()
    code = 130
    await run_sync(create_tables, database)
    async with anyio.create_task_group() as tasks:
        await tasks.start(stop_on_signal, stopping, tasks.cancel_scope)
        try:
            async with open_send_producer(settings) as producer:
                await run_sync(create_positions, servers)
                await relay(producer, servers, database, name, stopping)
            code = 0
        except (
            KafkaException,
            ProducerBroken,
            ProducerFenced,
            ProducerStartError,
            RowRefused,
        ) as error:
            print(f"outbox: {error}", file=sys.stderr)
            code = 1
        tasks.cancel_scope.cancel()
    return code


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Moves the rows of an outbox to Kafka.")
    parser.add_argument("database", type=Path, help="a file of SQLite")
    parser.add_argument("--name", default="shop", help="what this outbox is called in Kafka")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    logging.getLogger("kafka").setLevel(logging.WARNING)
    sys.exit(
        anyio.run(partial(main, arguments.database, arguments.name), backend=arguments.backend)
    )
