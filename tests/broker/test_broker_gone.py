"""A missing broker, or a broker that dies, freezes or comes back: every call ends in bounded time.

The embedded broker keeps its records in memory, so the records of a killed broker can't be counted.
The tests check the acknowledgements before, and that each record has one outcome.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest

from anyio_sendproducer import (
    DeliveryError,
    Persistence,
    ProducerRecord,
    ProducerSettings,
    ProducerStartError,
    RecordMetadata,
    SendProducer,
    UndeliveredRecords,
    _late,
    open_send_producer,
)
from anyio_sendproducer.cli._reading import read_back
from anyio_sendproducer.drivers import DriverName
from anyio_sendproducer.testing import EmbeddedBroker, embedded_broker
from tests.support.brief import on_either_loop
from tests.support.clock import ManualClock
from tests.support.ports import lasting_port
from tests.support.recorder import open_sockets
from tests.support.waiting import until

#: The time limit in seconds of each wait. Each takes only a fraction of it.
PATIENCE = 60.0

#: Seconds that steps may take on a busy machine beyond the time-outs that bound them. It is far
#: less than the times for which they must not wait.
SLACK = 30.0


# --- nobody there at the start -------------------------------------------------------------------


@pytest.fixture
def refusing() -> Iterator[str]:
    """A reserved address that refuses connections."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def babbling() -> Iterator[str]:
    """An address of a server with another protocol."""

    def serve(listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                with listening.accept()[0] as connection:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = threading.Thread(target=serve, args=(listening,))
        server.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        # Wakes it up.
        listening.shutdown(socket.SHUT_RDWR)
        server.join()


@pytest.fixture(params=["refusing", "silent", "babbling"])
def address(request: pytest.FixtureRequest) -> str:
    """An address without a broker, of each kind."""
    return str(request.getfixturevalue(request.param))


@on_either_loop
async def test_the_start_fails_within_start_timeout_and_names_the_address(
    driver: DriverName, address: str
) -> None:
    sockets = open_sockets()
    began = time.monotonic()
    settings = ProducerSettings(bootstrap_servers=address, start_timeout=0.25)
    with pytest.raises(ProducerStartError, match=address) as caught:
        async with open_send_producer(settings, driver=driver):
            pytest.fail("there is nobody")
    assert 0.2 < time.monotonic() - began < 0.25 + SLACK
    assert "start_timeout" in str(caught.value)
    assert caught.value.__cause__ is not None
    await assert_no_socket_beside(sockets)


@on_either_loop
async def test_a_start_that_is_cancelled_ends_promptly(driver: DriverName, address: str) -> None:
    sockets = open_sockets()
    settings = ProducerSettings(bootstrap_servers=address, start_timeout=2 * PATIENCE)
    began = time.monotonic()
    with anyio.move_on_after(0.2) as scope:
        async with open_send_producer(settings, driver=driver):
            pytest.fail("there is nobody")
    assert scope.cancelled_caught
    assert time.monotonic() - began < 0.2 + SLACK
    await assert_no_socket_beside(sockets)


async def test_one_address_of_several_is_enough(
    driver: DriverName, refusing: str, broker: EmbeddedBroker
) -> None:
    settings = ProducerSettings(
        bootstrap_servers=[refusing, broker.bootstrap_servers], start_timeout=PATIENCE
    )
    async with open_send_producer(settings, driver=driver) as producer:
        assert (await producer.send(ProducerRecord("topic", b"value", partition=0))).offset == 0


async def assert_no_socket_beside(before: set[str]) -> None:
    """The last callbacks of an ended thread may take a moment on the loop."""
    with anyio.move_on_after(SLACK):
        await until(lambda: not open_sockets() - before)
    assert open_sockets() - before == set()


# --- gone in the middle --------------------------------------------------------------------------


@pytest.fixture
async def broker() -> AsyncIterator[EmbeddedBroker]:
    """A broker that another one can replace."""
    async with embedded_broker(port=lasting_port()) as running:
        yield running
        await running.kill()  # a paused broker does not end by itself


def settings_for(broker: EmbeddedBroker, **changes: Any) -> ProducerSettings:
    return ProducerSettings(
        bootstrap_servers=broker.bootstrap_servers,
        start_timeout=PATIENCE,
        close_timeout=PATIENCE,
        cancel_timeout=1.0,
    ).evolve(**changes)


class Outcomes:
    """The outcomes of many records, sent by many tasks."""

    def __init__(self) -> None:
        self.of: dict[int, list[RecordMetadata | DeliveryError]] = {}
        self.took: list[float] = []
        #: Called in the same step in which this number of records has an outcome.
        self.then: dict[int, Callable[[], None]] = {}

    async def send(self, producer: SendProducer, number: int, topic: str = "topic") -> None:
        record = ProducerRecord(topic, b"%d" % number, b"%d" % (number % 50))
        began = anyio.current_time()
        try:
            outcome: RecordMetadata | DeliveryError = await producer.send(record)
        except DeliveryError as error:
            outcome = error
        self.took.append(anyio.current_time() - began)
        assert isinstance(outcome, RecordMetadata) or outcome.record is record
        self.of.setdefault(number, []).append(outcome)
        then = self.then.pop(len(self.of), None)
        if then is not None:
            then()

    async def send_some(self, producer: SendProducer, numbers: range) -> None:
        for number in numbers:
            await self.send(producer, number)

    @property
    def delivered(self) -> dict[int, RecordMetadata]:
        return {
            number: outcome
            for number, [outcome] in self.of.items()
            if isinstance(outcome, RecordMetadata)
        }

    @property
    def failed(self) -> list[DeliveryError]:
        return [one for [one] in self.of.values() if isinstance(one, DeliveryError)]


@on_either_loop
async def test_killed_in_the_middle_of_ten_thousand_sends(
    driver: DriverName, broker: EmbeddedBroker
) -> None:
    """The broker dies when the first records are acknowledged, others are in flight, others wait
    for room, and others are not sent yet."""
    outcomes = Outcomes()
    # The broker is gone in the step that notes the 500th outcome, however fast all is. By then the
    # first 500 have left room for 500 others, and what was under way may be acknowledged as well:
    # that is 1,000 and 500 in all, or some more, where several answers came at once.
    outcomes.then[500] = partial(os.kill, broker.pid, signal.SIGKILL)
    settings = settings_for(broker, delivery_timeout=2.0, max_in_flight=1_000)
    before: dict[int, RecordMetadata] = {}
    async with open_send_producer(settings, driver=driver) as producer:
        await producer.partitions_for("topic")
        async with anyio.create_task_group() as tasks:
            for number in range(5_000):
                tasks.start_soon(outcomes.send, producer, number)
            await until(lambda: len(outcomes.of) >= 500)
            await broker.kill()
            before = outcomes.delivered
            assert len(before) < 5_000
            for number in range(5_000, 10_000):
                tasks.start_soon(outcomes.send, producer, number)
        left = producer.statistics()
        began = time.monotonic()
    # Every record has its outcome, so the clean exit waits for nothing.
    assert time.monotonic() - began < SLACK
    assert len(outcomes.of) == 10_000
    assert {len(found) for found in outcomes.of.values()} == {1}
    assert max(outcomes.took) < settings.delivery_timeout + SLACK
    # Acknowledged records stay acknowledged, and no two have the same position.
    delivered = outcomes.delivered
    assert before.items() <= delivered.items()
    assert len(set(delivered.values())) == len(delivered)
    failed = outcomes.failed
    assert len(delivered) + len(failed) == 10_000
    assert (left.delivered, left.waiting, left.queued) == (len(delivered), 0, 0)
    # What never reached the client is known not to be written; what did may be. That is as much as
    # there is room for, and some more, where room comes back just before the others' time is over.
    persistence = Counter(one.persistence for one in failed)
    assert persistence[Persistence.NOT_PERSISTED] >= 5_000 - 1_000
    assert 0 < persistence[Persistence.POSSIBLY_PERSISTED] < 5_000
    assert set(persistence) == {Persistence.NOT_PERSISTED, Persistence.POSSIBLY_PERSISTED}


@on_either_loop
async def test_paused_and_resumed_everything_is_delivered_once(
    driver: DriverName, broker: EmbeddedBroker
) -> None:
    outcomes = Outcomes()
    settings = settings_for(broker, delivery_timeout=PATIENCE)
    async with open_send_producer(settings, driver=driver) as producer:
        await producer.partitions_for("topic")
        async with anyio.create_task_group() as tasks:
            for task in range(1_000):
                tasks.start_soon(outcomes.send_some, producer, range(task * 5, task * 5 + 5))
            await until(lambda: len(outcomes.delivered) >= 500)
            broker.pause()
            stood_at = len(outcomes.of)
            # Answers in flight from the broker still arrive.
            await anyio.sleep(0.3)
            assert len(outcomes.of) < 5_000
            assert len(outcomes.of) - stood_at <= 1_000
            broker.resume()
        assert producer.statistics().generations == 1
    delivered = outcomes.delivered
    assert len(delivered) == 5_000
    found = await anyio.to_thread.run_sync(
        partial(
            read_back,
            broker.bootstrap_servers,
            "topic",
            dict.fromkeys(range(4), 0),
            PATIENCE,
        )
    )
    assert Counter(one.content.value for one in found) == Counter(
        b"%d" % number for number in range(5_000)
    )
    places = {(one.partition, one.offset): one.content.value for one in found}
    for number, metadata in delivered.items():
        assert places[metadata.partition, metadata.offset or 0] == b"%d" % number


@on_either_loop
async def test_a_broker_that_comes_back_is_used_again(
    driver: DriverName, broker: EmbeddedBroker, clock: ManualClock
) -> None:
    """Another process on the same port, without the earlier broker's state."""
    settings = settings_for(broker, delivery_timeout=4 * PATIENCE)
    async with clock.open(settings, driver=driver) as producer:
        await producer.send(ProducerRecord("before", b"value"))
        await broker.kill()
        unheard = await producer.enqueue(ProducerRecord("before", b"nobody hears it"))
        await until(lambda: producer.statistics().queued == 0)
        clock.advance(settings.delivery_timeout)
        with pytest.raises(DeliveryError):
            await unheard.wait()
        async with embedded_broker(port=broker.port) as again:
            clock.advance(_late.PATIENCE)  # the client is given up unless it delivers before
            number = 0
            with anyio.fail_after(PATIENCE):
                while True:
                    record = ProducerRecord(f"after-{number}", b"%d" % number, partition=0)
                    number += 1
                    with contextlib.suppress(DeliveryError):
                        metadata = await producer.send(record)
                        break
                # It also delivers to the topic that it had known.
                deliveries = [
                    await producer.enqueue(ProducerRecord(record.topic, b"more", partition=0))
                    for _ in range(100)
                ]
                offsets = [(await delivery.wait()).offset or 0 for delivery in deliveries]
            first = metadata.offset or 0
            assert offsets == list(range(first + 1, first + 101))
            found = await anyio.to_thread.run_sync(
                read_back, again.bootstrap_servers, record.topic, {0: 0}, PATIENCE
            )
            assert [one.content.value for one in found][first:] == [record.value] + [b"more"] * 100


# --- the exit with records pending ---------------------------------------------------------------


class Failed(Exception):
    pass


async def enqueue_some(producer: SendProducer, count: int) -> list[Any]:
    return [
        await producer.enqueue(ProducerRecord("topic", b"%d" % number)) for number in range(count)
    ]


@on_either_loop
@pytest.mark.parametrize("gone", ["killed", "paused"])
@pytest.mark.parametrize("how", ["success", "error", "cancellation"])
async def test_the_exit_is_bounded_whatever_ends_the_block(
    driver: DriverName, broker: EmbeddedBroker, gone: str, how: str
) -> None:
    # The other time-out would be far too long.
    settings = settings_for(broker, close_timeout=PATIENCE, cancel_timeout=PATIENCE)
    bound = 0.2
    bounds: dict[str, Any] = {"close_timeout" if how == "success" else "cancel_timeout": bound}
    settings = settings.evolve(**bounds)
    sockets = open_sockets()
    began = math.nan
    deliveries: list[Any] = []
    caught: BaseException | None = None
    with anyio.CancelScope() as scope:
        try:
            async with open_send_producer(settings, driver=driver) as producer:
                await producer.send(ProducerRecord("topic", b"value"))
                if gone == "killed":
                    await broker.kill()
                else:
                    broker.pause()
                deliveries = await enqueue_some(producer, 500)
                await until(lambda: producer.statistics().queued == 0)
                if driver == "kafka-python":
                    # Its thread answers when it is through with what was handed over: until then a
                    # part of that is not with the client, and truly not written.
                    await producer.partitions_for("topic")
                began = time.monotonic()
                if how == "error":
                    raise Failed
                if how == "cancellation":
                    scope.cancel()
                    await anyio.sleep_forever()
        except (Failed, UndeliveredRecords) as error:
            caught = error
    took = time.monotonic() - began
    assert bound / 2 < took < bound + SLACK
    # Every record has its outcome.
    assert all(delivery.done for delivery in deliveries)
    persistence: Counter[Persistence] = Counter()
    for delivery in deliveries:
        with pytest.raises(DeliveryError) as failure:
            await delivery.wait()
        persistence[failure.value.persistence] += 1
    assert persistence == {Persistence.POSSIBLY_PERSISTED: 500}
    if how == "success":
        assert isinstance(caught, UndeliveredRecords)
        assert caught.count == 500
    elif how == "error":
        assert isinstance(caught, Failed)
        [note] = vars(caught)["__notes__"]
        assert "500 record(s) failed" in note
    else:
        assert scope.cancelled_caught
        assert caught is None
    await assert_no_socket_beside(sockets)


async def test_a_clean_exit_waits_for_a_broker_that_comes_round(
    driver: DriverName, broker: EmbeddedBroker
) -> None:
    settings = settings_for(broker, close_timeout=PATIENCE)
    async with anyio.create_task_group() as tasks:

        async def resume_while_it_closes(producer: SendProducer) -> None:
            await until(lambda: producer.statistics().state == "draining")
            broker.resume()

        async with open_send_producer(settings, driver=driver) as producer:
            await producer.send(ProducerRecord("topic", b"value"))
            broker.pause()
            deliveries = await enqueue_some(producer, 500)
            tasks.start_soon(resume_while_it_closes, producer)
        for delivery in deliveries:
            assert isinstance(await delivery.wait(), RecordMetadata)
        assert producer.statistics().delivered == 501


async def test_aclose_while_tasks_are_sending_gives_each_its_outcome(
    driver: DriverName,
    broker: EmbeddedBroker,
) -> None:
    settings = settings_for(broker, close_timeout=0.5, max_in_flight=100)
    outcomes = Outcomes()
    async with (
        anyio.create_task_group() as tasks,
        open_send_producer(settings, driver=driver) as producer,
    ):
        await producer.send(ProducerRecord("topic", b"value"))
        broker.pause()
        for number in range(300):
            tasks.start_soon(outcomes.send, producer, number)
        await until(
            lambda: (producer.statistics().waiting, producer.statistics().queued) == (200, 0)
        )
        began = time.monotonic()
        await producer.aclose()
        assert time.monotonic() - began < 0.5 + SLACK
    persistence = Counter(one.persistence for one in outcomes.failed)
    assert persistence == {
        Persistence.POSSIBLY_PERSISTED: 100,
        Persistence.NOT_PERSISTED: 200,
    }
