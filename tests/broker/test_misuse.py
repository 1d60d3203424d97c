"""Misuse raises a clear error at once, and does not harm the producer."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import Any

import anyio
import anyio.to_thread
import pytest

from anyio_sendproducer import (
    Delivery,
    DeliveryError,
    Message,
    MultiMessage,
    PassThroughMessage,
    ProducerClosed,
    ProducerMisused,
    ProducerRecord,
    ProducerSettings,
    SendProducer,
    SettingsError,
    open_send_producer,
)
from anyio_sendproducer.testing import (
    FakeDriver,
)
from tests.support.calls import record, taken
from tests.support.measured import measured
from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE, until

LOOPS = ["asyncio", "trio"]


async def use_flow(producer: SendProducer, _: Delivery) -> None:
    async with producer.flow(envelopes()):
        with anyio.fail_after(PATIENCE):
            await anyio.sleep_forever()


async def envelopes() -> AsyncGenerator[Message[Any, Any, None]]:
    yield Message(record(b"never"))


#: Every call that waits. Each call is made in the place where it is not allowed.
USES: dict[str, Callable[[SendProducer, Delivery], Awaitable[Any]]] = {
    "send": lambda producer, _: producer.send(record(b"never")),
    "send_envelope": lambda producer, _: producer.send_envelope(Message(record(b"never"))),
    "multi_message": lambda producer, _: producer.send_envelope(MultiMessage([record(b"never")])),
    "send_many": lambda producer, _: producer.send_many([record(b"never")]),
    "enqueue": lambda producer, _: producer.enqueue(record(b"never")),
    "flow": use_flow,
    "sink": lambda producer, _: producer.sink(envelopes()),
    "flush": lambda producer, _: producer.flush(),
    "partitions_for": lambda producer, _: producer.partitions_for("t"),
    "aclose": lambda producer, _: producer.aclose(),
    "wait": lambda _, delivery: delivery.wait(),
}


async def works_on(producer: SendProducer, fake: FakeDriver) -> None:
    with anyio.fail_after(PATIENCE):
        await producer.send(record(b"after"))
    written = [what.value for log in fake.written.values() for what in log]
    assert b"never" not in written
    assert written[-1] == b"after"


# --- another thread, another loop ------------------------------------------------------------


async def test_a_call_that_the_collector_closes_in_another_thread(
    settings: ProducerSettings,
) -> None:
    """The thread does not change the loop's state. The loop does so soon."""
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake) as producer:
        call = left_alone(producer)
        await taken(fake, 1)
        before = producer.statistics()
        thread = threading.Thread(target=call.close)
        thread.start()
        thread.join()
        assert producer.statistics() == before
        await until(lambda: producer.statistics().abandoned == 1)
        fake.acknowledge()


async def test_a_call_that_is_closed_on_the_loop_withdraws_its_record(
    settings: ProducerSettings,
) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake) as producer:
        left_alone(producer).close()
        assert producer.statistics().withdrawn == 1
        await producer.flush()
    assert fake.submitted == []


def left_alone(producer: SendProducer) -> Any:
    """A call of ``send`` that waits for its outcome, and no task that awaits it."""

    def park(_: Any) -> Never:
        return Never()

    producer._park = park
    call: Any = producer.send(record())
    call.send(None)
    return call


class Never:
    """Never completes."""

    def __await__(self) -> Generator[None, None, None]:
        yield


