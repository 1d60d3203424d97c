"""Moves the rows of an outbox, a table in SQLite, to Kafka: each row exactly once, in order.

    OUTBOX_BOOTSTRAP_SERVERS=localhost:9092 python outbox.py shop.db --name shop

A service writes its records to the table, in the same database transaction as its other changes, as
``place_order`` does here. This program, the relay, moves the rows to Kafka.

The relay sends rows and its position, the id of the last row, in one Kafka transaction. The
position goes to a topic of its own, ``outbox-positions``. Kafka commits the rows and the position
together, so a crash cannot separate them. The relay may delete the moved rows at any later time. At
its start, and after a transaction that was aborted or whose outcome is unknown, the relay first
begins another transaction, so that the brokers commit or abort the previous one. Then it reads the
committed position and continues from there.

Only consumers with ``isolation.level=read_committed`` see each row exactly once. Two relays with
the same name do no harm: the later relay fences the earlier relay, which then ends.

After Ctrl-C or SIGTERM, the relay finishes the open transaction and ends. A second signal aborts
the transaction, unless its commit was already requested. The exit code is 0 after one signal, 130
after a second one, and 1 after an error, which is printed. Environment variables that start with
OUTBOX_ are settings of the producer.

The relay calls sqlite3 of the standard library in worker threads, so it runs on asyncio and on
Trio. aiosqlite only supports asyncio.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Generator, Mapping
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

#: The topic of the positions of all relays. It is compacted, so that Kafka keeps the last position
#: of each relay forever. Kafka deletes the offsets of a consumer group after a week without use.
POSITIONS: Final = "outbox-positions"

#: Rows in one transaction, and in memory.
BATCH: Final = 500

#: Seconds between two reads of a table without new rows.
POLL_SECONDS: Final = 0.2

#: Seconds until another attempt if Kafka cannot be reached.
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
    """Kafka will never accept this row, and the later rows must wait: an operator has to act."""


@contextlib.contextmanager
def connect(database: Path) -> Generator[sqlite3.Connection]:
    """Open a connection for one database transaction. It is committed unless the block raises."""
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as db, db:
        yield db


def create_tables(database: Path) -> None:
    """Create the tables that do not exist yet."""
    with contextlib.closing(sqlite3.connect(database)) as db:
        # With a write-ahead log, readers do not block the writer.
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, customer, item)")
        # AUTOINCREMENT: no id is used twice, although rows are deleted. SQLite has one writer at a
        # time, so rows become visible in the order of their ids.
        db.execute(
            "CREATE TABLE IF NOT EXISTS outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, "
            "topic TEXT NOT NULL, key BLOB, value BLOB)"
        )


def place_order(database: Path, customer: str, item: str) -> None:
    """Write an order and its outbox row in one transaction, as the service does."""
    with connect(database) as db:
        db.execute("INSERT INTO orders (customer, item) VALUES (?, ?)", (customer, item))
        db.execute(
            "INSERT INTO outbox (topic, key, value) VALUES ('orders', ?, ?)",
            (customer.encode(), item.encode()),
        )


def read_rows(database: Path, position: int) -> list[Row]:
    """Return the next rows after a position."""
    with connect(database) as db:
        found = db.execute(
            "SELECT id, topic, key, value FROM outbox WHERE id > ? ORDER BY id LIMIT ?",
            (position, BATCH),
        )
        return [Row(*row) for row in found]


def forget_rows(database: Path, position: int) -> None:
    """Delete the rows up to a position: they are in Kafka."""
    with connect(database) as db:
        db.execute("DELETE FROM outbox WHERE id <= ?", (position,))


# --- the position --------------------------------------------------------------------------------


def create_positions(servers: str) -> None:
    """Create the topic of the positions if it does not exist. Blocks."""
    admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
    topic = NewTopic(POSITIONS, num_partitions=1, config={"cleanup.policy": "compact"})
    create = cast("Callable[..., dict[str, Any]]", admin.create_topics)  # pyright: ignore[reportUnknownMemberType]
    created = create([topic], request_timeout=ANSWER_SECONDS)
    try:
        created[POSITIONS].result()
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise


def read_position(servers: str, name: str) -> int:
    """Return the id of the last committed row, or 0 if there is none. Blocks."""
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
    """Return the position of the relay with this name, after its last transaction has ended."""
    async with producer.transaction():
        pass  # when this transaction has begun, the previous one is committed or aborted
    return await run_sync(read_position, servers, name)


# --- the relay -----------------------------------------------------------------------------------


async def move_rows(producer: SendProducer, name: str, rows: list[Row]) -> None:
    """Send rows, and the position after them, in one transaction."""
    async with producer.transaction() as tx:
        try:
            await tx.send_many(
                [
                    *(ProducerRecord(row.topic, row.value, row.key) for row in rows),
                    ProducerRecord(POSITIONS, b"%d" % rows[-1].id, name.encode(), partition=0),
                ]
            )
        except MultiDeliveryError as error:
            for row, part in zip(rows, error.parts):  # noqa: B905  # the last part has no row
                if isinstance(part, RecordRejected):
                    raise RowRefused(f"row {row.id} of the outbox: {part}") from error
            raise


async def relay(
    producer: SendProducer, servers: str, database: Path, name: str, stopping: anyio.Event
) -> None:
    """Move rows until `stopping` is set."""
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
            # The transaction was aborted, or its outcome is unknown. Kafka has the position.
            log.warning("retry from the position in Kafka: %s", error)
            position = None
            await pause(stopping, RETRY_SECONDS)
        else:
            position = rows[-1].id
            await run_sync(forget_rows, database, position)


async def pause(stopping: anyio.Event, seconds: float) -> None:
    """Wait for the given time, or until `stopping` is set."""
    with anyio.move_on_after(seconds):
        await stopping.wait()


async def stop_on_signal(
    stopping: anyio.Event,
    scope: anyio.CancelScope,
    *,
    task_status: anyio.abc.TaskStatus[None],
) -> None:
    """Handle Ctrl-C and SIGTERM. The first signal stops the relay after the open transaction, the
    second signal cancels it."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            if stopping.is_set():
                scope.cancel()
            else:
                log.info("finishing the open transaction; a second signal aborts it")
                stopping.set()


async def main(database: Path, name: str) -> int:
    """Run the relay. Return the exit code."""
    settings = ProducerSettings.from_env("OUTBOX", {**DEFAULTS, **os.environ})
    # All relays of one table need the same name. Relays of different tables need different names.
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
    parser.add_argument("database", type=Path, help="the file of the SQLite database")
    parser.add_argument("--name", default="shop", help="the name of this outbox in Kafka")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    logging.getLogger("kafka").setLevel(logging.WARNING)
    sys.exit(
        anyio.run(partial(main, arguments.database, arguments.name), backend=arguments.backend)
    )
