"""A client that lingers sends its records at once if a caller waits for all of them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Callable
from contextlib import nullcontext

import pytest
from anyio import WouldBlock

from anyio_sendproducer import (
    Message,
    ProducerBroken,
    ProducerSettings,
    SendProducerError,
    open_send_producer,
)
from tests.support.calls import Call, raising, record, task_group
from tests.support.lingering_driver import LingeringDriver, PolledLingeringDriver
from tests.support.waiting import until


@pytest.fixture(params=[LingeringDriver, PolledLingeringDriver])
def lingering(request: pytest.FixtureRequest) -> LingeringDriver:
    make: Callable[[], LingeringDriver] = request.param
    return make()


async def test_flush_sends_at_once_and_lingering_goes_on(
    settings: ProducerSettings, lingering: LingeringDriver
) -> None:
    async with open_send_producer(settings, driver=lingering) as producer:
        first = await producer.enqueue(record())
        await producer.flush()
        assert first.done
        second = await producer.enqueue(record())
        await until(lambda: len(lingering.submitted) == 2)
        assert lingering.told == [True, False]
        assert not second.done
    assert second.done


async def test_flush_sends_records_submitted_during_it(
    settings: ProducerSettings, lingering: LingeringDriver
) -> None:
    lingering.unknown_topics.add("new")
    async with (
        open_send_producer(settings, driver=lingering) as producer,
        task_group() as tasks,
    ):
        await producer.enqueue(record(topic="new"))
        flush = Call(tasks, producer.flush)
        await until(lambda: lingering.told == [True])
        assert flush.running
        lingering.learn("new")
        await flush.wait()
    assert len(lingering.written) == 1


async def test_a_flush_that_is_cancelled_ends_the_hurry(
    settings: ProducerSettings, lingering: LingeringDriver
) -> None:
    lingering.unknown_topics.add("new")
    async with (
        open_send_producer(settings, driver=lingering) as producer,
        task_group() as tasks,
    ):
        await producer.enqueue(record(topic="new"))
        flush = Call(tasks, producer.flush)
        await until(lambda: lingering.told == [True])
        await flush.cancel()
        await producer.enqueue(record())
        await until(lambda: lingering.told == [True, False])
        lingering.learn("new")


@pytest.mark.parametrize("fails", [False, True])
async def test_closing_sends_at_once(
    settings: ProducerSettings, lingering: LingeringDriver, fails: bool
) -> None:
    with pytest.raises(KeyError) if fails else nullcontext():
        async with open_send_producer(settings, driver=lingering) as producer:
            for _ in range(3):
                producer.enqueue_nowait(record())
            if fails:
                raise KeyError
    assert [len(log) for log in lingering.written.values()] == [3]


async def test_a_full_buffer_is_sent_at_once_and_more_records_linger(
    settings: ProducerSettings, lingering: LingeringDriver
) -> None:
    settings = settings.evolve(max_in_flight=5)
    async with open_send_producer(settings, driver=lingering) as producer:
        # Together: if the client had the first record sooner, the last would be in a later batch.
        deliveries = [producer.enqueue_nowait(record()) for _ in range(5)]
        deliveries.append(await producer.enqueue(record()))
        await until(lambda: lingering.told == [True, False] and len(lingering.submitted) == 6)
        assert deliveries[0].done
        assert not deliveries[5].done


async def test_with_room_for_one_record_nothing_lingers(
    settings: ProducerSettings, lingering: LingeringDriver
) -> None:
    async with open_send_producer(settings.evolve(max_in_flight=1), driver=lingering) as producer:
        for _ in range(3):
            await producer.send(record())


async def test_a_record_that_waits_for_room_ends_the_lingering(
    settings: ProducerSettings, lingering: LingeringDriver
) -> None:
    settings = settings.evolve(max_buffered_bytes=10)
    async with open_send_producer(settings, driver=lingering) as producer:
        first = await producer.enqueue(record(b"123456"))
        second = await producer.enqueue(record(b"123456"))
        assert first.done
        await until(lambda: len(lingering.submitted) == 2)
        assert not second.done


async def test_a_record_that_finds_no_room_ends_the_lingering(
    settings: ProducerSettings, lingering: LingeringDriver
) -> None:
    settings = settings.evolve(max_buffered_bytes=10)
    async with open_send_producer(settings, driver=lingering) as producer:
        first = producer.enqueue_nowait(record(b"123456"))
        await until(lambda: len(lingering.submitted) == 1)
        assert lingering.told == []
        with pytest.raises(WouldBlock):
            producer.enqueue_nowait(record(b"123456"))
        await until(lambda: first.done)
        producer.enqueue_nowait(record(b"123456"))
        await until(lambda: lingering.told == [True, False])


async def test_a_full_flow_is_sent_at_once(
    settings: ProducerSettings, lingering: LingeringDriver
) -> None:
    async def source() -> AsyncGenerator[Message[bytes | None, bytes, int]]:
        for number in itertools.count():
            yield Message(record(), number)

    async with (
        open_send_producer(settings, driver=lingering) as producer,
        producer.flow(source(), max_in_flight=2) as results,
    ):
        assert [(await results.receive()).pass_through for _ in range(4)] == [0, 1, 2, 3]


async def test_a_commit_ends_the_lingering(
    settings: ProducerSettings, lingering: LingeringDriver
) -> None:
    settings = settings.evolve(transactional_id="me")
    async with open_send_producer(settings, driver=lingering) as producer:
        async with producer.transaction() as tx:
            await tx.enqueue(record())
        assert [how for how, _ in lingering.transactions] == ["committed"]


async def test_the_next_client_hurries_as_well(
    settings: ProducerSettings, lingering: LingeringDriver
) -> None:
    lingering.unknown_topics.add("new")
    async with (
        open_send_producer(settings, driver=lingering) as producer,
        task_group() as tasks,
    ):
        await producer.enqueue(record(topic="new"))
        flush = Call(tasks, producer.flush)
        await until(lambda: lingering.told == [True])
        lingering.break_client()
        await until(lambda: producer.statistics().generations == 2)
        await until(lambda: lingering.told == [True, True])
        lingering.learn("new")
        await flush.wait()
    assert producer.statistics().delivered == 1


@pytest.mark.parametrize("make", [LingeringDriver, PolledLingeringDriver])
async def test_a_client_that_does_not_linger_is_not_called(
    settings: ProducerSettings, make: Callable[..., LingeringDriver]
) -> None:
    driver = make(lingers=False)
    driver.manual = False
    async with open_send_producer(settings, driver=driver) as producer:
        await producer.enqueue(record())
        await producer.flush()
    assert driver.told == []


async def test_a_driver_that_raises_breaks_the_producer(
    settings: ProducerSettings, lingering: LingeringDriver
) -> None:
    lingering.hurry_error = SendProducerError("a driver's mistake")
    async with open_send_producer(settings, driver=lingering) as producer:
        delivery = await producer.enqueue(record())
        with raising(SendProducerError):
            await producer.flush()
            await delivery.wait()
        with raising(ProducerBroken):
            await producer.send(record())
