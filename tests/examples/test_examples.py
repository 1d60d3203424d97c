"""Each example in a process of its own: it starts, does its work, and ends on Ctrl-C in order, with
records in flight. The outbox on Apache Kafka is in ``tests/kafka``."""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import os
import re
import signal
import sqlite3
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
import httpx
import pytest
from anyio.to_thread import run_sync
from hypothesis import given
from hypothesis import strategies as st

from anyio_sendproducer.testing import EmbeddedBroker, embedded_broker
from examples import log_shipper, outbox
from tests.support.calls import PATIENCE, task_group, until
from tests.support.example_process import EXAMPLES, Example, running
from tests.support.history import Logged, read_topic

T = TypeVar("T")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")

#: The services, and the loop that each runs on; the test's client runs on the same.
SERVICES: Final = [
    ("fastapi_orders.py", "asyncio"),
    ("litestar_orders.py", "asyncio"),
    ("quart_trio_orders.py", "trio"),
]
services = pytest.mark.parametrize(("service", "anyio_backend"), SERVICES)

#: Customers that each wait for one answer before the next order.
CUSTOMERS: Final = 30

#: Seconds for an end in which nothing has to be waited for; it takes a fraction of it.
SOON: Final = 20.0


def test_each_example_is_tested() -> None:
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert names == {
        *(service for service, _ in SERVICES),
        "outbox.py",
        "log_shipper.py",
        "pipeline.py",
    }


async def until_true(ask: Callable[[], Awaitable[T]], condition: Callable[[T], bool]) -> None:
    """Wait until an answer is as it should be."""
    with anyio.fail_after(PATIENCE):
        while not condition(await ask()):  # noqa: ASYNC110  # another process sets no event
            await anyio.sleep(0.02)


async def read(broker: EmbeddedBroker | str, topic: str) -> list[Logged]:
    return await run_sync(partial(read_topic, str(broker), topic))


# --- services ------------------------------------------------------------------------------------


class Service:
    """A service that runs, and a client of it."""

    def __init__(self, example: Example, client: httpx.AsyncClient) -> None:
        self.example = example
        self.client = client

    async def in_flight(self) -> int:
        response = await self.client.get("/health")
        assert response.status_code == 200
        return int(response.json()["in_flight"])

    async def until_delivered(self) -> None:
        """Wait until the producer has nothing left to deliver."""
        await until_true(self.in_flight, lambda count: count == 0)

    async def order(self, id_: str, customer: str = "alice", item: str = "tin") -> httpx.Response:
        return await self.client.post(
            "/orders", json={"id": id_, "customer": customer, "items": [item]}
        )

    async def view(self, page: str) -> httpx.Response:
        return await self.client.post("/page-views", json={"page": page})

    async def takes_no_more(self) -> None:
        """Wait until it accepts no connection: it knows that it is to end."""
        port = self.client.base_url.port
        assert port is not None
        with anyio.fail_after(PATIENCE):
            while True:
                try:
                    stream = await anyio.connect_tcp("127.0.0.1", port)
                except OSError:
                    return
                await stream.aclose()
                await anyio.sleep(0.01)


@asynccontextmanager
async def serving(
    program: str, broker: EmbeddedBroker, **settings: str
) -> AsyncGenerator[Service, None]:
    env = {"ORDERS_BOOTSTRAP_SERVERS": str(broker), **settings}
    async with running(program, "--port", "0", env=env) as example:
        url = (await example.line(r"[Rr]unning on (http://127\.0\.0\.1:\d+)"))[1]
        async with httpx.AsyncClient(
            base_url=url,
            timeout=PATIENCE,
            limits=httpx.Limits(max_connections=200),
            trust_env=False,
        ) as client:
            yield Service(example, client)