@pytest.mark.parametrize("other", LOOPS)
@pytest.mark.parametrize("name", USES)
async def test_on_another_loop_in_another_thread(
    settings: ProducerSettings, fake: FakeDriver, other: str, name: str
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        delivery = producer.enqueue_nowait(record())

        async def use() -> None:
            with pytest.raises(ProducerMisused, match="the event loop that it was opened on"):
                await USES[name](producer, delivery)

        await anyio.to_thread.run_sync(lambda: anyio.run(use, backend=other))
        await works_on(producer, fake)


async def test_in_another_thread_without_a_loop(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:

        def use() -> None:
            with pytest.raises(ProducerMisused) as caught:
                producer.enqueue_nowait(record(b"never"))
            assert isinstance(caught.value, RuntimeError)

        await anyio.to_thread.run_sync(use)
        await works_on(producer, fake)


def test_on_another_loop_in_the_same_thread(settings: ProducerSettings, fake: FakeDriver) -> None:
    """Two loops of asyncio that take turns."""

    async def start() -> tuple[SendProducer, Delivery]:
        opened = await manager.__aenter__()
        return opened, opened.enqueue_nowait(record())

    async def end() -> None:
        await works_on(producer, fake)
        await manager.__aexit__(None, None, None)

    async def use(name: str) -> None:
        with pytest.raises(ProducerMisused, match="the event loop that it was opened on"):
            await USES[name](producer, delivery)

    async def use_nowait() -> None:
        with pytest.raises(ProducerMisused):
            producer.enqueue_nowait(record(b"never"))

    home = asyncio.new_event_loop()
    other = asyncio.new_event_loop()
    manager = open_send_producer(settings, driver=fake)

    async def whole_life() -> None:
        # One task from start to end, as cancel scopes require.
        opened.set_result(await start())
        await leave.wait()
        await end()

    try:
        leave = asyncio.Event()
        opened: asyncio.Future[tuple[SendProducer, Delivery]] = home.create_future()
        task = home.create_task(whole_life())
        producer, delivery = home.run_until_complete(opened)
        for name in USES:
            other.run_until_complete(asyncio.wait_for(use(name), 5))
        other.run_until_complete(use_nowait())
        leave.set()
        home.run_until_complete(task)
    finally:
        home.close()
        other.close()


async def test_from_a_callback_on_the_drivers_thread(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    """For example where a serializer is called."""
    caught: list[BaseException] = []

    def judge(_: ProducerRecord[Any, Any]) -> DeliveryError | None:
        try:
            producer.enqueue_nowait(record(b"never"))
        except Exception as error:  # noqa: BLE001
            caught.append(error)
        return None

    async with open_send_producer(settings, driver=fake) as producer:
        fake.judge = judge
        await producer.send(record())
        assert [type(error) for error in caught] == [ProducerMisused]
        await works_on(producer, fake)


# --- a forked child --------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*use of fork.. may lead to deadlocks:DeprecationWarning")
async def test_in_a_forked_child(settings: ProducerSettings, fake: FakeDriver) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        delivery = producer.enqueue_nowait(record())
        child = os.fork()
        if child == 0:  # pragma: no cover  # seen by the parent alone
            code = 1
            try:
                code = 10 + _refusals(producer, delivery)
            finally:
                os._exit(code)
        _, status = await anyio.to_thread.run_sync(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 10 + len(USES) + 1
        await works_on(producer, fake)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("driver", ["kafka-python", "confluent"])
async def test_a_forked_child_ends_normally(
    shared_broker: str, anyio_backend: str, driver: str
) -> None:
    """The client's threads exist only in the parent, so the child must not wait for them."""
    # Python 3.12 and later warn if a process with threads forks, as this test does.
    quiet = "ignore:This process:DeprecationWarning"
    arguments = ["-m", "tests.support.forking", shared_broker, driver, anyio_backend]
    command = [sys.executable, "-W", quiet, *arguments]
    with anyio.fail_after(PATIENCE):
        ended = await anyio.run_process(command, check=False, cwd=ROOT, env=measured())
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"7\n", b"")


def _refusals(producer: SendProducer, delivery: Delivery) -> int:  # pragma: no cover  # in a child
    """Count the calls that are refused as misuse. They must not wait."""
    refused = 0
    for use in USES.values():
        try:
            use(producer, delivery).__await__().send(None)
        except ProducerMisused as error:
            refused += "forked" in str(error)
    try:
        producer.enqueue_nowait(record(b"never"))
    except ProducerMisused as error:
        refused += "forked" in str(error)
    return refused


# --- by hand, and with what is something else ------------------------------------------------


@pytest.mark.parametrize(
    "envelope",
    [Message(record()), MultiMessage([record()]), PassThroughMessage(1)],
    ids=lambda given: type(given).__name__,
)
async def test_an_envelope_in_place_of_a_record(
    settings: ProducerSettings, fake: FakeDriver, envelope: Any
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        says = r"^expected a ProducerRecord, not \w*Message: use send_envelope\(\) for it$"
        with pytest.raises(TypeError, match=says):
            await producer.send(envelope)


@pytest.mark.parametrize("what", [None, "text", b"bytes", ("t", b"value"), ProducerRecord])
async def test_not_a_record(settings: ProducerSettings, fake: FakeDriver, what: Any) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        message = f"expected a ProducerRecord, not {type(what).__name__}"
        if type(what) not in {type(None), str}:  # these may be fields of a record
            with pytest.raises(TypeError, match=message):
                await producer.send(what)
        with pytest.raises(TypeError, match=message):
            await producer.enqueue(what)
        with pytest.raises(TypeError, match=message):
            producer.enqueue_nowait(what)
        with pytest.raises(TypeError, match=message):
            await producer.send_many([what])
        with pytest.raises(TypeError, match=message):
            await producer.send_envelope(Message(what))
        with pytest.raises(TypeError, match=message):
            await producer.send_envelope(MultiMessage([what]))
        assert producer.statistics().accepted == 0
        await works_on(producer, fake)


class Special(ProducerRecord[None, bytes]):
    """A user's subclass of a record."""


async def test_a_subclass_is_a_record(settings: ProducerSettings, fake: FakeDriver) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        special = Special("t", b"v", partition=0)
        assert (await producer.send(special)).offset == 0
        assert len(await producer.send_many([special])) == 1
        assert fake.submitted[0] is special


@pytest.mark.parametrize("what", [None, record(), [record()], "m"])
async def test_not_an_envelope(settings: ProducerSettings, fake: FakeDriver, what: Any) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        with pytest.raises(TypeError, match=f"not {type(what).__name__}: use send"):
            await producer.send_envelope(what)
        await works_on(producer, fake)


@pytest.mark.parametrize("what", ["librdkafka", 5])
async def test_unknown_driver(settings: ProducerSettings, what: Any) -> None:
    with pytest.raises(SettingsError, match=f"driver must be .*, not {what!r}"):
        async with open_send_producer(settings, driver=what):
            pytest.fail("the block was entered")


async def test_a_driver_that_refuses_the_settings(settings: ProducerSettings) -> None:
    def factory(_: ProducerSettings) -> FakeDriver:
        raise SettingsError("acks must be all")

    with pytest.raises(SettingsError, match="acks must be all"):
        async with open_send_producer(settings, driver=factory):
            pytest.fail("the block was entered")


# --- too late --------------------------------------------------------------------------------


async def test_after_the_end_of_its_loop(settings: ProducerSettings, fake: FakeDriver) -> None:
    """The producer's loop has ended. The call is refused for that reason, or because it is
    closed."""
    kept: list[SendProducer] = []

    async def live() -> None:
        async with open_send_producer(settings, driver=fake) as producer:
            kept.append(producer)

    for backend in LOOPS:
        await anyio.to_thread.run_sync(lambda name: anyio.run(live, backend=name), backend)
    for producer in kept:
        with pytest.raises((ProducerMisused, ProducerClosed)):
            await producer.send(record(b"never"))
        with pytest.raises((ProducerMisused, ProducerClosed)):
            await producer.flush()
        assert producer.statistics().state == "closed"
        await _pass_through(producer)
    assert fake.written == {}


async def _pass_through(producer: SendProducer) -> None:
    result = await producer.send_envelope(PassThroughMessage(1))
    assert result.pass_through == 1
