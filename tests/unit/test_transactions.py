"""Transactions with a driver that has no broker: commits, aborts and errors."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import anyio
import pytest

from anyio_sendproducer import (
    ConsumerGroupMetadata,
    DeliveryError,
    DeliveryTimeout,
    Message,
    MultiDeliveryError,
    Persistence,
    ProducerBroken,
    ProducerClosed,
    ProducerFenced,
    ProducerSettings,
    RecordRejected,
    Result,
    SendProducerError,
    Transaction,
    TransactionAborted,
    TransactionError,
    TransactionOutcomeUnknown,
    TransactionState,
    _bridge,
    _transaction,
    open_send_producer,
    start_send_producer,
)
from anyio_sendproducer._engine import Engine
from anyio_sendproducer._settings import SettingsFields
from anyio_sendproducer.drivers import ConsumedOffset, Deadline
from anyio_sendproducer.drivers.librdkafka._group_metadata import group_to_bytes
from anyio_sendproducer.testing import FakeDriver
from tests.support.bare import nothing
from tests.support.calls import (
    Call,
    at_gate,
    end_error,
    fail,
    generation,
    never,
    quiet,
    raising,
    record,
    refuse,
    taken,
    task_group,
)
from tests.support.clock import ManualClock
from tests.support.waiting import PATIENCE, blocking_until, until


@pytest.fixture
def settings(settings: ProducerSettings) -> ProducerSettings:
    return settings.with_transactional_id("id")


def state(tx: Transaction) -> TransactionState:
    """The state now. Type checkers assume that the attribute has not changed."""
    return tx.state


def ended(fake: FakeDriver) -> list[tuple[str, list[Any]]]:
    """The end of each transaction, and the values that the driver took in it."""
    return [(how, [one.value for one in records]) for how, records in fake.transactions]


# --- commits -------------------------------------------------------------------------------------


async def test_a_block_without_an_exception_is_committed(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        async with producer.transaction() as tx:
            assert state(tx) is TransactionState.OPEN
            assert repr(tx) == "<Transaction open 'id'>"
            assert (await tx.send(record(b"1"))).offset == 0
            assert len(await tx.send_many([record(b"2"), record(b"3")])) == 2
            assert isinstance(await tx.send_envelope(Message(record(b"4"), 7)), Result)
            tx.enqueue_nowait(record(b"5"))
            delivery = await tx.enqueue(record(b"6"))
        assert state(tx) is TransactionState.COMMITTED
        assert (await delivery.wait()).offset == 5
        assert ended(fake) == [("committed", [b"1", b"2", b"3", b"4", b"5", b"6"])]
        async with producer.transaction():
            pass
        assert ended(fake)[1:] == [("committed", [])]
        async with producer.transaction() as tx:
            await tx.send(record(b"7"))
            fake.begin_transaction()  # a second call: the transaction goes on
        assert ended(fake)[2:] == [("committed", [b"7"])]
        assert producer.statistics().generations == 1


async def test_unawaited_records_are_delivered_before_the_commit(
    settings: ProducerSettings,
) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:

        async def transact() -> None:
            async with producer.transaction() as tx:
                await tx.enqueue(record(b"1"))

        call = Call(tasks, transact)
        await taken(fake, 1)
        await quiet()
        assert fake.transactions == []
        fake.acknowledge()
        await call.wait()
        assert ended(fake) == [("committed", [b"1"])]


async def test_transactions_run_one_at_a_time_in_fifo_order(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    order: list[int] = []
    async with open_send_producer(settings, driver=fake) as producer:

        async def transact(number: int) -> None:
            async with producer.transaction() as tx:
                order.append(number)
                for _ in range(3):
                    await tx.send(record(b"%d" % number))

        async with task_group() as tasks:
            for number in range(5):
                tasks.start_soon(transact, number)
                await quiet()
    assert order == list(range(5))
    assert ended(fake) == [("committed", [b"%d" % number] * 3) for number in range(5)]


# --- aborts --------------------------------------------------------------------------------------


async def test_a_block_that_raises_is_aborted_and_its_exception_is_unchanged(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        with raising(ZeroDivisionError) as caught:
            async with producer.transaction() as tx:
                await tx.send(record(b"1"))
                fail()
        assert type(caught.value) is ZeroDivisionError
        assert state(tx) is TransactionState.ABORTED
        async with producer.transaction() as tx:
            await tx.send(record(b"2"))
    assert ended(fake) == [("aborted", [b"1"]), ("committed", [b"2"])]


async def test_a_failed_delivery_aborts_the_transaction_and_is_the_cause(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    fake.judge = lambda what: refuse(what) if what.value == b"2" else None
    bad = record(b"2")
    async with open_send_producer(settings, driver=fake) as producer:
        with raising(TransactionAborted, match="refused") as caught:
            async with producer.transaction() as tx:
                await tx.send(record(b"1"))
                with contextlib.suppress(DeliveryError):
                    await tx.send(bad)
                await tx.send(record(b"3"))
        assert isinstance(caught.value.__cause__, DeliveryError)
        assert caught.value.__cause__.record is bad
        # The failure does not affect the next transaction.
        async with producer.transaction() as tx:
            await tx.send(record(b"4"))
    assert ended(fake) == [("aborted", [b"1", b"2", b"3"]), ("committed", [b"4"])]


async def test_the_transaction_reports_unawaited_failures(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    """The end of the producer does not report them again."""
    fake.judge = refuse
    async with open_send_producer(settings, driver=fake) as producer:
        with raising(TransactionAborted):
            async with producer.transaction() as tx:
                tx.enqueue_nowait(record(b"1"))
        with raising(MultiDeliveryError):
            async with producer.transaction() as tx:
                await tx.send_many([record(b"1"), record(b"2")])
    assert [how for how, _ in fake.transactions] == ["aborted", "aborted"]


async def test_late_failures_of_one_transaction_do_not_affect_the_next(
    settings: ProducerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeDriver(manual=True)
    settings = settings.evolve(cancel_timeout=0.01)
    async with open_send_producer(settings, driver=fake) as producer:
        with monkeypatch.context() as patch, raising(ZeroDivisionError):
            async with producer.transaction() as tx:
                old = [tx.enqueue_nowait(record()) for _ in range(2)]
                await taken(fake, 2)
                patch.setattr(fake, "fail", nothing)  # the driver reports the failures too late
                fail()
        async with producer.transaction() as tx:
            new = await tx.enqueue(record())
            await taken(fake, 3)
            fake.fail(refuse, 2)
            fake.acknowledge()
        assert (await new.wait()).offset == 0
        for delivery in old:
            with raising(DeliveryError):
                await delivery.wait()


async def test_an_invalid_record_aborts_the_transaction(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        with raising(TransactionAborted, match="no such name") as caught:
            async with producer.transaction() as tx:
                for topic in ("no such name", "another bad one"):
                    with contextlib.suppress(RecordRejected):
                        await tx.send(record(topic=topic))
        assert isinstance(caught.value.__cause__, RecordRejected)
    assert ended(fake) == [("aborted", [])]


async def test_records_queued_when_the_block_raises_are_not_sent(
    settings: ProducerSettings,
) -> None:
    fake = FakeDriver(manual=True)
    settings = settings.evolve(max_in_flight=3)
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:
        with raising(ZeroDivisionError):
            async with producer.transaction() as tx:
                fake.on_submit.shut()
                calls = [Call(tasks, tx.send, record(b"0"))]
                await at_gate(fake.on_submit)
                calls += [Call(tasks, tx.send, record(b"%d" % number)) for number in range(1, 4)]
                await quiet()
                fake.on_submit.open()
                fail()
        errors = [cast("DeliveryError", (await call.wait()).error) for call in calls]
        assert [error.persistence for error in errors] == [
            Persistence.POSSIBLY_PERSISTED,
            *[Persistence.NOT_PERSISTED] * 3,
        ]
        assert "the transaction was aborted" in str(errors[3])
        assert producer.statistics().in_flight == 0
    assert ended(fake) == [("aborted", [b"0"])]


@pytest.mark.parametrize("together", [True, False])
async def test_a_record_that_the_driver_gives_back_after_the_abort_is_not_sent(
    settings: ProducerSettings, fake: FakeDriver, together: bool
) -> None:
    """The next transaction must not send it, even if there is no time to wait for its outcome."""
    settings = settings.evolve(cancel_timeout=0)
    fake.unknown_topics = {record().topic}
    old = [record(b"1"), record(b"2")]
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:
        fake.on_submit.shut()
        with raising(ZeroDivisionError):
            async with producer.transaction() as tx:
                if together:
                    calls: list[Call[Any]] = [Call(tasks, tx.send_many, old)]
                else:
                    calls = [Call(tasks, tx.send, one) for one in old]
                await at_gate(fake.on_submit)
                fake.on_submit.open()
                fail()
        fake.unknown_topics = set()
        async with producer.transaction() as tx:
            await tx.send(record(b"3"))
        for call in calls:
            assert "its transaction was aborted" in str((await call.wait()).error)
        assert producer.statistics().in_flight == 0
    assert ended(fake) == [("aborted", []), ("committed", [b"3"])]


async def test_the_request_and_the_outcomes_of_an_abort_have_one_deadline(
    settings: ProducerSettings, fake: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadlines: list[float] = []
    wait = Engine.wait_until_settled

    async def wait_until_settled(engine: Engine, *, include_waiting: bool = False) -> None:
        deadlines.append(anyio.current_effective_deadline())
        await wait(engine, include_waiting=include_waiting)

    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:

        async def transact() -> None:
            with raising(ZeroDivisionError):
                async with producer.transaction():
                    fake.on_end.shut()
                    fail()

        monkeypatch.setattr(Engine, "wait_until_settled", wait_until_settled)
        ending = Call(tasks, transact)
        await at_gate(fake.on_end)
        now = anyio.current_time()
        await until(lambda: anyio.current_time() > now)
        fake.on_end.open()
        await ending.wait()
        assert len(deadlines) == 1
        assert deadlines[0] <= now + settings.cancel_timeout
        monkeypatch.undo()


# --- cancellation --------------------------------------------------------------------------------


async def test_a_block_that_is_cancelled_is_aborted(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        held: list[Transaction] = []
        with anyio.CancelScope() as scope:
            async with producer.transaction() as tx:
                held.append(tx)
                await tx.send(record(b"1"))
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert state(held[0]) is TransactionState.ABORTED
        async with producer.transaction() as tx:
            await tx.send(record(b"2"))
    assert ended(fake) == [("aborted", [b"1"]), ("committed", [b"2"])]


async def test_cancellation_brings_the_commits_deadline_forward(
    settings: ProducerSettings,
) -> None:
    deadlines: list[Deadline] = []

    class Slow(FakeDriver):
        def end_transaction(self, commit: bool, deadline: Deadline, /) -> None:
            deadlines.append(deadline)
            super().end_transaction(commit, deadline)

    fake = Slow()
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:

        async def transact() -> None:
            async with producer.transaction() as tx:
                await tx.send(record(b"1"))
                fake.on_end.shut()

        call = Call(tasks, transact)
        await at_gate(fake.on_end)
        assert deadlines[0].at > time.monotonic() + settings.cancel_timeout + 10
        call.scope.cancel()
        await until(lambda: deadlines[0].at <= time.monotonic() + settings.cancel_timeout)
        assert not deadlines[0].is_over  # cancel_timeout is left
        fake.on_end.open()
        await call.wait()


async def test_a_transaction_is_cancelled_while_it_waits_for_its_turn(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:

        async def transact() -> None:
            async with producer.transaction():
                never()

        async with producer.transaction() as tx:
            call = Call(tasks, transact)
            await quiet()
            await call.cancel()
            await tx.send(record(b"1"))
    assert ended(fake) == [("committed", [b"1"])]


# --- misuse --------------------------------------------------------------------------------------

SENDING: list[Callable[[Any], Awaitable[Any]]] = [
    lambda sender: sender.send(record()),
    lambda sender: sender.send_many([record()]),
    lambda sender: sender.send_envelope(Message(record())),
    lambda sender: sender.enqueue(record()),
]


@pytest.mark.parametrize("sending", SENDING, ids=["send", "many", "envelope", "enqueue"])
async def test_nothing_is_sent_outside_of_a_transaction(
    settings: ProducerSettings, fake: FakeDriver, sending: Callable[[Any], Awaitable[Any]]
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        with raising(TransactionError, match=r"with tx\.send"):
            await sending(producer)
        with raising(TransactionError, match=r"with tx\.send"):
            producer.enqueue_nowait(record())
        async with producer.transaction() as tx:
            with raising(TransactionError, match=r"with tx\.send"):
                await sending(producer)
        with raising(TransactionError, match="the transaction is committed: send within its"):
            await sending(tx)
        with raising(TransactionError, match="the transaction is committed"):
            await tx.send_offsets({}, "group")
    with raising(ProducerClosed):
        await sending(producer)
    assert fake.submitted == []


async def test_transactions_need_a_transactional_id(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    settings = settings.with_transactional_id(None)
    async with open_send_producer(settings, driver=fake) as producer:
        with raising(TransactionError, match="need a transactional_id: set it in ProducerSettings"):
            async with producer.transaction():
                never()
        await producer.send(record())


async def test_a_nested_transaction_is_refused(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        async with producer.transaction() as tx:
            with raising(TransactionError, match="this task already has an open transaction"):
                async with producer.transaction():
                    never()
            await tx.send(record(b"1"))
        async with producer.transaction() as tx:
            await tx.send(record(b"2"))
    assert ended(fake) == [("committed", [b"1"]), ("committed", [b"2"])]


async def test_a_transaction_on_a_closed_producer_is_refused(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        pass
    with raising(ProducerClosed):
        async with producer.transaction():
            raise AssertionError


# --- offsets -------------------------------------------------------------------------------------


class Position(NamedTuple):
    """An offset as consumer clients return it."""

    offset: int
    metadata: str | None
    leader_epoch: int


async def test_offsets_are_part_of_the_transaction(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    member = ConsumerGroupMetadata("group", 3, "member", "instance")
    async with (
        open_send_producer(settings, driver=fake) as producer,
        producer.transaction() as tx,
    ):
        await tx.send_offsets({("t", 0): 5, ("t", 1): Position(6, "note", 7)}, "group")
        await tx.send_offsets({("u", 2): Position(0, None, -1)}, member)
        # The form of confluent-kafka's consumer.
        await tx.send_offsets({("u", 3): 1}, group_to_bytes(member))
    assert fake.offsets == [
        (ConsumedOffset("t", 0, 5), ConsumerGroupMetadata("group")),
        (ConsumedOffset("t", 1, 6, "note", 7), ConsumerGroupMetadata("group")),
        (ConsumedOffset("u", 2, 0), member),
        (ConsumedOffset("u", 3, 1), member),
    ]


@pytest.mark.parametrize("bad", [-1, 1.5, True, "1", None, 2**63])
async def test_an_invalid_offset(settings: ProducerSettings, fake: FakeDriver, bad: Any) -> None:
    async with (
        open_send_producer(settings, driver=fake) as producer,
        producer.transaction() as tx,
    ):
        with raising(
            ValueError, match="offsets: the offset of partition 3 of topic 't' must be an"
        ):
            await tx.send_offsets({("t", 3): bad}, "group")
        with raising(TypeError, match="group_metadata must be the group's id"):
            await tx.send_offsets({("t", 3): 1}, 7)
    assert ended(fake) == [("committed", [])]


@pytest.mark.parametrize(
    "key",
    [
        *("t0", "t", 7, None, ("t",), ("t", "0"), (0, "t"), ("t", 0, 1), b"t0"),
        *(("t", -1), ("t", 2**31), ("t", True)),
    ],
    ids=str,
)
async def test_an_invalid_partition_of_an_offset(
    settings: ProducerSettings, fake: FakeDriver, key: Any
) -> None:
    async with (
        open_send_producer(settings, driver=fake) as producer,
        producer.transaction() as tx,
    ):
        with raising(ValueError, match=r"offsets: a key must be a tuple of a topic \(str\) and"):
            await tx.send_offsets({key: 1}, "group")
        with raising(TypeError, match="offsets must be a mapping .* not list"):
            await tx.send_offsets(cast("Any", [(key, 1)]), "group")
    assert fake.offsets == []
    assert ended(fake) == [("committed", [])]


@pytest.mark.parametrize(
    ("position", "said"),
    [
        ({"metadata": b"note"}, "the metadata of partition 0 of topic 't' must be a str"),
        ({"metadata": "\ud800"}, "the metadata of partition 0 of topic 't' must be a str"),
        ({"leader_epoch": -2}, "leader_epoch of partition 0 of topic 't' must be .* not -2"),
        ({"leader_epoch": 2**31}, "leader_epoch of partition 0 of topic 't' must be an int"),
    ],
)
async def test_an_invalid_position(
    settings: ProducerSettings, fake: FakeDriver, position: dict[str, Any], said: str
) -> None:
    async with (
        open_send_producer(settings, driver=fake) as producer,
        producer.transaction() as tx,
    ):
        with raising(ValueError, match=said):
            await tx.send_offsets({("t", 0): SimpleNamespace(offset=1, **position)}, "group")
        with raising(ValueError, match="offsets: topic 'no/topic' has characters other than"):
            await tx.send_offsets({("no/topic", 0): 1}, "group")
    assert fake.offsets == []


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ("", "group_id must be a str that is not empty"),
        ("a\0b", "group_id must be a str"),
        (ConsumerGroupMetadata(cast("Any", None)), "group_id must be a str"),
        (ConsumerGroupMetadata("g", 2**31), "generation_id must be an int of -1 or more, not 2"),
        (ConsumerGroupMetadata("g", 1, cast("Any", None)), "member_id must be a str"),
        (ConsumerGroupMetadata("g", 1, "m", "\ud800"), "group_instance_id must be a str or None"),
    ],
    ids=str,
)
async def test_an_invalid_group(
    settings: ProducerSettings, fake: FakeDriver, group: Any, said: str
) -> None:
    async with (
        open_send_producer(settings, driver=fake) as producer,
        producer.transaction() as tx,
    ):
        with raising(ValueError, match=f"group_metadata: the {said}"):
            await tx.send_offsets({("t", 0): 1}, group)
    assert fake.offsets == []


@pytest.mark.parametrize("kind", [TransactionAborted, TransactionError, ProducerFenced])
async def test_refused_offsets_abort_the_transaction(
    settings: ProducerSettings, fake: FakeDriver, kind: type[SendProducerError]
) -> None:
    """An error that already says aborted or fenced is raised unchanged."""
    fake.offsets_error = refused = kind("no member of the group")
    raised = TransactionAborted if kind is TransactionError else kind
    async with open_send_producer(settings, driver=fake) as producer:
        with raising(raised, match="no member") as caught:
            async with producer.transaction() as tx:
                with raising(kind, match="no member"):
                    await tx.send_offsets({("t", 0): 1}, "group")
        assert state(tx) is TransactionState.ABORTED
        is_fenced = kind is ProducerFenced
        assert producer.statistics().state == ("broken" if is_fenced else "open")
    error = caught.value
    told = error.__cause__ if kind is TransactionError else error
    assert (type(told), str(told)) == (kind, str(refused))
    assert ended(fake) == [("aborted", [])]


async def test_a_cancelled_send_offsets_aborts_the_transaction(
    settings: ProducerSettings,
) -> None:
    """The driver stops waiting for the answer, because the abort is queued behind it."""
    deadlines: list[Deadline] = []

    class Watched(FakeDriver):
        def send_offsets(
            self,
            offsets: Sequence[ConsumedOffset],
            group: ConsumerGroupMetadata,
            deadline: Deadline,
            /,
        ) -> None:
            deadlines.append(deadline)
            super().send_offsets(offsets, group, deadline)

    fake = Watched()
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:
        with raising(TransactionAborted, match=r"send_offsets\(\) did not finish"):
            async with producer.transaction() as tx:
                fake.on_end.shut()
                call = Call(tasks, tx.send_offsets, {("t", 0): 1}, "group")
                await at_gate(fake.on_end)
                assert [one.is_over for one in deadlines] == [False]
                await call.cancel()
                assert [one.is_over for one in deadlines] == [True]
                fake.on_end.open()
    assert ended(fake) == [("aborted", [])]


async def test_send_offsets_in_a_cancelled_scope_aborts_the_transaction(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    """Otherwise the records would be committed without the offsets."""
    async with open_send_producer(settings, driver=fake) as producer:
        with raising(TransactionAborted, match=r"send_offsets\(\) did not finish"):
            async with producer.transaction() as tx:
                await tx.send(record(b"1"))
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await tx.send_offsets({("t", 0): 1}, "group")
    assert fake.offsets == []
    assert ended(fake) == [("aborted", [b"1"])]


class Unanswered(FakeDriver):
    """A driver that gets no answer to offsets."""

    def send_offsets(
        self, offsets: Sequence[ConsumedOffset], group: ConsumerGroupMetadata, deadline: Deadline, /
    ) -> None:
        super().send_offsets(offsets, group, deadline)
        blocking_until(lambda: deadline.is_over)
        raise TransactionError("there was no answer")


async def test_the_end_of_the_block_waits_for_the_offsets_of_other_tasks(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    """If they can't be sent, the records must not be committed without them."""
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:

        async def transact() -> None:
            async with producer.transaction() as tx:
                await tx.send(record(b"1"))
                fake.on_end.shut()
                call = Call(tasks, tx.send_offsets, {("quiet", 0): 3}, "group")
                await at_gate(fake.on_end)
                calls.append(call)

        calls: list[Call[Any]] = []
        fake.offsets_error = TransactionError("no answer")
        transaction = Call(tasks, transact)
        await until(lambda: bool(calls))
        await quiet()
        fake.on_end.open()
        await transaction.wait()
        assert isinstance(transaction.error, TransactionAborted)
        assert isinstance(transaction.error.__cause__, TransactionError)
        assert isinstance(calls[0].error, TransactionError)

        fake.offsets_error = None
        transaction = Call(tasks, transact)
        await until(lambda: len(calls) == 2)
        await quiet()
        fake.on_end.open()
        await transaction.wait()
        assert transaction.error is None
        assert calls[1].error is None
    assert ended(fake) == [("aborted", [b"1"]), ("committed", [b"1"])]