@services
async def test_an_order_that_was_answered_is_in_kafka(service: str, broker: EmbeddedBroker) -> None:
    answers: dict[str, httpx.Response] = {}
    ordered: set[str] = set()

    async with serving(service, broker) as running_service, task_group() as tasks:

        async def order_for_ever(customer: str) -> None:
            for number in itertools.count():
                id_ = f"{customer}-{number}"
                ordered.add(id_)
                try:
                    answers[id_] = await running_service.order(id_, customer)
                except httpx.TransportError:
                    return  # it takes no more

        for number in range(CUSTOMERS):
            tasks.start_soon(order_for_ever, f"customer {number}")
        await until(lambda: len(answers) > 5 * CUSTOMERS)
        broker.pause()
        await until_true(running_service.in_flight, CUSTOMERS.__le__)
        # What the broker answered just before may still be on its way.
        in_flight: set[str] = set()
        with anyio.fail_after(PATIENCE):
            while (seen := ordered - set(answers)) != in_flight or len(seen) != CUSTOMERS:
                in_flight = seen
                await anyio.sleep(0.5)
        running_service.example.interrupt()
        await running_service.takes_no_more()
        assert in_flight.isdisjoint(answers)
        broker.resume()
        assert await running_service.example.code(within=SOON) == 0

    # Those that were in flight have their answers too. A connection that was there may have brought
    # another order just then.
    assert in_flight <= set(answers)
    assert {answer.status_code for answer in answers.values()} == {201}
    logged = {(one.partition, one.offset): one for one in await read(broker, "orders")}
    ids = [one.headers for one in logged.values()]
    assert len(set(ids)) == len(ids)
    last: dict[Any, int] = collections.defaultdict(lambda: -1)
    for id_, answer in answers.items():
        place = answer.json()
        one = logged.pop((place["partition"], place["offset"]))
        order = json.loads(one.value or b"")
        assert one.headers == (("id", id_.encode()),)
        assert one.key == order["customer"].encode()
        assert order == {"id": id_, "customer": id_.rpartition("-")[0], "items": ["tin"]}
        # A customer's orders are in the order of ordering.
        assert place["offset"] > last[order["customer"]]
        last[order["customer"]] = place["offset"]


@services
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_page_view_that_was_accepted_is_in_kafka_after_the_end(
    number: signal.Signals, service: str, broker: EmbeddedBroker
) -> None:
    async with serving(service, broker) as running_service:
        assert (await running_service.view("first")).status_code == 202
        await running_service.until_delivered()
        broker.pause()
        for page in range(100):
            assert (await running_service.view(f"page {page}")).status_code == 202
        assert await running_service.in_flight() >= 100
        # Hypercorn would wait for the connection.
        await running_service.client.aclose()
        running_service.example.send(number)
        await running_service.takes_no_more()
        broker.resume()
        code = await running_service.example.code(within=SOON)
    # uvicorn sends itself the signal again when it is done.
    again = number is signal.SIGTERM and service != "quart_trio_orders.py"
    assert code == (-signal.SIGTERM if again else 0)
    views = [one.value for one in await read(broker, "page-views")]
    assert sorted(views, key=repr) == sorted(
        [b"first", *(b"page %d" % page for page in range(100))], key=repr
    )


@services
async def test_what_was_not_delivered_is_answered_as_what_it_is(
    service: str, broker: EmbeddedBroker
) -> None:
    limits = {
        "ORDERS_DELIVERY_TIMEOUT": "6",
        "ORDERS_CLOSE_TIMEOUT": "3",
        "ORDERS_MAX_IN_FLIGHT": "3",
    }
    async with serving(service, broker, **limits) as running_service:
        assert (await running_service.order("good")).status_code == 201
        assert (await running_service.view("good")).status_code == 202
        await running_service.until_delivered()
        for wrong in ({}, {"id": 1}, ["order"]):
            response = await running_service.client.post("/orders", json=wrong)
            assert response.status_code == (422 if service == "fastapi_orders.py" else 400)
        too_large = await running_service.order("large", item="x" * 2_000_000)
        assert too_large.status_code == 422
        assert too_large.json() == {"detail": "Kafka refuses it"}

        broker.pause()
        unknown = await running_service.order("unknown")
        assert unknown.status_code == 504
        assert str(broker) not in unknown.text
        # The client still has that one, so there is room for two more.
        views = [await running_service.view(f"{number}") for number in range(3)]
        assert [view.status_code for view in views] == [202, 202, 503]
        assert views[-1].headers["Retry-After"] == "1"
        no_room = await running_service.order("no room")
        # On a slow machine the client gives the first one up meanwhile, and this one has its room.
        if no_room.status_code != 504:
            assert no_room.status_code == 503
            assert no_room.json() == {"detail": "not written: send it again"}
            assert no_room.headers["Retry-After"] == "1"
        await running_service.client.aclose()
        running_service.example.interrupt()
        # The broker does not come back, and the end comes all the same.
        assert await running_service.example.code(within=SOON) == 0
        assert "page views were lost: 2 record(s) failed" in running_service.example.errors


@services
async def test_a_service_does_not_come_up_without_a_broker(
    service: str,
) -> None:
    env = {"ORDERS_BOOTSTRAP_SERVERS": "127.0.0.1:1", "ORDERS_START_TIMEOUT": "0.5"}
    async with running(service, "--port", "0", env=env) as example:
        await example.line(r"ProducerStartError: .*127\.0\.0\.1:1")
        assert await example.code(within=SOON, quiet=False) != 0


