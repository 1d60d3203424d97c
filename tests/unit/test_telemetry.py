"""The events of observers, their order, and that a faulty observer harms no record."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import dataclasses
import inspect
import logging
import pickle
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any, cast

import anyio
import pytest

from anyio_sendproducer import (
    Delivery,
    DeliveryError,
    DeliveryTimeout,
    Message,
    MultiDeliveryError,
    MultiMessage,
    ProducerBroken,
    ProducerClosed,
    ProducerRecord,
    ProducerSettings,
    ProducerStartError,
    RecordRejected,
    SendProducer,
    SendProducerError,
    Statistics,
    TransactionError,
    UndeliveredRecords,
    _group_sending,
    _observing,
    open_send_producer,
    start_send_producer,
    telemetry,
)
from anyio_sendproducer._admission import Admission
from anyio_sendproducer._delivery import Entry
from anyio_sendproducer._engine import Engine
from anyio_sendproducer._ledger import Ledger
from anyio_sendproducer.telemetry import (
    Accepted,
    BatchEnded,
    Closing,
    Delivered,
    Event,
    Failed,
    GenerationEnded,
    GenerationOpened,
    Given,
    HandedOver,
    Injector,
    Refused,
    Withdrawn,
)
from anyio_sendproducer.testing import FakeDriver
from tests.support.asked_driver import AskedDriver
from tests.support.calls import (
    Call,
    at_gate,
    fail,
    generation,
    quiet,
    raising,
    record,
    refuse,
    taken,
    task_group,
)
from tests.support.clock import ManualClock
from tests.support.observers import Numbering, Recorder, check_story
from tests.support.waiting import until


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def numbering() -> Numbering:
    return Numbering()


def of(recorder: Recorder, *kinds: type[Any]) -> Callable[[], bool]:
    """Return a function that says whether the recorder has events of all these kinds."""
    return lambda: {type(event) for event in recorder.events} >= set(kinds)


# --- the events ----------------------------------------------------------------------------------


async def test_the_events_of_a_record(
    settings: ProducerSettings, fake: FakeDriver, recorder: Recorder
) -> None:
    sent = record(b"value", key=b"key")
    async with open_send_producer(settings, driver=fake, observers=[recorder]) as producer:
        metadata = await producer.send(sent)
    opened, accepted, handed_over, delivered, closing, ended = recorder.events
    assert opened == GenerationOpened(1, opened.at)
    assert isinstance(accepted, Accepted)
    number = accepted.number
    assert accepted == Accepted(number, sent, accepted.at, 8)
    assert handed_over == HandedOver(number, sent, handed_over.at)
    assert isinstance(delivered, Delivered)
    duration = delivered.duration
    assert delivered == Delivered(number, sent, delivered.at, duration, 8, metadata, False)
    assert 0 <= duration <= delivered.at - opened.at
    assert closing == Closing(closing.at, 0)
    assert ended == GenerationEnded(1, ended.at, None)
    check_story(recorder, producer.statistics())


async def test_a_record_that_fails(
    settings: ProducerSettings, fake: FakeDriver, recorder: Recorder
) -> None:
    fake.judge = refuse
    async with open_send_producer(settings, driver=fake, observers=[recorder]) as producer:
        with raising(DeliveryError) as caught:
            await producer.send(record())
    (failed,) = recorder.of(Failed)
    assert failed.error is caught.value
    assert (failed.handed_over, failed.abandoned) == (True, False)
    check_story(recorder, producer.statistics())


async def test_a_record_that_is_withdrawn_from_the_queue(
    settings: ProducerSettings, fake: FakeDriver, recorder: Recorder
) -> None:
    fake.on_submit.shut()
    async with (
        open_send_producer(settings, driver=fake, observers=[recorder]) as producer,
        task_group() as tasks,
    ):
        first = Call(tasks, producer.send, record(b"1"))
        await at_gate(fake.on_submit)
        second = Call(tasks, producer.send, record(b"2"))
        await quiet()
        await second.cancel()
        # The driver still blocks, so no other event wakes the pump.
        await until(of(recorder, Withdrawn))
        fake.on_submit.open()
        await first.wait()
    (withdrawn,) = recorder.of(Withdrawn)
    assert withdrawn.record.value == b"2"
    check_story(recorder, producer.statistics())


async def test_a_record_that_is_withdrawn_while_it_waits_for_room(
    settings: ProducerSettings, recorder: Recorder
) -> None:
    fake = FakeDriver(manual=True)
    settings = settings.with_max_in_flight(1)
    async with (
        open_send_producer(settings, driver=fake, observers=[recorder]) as producer,
        task_group() as tasks,
    ):
        first = Call(tasks, producer.send, record(b"1"))
        await taken(fake, 1)
        second = Call(tasks, producer.send, record(b"2"))
        await quiet()
        await second.cancel()
        await until(of(recorder, Refused))
        fake.acknowledge()
        await first.wait()
    (refused,) = recorder.of(Refused)
    assert refused.record.value == b"2"
    assert refused.error is None
    check_story(recorder, producer.statistics())


async def test_a_record_that_gets_its_room_later(
    settings: ProducerSettings, recorder: Recorder
) -> None:
    fake = FakeDriver(manual=True)
    settings = settings.with_max_in_flight(1)
    async with (
        open_send_producer(settings, driver=fake, observers=[recorder]) as producer,
        task_group() as tasks,
    ):
        calls = [Call(tasks, producer.send, record(b"%d" % number)) for number in range(2)]
        await taken(fake, 1)
        await until(of(recorder, HandedOver))
        assert len(recorder.of(Accepted)) == 1
        fake.manual = False
        fake.acknowledge()
        for call in calls:
            await call.wait()
    assert recorder.story == "ahaDhD"
    check_story(recorder, producer.statistics())


async def test_a_record_that_never_gets_room(
    settings: ProducerSettings, clock: ManualClock, recorder: Recorder
) -> None:
    fake = FakeDriver(manual=True)
    settings = settings.with_max_in_flight(1)
    async with (
        clock.open(settings, driver=fake, observers=[recorder]) as producer,
        task_group() as tasks,
    ):
        Call(tasks, producer.send, record(b"1"))
        await taken(fake, 1)
        second = Call(tasks, producer.send, record(b"2"))
        await quiet()
        clock.advance(1000.0)
        await second.wait()
    (refused,) = recorder.of(Refused)
    assert isinstance(refused.error, DeliveryTimeout)
    assert refused.error is second.error
    (failed,) = recorder.of(Failed)
    assert isinstance(failed.error, DeliveryTimeout)
    assert failed.handed_over
    check_story(recorder, producer.statistics())


async def test_a_record_that_is_abandoned_goes_on(
    settings: ProducerSettings, recorder: Recorder
) -> None:
    fake = FakeDriver(manual=True)
    async with (
        open_send_producer(settings, driver=fake, observers=[recorder]) as producer,
        task_group() as tasks,
    ):
        calls = [Call(tasks, producer.send, record(b"%d" % number)) for number in range(2)]
        await taken(fake, 2)
        for call in calls:
            await call.cancel()
        fake.acknowledge(1)
        fake.fail(refuse)
        await until(of(recorder, Delivered, Failed))
        producer._engine.ledger.take_undelivered()
    assert recorder.of(Delivered)[0].abandoned
    assert recorder.of(Failed)[0].abandoned
    check_story(recorder, producer.statistics())


async def test_a_record_that_the_driver_gives_back_without_metadata(
    settings: ProducerSettings, fake: FakeDriver, recorder: Recorder
) -> None:
    fake.unknown_topics.add("t")
    async with (
        open_send_producer(settings, driver=fake, observers=[recorder]) as producer,
        task_group() as tasks,
    ):
        call = Call(tasks, producer.send, record())
        await until(lambda: producer._engine.ledger._held != {})
        fake.learn("t")
        await call.wait()
    # The retry timer may also submit it again.
    assert recorder.story.startswith("ahh")
    assert recorder.story.endswith("hD")
    check_story(recorder, producer.statistics())


async def test_an_invalid_record_is_refused(
    settings: ProducerSettings, fake: FakeDriver, numbering: Numbering
) -> None:
    invalid = ProducerRecord("no such topic", b"v")
    async with open_send_producer(settings, driver=fake, observers=[numbering]) as producer:
        with raising(RecordRejected) as caught:
            await producer.send(invalid)
        await until(of(numbering, Refused))
    (refused,) = numbering.of(Refused)
    assert refused.record is invalid
    assert refused.error is caught.value
    assert numbering.given == []
    check_story(numbering, producer.statistics())


async def test_a_record_larger_than_max_buffered_bytes_is_refused(
    settings: ProducerSettings, fake: FakeDriver, numbering: Numbering
) -> None:
    settings = settings.with_max_buffered_bytes(10)
    too_large = record(b"v" * 11)
    async with open_send_producer(settings, driver=fake, observers=[numbering]) as producer:
        with raising(RecordRejected) as caught:
            await producer.send(too_large)
    (refused,) = numbering.of(Refused)
    assert refused.error is caught.value
    assert caught.value.record is too_large
    assert numbering.given == []
    check_story(numbering, producer.statistics())


async def test_an_object_that_is_not_a_record_makes_no_event(
    settings: ProducerSettings, fake: FakeDriver, recorder: Recorder
) -> None:
    async with open_send_producer(settings, driver=fake, observers=[recorder]) as producer:
        with raising(TypeError):
            await producer.send(cast("Any", b"text"))
        with raising(TypeError):
            await producer.send_many([record(), cast("Any", "text")])
        assert await producer.send_many([]) == []
    assert recorder.story == ""
    assert recorder.of(BatchEnded) == []
    with raising(ProducerClosed):
        await producer.send(record())
    assert recorder.story == ""
    check_story(recorder, producer.statistics())


async def test_enqueue_nowait_without_room_makes_no_event(
    settings: ProducerSettings, numbering: Numbering
) -> None:
    fake = FakeDriver(manual=True)
    settings = settings.with_max_in_flight(1)
    async with open_send_producer(settings, driver=fake, observers=[numbering]) as producer:
        producer.enqueue_nowait(record(b"1"))
        for _ in range(3):
            with raising(anyio.WouldBlock):
                producer.enqueue_nowait(record(b"2"))
        assert len(numbering.given) == 1
        await taken(fake, 1)
        fake.acknowledge()
    assert numbering.story == "ahD"
    check_story(numbering, producer.statistics())


async def test_a_record_that_fits_only_without_its_headers_is_refused(
    settings: ProducerSettings, numbering: Numbering
) -> None:
    fake = FakeDriver(manual=True)
    settings = settings.with_max_buffered_bytes(100)
    async with open_send_producer(settings, driver=fake, observers=[numbering]) as producer:
        first = producer.enqueue_nowait(record(b"v" * 50))
        room = 100 - producer.statistics().in_flight_bytes
        with raising(anyio.WouldBlock) as caught:
            producer.enqueue_nowait(record(b"v" * room))
        await taken(fake, 1)
        fake.acknowledge()
        await first.wait()
    (refused,) = numbering.of(Refused)
    assert refused.error is caught.value
    check_story(numbering, producer.statistics())


async def test_the_events_when_the_client_is_replaced(
    settings: ProducerSettings, recorder: Recorder
) -> None:
    fake = FakeDriver(manual=True)
    async with (
        open_send_producer(settings, driver=fake, observers=[recorder]) as producer,
        task_group() as tasks,
    ):
        call = Call(tasks, producer.send, record())
        await taken(fake, 1)
        broke = ValueError("broke")
        fake.break_client(broke)
        await call.wait()
        await until(generation(producer, 2))
    failed, ended = [
        event for event in recorder.events if isinstance(event, (Failed, GenerationEnded))
    ][:2]
    assert isinstance(failed, Failed)
    assert isinstance(ended, GenerationEnded)
    assert ended.error is broke
    check_story(recorder, producer.statistics())


async def test_the_events_of_a_producer_that_closes_without_a_client(
    settings: ProducerSettings, fake: FakeDriver, recorder: Recorder
) -> None:
    async with open_send_producer(settings, driver=fake, observers=[recorder]) as producer:
        fake.open_error = SendProducerError("not now")
        fake.break_client()
        await until(of(recorder, GenerationEnded))
    assert len(recorder.of(GenerationEnded)) == 1
    check_story(recorder, producer.statistics())


async def test_the_events_of_a_producer_whose_close_is_cancelled(
    settings: ProducerSettings, recorder: Recorder
) -> None:
    fake = FakeDriver(manual=True)
    settings = settings.with_cancel_timeout(0.05)
    figures: list[Callable[[], Statistics]] = []
    with anyio.CancelScope() as scope:
        async with open_send_producer(settings, driver=fake, observers=[recorder]) as producer:
            figures.append(producer.statistics)
            producer.enqueue_nowait(record())
            await taken(fake, 1)
            async with task_group() as tasks:
                Call(tasks, producer.aclose)
                await until(of(recorder, Closing))
                scope.cancel()
    assert len(recorder.of(Closing)) == 1
    check_story(recorder, figures[0]())


async def test_the_events_of_a_producer_that_broke(
    settings: ProducerSettings, recorder: Recorder
) -> None:
    fake = FakeDriver()
    fake.submit_error = KeyError("the driver's own")
    async with open_send_producer(settings, driver=fake, observers=[recorder]) as producer:
        with raising(DeliveryError):
            await producer.send(record())
        await until(of(recorder, Failed))
        with raising(ProducerBroken):
            await producer.send(record())
    assert recorder.of(GenerationEnded)[0].error is fake.submit_error
    check_story(recorder, producer.statistics())


async def test_the_events_of_a_pump_that_broke(
    settings: ProducerSettings,
    fake: FakeDriver,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_send_producer(settings, driver=fake, observers=[recorder]) as producer:
        monkeypatch.setattr(producer._engine, "_submit_queued", fail)
        with raising(DeliveryError):
            await producer.send(record())
        await until(of(recorder, Failed))
    (line,) = caplog.records
    assert vars(line)["error.type"] == "ZeroDivisionError"
    check_story(recorder, producer.statistics())


async def test_a_failed_start_makes_no_event(
    settings: ProducerSettings, fake: FakeDriver, recorder: Recorder
) -> None:
    fake.open_error = ProducerStartError("not now")
    with raising(ProducerStartError):
        async with open_send_producer(settings, driver=fake, observers=[recorder]):
            pass
    assert recorder.events == []


async def test_all_events_come_before_the_block_has_ended(
    settings: ProducerSettings, recorder: Recorder
) -> None:
    fake = FakeDriver(manual=True)
    settings = settings.with_cancel_timeout(0.05)
    with raising(ZeroDivisionError):
        async with open_send_producer(settings, driver=fake, observers=[recorder]) as producer:
            producer.enqueue_nowait(record())
            await taken(fake, 1)
            fail()
    assert recorder.story == "ahF"
    assert recorder.of(Closing)[0].pending == 1
    check_story(recorder, producer.statistics())


async def test_the_events_of_a_producer_in_a_task_group_of_the_caller(
    settings: ProducerSettings, fake: FakeDriver, recorder: Recorder
) -> None:
    async with task_group() as tasks:
        producer = await start_send_producer(
            tasks, settings, driver=fake, observers=iter([recorder])
        )
        await producer.send(record())
        await producer.aclose()
        check_story(recorder, producer.statistics())


# --- calls with several records ------------------------------------------------------------------


async def test_a_call_with_several_records(
    settings: ProducerSettings, fake: FakeDriver, numbering: Numbering
) -> None:
    records = [record(b"%d" % number) for number in range(3)]
    async with open_send_producer(settings, driver=fake, observers=[numbering]) as producer:
        await producer.send_many(records)
        await producer.send(record())
        await producer.send_envelope(
            MultiMessage([record(topic="one"), record(topic="other")], "through")
        )
    first, second = numbering.of(BatchEnded)
    assert [given.batch for given in numbering.given] == [
        *[first.batch] * 3,
        None,
        *[second.batch] * 2,
    ]
    assert (first.batch.count, first.batch.topic) == (3, "t")
    assert (second.batch.count, second.batch.topic) == (2, None)
    assert (first.failed, first.error, first.cancelled) == (0, None, False)
    check_story(numbering, producer.statistics())


async def test_a_call_with_some_failed_records(
    settings: ProducerSettings, fake: FakeDriver, numbering: Numbering
) -> None:
    fake.judge = lambda what: refuse(what) if what.value == b"1" else None
    records = [
        record(b"0"),
        record(b"1"),
        ProducerRecord("no such topic", b"2", partition=0),
        record(b"3"),
    ]
    async with open_send_producer(settings, driver=fake, observers=[numbering]) as producer:
        with raising(MultiDeliveryError) as caught:
            await producer.send_many(cast("Any", records))
    (ended,) = numbering.of(BatchEnded)
    assert ended.failed == 2
    parts = caught.value.parts
    # The caller's own records come back, without the headers that were added.
    assert [part.record for part in parts] == records
    assert all(part.record is mine for part, mine in zip(parts, records, strict=True))
    assert len(numbering.of(Refused)) == 1
    check_story(numbering, producer.statistics())


async def test_a_call_that_is_cancelled(settings: ProducerSettings, numbering: Numbering) -> None:
    fake = FakeDriver(manual=True)
    settings = settings.with_max_in_flight(2)
    records = [record(b"%d" % number) for number in range(4)]
    async with (
        open_send_producer(settings, driver=fake, observers=[numbering]) as producer,
        task_group() as tasks,
    ):
        call = Call(tasks, producer.send_many, records)
        await taken(fake, 2)
        await call.cancel()
        await until(of(numbering, BatchEnded))
        fake.acknowledge()
    (ended,) = numbering.of(BatchEnded)
    assert (ended.cancelled, ended.error) == (True, None)
    check_story(numbering, producer.statistics())


async def test_a_call_on_a_closed_producer(settings: ProducerSettings, recorder: Recorder) -> None:
    fake = FakeDriver(manual=True)
    async with (
        open_send_producer(settings, driver=fake, observers=[recorder]) as producer,
        task_group() as tasks,
    ):
        waiting = Call(tasks, producer.send, record())
        await taken(fake, 1)
        closing = Call(tasks, producer.aclose)
        await until(of(recorder, Closing))
        with raising(ProducerClosed) as caught:
            await producer.send_many([record(b"1"), record(b"2")])
        fake.acknowledge()
        await waiting.wait()
        await closing.wait()
    (ended,) = recorder.of(BatchEnded)
    assert ended.error is caught.value
    assert not ended.cancelled
    check_story(recorder, producer.statistics())


async def test_a_call_that_ends_after_the_producer(
    settings: ProducerSettings, fake: FakeDriver, recorder: Recorder
) -> None:
    fake.on_open.shut()  # no broker answers
    settings = settings.evolve(wait_for_cluster=False, close_timeout=0)
    records = [record(b"1"), record(b"2")]
    async with task_group() as tasks:
        async with open_send_producer(settings, driver=fake, observers=[recorder]) as producer:
            call = Call(tasks, producer.send_many, records)
            await until(of(recorder, Accepted))
        await call.wait()
    assert isinstance(call.error, MultiDeliveryError)
    (ended,) = recorder.of(BatchEnded)
    assert (ended.failed, ended.error, ended.cancelled) == (2, None, False)
    with raising(ProducerClosed) as caught:
        await producer.send_many(records)
    assert recorder.of(BatchEnded)[-1].error is caught.value


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # Trio allows no send()
async def test_an_event_after_the_end_is_observed_as_all_others(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    """On the event loop's thread, and in the opener's context."""
    who: ContextVar[str] = ContextVar("who")
    seen: list[tuple[type[Event], str, int]] = []

    class Watcher:
        def observe(self, events: Sequence[Event]) -> None:
            seen.extend((type(event), who.get(), threading.get_ident()) for event in events)

    records = [record(b"1"), record(b"2")]
    fake.manual = True
    settings = settings.evolve(close_timeout=0)
    who.set("opener")
    async with open_send_producer(settings, driver=fake, observers=[Watcher()]) as producer:
        who.set("caller")
        # A coroutine that the garbage collector of another thread closes.
        waiting = producer.send_many(records)
        context = contextvars.copy_context()
        context.run(waiting.send, None)
    ended = len(seen)
    thread = threading.Thread(target=context.run, args=[waiting.close])
    thread.start()
    await until(lambda: not thread.is_alive())
    assert len(seen) == ended
    with raising(ProducerClosed):
        await producer.send_many(records)
    assert seen[ended:] == [(BatchEnded, "opener", threading.get_ident())] * 2


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # Trio allows no send()
async def test_a_call_that_is_closed_in_another_context(
    settings: ProducerSettings, recorder: Recorder
) -> None:
    """As by the garbage collector, which would print an error of the context variable."""
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake, observers=[recorder]) as producer:
        call = producer.send_many([record(b"1"), record(b"2")])
        contextvars.copy_context().run(call.send, None)
        await taken(fake, 2)
        call.close()
        fake.acknowledge()
    (ended,) = recorder.of(BatchEnded)
    assert ended.cancelled
    assert producer.statistics().abandoned == 2


@pytest.mark.parametrize("most", [3, 1000])
async def test_a_call_with_more_records_than_room(
    settings: ProducerSettings, fake: FakeDriver, numbering: Numbering, most: int
) -> None:
    settings = settings.evolve(max_in_flight=most, max_buffered_bytes=30)
    records = [record(b"%05d" % number) for number in range(50)]
    async with open_send_producer(settings, driver=fake, observers=[numbering]) as producer:
        metadata = await producer.send_many(records)
    assert [one.offset for one in metadata] == [*range(50)]
    # inject() was called once for each record, even if the record had to wait for room.
    assert [given.record for given in numbering.given] == records
    check_story(numbering, producer.statistics())


async def test_records_of_a_flow(
    settings: ProducerSettings, fake: FakeDriver, numbering: Numbering
) -> None:
    async def envelopes() -> AsyncIterator[Message[Any, Any, int]]:
        for number in range(10):
            yield Message(record(b"%d" % number), number)

    settings = settings.with_max_in_flight(2)
    async with (
        open_send_producer(settings, driver=fake, observers=[numbering]) as producer,
        producer.flow(envelopes()) as results,
    ):
        assert [result.pass_through async for result in results] == [*range(10)]
    assert len(numbering.given) == 10
    check_story(numbering, producer.statistics())


# --- transactions --------------------------------------------------------------------------------


async def test_records_of_a_transaction(
    settings: ProducerSettings, fake: FakeDriver, numbering: Numbering
) -> None:
    settings = settings.with_transactional_id("id")
    async with open_send_producer(settings, driver=fake, observers=[numbering]) as producer:
        async with producer.transaction() as tx:
            await tx.send(record())
            await tx.send_many([record(), record()])
        with raising(TransactionError):
            await producer.send_many([record()])
        with raising(TransactionError):
            await producer.send(record())
    assert numbering.story.count("D") == 3
    well, badly = numbering.of(BatchEnded)
    assert well.error is None
    assert isinstance(badly.error, TransactionError)
    check_story(numbering, producer.statistics())


async def test_records_of_a_transaction_that_is_aborted(
    settings: ProducerSettings, recorder: Recorder
) -> None:
    fake = FakeDriver(manual=True)
    settings = settings.with_transactional_id("id")
    async with open_send_producer(settings, driver=fake, observers=[recorder]) as producer:
        with raising(ZeroDivisionError):
            async with producer.transaction() as tx:
                tx.enqueue_nowait(record())
                await taken(fake, 1)
                fail()
    assert recorder.story == "ahF"
    check_story(recorder, producer.statistics())


# --- headers -------------------------------------------------------------------------------------


async def test_headers_are_added_without_a_change_of_the_callers_record(
    settings: ProducerSettings, fake: FakeDriver, numbering: Numbering
) -> None:
    headers = [("mine", b"1")]
    sent = ProducerRecord("t", b"v", b"k", partition=0, timestamp_ms=7, headers=headers)
    async with open_send_producer(settings, driver=fake, observers=[numbering]) as producer:
        delivery = producer.enqueue_nowait(sent)
        await delivery.wait()
        result = await producer.send_envelope(Message(sent))
    assert headers == [("mine", b"1")]
    assert sent.headers == (("mine", b"1"),)
    assert delivery.record is sent
    assert result.record is sent
    numbers = [given.number for given in numbering.given]
    assert fake.written["t", 0] == [
        dataclasses.replace(sent, headers=(("mine", b"1"), ("n", b"%d" % number)))
        for number in numbers
    ]
    assert [given.record for given in numbering.given] == [sent, sent]
    assert {given.client_id for given in numbering.given} == {settings.client_id}


async def test_the_size_counts_the_headers(
    settings: ProducerSettings, numbering: Numbering
) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake, observers=[numbering]) as producer:
        producer.enqueue_nowait(record(b"value", key=b"key"))
        more = 1 + len(b"%d" % numbering.given[0].number)
        assert producer.statistics().in_flight_bytes == 8 + more
        await taken(fake, 1)
        fake.acknowledge()
    assert numbering.of(Accepted)[0].size == 8 + more
    assert numbering.of(Delivered)[0].size == 8 + more


async def test_headers_that_would_make_a_record_too_large_are_omitted(
    settings: ProducerSettings, fake: FakeDriver, numbering: Numbering
) -> None:
    settings = settings.with_max_buffered_bytes(10)
    async with open_send_producer(settings, driver=fake, observers=[numbering]) as producer:
        await producer.send(record(b"v" * 9))
    assert fake.written["t", 0] == [record(b"v" * 9)]
    assert len(numbering.given) == 1


@pytest.mark.parametrize("how", ["judged", "timed out", "closed"])
async def test_an_error_has_the_callers_record(
    settings: ProducerSettings, clock: ManualClock, numbering: Numbering, how: str
) -> None:
    fake = FakeDriver(manual=True)
    settings = settings.with_close_timeout(0.05)
    sent = record()
    deliveries: list[Delivery] = []
    with contextlib.suppress(UndeliveredRecords):
        async with clock.open(settings, driver=fake, observers=[numbering]) as producer:
            deliveries.append(producer.enqueue_nowait(sent))
            await taken(fake, 1)
            if how == "judged":
                fake.fail(refuse)
            elif how == "timed out":
                clock.advance(1000.0)
    with raising(DeliveryError) as caught:
        await deliveries[0].wait()
    assert caught.value.record is sent
    assert fake.submitted[0].headers


async def test_headers_of_several_observers(
    settings: ProducerSettings, fake: FakeDriver, recorder: Recorder
) -> None:
    class Other(Recorder):
        def inject(self, given: Given, /) -> Iterable[tuple[str, bytes]]:
            return iter([("o", b"")])

    observers = [Numbering(), recorder, Other()]
    assert [isinstance(one, Injector) for one in observers] == [True, False, True]
    async with open_send_producer(settings, driver=fake, observers=observers) as producer:
        await producer.send(record())
    (written,) = fake.written["t", 0]
    assert [name for name, _ in written.headers] == ["n", "o"]


# --- batches -------------------------------------------------------------------------------------


async def test_events_come_in_batches(settings: ProducerSettings, recorder: Recorder) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake, observers=[recorder]) as producer:
        deliveries = [producer.enqueue_nowait(record(b"%d" % n)) for n in range(100)]
        await taken(fake, 100)
        fake.acknowledge()
        for delivery in deliveries:
            await delivery.wait()
    # Acceptance and hand-over, the outcomes, and the start and end of the producer.
    assert len(recorder.batches) <= 6
    check_story(recorder, producer.statistics())


async def test_observers_get_events_while_the_driver_is_busy(
    settings: ProducerSettings, fake: FakeDriver, recorder: Recorder
) -> None:
    fake.on_submit.shut()
    async with open_send_producer(settings, driver=fake, observers=[recorder]) as producer:
        producer.enqueue_nowait(record())
        await at_gate(fake.on_submit)
        producer.enqueue_nowait(record())
        await until(lambda: len(recorder.of(Accepted)) == 2)
        fake.on_submit.open()


@pytest.mark.parametrize("direct", [True, False])
async def test_the_events_with_a_polled_driver(
    settings: ProducerSettings, recorder: Recorder, direct: bool
) -> None:
    fake = AskedDriver(direct=direct)
    async with open_send_producer(settings, driver=fake, observers=[recorder]) as producer:
        for number in range(5):
            await producer.send(record(b"%d" % number))
        await producer.send_many([record()] * 5)
    assert recorder.story.count("D") == 10
    check_story(recorder, producer.statistics())


# --- observers that raise ------------------------------------------------------------------------


class Faulty(Recorder):
    """An observer whose methods always raise."""

    def __init__(self, *errors: BaseException) -> None:
        super().__init__()
        self.errors = errors
        self.calls: Counter[str] = Counter()

    def _raise(self, method: str) -> None:
        self.calls[method] += 1
        raise self.errors[self.calls[method] % len(self.errors)]

    def observe(self, events: Sequence[Event], /) -> None:
        super().observe(events)
        self._raise("observe")

    def inject(self, given: Given, /) -> Iterable[tuple[str, bytes]]:
        self._raise("inject")
        return ()


class NotEvenAnException(BaseException):
    """An observer should not raise this, but it must do no harm either."""


async def test_an_error_of_an_observer_harms_no_record(
    settings: ProducerSettings, fake: FakeDriver, caplog: pytest.LogCaptureFixture
) -> None:
    faulty = Faulty(ValueError("of the observer"), NotEvenAnException("worse"))
    well = Numbering()
    async with open_send_producer(settings, driver=fake, observers=[faulty, well]) as producer:
        for _ in range(20):
            await producer.send(record())
        await producer.send_many([record()] * 20)
    figures = producer.statistics()
    assert (figures.delivered, figures.failed, figures.state) == (40, 0, "closed")
    assert len(fake.written["t", 0]) == 40
    assert all(written.headers for written in fake.written["t", 0])
    check_story(well, figures)
    assert faulty.events == well.events
    # One line for each method and kind of error, although there were dozens of errors.
    assert faulty.calls["inject"] == 40
    assert faulty.calls["observe"] > 10
    assert len(caplog.records) == 4
    for line in caplog.records:
        assert line.name == "anyio_sendproducer.telemetry"
        assert line.levelno == logging.ERROR
        assert "Faulty" in line.getMessage()
        assert line.exc_info is not None
        assert vars(line)["anyio_sendproducer.observer"] == "Faulty"
    assert {vars(line)["error.type"].rpartition(".")[2] for line in caplog.records} == {
        "ValueError",
        "NotEvenAnException",
    }


async def test_an_observer_and_the_log_handler_of_its_errors_may_both_raise(
    settings: ProducerSettings, fake: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a LoggingObserver, if the handler of all loggers raises."""
    handled: list[str] = []

    class FaultyHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            handled.append(record.name)
            raise OSError("disk full")

    logger = logging.getLogger("anyio_sendproducer")
    monkeypatch.setattr(logger, "handlers", [FaultyHandler()])
    monkeypatch.setattr(logger, "level", logging.INFO)
    monkeypatch.setattr(logger, "propagate", False)
    observers: list[telemetry.Observer] = [
        telemetry.LoggingObserver(),
        Faulty(ValueError("of the observer")),
    ]
    async with open_send_producer(settings, driver=fake, observers=observers) as producer:
        for _ in range(3):
            await producer.send(record())
        assert producer.statistics().state == "open"
    assert producer.statistics().delivered == 3
    assert {*handled} == {"anyio_sendproducer.events", "anyio_sendproducer.telemetry"}