async def test_closing_ends_the_wait_of_send_offsets(settings: ProducerSettings) -> None:
    """Otherwise, the abort would wait for it until its delivery_timeout is over."""
    driver = Unanswered()
    settings = settings.evolve(delivery_timeout=1000.0)
    async with open_send_producer(settings, driver=driver) as producer, task_group() as tasks:
        with raising(TransactionAborted):
            async with producer.transaction() as tx:
                driver.on_end.shut()
                call = Call(tasks, tx.send_offsets, {("t", 0): 1}, "group")
                await at_gate(driver.on_end)
                driver.on_end.open()
                with anyio.fail_after(PATIENCE):
                    await producer.aclose()
                await call.wait()
    assert "there was no answer" in str(call.error)
    assert ended(driver) == [("aborted", [])]


# --- failed commits ------------------------------------------------------------------------------


def once(error: SendProducerError, *, commit: bool = True) -> Callable[[bool], Any]:
    """Return an `end_error` that raises the error at the first commit, or at the first abort."""
    left = [error]
    return lambda asked: left.pop() if left and asked is commit else None


async def test_a_refused_commit_becomes_an_abort(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    fake.end_error = once(TransactionAborted("the brokers refused"))
    async with open_send_producer(settings, driver=fake) as producer:
        with raising(TransactionAborted, match="brokers refused"):
            async with producer.transaction() as tx:
                await tx.send(record(b"1"))
        assert state(tx) is TransactionState.ABORTED
        async with producer.transaction() as tx:
            await tx.send(record(b"2"))
        assert producer.statistics().generations == 1
    assert ended(fake) == [("aborted", [b"1"]), ("committed", [b"2"])]


async def test_a_commit_without_an_answer_is_unknown_and_the_client_is_replaced(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    fake.end_error = once(TransactionOutcomeUnknown("no answer"))
    async with open_send_producer(settings, driver=fake) as producer:
        with raising(TransactionOutcomeUnknown, match="no answer"):
            async with producer.transaction() as tx:
                await tx.send(record(b"1"))
        assert state(tx) is TransactionState.UNKNOWN
        async with producer.transaction() as tx:
            await tx.send(record(b"2"))
        assert state(tx) is TransactionState.COMMITTED
        assert producer.statistics().generations == 2


@pytest.mark.parametrize("commit", [True, False])
async def test_a_fenced_producer_is_broken(
    settings: ProducerSettings, fake: FakeDriver, commit: bool
) -> None:
    fake.end_error = once(ProducerFenced("another one"), commit=commit)
    fake.judge = (lambda _: None) if commit else refuse
    async with open_send_producer(settings, driver=fake) as producer:
        with raising(ProducerFenced if commit else TransactionAborted):
            async with producer.transaction() as tx:
                tx.enqueue_nowait(record(b"1"))
        # The commit may have succeeded before another producer took over.
        assert state(tx) is (TransactionState.UNKNOWN if commit else TransactionState.ABORTED)
        assert producer.statistics().state == "broken"
        with raising(ProducerBroken, match="another one"):
            async with producer.transaction():
                never()
        assert producer.statistics().generations == 1


async def test_fenced_offsets_break_the_producer_even_if_the_abort_has_no_answer(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    """A new client would take the transactional_id back."""
    fake.offsets_error = ProducerFenced("another one")
    fake.end_error = once(TransactionError("no answer"), commit=False)
    async with open_send_producer(settings, driver=fake) as producer:
        with raising(ProducerFenced, match="another one"):
            async with producer.transaction() as tx:
                await tx.send_offsets({("t", 0): 1}, "group")
        assert producer.statistics().state == "broken"
        assert producer.statistics().generations == 1


class FirstFenced(FakeDriver):
    """A driver that is fenced at the first call for offsets, and then gets no answer."""

    calls = 0

    def send_offsets(
        self, offsets: Sequence[ConsumedOffset], group: ConsumerGroupMetadata, deadline: Deadline, /
    ) -> None:
        self.calls += 1
        if self.calls == 1:
            raise ProducerFenced("another one")
        blocking_until(lambda: deadline.is_over)
        raise TransactionError("there was no answer")


async def test_fenced_offsets_break_the_producer_even_if_another_call_is_cancelled(
    settings: ProducerSettings,
) -> None:
    fake = FirstFenced()
    fake.end_error = once(TransactionError("no answer"), commit=False)
    async with open_send_producer(settings, driver=fake) as producer:
        with raising(ProducerFenced, match="another one"):
            async with producer.transaction() as tx:
                with contextlib.suppress(Exception):
                    async with anyio.create_task_group() as tasks:
                        for _ in range(2):  # the error of the first call cancels the second
                            tasks.start_soon(tx.send_offsets, {("t", 0): 1}, "group")
        assert producer.statistics().state == "broken"
        assert producer.statistics().generations == 1


async def test_closing_after_fenced_offsets_opens_no_other_client(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    fake.offsets_error = ProducerFenced("another one")
    fake.end_error = once(TransactionError("no answer"), commit=False)
    closed = anyio.Event()
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:

        async def transact() -> None:
            async with producer.transaction() as tx:
                with raising(ProducerFenced):
                    await tx.send_offsets({("t", 0): 1}, "group")
                await closed.wait()

        call = Call(tasks, transact)
        await until(lambda: producer._engine.before_drain is not None)
        await quiet()
        await producer.aclose()
        closed.set()
        await call.wait()
        assert isinstance(call.error, ProducerFenced)
    assert fake.opened == 1


async def test_a_producer_that_is_fenced_when_it_begins_is_broken(
    settings: ProducerSettings,
) -> None:
    class Fenced(FakeDriver):
        def begin_transaction(self) -> None:
            raise ProducerFenced("another one")

    async with open_send_producer(settings, driver=Fenced()) as producer:
        for error in (ProducerFenced, ProducerBroken):
            with raising(error, match="another one"):
                async with producer.transaction():
                    never()
        assert producer.statistics().state == "broken"


async def test_a_waiting_transaction_raises_when_the_producer_breaks(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    fake.end_error = once(ProducerFenced("another one"))
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:

        async def transact() -> None:
            async with producer.transaction():
                never()

        with raising(ProducerFenced):
            async with producer.transaction() as tx:
                waiting = Call(tasks, transact)
                await quiet()
                await tx.send(record(b"1"))
        assert isinstance((await waiting.wait()).error, ProducerBroken)


async def test_a_client_that_reports_that_it_was_fenced(
    settings: ProducerSettings,
) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:
        with raising(ProducerBroken):
            async with producer.transaction() as tx:
                call = Call(tasks, tx.send, record(b"1"))
                await taken(fake, 1)
                fake.break_client(ProducerFenced("another one"))
                await call.wait()
                assert isinstance(call.error, DeliveryError)
                assert isinstance(call.error.__cause__, ProducerFenced)
                await tx.send(record(b"2"))
        assert state(tx) is TransactionState.ABORTED
        assert producer.statistics().generations == 1


async def test_a_new_client_that_is_fenced_at_once(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        fake.open_error = ProducerFenced("another one")
        fake.break_client()
        await until(lambda: producer.statistics().state == "broken")


async def test_a_failed_abort_is_left_to_the_next_client(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    fake.end_error = once(TransactionError("no coordinator"), commit=False)
    async with open_send_producer(settings, driver=fake) as producer:
        with raising(ZeroDivisionError):
            async with producer.transaction() as tx:
                await tx.send(record(b"1"))
                fail()
        assert state(tx) is TransactionState.ABORTED
        async with producer.transaction() as tx:
            await tx.send(record(b"2"))
        assert producer.statistics().generations == 2
    assert ended(fake) == [("aborted", [b"1"]), ("committed", [b"2"])]


async def test_giving_up_a_client_aborts_its_transaction(
    settings: ProducerSettings,
) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:
        with raising(TransactionAborted, match="the fake driver was closed") as caught:
            async with producer.transaction() as tx:
                call = Call(tasks, tx.send, record(b"1"))
                await taken(fake, 1)
                fake.break_client()
                await call.wait()
                assert isinstance(call.error, DeliveryError)
                with raising(TransactionAborted, match="its client was given up"):
                    await tx.send(record(b"2"))
        assert isinstance(caught.value.__cause__, DeliveryError)
        with raising(TransactionAborted, match="given up"):
            async with producer.transaction() as tx:
                fake.break_client()
                await until(lambda: producer.statistics().generations == 3)
        fake.manual = False
        async with producer.transaction() as tx:
            await tx.send(record(b"3"))
    assert ended(fake)[-1] == ("committed", [b"3"])


async def test_a_record_queued_for_a_given_up_client_is_not_sent_by_the_next(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    """There it would be outside of a transaction."""
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:
        with raising(TransactionAborted):
            async with producer.transaction() as tx:
                fake.on_submit.shut()
                first = Call(tasks, tx.send, record(b"1"))
                await at_gate(fake.on_submit)
                second = Call(tasks, tx.send, record(b"2"))
                await quiet()
                fake.break_client()
                await quiet()
                fake.on_submit.open()
                await first.wait()
                await second.wait()
        assert isinstance(second.error, DeliveryError)
        assert second.error.persistence is Persistence.NOT_PERSISTED
        await until(lambda: producer.statistics().generations == 2)
    assert [one.value for one in fake.submitted] == [b"1"]


async def test_a_transaction_raises_if_no_client_opens_in_time(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    settings = settings.evolve(delivery_timeout=0.05)
    async with open_send_producer(settings, driver=fake) as producer:
        fake.open_error = SendProducerError("no broker")
        fake.break_client()
        await until(lambda: bool(fake.closed))
        said = r"no client could begin a transaction within 0.05 s \(delivery_timeout\): no broker"
        with raising(TransactionError, match=said):
            async with producer.transaction():
                never()


async def test_a_client_that_can_only_abort_is_replaced_before_a_transaction(
    settings: ProducerSettings,
) -> None:
    """Otherwise no later transaction could begin."""

    class Stuck(FakeDriver):
        begun = 0

        def begin_transaction(self) -> None:
            self.begun += 1
            if self.begun == 1:
                raise TransactionAborted("only abort is possible")
            super().begin_transaction()

    fake = Stuck()
    async with open_send_producer(settings, driver=fake) as producer:
        async with producer.transaction() as tx:
            await tx.send(record(b"1"))
        assert producer.statistics().generations == 2
    assert ended(fake) == [("committed", [b"1"])]


class Enriched:
    """The hook ``enrich`` of a producer. If :attr:`is_shut` is set, a call waits for :attr:`go`."""

    def __init__(self) -> None:
        self.is_shut = False
        self.go = anyio.Event()

    async def __call__(self, settings: ProducerSettings) -> ProducerSettings:
        if self.is_shut:
            await self.go.wait()
        return settings


async def test_a_transaction_waits_for_the_look_up_before_a_replacement(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    """The client that was given up still has the previous transaction, and would commit it."""
    enrich = Enriched()
    fake.end_error = once(TransactionError("no coordinator"), commit=False)
    opened = open_send_producer(settings, driver=fake, enrich=enrich)
    async with opened as producer, task_group() as tasks:
        enrich.is_shut = True
        with raising(ZeroDivisionError):
            async with producer.transaction() as tx:
                await tx.send(record(b"1"))
                fail()
        assert state(tx) is TransactionState.ABORTED

        async def transact() -> None:
            async with producer.transaction():
                pass

        call = Call(tasks, transact)
        for _ in range(3):  # a call that the transaction makes comes before one of these
            await quiet()
            await producer.partitions_for("topic")
        assert ended(fake) == []
        enrich.go.set()
        await call.wait()
        assert call.error is None
        assert producer.statistics().generations == 2
    assert ended(fake) == [("aborted", [b"1"]), ("committed", [])]


async def test_a_client_is_not_asked_again_during_the_look_up_before_its_replacement(
    settings: ProducerSettings,
) -> None:
    class Stuck(FakeDriver):
        begun = 0

        def begin_transaction(self) -> None:
            self.begun += 1
            if self.opened == 1:
                raise TransactionAborted("only abort is possible")
            super().begin_transaction()

    fake = Stuck()
    enrich = Enriched()
    opened = open_send_producer(settings, driver=fake, enrich=enrich)
    async with opened as producer, task_group() as tasks:
        enrich.is_shut = True

        async def transact() -> None:
            async with producer.transaction() as tx:
                await tx.send(record(b"1"))

        call = Call(tasks, transact)
        await until(lambda: fake.begun == 1)
        await quiet()
        enrich.go.set()
        await call.wait()
    assert fake.begun == 2
    assert ended(fake) == [("committed", [b"1"])]


async def test_a_transaction_is_aborted_as_soon_as_its_client_is_given_up(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    """Its records would be sent by the next client, outside of the transaction."""
    enrich = Enriched()
    async with open_send_producer(settings, driver=fake, enrich=enrich) as producer:
        enrich.is_shut = True
        with raising(TransactionAborted, match="its client was given up"):
            async with producer.transaction() as tx:
                fake.break_client()
                await until(lambda: not producer.statistics().is_connected)
                with raising(TransactionAborted, match="its client was given up"):
                    tx.enqueue_nowait(record(b"1"))
        enrich.go.set()
        async with producer.transaction() as tx:
            await tx.send(record(b"2"))
    assert ended(fake) == [("committed", [b"2"])]


async def test_a_client_is_given_up_while_a_transaction_starts(
    settings: ProducerSettings,
) -> None:
    """The transaction starts again with the next client."""

    class Breaking(FakeDriver):
        begun = 0

        def begin_transaction(self) -> None:
            self.begun += 1
            if self.begun == 1:
                self.break_client()
                assert broken.wait(PATIENCE)
            super().begin_transaction()

    broken = threading.Event()
    fake = Breaking()
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:

        async def let_go() -> None:
            await until(lambda: fake.begun == 1)
            await quiet()
            broken.set()

        tasks.start_soon(let_go)
        async with producer.transaction() as tx:
            await tx.send(record(b"1"))
    assert fake.begun == 2
    assert ended(fake) == [("committed", [b"1"])]


# --- closing -------------------------------------------------------------------------------------


async def test_closing_within_a_transaction_aborts_it(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer:
        with raising(
            TransactionAborted, match="the producer was closed before the transaction ended"
        ):
            async with producer.transaction() as tx:
                await tx.send(record(b"1"))
                await producer.aclose()
                with raising(TransactionError, match="the transaction is aborted"):
                    await tx.send(record(b"2"))
        assert state(tx) is TransactionState.ABORTED
    assert ended(fake) == [("aborted", [b"1"])]


async def test_a_block_that_raises_waits_for_the_abort_of_a_closing_producer(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    held: list[Transaction] = []
    goes_on = anyio.Event()
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:

        async def transact() -> None:
            with contextlib.suppress(ZeroDivisionError):
                async with producer.transaction() as tx:
                    held.append(tx)
                    await goes_on.wait()
                    fail()

        ending = Call(tasks, transact)
        await until(lambda: bool(held))
        fake.on_end.shut()
        closing = Call(tasks, producer.aclose)
        await at_gate(fake.on_end)
        goes_on.set()
        await quiet()
        assert ending.running
        assert state(held[0]) is TransactionState.ENDING
        fake.on_end.open()
        await ending.wait()
        assert state(held[0]) is TransactionState.ABORTED
        await closing.wait()
    assert ended(fake) == [("aborted", [])]


async def test_closing_waits_for_an_ending_transaction(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:

        async def transact() -> None:
            async with producer.transaction() as tx:
                await tx.send(record(b"1"))
                fake.on_end.shut()

        ending = Call(tasks, transact)
        await at_gate(fake.on_end)
        waiting = Call(tasks, transact)
        await quiet()
        closing = Call(tasks, producer.aclose)
        await quiet()
        assert closing.running
        fake.on_end.open()
        await ending.wait()
        await closing.wait()
        assert ending.error is None
        assert isinstance((await waiting.wait()).error, ProducerClosed)
    assert ended(fake) == [("committed", [b"1"])]


async def test_a_commit_that_closing_interrupts_is_unknown(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    settings = settings.evolve(close_timeout=0.1)
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:

        async def transact() -> None:
            async with producer.transaction() as tx:
                await tx.send(record(b"1"))
                fake.on_end.shut()

        closed = ProducerClosed("the producer is closed")
        fake.end_error = end_error(commit=closed, abort=closed)
        ending = Call(tasks, transact)
        await at_gate(fake.on_end)
        await producer.aclose()
        assert isinstance((await ending.wait()).error, TransactionOutcomeUnknown)


async def test_a_commit_that_closing_prevents_was_not_requested(
    settings: ProducerSettings,
) -> None:
    """The last record is acknowledged while the client is closed."""

    class Late(FakeDriver):
        def close(self, timeout: float, /) -> None:
            self.acknowledge()
            super().close(timeout)

    fake = Late(manual=True)
    settings = settings.evolve(close_timeout=0.1)
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:

        async def transact() -> None:
            with raising(TransactionAborted, match="before the commit was requested"):
                async with producer.transaction() as tx:
                    delivery = await tx.enqueue(record(b"1"))
            assert (await delivery.wait()).offset == 0
            assert state(tx) is TransactionState.ABORTED

        ending = Call(tasks, transact)
        await taken(fake, 1)
        await producer.aclose()
        assert (await ending.wait()).error is None
    assert ended(fake) == [("aborted", [b"1"])]


async def test_a_transaction_that_begins_while_the_producer_closes_is_aborted(
    settings: ProducerSettings,
) -> None:
    class Slow(FakeDriver):
        def begin_transaction(self) -> None:
            self.on_end.pass_through()
            super().begin_transaction()

    fake = Slow()
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:

        async def transact() -> None:
            with raising(TransactionAborted, match="the producer was closed"):
                async with producer.transaction() as tx:
                    await until(lambda: producer.statistics().state == "closed")
            assert state(tx) is TransactionState.ABORTED

        fake.on_end.shut()
        call = Call(tasks, transact)
        await at_gate(fake.on_end)
        closing = Call(tasks, producer.aclose)
        await until(lambda: producer.statistics().state == "draining")
        fake.on_end.open()
        await closing.wait()
        await call.wait()
        assert call.error is None or isinstance(call.error, ProducerClosed)


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop waiting for the driver while it has half of PATIENCE left."""
    monkeypatch.setattr(_transaction, "_HANG_SECONDS", -PATIENCE / 2)
    monkeypatch.setattr(_bridge, "GRACE_SECONDS", 0.01)


@pytest.mark.usefixtures("short_grace")
@pytest.mark.parametrize("how", ["commit", "cancelled commit", "abort", "closing", "offsets"])
async def test_the_wait_for_a_client_that_hangs_at_the_end_is_bounded(
    settings: ProducerSettings, fake: FakeDriver, clock: ManualClock, how: str
) -> None:
    """The end is shielded, so the event loop's clock bounds it."""
    bounds: SettingsFields = {
        "close_timeout": 0.01,
        "cancel_timeout": PATIENCE / 2,
        "delivery_timeout": PATIENCE,
    }
    if how != "cancelled commit":
        bounds["delivery_timeout"] = PATIENCE / 2
    settings = settings.evolve(**bounds)
    held: list[Transaction] = []
    async with task_group() as tasks:
        producer = await clock.start(tasks, settings, driver=fake)

        async def transact() -> None:
            async with producer.transaction() as tx:
                held.append(tx)
                await tx.send(record(b"1"))
                fake.on_end.shut()
                if how == "closing":
                    await anyio.sleep_forever()
                elif how == "abort":
                    raise ProducerClosed("the block's own error")
                elif how == "offsets":  # the end of the block waits for them
                    tasks.start_soon(send_offsets, tx)
                    await quiet()

        async def send_offsets(tx: Transaction) -> None:
            with raising(TransactionError, match="did not return"):
                await tx.send_offsets({("t", 0): 1}, "group")

        ending = Call(tasks, transact)
        if how == "closing":
            await until(lambda: producer.statistics().delivered == 1)
            await producer.aclose()
            await ending.cancel()
        else:
            await at_gate(fake.on_end)
            if how == "cancelled commit":
                ending.scope.cancel()
            await ending.wait()
        commits = "commit" in how
        assert state(held[0]) is (TransactionState.UNKNOWN if commits else TransactionState.ABORTED)
        if commits:
            assert isinstance(ending.error, TransactionOutcomeUnknown)
            assert "hangs" in str(ending.error)
        elif how == "offsets":
            assert isinstance(ending.error, TransactionAborted)
        fake.on_end.open()
        await producer.aclose()


async def test_cancelling_the_producers_task_group_aborts_the_transaction(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    held: list[Transaction] = []
    async with anyio.create_task_group() as tasks:
        producer = await start_send_producer(tasks, settings, driver=fake)
        async with producer.transaction() as tx:
            held.append(tx)
            await tx.send(record(b"1"))
            tasks.cancel_scope.cancel()
            await anyio.sleep_forever()
    assert state(held[0]) is TransactionState.ABORTED
    assert ended(fake) == [("aborted", [b"1"])]


# --- records that wait for room ------------------------------------------------------------------


async def test_a_record_that_waits_for_room_is_part_of_its_transaction(
    settings: ProducerSettings,
) -> None:
    """It is sent and awaited before the commit, although the block does not await it."""
    fake = FakeDriver(manual=True)
    settings = settings.evolve(max_in_flight=1)
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:

        async def transact(*values: bytes) -> None:
            async with producer.transaction() as tx:
                calls.extend(Call(tasks, tx.send, record(value)) for value in values)
                await quiet()

        calls: list[Call[Any]] = []
        ending = Call(tasks, transact, b"1", b"2", b"3")
        await quiet()
        after = Call(tasks, transact, b"4")
        for count in range(1, 5):
            await taken(fake, count)
            await quiet()
            assert ending.running == (count < 4)
            assert len(fake.transactions) == count // 4
            fake.acknowledge()
        await ending.wait()
        await after.wait()
        assert [call.error for call in [ending, after, *calls]] == [None] * 6
    assert [(how, sorted(values)) for how, values in ended(fake)] == [
        ("committed", [b"1", b"2", b"3"]),
        ("committed", [b"4"]),
    ]


async def test_a_record_that_gets_no_room_aborts_the_transaction(
    settings: ProducerSettings, clock: ManualClock
) -> None:
    fake = FakeDriver(manual=True)
    settings = settings.evolve(max_in_flight=2)
    async with clock.open(settings, driver=fake) as producer, task_group() as tasks:

        async def transact() -> None:
            async with producer.transaction() as tx:
                calls.extend(Call(tasks, tx.send, record(b"%d" % number)) for number in range(3))
                await quiet()

        calls: list[Call[Any]] = []
        ending = Call(tasks, transact)
        await taken(fake, 2)
        await quiet()
        assert ending.running
        clock.advance(settings.delivery_timeout)
        await ending.wait()
        assert isinstance(ending.error, TransactionAborted)
        for call in calls:
            assert isinstance((await call.wait()).error, DeliveryTimeout)
        fake.acknowledge()
    assert [how for how, _ in fake.transactions] == ["aborted"]


# --- an interrupted abort ------------------------------------------------------------------------


async def test_a_driver_that_fails_at_the_abort_while_the_producer_closes(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    """The driver breaks its contract, but no task waits forever."""
    held: list[Transaction] = []
    asked: list[bool] = []

    def end(commit: bool) -> SendProducerError:
        asked.append(commit)
        raise ZeroDivisionError

    with pytest.raises(BaseException) as caught:  # noqa: PT011, PT012  # alone, or in groups
        async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:

            async def transact() -> None:
                with contextlib.suppress(SendProducerError):
                    async with producer.transaction() as tx:
                        held.append(tx)
                        await tx.send(record(b"1"))
                        fake.end_error = end
                        begun.set()
                        await until(lambda: asked)
                        raise LookupError

            begun = anyio.Event()
            tasks.start_soon(transact)
            await begun.wait()
            await producer.aclose()
    assert state(held[0]) is TransactionState.ABORTED
    assert {type(error) for error in _leaves(caught.value)} <= {ZeroDivisionError, LookupError}


def _leaves(error: BaseException) -> list[BaseException]:
    inside: Sequence[BaseException] | None = getattr(error, "exceptions", None)
    return [error] if inside is None else [leaf for one in inside for leaf in _leaves(one)]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_abort_that_asyncio_cancels_does_not_affect_the_next_transaction(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    """asyncio's own cancellation ignores shielded scopes."""
    held: list[Transaction] = []
    async with open_send_producer(settings, driver=fake) as producer:

        async def transact() -> None:
            async with producer.transaction() as tx:
                held.append(tx)
                await tx.send(record(b"1"))
                fake.on_end.shut()
                fake.end_error = end_error(abort=TransactionError("not now"))
                await anyio.sleep_forever()

        task = asyncio.create_task(transact())
        await until(lambda: len(fake.submitted) == 1)
        await quiet()
        task.cancel()
        await at_gate(fake.on_end)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert state(held[0]) is TransactionState.ABORTED
        fake.on_end.open()
        async with producer.transaction() as tx:
            await tx.send(record(b"2"))
        assert producer.statistics().generations == 2
    assert ended(fake)[-1] == ("committed", [b"2"])


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncio_may_cancel_all_its_tasks_at_any_moment(
    settings: ProducerSettings,
) -> None:
    """asyncio.run() does so at its end; here, the producer is closing at the same time.

    All tasks end, and no transaction stays open.
    """

    async def use(fake: FakeDriver, opened: asyncio.Event, held: list[Transaction]) -> None:
        async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:
            tasks.start_soon(producer.aclose)
            opened.set()
            async with producer.transaction() as tx:
                held.append(tx)
                await tx.send(record(b"1"))

    turns = 2
    while True:
        fake, opened = FakeDriver(), asyncio.Event()
        held: list[Transaction] = []
        before = asyncio.all_tasks()
        task = asyncio.create_task(use(fake, opened, held))
        await opened.wait()
        for _ in range(turns):
            await asyncio.sleep(0)
        if task.done():
            assert task.exception() is not None  # it sent on a closed producer
            break
        others = asyncio.all_tasks() - before
        for one in others:
            one.cancel()
        with anyio.fail_after(PATIENCE):
            await asyncio.gather(*others, return_exceptions=True)
        assert TransactionState.OPEN not in map(state, held)
        turns += 1
    assert turns > 10


# --- deadlines -----------------------------------------------------------------------------------


def test_a_deadline_can_only_be_brought_forward() -> None:
    deadline = Deadline(100)
    assert not deadline.is_over
    deadline.hurry(200)
    assert deadline.at < time.monotonic() + 101
    deadline.hurry(0)
    assert deadline.is_over


async def test_a_block_that_is_left_in_another_task_does_not_block_later_transactions(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    """The event loop may close an async generator in a task of its own."""
    async with open_send_producer(settings, driver=fake) as producer, task_group() as tasks:

        async def numbers() -> AsyncGenerator[int]:
            async with producer.transaction() as tx:
                await tx.send(record(b"1"))
                yield 1

        generator = numbers()
        assert await anext(generator) == 1
        await Call(tasks, generator.aclose).wait()
        async with producer.transaction() as tx:
            await tx.send(record(b"2"))
    assert ended(fake) == [("aborted", [b"1"]), ("committed", [b"2"])]


async def test_a_later_task_is_not_taken_for_one_that_has_left_its_block_open(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    """When a task has ended, a later task may get its id."""
    blocks: list[contextlib.AbstractAsyncContextManager[Transaction]] = []
    async with open_send_producer(settings, driver=fake) as producer:

        async def begin() -> None:
            blocks.append(producer.transaction())
            await blocks[0].__aenter__()

        async def transact() -> None:
            async with producer.transaction():
                pass

        async with task_group() as tasks:
            tasks.start_soon(begin)
        gc.collect()
        async with task_group() as tasks:
            calls = [Call(tasks, transact) for _ in range(300)]
            await quiet()
            await blocks[0].__aexit__(None, None, None)
            for call in calls:
                assert (await call.wait()).error is None


@pytest.mark.parametrize("is_committed", [True, False])
async def test_a_client_that_ended_a_transaction_without_records_is_replaced_without_a_pause(
    settings: ProducerSettings,
    fake: FakeDriver,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_committed: bool,
) -> None:
    """It can be used, although it delivered nothing."""
    pauses: list[float] = []
    async with open_send_producer(settings, driver=fake) as producer:
        monkeypatch.setattr(producer._engine.bridge._worker.stopping, "wait", pauses.append)
        for number in range(2, 5):
            with contextlib.nullcontext() if is_committed else pytest.raises(ZeroDivisionError):
                async with producer.transaction() as tx:
                    await tx.send_offsets({("t", 0): number}, "group")
                    if not is_committed:
                        raise ZeroDivisionError
            fake.break_client()
            await until(generation(producer, number))
        assert pauses == []
        fake.break_client()
        await until(generation(producer, 5))
        assert pauses == [0.5]


async def test_a_client_that_could_not_send_offsets_is_replaced_after_a_pause(
    settings: ProducerSettings, fake: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, the user may not use the group. That is so for the next client, too."""
    pauses: list[float] = []
    fake.offsets_error = TransactionAborted("forbidden")
    async with open_send_producer(settings, driver=fake) as producer:
        monkeypatch.setattr(producer._engine.bridge._worker.stopping, "wait", pauses.append)
        for number in range(2, 5):
            with pytest.raises(TransactionAborted):
                async with producer.transaction() as tx:
                    await tx.send_offsets({("t", 0): number}, "group")
            fake.break_client()
            await until(generation(producer, number))
        assert pauses == [0.5, 1.0]


async def test_a_commit_whose_driver_raises_an_unexpected_exception_is_unknown(
    settings: ProducerSettings,
) -> None:
    class Odd(FakeDriver):
        def end_transaction(self, commit: bool, deadline: Any, /) -> None:
            if commit:
                raise ZeroDivisionError
            super().end_transaction(commit, deadline)

    async with open_send_producer(settings, driver=Odd()) as producer:
        with raising(TransactionOutcomeUnknown, match="its outcome was not reported"):
            async with producer.transaction() as tx:
                await tx.send(record())
        assert state(tx) is TransactionState.UNKNOWN
