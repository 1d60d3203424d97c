"""The fake producer behaves as a real one, and a test controls its answers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from datetime import timedelta
from typing import Any, cast

import anyio
import pytest
import trio
import trio.testing

from anyio_sendproducer import (
    ConsumerGroupMetadata,
    DeliveryError,
    DeliveryTimeout,
    Message,
    MultiDeliveryError,
    MultiMessage,
    PassThroughMessage,
    Persistence,
    ProducerBroken,
    ProducerClosed,
    ProducerFenced,
    ProducerRecord,
    ProducerSettings,
    ProducerStartError,
    RecordMetadata,
    RecordRejected,
    SendProducer,
    SerializationFailed,
    TransactionAborted,
    TransactionError,
    TransactionOutcomeUnknown,
    UndeliveredRecords,
    open_send_producer,
)
from anyio_sendproducer.serializers import JSONSerializer
from anyio_sendproducer.testing import (
    FailWhen,
    FakeDriver,
    FakeProducer,
    factories,
    fake_producer,
)
from anyio_sendproducer.testing._polled_driver import PolledFakeDriver
from tests.support.calls import Call, fail, quiet, raising, record, task_group
from tests.support.clock import run_while_the_clock_stands_still
from tests.support.recorder import Parcel, Recorder

ORDER = ProducerRecord("orders", b"two tins", b"42", headers=[("trace", b"1")])


@pytest.fixture
async def fake() -> AsyncIterator[FakeProducer]:
    async with fake_producer() as running:
        yield running


@pytest.fixture
async def by_hand() -> AsyncIterator[FakeProducer]:
    async with fake_producer(manual=True) as running:
        yield running


# --- the sent records ----------------------------------------------------------------------------


async def test_sent_has_the_records_with_all_their_fields(fake: FakeProducer) -> None:
    assert isinstance(fake.producer, SendProducer)
    metadata = await fake.producer.send(ORDER)
    assert metadata == RecordMetadata("orders", metadata.partition, 0, 0, 2, 8)
    await fake.producer.send(ProducerRecord("bills", b"1.20"))
    assert fake.sent == [ORDER, ProducerRecord("bills", b"1.20")]
    assert fake.sent_to("orders") == [ORDER]
    assert fake.sent_to("nothing") == []
    assert fake.written["orders", metadata.partition] == [ORDER]
    assert fake.pending == []


async def test_all_methods_of_a_producer_work(fake: FakeProducer) -> None:
    producer = fake.producer

    async def envelopes() -> AsyncIterator[Message[None, bytes, int]]:
        for number in range(3):
            yield Message(ProducerRecord("t", b"%d" % number), number)

    assert len(await producer.send_many([record(), record()])) == 2
    multiple = await producer.send_envelope(MultiMessage([ORDER, ORDER], 7))
    assert multiple.pass_through == 7
    assert (await producer.send_envelope(PassThroughMessage(8))).pass_through == 8
    assert await producer.partitions_for("t") == {0, 1, 2, 3}
    async with producer.flow(envelopes()) as results:
        assert [result.pass_through async for result in results] == [0, 1, 2]
    await producer.enqueue(record(b"last"))
    await producer.flush()
    assert fake.sent[-1].value == b"last"
    assert len(fake.sent) == 8


async def test_sent_and_written_are_copies(fake: FakeProducer) -> None:
    await fake.producer.send(record())
    fake.sent.clear()
    for log in fake.written.values():
        log.clear()
    assert len(fake.sent) == 1
    assert fake.written["t", 0] == [record()]


async def test_the_number_of_partitions_can_be_set() -> None:
    async with fake_producer(partitions=1) as fake:
        assert (await fake.producer.send(ORDER)).partition == 0
        assert await fake.producer.partitions_for("orders") == {0}


async def test_wait_until_sent(by_hand: FakeProducer) -> None:
    async with task_group() as tasks:
        waiting = Call(tasks, by_hand.wait_until_sent, 2)
        by_hand.producer.enqueue_nowait(record(b"1"))
        await quiet()
        assert waiting.running
        assert "sent=1 pending=1" in repr(by_hand)
        by_hand.producer.enqueue_nowait(record(b"2"))
        await waiting.wait()
        by_hand.acknowledge()


async def test_wait_until_sent_raises_if_fewer_records_are_sent(fake: FakeProducer) -> None:
    await fake.producer.send(record())
    with pytest.raises(TimeoutError, match=r"1 records were sent within 0.01 s, not 2"):
        await fake.wait_until_sent(2, timeout=0.01)
    await fake.wait_until_sent(1, timeout=timedelta(milliseconds=10))


def test_its_driver_rings_at_once_if_it_has_outcomes() -> None:
    driver, recorder, parcel = PolledFakeDriver(), Recorder(), Parcel(record())
    driver.open(recorder)
    driver.submit([parcel])
    assert not recorder.bell.is_set()
    driver.watch()
    assert recorder.bell.is_set()
    assert driver.poll(1) == 0
    assert isinstance(recorder.outcomes_of([parcel])[0], RecordMetadata)


def test_its_driver_counts_only_the_records_that_it_took() -> None:
    driver, recorder = PolledFakeDriver(), Recorder()
    driver.open(recorder)
    driver.submit_error = KeyError("refused")
    with pytest.raises(KeyError, match="refused"):
        driver.submit([Parcel(record())])
    driver.submit_error = None
    driver.unknown_topics.add("unknown")
    held = Parcel(record(topic="unknown"))
    assert driver.submit([held]).held == [held]
    assert driver.poll(1) == 0
    driver.submit([Parcel(record())])
    assert driver.poll(0) == 1
    assert driver.poll(1) == 0


# --- it behaves like a real producer -------------------------------------------------------------


async def test_it_applies_back_pressure(settings: ProducerSettings) -> None:
    async with (
        fake_producer(settings.evolve(max_in_flight=1), manual=True) as fake,
        task_group() as tasks,
    ):
        first = Call(tasks, fake.producer.send, record(b"1"))
        await fake.wait_until_sent(1)
        second = Call(tasks, fake.producer.send, record(b"2"))
        await quiet()
        with pytest.raises(anyio.WouldBlock):
            fake.producer.enqueue_nowait(record())
        assert fake.producer.statistics().waiting == 1
        assert fake.acknowledge() == 1
        await first.wait()
        await fake.wait_until_sent(2)
        assert fake.acknowledge() == 1
        await second.wait()


async def test_a_cancelled_send_abandons_its_record(by_hand: FakeProducer) -> None:
    async with task_group() as tasks:
        call = Call(tasks, by_hand.producer.send, record())
        await by_hand.wait_until_sent(1)
        await call.cancel()
    by_hand.acknowledge()
    await by_hand.producer.flush()
    assert by_hand.producer.statistics().abandoned == 1
    assert by_hand.producer.statistics().delivered == 1


async def test_a_record_without_an_answer_ends_with_the_block(settings: ProducerSettings) -> None:
    with raising(UndeliveredRecords) as caught:
        async with fake_producer(settings.evolve(close_timeout=0.02), manual=True) as fake:
            fake.producer.enqueue_nowait(record())
    [error] = caught.value.errors
    assert error.persistence is Persistence.POSSIBLY_PERSISTED


async def test_the_end_of_the_block_raises_unawaited_failures() -> None:
    with raising(UndeliveredRecords) as caught:
        async with fake_producer(answer=factories.rejected) as fake:
            fake.producer.enqueue_nowait(record())
    assert isinstance(caught.value.errors[0], RecordRejected)
    with pytest.raises(ProducerClosed):
        await fake.producer.send(record())


async def test_a_bad_record_is_refused_before_it_is_sent(fake: FakeProducer) -> None:
    with pytest.raises(RecordRejected, match="topic is empty"):
        await fake.producer.send(ProducerRecord("", b"v"))
    assert fake.sent == []


async def test_no_hook_of_the_settings_runs() -> None:
    def never(*_: object) -> Any:
        raise AssertionError

    settings = ProducerSettings(
        service_name="kafka.invalid", enrich=never, producer_factory=never, client_id="orders"
    )
    async with fake_producer(settings) as fake:
        await fake.producer.send(record())
        assert "fake.invalid:9092" in repr(fake.producer)


def test_no_event_is_pending_when_all_tasks_are_blocked() -> None:
    """A clock that jumps when all tasks are blocked does not end calls that wait for the fake."""

    async def main() -> None:
        async with fake_producer(manual=True) as fake:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fake.producer.send, record())
                await trio.testing.wait_all_tasks_blocked()
                assert fake.acknowledge() == 1
            fake.manual = False
            with trio.fail_after(1):
                for _ in range(100):
                    await fake.producer.send(record())

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def _transaction() -> None:
    settings = ProducerSettings(bootstrap_servers="localhost:9092", transactional_id="tx")
    async with fake_producer(settings) as fake:
        async with fake.producer.transaction() as tx:
            await tx.send(record())
            await tx.send_offsets({("t", 0): 1}, "group")
        with contextlib.suppress(ZeroDivisionError):
            async with fake.producer.transaction() as tx:
                await tx.send(record())
                fail()
        assert [how for how, _ in fake.transactions] == ["committed", "aborted"]


async def _partitions_for() -> None:
    async with fake_producer() as fake:
        assert await fake.producer.partitions_for("t") == {0, 1, 2, 3}


async def _serializer() -> None:
    settings = ProducerSettings(bootstrap_servers="localhost:9092", value_serializer=Traced())
    async with fake_producer(settings) as fake:
        await fake.producer.send(ProducerRecord("t", "value"))
        await fake.producer.enqueue(ProducerRecord("t", "value"))


async def _breaking() -> None:
    async with fake_producer() as fake:
        await fake.break_client()
        await fake.producer.send(record())
        await fake.break_producer()


async def _pending() -> None:
    async with fake_producer(manual=True) as fake:
        fake.producer.enqueue_nowait(record())
        await fake.wait_until_sent(1)
        fake.acknowledge()


async def _flow() -> None:
    async def envelopes() -> AsyncIterator[Message[bytes | None, bytes, int]]:
        for number in range(3):
            yield Message(record(), number)

    async with fake_producer() as fake, fake.producer.flow(envelopes()) as results:
        assert [result.pass_through async for result in results] == [0, 1, 2]


@pytest.mark.parametrize("autojump", [True, False])
@pytest.mark.parametrize(
    "used", [_transaction, _partitions_for, _serializer, _breaking, _pending, _flow]
)
def test_no_time_passes_on_trio_s_clock(
    used: Callable[[], Awaitable[None]], autojump: bool
) -> None:
    """Trio's clock jumps when all tasks are blocked, or stands still. Neither disturbs the fake."""

    async def main() -> None:
        began = trio.current_time()
        for _ in range(20):
            with trio.fail_after(1):
                await used()
        assert trio.current_time() == began

    if autojump:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    else:
        run_while_the_clock_stands_still(main)


