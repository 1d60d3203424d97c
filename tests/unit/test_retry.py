"""Retries and dead letters, with a driver that has no broker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from anyio_sendproducer import (
    DeliveryError,
    DeliveryTimeout,
    Persistence,
    ProducerClosed,
    ProducerRecord,
    ProducerSettings,
    RecordRejected,
    SendProducer,
    SerializationFailed,
    SettingsError,
    dead_letter_record,
    open_send_producer,
    send_with_retry,
)
from anyio_sendproducer.testing import FakeDriver, factories
from tests.support.calls import Call, quiet, raising, record, taken, task_group
from tests.support.clock import ManualClock
from tests.support.waiting import until

Judge = Callable[[ProducerRecord[Any, Any]], "DeliveryError | None"]

not_persisted = factories.not_persisted
possibly_persisted = factories.possibly_persisted


class RecordingClock(ManualClock):
    """A clock that records the pauses between attempts, and ends each at once."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []
        self.is_stopped = False

    async def sleep(self, seconds: float, /) -> None:
        # The producer's own deadlines are longer.
        if seconds < 5:
            self.pauses.append(seconds)
            if not self.is_stopped:
                return
        await super().sleep(seconds)


@pytest.fixture
def clock() -> RecordingClock:
    return RecordingClock()


@pytest.fixture
async def producer(
    settings: ProducerSettings, fake: FakeDriver, clock: RecordingClock
) -> AsyncIterator[SendProducer]:
    async with clock.open(settings, driver=fake) as opened:
        yield opened


def in_turn(*answers: Judge | None) -> Judge:
    """Answer the first records with `answers` in turn, and acknowledge all later ones."""
    left = list(answers)

    def judge(what: ProducerRecord[Any, Any]) -> DeliveryError | None:
        answer = left.pop(0) if left else None
        return None if answer is None else answer(what)

    return judge


def notes(error: BaseException) -> list[str]:
    found: list[str] = getattr(error, "__notes__", [])
    return found


# --- attempts ------------------------------------------------------------------------------------


async def test_unwritten_records_are_sent_again_after_growing_pauses(
    producer: SendProducer, fake: FakeDriver, clock: RecordingClock
) -> None:
    fake.judge = in_turn(*[not_persisted] * 4)
    metadata = await send_with_retry(producer, record(), backoff=1, max_backoff=3.5)
    assert metadata.offset == 0
    assert [one.value for one in fake.submitted] == [b"v"] * 5
    longest = [1.0, 2.0, 3.5, 3.5]
    assert len(clock.pauses) == len(longest)
    for pause, most in zip(clock.pauses, longest, strict=True):
        assert most / 2 <= pause <= most


async def test_each_attempt_has_the_whole_timeout(
    settings: ProducerSettings, clock: RecordingClock
) -> None:
    fake = FakeDriver(manual=True)
    async with clock.open(settings, driver=fake) as producer, task_group() as tasks:
        call = Call(
            tasks,
            lambda: send_with_retry(
                producer, record(), attempts=2, timeout=90, retry_possibly_persisted=True
            ),
        )
        for attempt in (1, 2):
            await taken(fake, attempt)
            clock.advance(80)
            await quiet()
            assert call.running
            assert len(fake.submitted) == attempt
            clock.advance(20)
        await call.wait()
        fake.acknowledge()
    assert isinstance(call.error, DeliveryTimeout)


@pytest.mark.parametrize("kind", ["rejected", "serialization_failed"])
async def test_a_record_that_would_fail_again_is_not_retried(
    producer: SendProducer, fake: FakeDriver, clock: RecordingClock, kind: str
) -> None:
    fake.judge = in_turn(getattr(factories, kind))
    with raising(DeliveryError) as caught:
        await send_with_retry(producer, record(), retry_possibly_persisted=True)
    assert isinstance(caught.value, (RecordRejected, SerializationFailed))
    assert notes(caught.value) == []
    assert clock.pauses == []
    assert len(fake.submitted) == 1


async def test_a_possibly_written_record_is_retried_only_on_request(
    producer: SendProducer, fake: FakeDriver
) -> None:
    fake.judge = in_turn(possibly_persisted, possibly_persisted)
    with raising(DeliveryError) as caught:
        await send_with_retry(producer, record())
    assert caught.value.persistence is Persistence.POSSIBLY_PERSISTED
    assert len(fake.submitted) == 1
    await send_with_retry(producer, record(), retry_possibly_persisted=True)
    assert len(fake.submitted) == 3


async def test_an_error_that_says_persisted_is_not_retried(
    producer: SendProducer, fake: FakeDriver
) -> None:
    fake.judge = in_turn(
        lambda what: DeliveryError("odd", record=what, persistence=Persistence.PERSISTED)
    )
    with raising(DeliveryError):
        await send_with_retry(producer, record(), retry_possibly_persisted=True)
    assert len(fake.submitted) == 1