# --- the outbox ----------------------------------------------------------------------------------


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
    """Each row is there once, those of a customer in their order."""
    numbers: dict[bytes | None, list[int]] = collections.defaultdict(list)
    for one in await read(broker, "orders"):
        numbers[one.key].append(int(one.value or b""))
    assert sorted(itertools.chain.from_iterable(numbers.values())) == list(range(count))
    for of_customer in numbers.values():
        assert of_customer == sorted(of_customer)


async def test_the_outbox_is_moved_and_ctrl_c_finishes_what_was_begun(
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


async def test_a_second_ctrl_c_does_not_wait_for_the_transaction(
    broker: EmbeddedBroker, anyio_backend_name: str, tmp_path: Path
) -> None:
    database = tmp_path / "shop.db"
    outbox.create_tables(database)
    env = {"OUTBOX_BOOTSTRAP_SERVERS": str(broker), "OUTBOX_CANCEL_TIMEOUT": "1"}
    arguments = [str(database), "--backend", anyio_backend_name]
    async with running("outbox.py", *arguments, env=env) as example:
        await example.line("Kafka has the rows to 0")
        broker.pause()
        fill(database, 0, 10)
        await example.line("moving the rows")
        example.interrupt()
        # The two would be one, if nobody had looked between them.
        await example.line("finishing what was begun")
        example.interrupt()
        assert await example.code(within=SOON) == 130
        broker.resume()
    assert rows_left(database) == 10


async def test_a_row_that_kafka_refuses_is_named(
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


# --- the log shipper -----------------------------------------------------------------------------


class Log:
    """A log file that somebody writes to, line by line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written: list[bytes] = []
        self._rotated = 0

    def write(self, count: int, padding: int = 0) -> None:
        with self.path.open("ab") as file:
            for _ in range(count):
                line = b"line %d%s" % (len(self.written), b"." * padding)
                self.written.append(line)
                file.write(line + b"\n")

    def write_part(self, part: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(part)

    def rotate(self) -> None:
        """As logrotate does: app.log.1 is the newest."""
        for number in range(self._rotated, 0, -1):
            Path(f"{self.path}.{number}").rename(f"{self.path}.{number + 1}")
        self.path.rename(f"{self.path}.1")
        self._rotated += 1
        # Time goes on between two rotations, which it need not on a file system's coarse clock.
        os.utime(f"{self.path}.1", (self._rotated, self._rotated))


@asynccontextmanager
async def shipping(
    log: Log, broker: EmbeddedBroker | str, backend: str, **settings: str
) -> AsyncGenerator[Example, None]:
    env = {"LOGS_BOOTSTRAP_SERVERS": str(broker), **settings}
    async with running("log_shipper.py", log.path, "--backend", backend, env=env) as example:
        yield example


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "app.log")


async def shipped(broker: EmbeddedBroker | str) -> list[bytes | None]:
    return [one.value for one in await read(broker, "app-log")]


async def until_shipped(broker: EmbeddedBroker, lines: Sequence[bytes]) -> None:
    await until_true(partial(shipped, broker), lambda found: found == lines)


async def test_lines_are_shipped_in_order_whatever_becomes_of_the_file(
    log: Log, broker: EmbeddedBroker, anyio_backend_name: str
) -> None:
    async with shipping(log, broker, anyio_backend_name) as example:
        await example.line("0 shipped")
        log.write(500)  # only now is there a file
        await until_shipped(broker, log.written)
        log.write(100)
        log.rotate()
        log.write(100)
        log.rotate()
        log.write(100)
        await until_shipped(broker, log.written)
        # Copied and truncated.
        log.path.write_bytes(b"")
        await example.line("was truncated")
        log.write(100)
        await until_shipped(broker, log.written)
        example.interrupt()
        assert await example.code(within=SOON) == 0

    # Nobody follows meanwhile.
    log.write(50)
    log.rotate()
    log.write(50)
    log.rotate()
    log.write(50)
    async with shipping(log, broker, anyio_backend_name) as example:
        await until_shipped(broker, log.written)
        example.interrupt()
        assert await example.code(within=SOON) == 0


async def test_ctrl_c_ships_what_was_read(
    log: Log, broker: EmbeddedBroker, anyio_backend_name: str
) -> None:
    log.write(100)
    async with shipping(log, broker, anyio_backend_name) as example:
        await until_shipped(broker, log.written)
        broker.pause()
        log.write(1_000)
        await example.line("100 shipped, [1-9][0-9]* in flight")
        example.interrupt()
        broker.resume()
        assert await example.code(within=SOON) == 0
    first = await shipped(broker)
    assert len(first) > 100
    assert first == log.written[: len(first)]

    async with shipping(log, broker, anyio_backend_name) as example:
        # Each is there once, for it ended in order.
        await example.line("[0-9] shipped")
        await until_shipped(broker, log.written)
        example.interrupt()
        assert await example.code(within=SOON) == 0


async def test_no_line_is_lost_where_the_shipper_is_killed(
    log: Log, broker: EmbeddedBroker, anyio_backend_name: str
) -> None:
    for _ in range(3):
        log.write(5_000)
        async with shipping(log, broker, anyio_backend_name) as example:
            await example.line("[1-9][0-9]* shipped")
            example.send(signal.SIGKILL)
            assert await example.code(within=SOON) == -signal.SIGKILL
    async with shipping(log, broker, anyio_backend_name) as example:
        await example.line("[0-9] shipped")
        await until_true(partial(shipped, broker), set(log.written).issubset)
        example.interrupt()
        assert await example.code(within=SOON) == 0
    # What is there twice follows where it was begun again.
    numbers = [int((value or b"").split()[1]) for value in await shipped(broker)]
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(numbers))


async def test_the_shipper_outlives_the_broker(log: Log, anyio_backend_name: str) -> None:
    settings = {"LOGS_DELIVERY_TIMEOUT": "6", "LOGS_START_TIMEOUT": "1"}
    async with embedded_broker() as first:
        port = first.port
    log.write(200)
    async with shipping(log, f"127.0.0.1:{port}", anyio_backend_name, **settings) as example:
        await example.line(rf"127\.0\.0\.1:{port}")  # there is none yet
        async with embedded_broker(port=port) as broker:
            await until_shipped(broker, log.written)
            before = len(log.written)
            await broker.kill()
            log.write(300)
            await example.line("again from the last line that is in Kafka")
        async with embedded_broker(port=port) as broker:
            log.write(300)
            await until_true(partial(shipped, broker), set(log.written[before:]).issubset)
            example.interrupt()
            assert await example.code(within=SOON) == 0
            assert log.written[-1] == (await shipped(broker))[-1]


async def test_ctrl_c_ends_the_shipper_where_the_broker_is_away(
    log: Log, broker: EmbeddedBroker, anyio_backend_name: str
) -> None:
    log.write(100)
    async with shipping(log, broker, anyio_backend_name) as example:
        await until_shipped(broker, log.written)
        await example.line("100 shipped, 0 in flight")
        broker.pause()
        log.write(100)
        await example.line("100 shipped, [1-9][0-9]* in flight")
        example.interrupt()
        # The two would be one, if nobody had looked between them.
        await example.line("shipping what was read")
        example.interrupt()
        assert await example.code(within=SOON) == 0
        broker.resume()
    async with shipping(log, broker, anyio_backend_name) as example:
        await example.line("[0-9] shipped")
        await until_true(partial(shipped, broker), set(log.written).issubset)
        example.interrupt()
        assert await example.code(within=SOON) == 0


def resident_megabytes(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks /proc for the memory")
async def test_the_shipper_reads_no_more_than_there_is_room_for(
    log: Log, broker: EmbeddedBroker, anyio_backend_name: str
) -> None:
    log.write(100)
    async with shipping(log, broker, anyio_backend_name) as example:
        await until_shipped(broker, log.written)
        before = resident_megabytes(example.pid)
        broker.pause()
        log.write(600, padding=100_000)  # 60 MB
        # It says so again when the number has changed, which it does until there is no room.
        await example.line("100 shipped, 8[0-9] in flight")
        assert resident_megabytes(example.pid) - before < 40


ACTIONS = st.lists(
    st.one_of(
        st.sampled_from(["rotate", "truncate", "read", "read all", "restart"]),
        st.text("ab\n", min_size=1, max_size=6),
    ),
    max_size=30,
)


@given(ACTIONS)
def test_a_follower_reads_each_line_once(actions: list[str]) -> None:
    """However the file is written, rotated, truncated, and the reading begun anew."""
    with tempfile.TemporaryDirectory() as directory:
        log = Log(Path(directory, "app.log"))
        place: log_shipper.Place | None = None
        follower = log_shipper.Follower(log.path, place)
        # Where it begins the first time is the file that is there.
        written, found = b"first\n", list[bytes]()
        log.write_part(written)

        def read_some() -> bool:
            nonlocal place
            lines = follower.read()
            found.extend(line.text for line in lines)
            if lines:
                place = lines[-1].behind
            return bool(lines)

        def read_all() -> None:
            while read_some():
                pass

        read_all()
        for action in actions:
            if action == "rotate" and log.path.exists():
                log.rotate()
            elif action == "truncate" and log.path.exists():
                # What was not read by then would be lost; and until there is a line, the place is
                # one in the file as it was.
                read_all()
                log.path.write_bytes(b"")
                read_all()
                log.write_part(b"anew\n")
                written += b"anew\n"
                read_all()
            elif action == "read":
                read_some()
            elif action == "read all":
                read_all()
            elif action == "restart":
                follower.close()
                follower = log_shipper.Follower(log.path, place)
            elif action not in {"rotate", "truncate"}:
                line = action.replace("\n", "|").encode() + b"\n"
                log.write_part(line)
                written += line
        read_all()
        follower.close()
        assert found == written.split(b"\n")[:-1]


def test_a_follower_waits_for_the_end_of_a_line_and_cuts_one_that_is_too_long(log: Log) -> None:
    follower = log_shipper.Follower(log.path, None)
    assert follower.read() == []
    log.write_part(b"half")
    assert follower.read() == []
    log.write_part(b" and half\n")
    [line] = follower.read()
    assert line.text == b"half and half"
    assert line.behind.offset == len("half and half\n")
    long = bytes(2_000_000)
    log.write_part(long + b"\n")
    pieces: list[log_shipper.Line] = []
    while more := follower.read():
        pieces += more
    assert b"".join(piece.text for piece in pieces) == long
    assert max(len(piece.text) for piece in pieces) <= log_shipper.MAX_LINE + log_shipper.CHUNK
    # A line that never ended is one when its file is over.
    log.write_part(b"never ended")
    assert follower.read() == []
    log.rotate()
    log.write_part(b"next\n")
    texts = [line.text for _ in range(2) for line in follower.read()]
    assert texts == [b"never ended", b"next"]
    follower.close()


# --- the pipeline --------------------------------------------------------------------------------


async def assert_all_there(broker: EmbeddedBroker, example: Example) -> None:
    """What it says at the end is what is in Kafka, with no gap in what a sensor said."""
    numbers = (
        await example.line(r"^(\d+) readings, (\d+) records, (\d+) alarms, (\d+) broken; the end")
    ).groups()
    readings, records, alarms, broken = map(int, numbers)
    logged = await read(broker, "readings")
    assert len(logged) == readings - broken
    assert len(await read(broker, "alarms")) == alarms
    assert records == len(logged) + alarms
    assert alarms > 0
    assert broken > 0
    of_sensor: dict[bytes | None, list[int]] = collections.defaultdict(list)
    for one in logged:
        of_sensor[one.key].append(json.loads(one.value or b"")["number"])
    assert len(of_sensor) == 3
    missing = 0
    for sent in of_sensor.values():
        assert sent == sorted(set(sent))
        missing += sent[-1] + 1 - len(sent)
    # Each that is missing was broken; the last ones of a sensor may have been so too.
    assert broken - 3 <= missing <= broken


async def test_the_pipeline_drains_on_ctrl_c(
    broker: EmbeddedBroker, anyio_backend_name: str
) -> None:
    arguments = ["--every", "0.0005", "--backend", anyio_backend_name]
    env = {"PIPELINE_BOOTSTRAP_SERVERS": str(broker), "PIPELINE_MAX_IN_FLIGHT": "300"}
    async with running("pipeline.py", *arguments, env=env) as example:
        await example.line("[1-9][0-9]{3,} readings")
        broker.pause()
        # No more than there is room for, and the sensors wait.
        await example.line("; (29[0-9]|300) in flight", after=len(example.printed))
        example.interrupt()
        broker.resume()
        assert await example.code(within=SOON) == 0
        await assert_all_there(broker, example)


async def test_the_pipeline_says_what_is_not_in_kafka(
    broker: EmbeddedBroker, anyio_backend_name: str
) -> None:
    arguments = ["--every", "0.001", "--backend", anyio_backend_name]
    env = {"PIPELINE_BOOTSTRAP_SERVERS": str(broker), "PIPELINE_CANCEL_TIMEOUT": "1"}
    async with running("pipeline.py", *arguments, env=env) as example:
        await example.line("[1-9][0-9]{2,} readings")
        broker.pause()
        await example.line("; [1-9][0-9]* in flight", after=len(example.printed))
        example.interrupt()
        await example.line("draining")
        example.interrupt()
        assert await example.code(within=SOON) == 1
        assert "pipeline: not all of it is in Kafka" in example.errors
        broker.resume()