async def test_everything_runs_on_the_thread_of_the_event_loop() -> None:
    threads = set[int]()

    class Noting:
        def serialize(self, topic: str, headers: list[tuple[str, bytes]], data: Any) -> bytes:
            threads.add(threading.get_ident())
            return b""

    before = threading.active_count()
    settings = ProducerSettings(bootstrap_servers="localhost:9092", value_serializer=Noting())
    async with fake_producer(settings) as fake:
        await fake.producer.send(ProducerRecord("t", 1))
        await fake.break_client()
        await fake.producer.send(ProducerRecord("t", 2))
        assert threading.active_count() == before
    assert threads == {threading.get_ident()}


def test_deadlines_pass_with_trio_s_clock() -> None:
    async def main() -> None:
        async with fake_producer(manual=True) as fake:
            with pytest.raises(DeliveryTimeout):
                await fake.producer.send(record())
            fake.acknowledge()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


# --- answers by hand -----------------------------------------------------------------------------


async def values(fake: FakeProducer, count: int) -> None:
    for number in range(count):
        fake.producer.enqueue_nowait(
            record(b"%d" % number, topic="even" if number % 2 == 0 else "odd")
        )
    await fake.wait_until_sent(count)


def pending(fake: FakeProducer) -> list[int]:
    return [int(one.value) for one in fake.pending]