async def test_repeated_errors_are_logged_again_after_a_while(
    settings: ProducerSettings,
    fake: FakeDriver,
    caplog: pytest.LogCaptureFixture,
    clock: ManualClock,
) -> None:
    class FaultyInjector(Recorder):
        def inject(self, given: Given, /) -> Iterable[tuple[str, bytes]]:
            raise ValueError

    async with clock.open(settings, driver=fake, observers=[FaultyInjector()]) as producer:
        for _ in range(5):
            await producer.send(record())
        clock.advance(61)
        for _ in range(5):
            await producer.send(record())
    counts = [vars(line)["anyio_sendproducer.count"] for line in caplog.records]
    assert counts == [0, 4]


@pytest.mark.parametrize(
    "headers",
    [None, 7, ["text"], [("name", "text")], [(b"name", b"")], [["name", b""]], [("\udc00", b"")]],
)
async def test_invalid_headers_are_omitted_and_logged(
    settings: ProducerSettings,
    fake: FakeDriver,
    caplog: pytest.LogCaptureFixture,
    headers: Any,
) -> None:
    class Odd(Recorder):
        def inject(self, given: Given, /) -> Iterable[tuple[str, bytes]]:
            odd: Iterable[tuple[str, bytes]] = headers
            return odd

    async with open_send_producer(settings, driver=fake, observers=[Odd()]) as producer:
        await producer.send(record())
    assert fake.written["t", 0] == [record()]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("method", ["observe", "inject"])