async def test_the_last_error_has_a_note_with_the_number_of_attempts(
    producer: SendProducer, fake: FakeDriver
) -> None:
    fake.judge = in_turn(*[not_persisted] * 2, factories.rejected)
    with raising(RecordRejected) as caught:
        await send_with_retry(producer, record(), attempts=3)
    assert notes(caught.value) == ["3 attempts were made"]
    assert len(fake.submitted) == 3


@pytest.mark.parametrize("last", [not_persisted, factories.rejected])
async def test_the_last_error_says_that_an_earlier_attempt_may_be_written(
    producer: SendProducer, fake: FakeDriver, last: Judge
) -> None:
    fake.judge = in_turn(not_persisted, possibly_persisted, last)
    with raising(DeliveryError) as caught:
        await send_with_retry(producer, record(), attempts=3, retry_possibly_persisted=True)
    assert caught.value.persistence is Persistence.POSSIBLY_PERSISTED
    assert len(fake.submitted) == 3


async def test_a_producer_that_closes_during_a_pause(
    producer: SendProducer, fake: FakeDriver, clock: RecordingClock
) -> None:
    clock.is_stopped = True
    fake.judge = in_turn(not_persisted)
    async with task_group() as tasks:
        call = Call(tasks, send_with_retry, producer, record())
        await until(lambda: clock.pauses)
        await producer.aclose()
        clock.advance(1)
        await call.wait()
    assert isinstance(call.error, DeliveryError)
    (note,) = notes(call.error)  # and none that counts two attempts
    assert note.startswith("another attempt was not possible: ")
    with raising(ProducerClosed):
        await send_with_retry(producer, record())


# --- cancellation --------------------------------------------------------------------------------


async def test_cancelled_during_a_pause(
    producer: SendProducer, fake: FakeDriver, clock: RecordingClock
) -> None:
    clock.is_stopped = True
    fake.judge = in_turn(not_persisted)
    async with task_group() as tasks:
        call = Call(tasks, lambda: send_with_retry(producer, record(), dead_letter="dead"))
        await until(lambda: clock.pauses)
        await call.cancel()
        clock.advance(1)
        await quiet()
    assert len(fake.submitted) == 1


async def test_cancelled_while_the_dead_letter_is_sent(
    settings: ProducerSettings, clock: RecordingClock
) -> None:
    fake = FakeDriver(manual=True)
    async with clock.open(settings, driver=fake) as producer, task_group() as tasks:
        call = Call(tasks, lambda: send_with_retry(producer, record(), dead_letter="dead"))
        await taken(fake, 1)
        fake.fail(factories.rejected)
        await taken(fake, 2)
        await call.cancel()
        fake.acknowledge()


# --- dead letters --------------------------------------------------------------------------------


async def test_the_headers_of_a_dead_letter(producer: SendProducer, fake: FakeDriver) -> None:
    fake.judge = in_turn(factories.rejected)
    sent = ProducerRecord(
        "orders", b"v", b"k", partition=3, timestamp_ms=7, headers=[("own", b"header")]
    )
    assert await send_with_retry(producer, sent, dead_letter="orders.dead") is None
    letter = fake.submitted[1]
    assert (letter.topic, letter.key, letter.value) == ("orders.dead", b"k", b"v")
    assert (letter.partition, letter.timestamp_ms) == (None, 7)
    headers = dict(letter.headers)
    assert letter.headers[0] == ("own", b"header")
    assert headers["kafka_dlt-original-topic"] == b"orders"
    assert headers["kafka_dlt-original-partition"] == b"\0\0\0\3"
    assert headers["kafka_dlt-exception-fqcn"] == b"anyio_sendproducer.RecordRejected"
    assert headers["kafka_dlt-exception-message"]
    assert headers["anyio_sendproducer-persistence"] == b"not persisted"
    assert "kafka_dlt-exception-cause-fqcn" not in headers


@pytest.mark.parametrize("partition", [None, -1, 2**31, "1", True])
def test_a_dead_letter_of_an_invalid_record(partition: Any) -> None:
    wrong = ProducerRecord("\ud800", b"v", partition=partition)
    error = factories.rejected(wrong)
    error.__cause__ = ValueError("why")
    headers = dict(dead_letter_record(error, "dead").headers)
    assert headers["kafka_dlt-original-topic"] == b"\\ud800"
    assert headers["kafka_dlt-exception-cause-fqcn"] == b"ValueError"
    assert "kafka_dlt-original-partition" not in headers