async def test_answers_by_hand_go_to_the_oldest_records(by_hand: FakeProducer) -> None:
    await values(by_hand, 8)
    assert by_hand.acknowledge(2) == 2
    assert pending(by_hand) == [2, 3, 4, 5, 6, 7]
    assert by_hand.acknowledge(1, topic="odd") == 1
    assert pending(by_hand) == [2, 4, 5, 6, 7]
    assert by_hand.acknowledge(where=lambda one: int(one.value) > 5) == 2
    assert pending(by_hand) == [2, 4, 5]
    assert by_hand.acknowledge(topic="none") == 0
    assert by_hand.acknowledge() == 3
    assert by_hand.acknowledge() == 0
    await by_hand.producer.flush()
    assert by_hand.producer.statistics().delivered == 8


async def test_failures_by_hand(by_hand: FakeProducer) -> None:
    sent = [by_hand.producer.enqueue_nowait(record(topic=topic)) for topic in "abab"]
    await by_hand.wait_until_sent(4)
    assert by_hand.fail(factories.timeout, 1) == 1
    assert by_hand.fail(factories.possibly_persisted, topic="b", where=lambda _: True) == 2
    assert by_hand.fail() == 1
    errors: list[type[DeliveryError]] = []
    for delivery in sent:
        with pytest.raises(DeliveryError) as caught:
            await delivery.wait()
        errors.append(type(caught.value))
    assert errors == [DeliveryTimeout, DeliveryError, RecordRejected, DeliveryError]