async def test_exceptions_that_end_the_program_are_not_caught(
    settings: ProducerSettings, fake: FakeDriver, method: str
) -> None:
    observation = _observing.Observation(
        [Faulty(KeyboardInterrupt())], client_id="", clock=ManualClock(), wake_pump=lambda: None
    )
    with raising(KeyboardInterrupt):
        if method == "observe":
            observation.client_opened(1)
            observation.inform()
        else:
            observation.add_headers(observation.make_given(record(), 0.0), 1, 100)


async def test_an_observer_may_send_records_itself(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    class Echo(Recorder):
        producer: SendProducer

        def observe(self, events: Sequence[Event], /) -> None:
            super().observe(events)
            for event in events:
                if isinstance(event, Delivered) and event.record.topic == "t":
                    self.producer.enqueue_nowait(record(b"echo", "echo"))

    echo = Echo()
    async with open_send_producer(settings, driver=fake, observers=[echo]) as producer:
        echo.producer = producer
        await producer.send(record())
        await until(lambda: ("echo", 0) in fake.written)
    check_story(echo, producer.statistics())


def test_an_invalid_observer_is_named(settings: ProducerSettings) -> None:
    async def main() -> None:
        async with open_send_producer(settings, observers=[Recorder(), cast("Any", "text")]):
            pass

    with pytest.raises(TypeError, match=r"observers\[1\] must have a method observe.*str"):
        anyio.run(main)


# --- the cost without observers ------------------------------------------------------------------


async def test_without_observers_a_producer_has_no_observing_parts(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        assert type(producer) is SendProducer
        assert type(producer._engine.ledger) is Ledger
        assert producer._engine.observation is None
        delivery = producer.enqueue_nowait(record())
        assert not hasattr(delivery._entry, "given")
        await delivery.wait()
    settings = settings.with_transactional_id("id")
    async with open_send_producer(settings, driver=fake) as producer:
        assert type(producer._transactions._admission) is Admission


@pytest.mark.parametrize(
    "function",
    [
        SendProducer.send,
        SendProducer.send_many,
        SendProducer.send_envelope,
        SendProducer.enqueue,
        SendProducer.enqueue_nowait,
        _group_sending._send_checked,
        _group_sending._GroupCall.enter_all,
        _group_sending._GroupCall._enter_one,
        Admission.enter,
        Admission.enter_many,
        Engine._submit_queued,
        Engine._apply_submitted,
        Ledger.enter,
        Ledger.enter_many,
        Ledger.take,
        Ledger.settle,
        Ledger._fail,
        Ledger._withdraw,
        Entry.__init__,
    ],
    ids=lambda function: function.__qualname__,
)
def test_without_observers_the_hot_path_has_no_code_for_them(function: Any) -> None:
    names = {*function.__code__.co_names, *function.__code__.co_varnames}
    assert not [name for name in names if "observ" in name or name == "given"]


def test_the_observed_ledger_overrides_each_method_that_changes_a_state() -> None:
    movers = {
        name
        for name, function in vars(Ledger).items()
        if inspect.isfunction(function)
        and re.search(r"entry\.state = |_move\(entry", inspect.getsource(function))
    }
    assert {"_admit", "_fail", "_withdraw", "cancel", "enter", "hold", "settle", "take"} <= movers
    # The admission tells observers of an entered record, because it has the caller's record. A
    # held record is queued again, as it was before.
    assert movers - {"enter", "hold"} <= vars(_observing.ObservedLedger).keys()


async def test_events_equal_those_made_by_their_classes(
    settings: ProducerSettings, fake: FakeDriver, numbering: Numbering
) -> None:
    """The producer makes some events without calling their classes, because this is faster."""
    async with open_send_producer(settings, driver=fake, observers=[numbering]) as producer:
        await producer.send(record(b"value"))
    told = [*numbering.given, *numbering.events]
    assert {type(one) for one in told} >= {Given, Accepted, HandedOver, Delivered}
    for one in told:
        values = [getattr(one, field.name) for field in dataclasses.fields(one)]
        made: Any = type(one)(*values)
        assert one == made == copy.copy(one) == pickle.loads(pickle.dumps(one))
        assert (repr(one), hash(one)) == (repr(made), hash(made))
        assert not hasattr(one, "__dict__")
        with pytest.raises(dataclasses.FrozenInstanceError):
            cast("Any", one).at = 0.0


def test_events_are_frozen_and_document_each_field() -> None:
    exported = [getattr(telemetry, name) for name in telemetry.__all__]
    classes: list[Any] = [cls for cls in exported if dataclasses.is_dataclass(cls)]
    assert {Given, Accepted, HandedOver, Delivered} <= set(classes)
    for cls in classes:
        assert cls.__dataclass_params__.frozen
        source = inspect.getsource(cls)
        for field in dataclasses.fields(cls):
            assert f'    {field.name}: {field.type}\n    """' in source, field.name