async def test_a_dead_letter_says_that_an_attempt_may_be_written(
    producer: SendProducer, fake: FakeDriver
) -> None:
    fake.judge = in_turn(possibly_persisted, not_persisted)
    assert (
        await send_with_retry(
            producer, record(), attempts=2, retry_possibly_persisted=True, dead_letter="dead"
        )
        is None
    )
    assert dict(fake.submitted[2].headers)["anyio_sendproducer-persistence"] == (
        b"possibly persisted"
    )


async def test_if_the_dead_letter_fails_the_error_of_the_record_is_raised(
    producer: SendProducer, fake: FakeDriver
) -> None:
    fake.judge = in_turn(factories.rejected, factories.rejected)
    with raising(RecordRejected) as caught:
        await send_with_retry(producer, record(), dead_letter="dead")
    assert caught.value.record.topic == "t"
    (note,) = notes(caught.value)
    assert note.startswith("the dead letter failed, too: anyio_sendproducer.RecordRejected: ")
    assert len(fake.submitted) == 2


async def test_a_dead_letter_is_retried_even_if_it_may_be_written(
    producer: SendProducer, fake: FakeDriver, clock: RecordingClock
) -> None:
    """Otherwise one temporary failure, such as a client that is replaced, would cost both."""
    fake.judge = in_turn(possibly_persisted, possibly_persisted, not_persisted)
    assert await send_with_retry(producer, record(), attempts=3, dead_letter="dead") is None
    assert [one.topic for one in fake.submitted] == ["t", "dead", "dead", "dead"]
    assert len(clock.pauses) == 2


async def test_a_dead_letter_has_as_many_attempts_as_its_record(
    producer: SendProducer, fake: FakeDriver
) -> None:
    fake.judge = in_turn(*[not_persisted] * 4)
    with raising(DeliveryError) as caught:
        await send_with_retry(producer, record(), attempts=2, dead_letter="dead")
    assert [one.topic for one in fake.submitted] == ["t", "t", "dead", "dead"]
    first, second = notes(caught.value)
    assert first == "2 attempts were made"
    assert second.startswith("the dead letter failed, too: anyio_sendproducer.DeliveryError: ")


async def test_no_attempt_at_a_dead_letter_starts_after_its_delivery_timeout(
    settings: ProducerSettings, clock: RecordingClock
) -> None:
    """So an outage delays the caller by two delivery_timeouts at most after the last attempt."""
    fake = FakeDriver(manual=True)
    settings = settings.evolve(delivery_timeout=20.0)
    async with clock.open(settings, driver=fake) as producer, task_group() as tasks:
        call = Call(
            tasks, lambda: send_with_retry(producer, record(), attempts=9, dead_letter="dead")
        )
        await taken(fake, 1)
        fake.fail(possibly_persisted)
        await taken(fake, 2)
        clock.advance(15)
        await quiet()
        fake.fail(possibly_persisted)
        await taken(fake, 3)
        clock.advance(6)
        await quiet()
        assert call.running
        fake.fail(possibly_persisted)
        await call.wait()
    assert isinstance(call.error, DeliveryError)
    assert [one.topic for one in fake.submitted] == ["t", "dead", "dead"]


async def test_dead_letter_may_be_a_callable(producer: SendProducer, fake: FakeDriver) -> None:
    aside: list[DeliveryError] = []

    async def put_aside(error: DeliveryError) -> None:
        aside.append(error)
        if len(aside) > 1:
            raise OSError("disk full")

    fake.judge = in_turn(factories.rejected, factories.rejected)
    sent = record()
    assert await send_with_retry(producer, sent, dead_letter=put_aside) is None
    assert [error.record for error in aside] == [sent]
    with raising(RecordRejected) as caught:
        await send_with_retry(producer, sent, dead_letter=put_aside)
    assert notes(caught.value) == ["the dead letter failed, too: OSError: disk full"]
    assert await send_with_retry(producer, sent, dead_letter=put_aside) is not None
    assert len(fake.submitted) == 3


# --- misuse --------------------------------------------------------------------------------------


async def test_wrong_arguments(settings: ProducerSettings, fake: FakeDriver) -> None:
    async with open_send_producer(settings, driver=fake, transactional_id="id") as producer:
        for name, value in {
            "attempts": 0,
            "backoff": -1,
            "max_backoff": "soon",
            "timeout": 0,
        }.items():
            wrong: dict[str, Any] = {name: value}
            with raising(SettingsError, match=name):
                await send_with_retry(producer, record(), **wrong)
        with raising(TypeError, match="expected a ProducerRecord, not str"):
            await send_with_retry(producer, cast("Any", "orders"))
        with raising(TypeError, match="dead_letter must be the name of a topic, .*, not bytes"):
            await send_with_retry(producer, record(), dead_letter=cast("Any", b"dead"))
        async with producer.transaction() as tx:
            with raising(TypeError, match="must be a SendProducer, not Transaction"):
                await send_with_retry(cast("SendProducer", tx), record())
        assert fake.submitted == []