async def test_manual_can_be_switched(fake: FakeProducer) -> None:
    assert not fake.manual
    fake.manual = True
    waiting = await fake.producer.enqueue(record())
    await fake.wait_until_sent(1)
    assert not waiting.done
    fake.manual = False
    await fake.producer.send(record())
    await waiting.wait()


# --- answers by rule -----------------------------------------------------------------------------


async def outcomes(fake: FakeProducer, topics: str) -> str:
    """Send a record to each topic, and return a letter for each outcome."""
    letters = ""
    for topic in topics:
        try:
            await fake.producer.send(record(topic=topic))
            letters += "."
        except DeliveryError as error:
            letters += type(error).__name__[0]
    return letters


def fail_b(one: ProducerRecord[Any, Any]) -> DeliveryError | None:
    return factories.serialization_failed(one) if one.topic == "b" else None


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        (FailWhen(factories.rejected), "RRRRRR"),
        (FailWhen(factories.rejected, topic="a"), "R.R.R."),
        (FailWhen(factories.timeout, every=3), "..D..D"),
        (FailWhen(factories.rejected, times=2), "RR...."),
        (FailWhen(factories.rejected, topic="b", every=2, times=1), "...R.."),
        (FailWhen(factories.rejected, where=lambda one: one.topic == "b", times=1), ".R...."),
        (fail_b, ".S.S.S"),
    ],
)
async def test_answers_by_rule(rule: Any, wanted: str) -> None:
    if isinstance(rule, FailWhen):  # each test needs a rule that has not counted yet
        rule = FailWhen(
            rule._error,
            topic=rule._topic,
            where=rule._where,
            every=rule._every,
            times=rule._times,
        )
    async with fake_producer(answer=rule) as fake:
        assert await outcomes(fake, "ababab") == wanted
        assert getattr(rule, "failed", wanted.count("S")) == 6 - wanted.count(".")
        fake.answer = None
        assert await outcomes(fake, "ab") == ".."
        assert len(fake.sent) == 8


async def test_a_rule_also_decides_answers_by_hand() -> None:
    async with fake_producer(answer=FailWhen(factories.rejected, topic="b"), manual=True) as fake:
        good, bad = (fake.producer.enqueue_nowait(record(topic=topic)) for topic in "ab")
        await fake.wait_until_sent(2)
        fake.acknowledge()
        await good.wait()
        with pytest.raises(RecordRejected):
            await bad.wait()


async def test_a_rule_may_read_the_sent_records() -> None:
    async with fake_producer() as fake:
        fake.answer = lambda one: (
            factories.rejected(one) if len(fake.sent) > 1 and fake.pending == [] else None
        )
        assert await outcomes(fake, "aaa") == ".RR"


async def test_a_fake_driver_accepts_a_rule(settings: ProducerSettings) -> None:
    driver = FakeDriver()
    driver.judge = FailWhen(factories.rejected, every=2)
    async with open_send_producer(settings, driver=driver) as producer:
        await producer.send(record())
        with pytest.raises(RecordRejected):
            await producer.send(record())


async def test_records_stay_pending_if_a_function_of_the_test_raises(
    by_hand: FakeProducer,
) -> None:
    def answer(one: ProducerRecord[Any, Any]) -> DeliveryError | None:
        if one.topic == "c":
            raise RuntimeError("a fault of the test")
        return None

    waiting = [by_hand.producer.enqueue_nowait(record(topic=topic)) for topic in "abcd"]
    await by_hand.wait_until_sent(4)
    by_hand.answer = answer
    calls: list[Callable[[], int]] = [
        by_hand.acknowledge,
        lambda: by_hand.acknowledge(topic="c"),
        lambda: by_hand.fail(cast("Any", answer), where=lambda it: it.topic in "cd"),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="a fault of the test"):
            call()
        assert "".join(one.topic for one in by_hand.pending) == "abcd"
    by_hand.answer = None
    assert by_hand.acknowledge() == 4
    assert [(await one.wait()).topic for one in waiting] == [*"abcd"]


async def test_a_record_that_was_sent_twice_keeps_both_places_if_a_function_raises(
    by_hand: FakeProducer,
) -> None:
    one, two = record(topic="a"), record(topic="b")
    waiting = [by_hand.producer.enqueue_nowait(it) for it in (one, two, one)]
    await by_hand.wait_until_sent(3)
    with pytest.raises(ZeroDivisionError):
        by_hand.fail(lambda _: cast("Any", fail()))
    assert [it.topic for it in by_hand.pending] == ["a", "b", "a"]
    by_hand.acknowledge()
    assert [(await it.wait()).topic for it in waiting] == ["a", "b", "a"]


@pytest.mark.parametrize("number", [0, -1, 1.0, True, "1"])
@pytest.mark.parametrize("argument", ["every", "times"])
def test_wrong_counts_are_refused(argument: str, number: Any) -> None:
    with pytest.raises(ValueError, match=f"^{argument} must be an int of 1 or more: {number!r}"):
        FailWhen(factories.rejected, **{argument: number})


def test_a_rule_s_arguments_are_checked_at_once() -> None:
    rejected: Any = factories.rejected()
    wrong: Any = ["orders"]
    nothing: Any = None
    with pytest.raises(ValueError, match="every must be an int of 1 or more: None"):
        FailWhen(factories.rejected, every=nothing)
    with pytest.raises(TypeError, match="error must be callable, not RecordRejected"):
        FailWhen(rejected)
    with pytest.raises(TypeError, match="where must be callable, not list"):
        FailWhen(factories.rejected, where=wrong)
    with pytest.raises(TypeError, match="topic must be a str or None, not list"):
        FailWhen(factories.rejected, topic=wrong)


async def test_an_answer_that_is_no_rule_is_refused() -> None:
    rejected: Any = factories.rejected()
    with pytest.raises(TypeError, match="answer must be callable, not RecordRejected"):
        async with fake_producer(answer=rejected):
            pytest.fail("the block was entered")


@pytest.mark.parametrize("count", [0, -1, 1.0, True, "1", None])
def test_a_wrong_number_of_partitions_is_refused(count: Any) -> None:
    says = f"partitions must be an int of 1 or more: {count!r}"
    driver = FakeDriver()
    with pytest.raises(ValueError, match=says):
        FakeDriver(partitions=count)
    with pytest.raises(ValueError, match=says):
        driver.partitions = count
    assert driver.partitions == 4


@pytest.mark.parametrize("count", [-1, 1.0, True, "1"])
def test_a_wrong_number_of_records_is_refused_and_none_is_lost(count: Any) -> None:
    driver, rejected = FakeDriver(manual=True), cast("Any", factories.rejected())
    driver.submit([Parcel(record()), Parcel(record())])
    with pytest.raises(ValueError, match=f"count must be an int of 0 or more: {count!r}"):
        driver.acknowledge(count)
    with pytest.raises(ValueError, match=f"count must be an int of 0 or more: {count!r}"):
        driver.fail(factories.rejected, count, topic="t")
    with pytest.raises(TypeError, match="error must be callable, not RecordRejected"):
        driver.fail(rejected)
    assert driver.acknowledge(0) == 0
    assert driver.acknowledge() == 2


def test_a_wrong_selection_of_records_is_refused() -> None:
    """Otherwise a topic of bytes would select no record, without an error."""
    driver = FakeDriver(manual=True)
    for wrong, says in (
        ({"topic": b"t"}, "topic must be a str or None, not bytes"),
        ({"where": "t"}, "where must be callable, not str"),
    ):
        arguments = cast("Any", wrong)
        with pytest.raises(TypeError, match=says):
            driver.acknowledge(**arguments)
        with pytest.raises(TypeError, match=says):
            driver.fail(factories.rejected, **arguments)


# --- failures of each kind -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "kind", "persistence"),
    [
        (factories.timeout, DeliveryTimeout, Persistence.POSSIBLY_PERSISTED),
        (factories.rejected, RecordRejected, Persistence.NOT_PERSISTED),
        (factories.serialization_failed, SerializationFailed, Persistence.NOT_PERSISTED),
        (factories.not_persisted, DeliveryError, Persistence.NOT_PERSISTED),
        (factories.possibly_persisted, DeliveryError, Persistence.POSSIBLY_PERSISTED),
    ],
)
async def test_failures_of_a_record(
    make: Callable[[Any], DeliveryError], kind: type[DeliveryError], persistence: Persistence
) -> None:
    async with fake_producer(answer=make) as fake:
        with pytest.raises(DeliveryError) as caught:
            await fake.producer.send(ORDER)
        assert type(caught.value) is kind
        assert caught.value.persistence is persistence
        assert caught.value.record is ORDER
        with pytest.raises(MultiDeliveryError):
            await fake.producer.send_many([ORDER, ORDER])


async def test_a_start_that_fails() -> None:
    with pytest.raises(ProducerStartError, match="no broker"):
        async with fake_producer(start_error=factories.start_failed()):
            pytest.fail("the producer started")


async def test_a_client_that_breaks(by_hand: FakeProducer) -> None:
    lost = await by_hand.producer.enqueue(record(b"lost"))
    await by_hand.wait_until_sent(1)
    await by_hand.break_client(ConnectionError("gone"))
    with pytest.raises(DeliveryError) as caught:
        await lost.wait()
    assert caught.value.persistence is Persistence.POSSIBLY_PERSISTED
    by_hand.manual = False
    await by_hand.producer.send(record(b"to the next one"))
    assert by_hand.producer.statistics().generations == 2


@pytest.mark.parametrize("error", [None, ZeroDivisionError("at last")])
async def test_a_producer_that_breaks(error: Exception | None) -> None:
    async with fake_producer(manual=True) as fake:
        lost = await fake.producer.enqueue(record())
        await fake.wait_until_sent(1)
        await fake.break_producer(error)
        with pytest.raises(DeliveryError):
            await lost.wait()
        with pytest.raises(ProducerBroken) as caught:
            await fake.producer.send(record())
        assert isinstance(caught.value.__cause__, type(error) if error else RuntimeError)


async def test_a_producer_that_is_fenced(settings: ProducerSettings) -> None:
    async with fake_producer(settings.evolve(transactional_id="tx")) as fake:
        async with fake.producer.transaction() as tx:
            await tx.send(record())
        await fake.fence()
        with pytest.raises(ProducerBroken) as caught:
            async with fake.producer.transaction():
                pytest.fail("the fenced producer began a transaction")
        assert isinstance(caught.value.__cause__, ProducerFenced)


async def test_a_wait_for_the_fake_is_bounded(
    fake: FakeProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anyio_sendproducer.testing import _fake_producer

    monkeypatch.setattr(_fake_producer, "_PATIENCE", 0.01)
    with pytest.raises(TimeoutError, match=r"within 0.01 s"):
        await fake._until(lambda: False)


# --- serializers ---------------------------------------------------------------------------------


class Traced:
    """A serializer that adds a header."""

    def serialize(self, topic: str, headers: list[tuple[str, bytes]], data: Any) -> bytes:
        headers.append(("by", b"traced"))
        return f"{topic}:{data}".encode()


async def test_the_written_records_are_serialized() -> None:
    settings = ProducerSettings(
        bootstrap_servers="localhost:9092",
        key_serializer=Traced(),
        value_serializer=JSONSerializer(),
    )
    async with fake_producer(settings, partitions=1) as fake:
        sent = ProducerRecord("t", {"tins": 2}, 42, timestamp_ms=5, headers=[("h", b"x")])
        metadata = await fake.producer.send(sent)
        assert fake.sent == [sent]
        [written] = fake.written["t", 0]
        assert (written.key, written.timestamp_ms) == (b"t:42", 5)
        assert written.value.replace(b" ", b"") == b'{"tins":2}'
        assert written.headers == (("h", b"x"), ("by", b"traced"))
        assert metadata.serialized_key_size == 4
        assert metadata.serialized_value_size == len(written.value)


async def test_a_serializer_that_raises_fails_only_its_record() -> None:
    def serialize(value: str) -> bytes:
        return value.encode("ascii")

    settings = ProducerSettings(bootstrap_servers="localhost:9092", value_serializer=serialize)
    async with fake_producer(settings, manual=True) as fake:
        good = fake.producer.enqueue_nowait(ProducerRecord("t", "tins"))
        with pytest.raises(SerializationFailed) as caught:
            await fake.producer.send(ProducerRecord("t", "größe"))
        assert isinstance(caught.value.__cause__, UnicodeEncodeError)
        assert [one.value for one in fake.pending] == ["tins"]
        assert len(fake.sent) == 2
        assert fake.acknowledge() == 1
        await good.wait()


# --- transactions --------------------------------------------------------------------------------


@contextlib.contextmanager
def failing(kind: type[TransactionError]) -> Generator[None, None, None]:
    with pytest.raises(TransactionError) as caught:
        yield
    assert type(caught.value) is kind


async def test_transactions_and_offsets_are_recorded(settings: ProducerSettings) -> None:
    async with fake_producer(settings.evolve(transactional_id="tx")) as fake:
        async with fake.producer.transaction() as tx:
            await tx.send(ORDER)
            await tx.send_offsets({("in", 0): 7}, "group")
        with raising(ZeroDivisionError):
            async with fake.producer.transaction() as tx:
                await tx.send(record())
                fail()
        assert fake.transactions == [("committed", [ORDER]), ("aborted", [record()])]
        [(offset, group)] = fake.offsets
        assert (offset.topic, offset.partition, offset.offset) == ("in", 0, 7)
        assert group == ConsumerGroupMetadata("group")


async def test_commits_that_fail(settings: ProducerSettings) -> None:
    async with fake_producer(settings.evolve(transactional_id="tx")) as fake:
        fake.fail_commit(factories.transaction_aborted())
        with failing(TransactionAborted):
            async with fake.producer.transaction() as tx:
                await tx.send(record())
        assert fake.transactions == [("aborted", [record()])]
        async with fake.producer.transaction() as tx:
            await tx.send(record())
        assert fake.transactions[1:] == [("committed", [record()])]
        fake.fail_commit()
        with failing(TransactionOutcomeUnknown):
            async with fake.producer.transaction() as tx:
                await tx.send(record())
