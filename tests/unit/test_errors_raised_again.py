"""Each caller of several gets its own copy of an error, and no reference cycles remain."""

from __future__ import annotations

import gc
import sys
import traceback
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest

from anyio_sendproducer import (
    DeliveryError,
    Message,
    MultiDeliveryError,
    MultiMessage,
    ProducerRecord,
    ProducerSettings,
    RecordRejected,
    SendProducer,
    SendProducerError,
    TransactionAborted,
    open_send_producer,
)
from anyio_sendproducer._exceptions import copy_of
from anyio_sendproducer.testing import FakeDriver, factories, fake_producer
from tests.support.calls import Call, quiet, record, task_group


class OwnError(DeliveryError):
    """An error of a user's own driver, whose constructor has other parameters."""

    def __init__(self, reason: int, record: ProducerRecord[Any, Any]) -> None:
        super().__init__(
            f"reason {reason}", record=record, persistence=factories.rejected(record).persistence
        )
        self.reason = reason


def test_a_copy_has_all_attributes_of_the_error() -> None:
    error = OwnError(7, record())
    error.__cause__ = cause = OSError("why")
    vars(error)["__notes__"] = ["a note"]
    copied = copy_of(error)
    assert copied is not error
    assert type(copied) is OwnError
    assert (str(copied), copied.reason, copied.record) == ("reason 7", 7, error.record)
    assert copied.persistence is error.persistence
    assert copied.__cause__ is cause
    vars(copied)["__notes__"].append("another")
    assert vars(error)["__notes__"] == ["a note"]
    assert copy_of(RecordRejected("no", record=record(), persistence=error.persistence)).args


async def fails_with(call: Callable[[], Awaitable[Any]]) -> SendProducerError:
    try:
        await call()
    except SendProducerError as error:
        return error
    raise AssertionError


def frames(error: BaseException) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


async def test_each_caller_of_wait_gets_its_own_error() -> None:
    async with fake_producer(answer=factories.rejected) as fake:
        delivery = await fake.producer.enqueue(record())

        async def first() -> SendProducerError:
            try:
                raise LookupError
            except LookupError:
                return await fails_with(delivery.wait)

        async def second() -> SendProducerError:
            return await fails_with(delivery.wait)

        async with task_group() as tasks:
            together = [Call(tasks, first), Call(tasks, second)]
        errors = [*(call.value for call in together), await first(), await second()]
    assert len({id(error) for error in errors}) == 4
    assert [type(error.__context__) for error in errors] == [
        LookupError,
        type(None),
        LookupError,
        type(None),
    ]
    # No error has a frame of another caller.
    assert [frames(error) for error in errors] == [["fails_with", "wait"]] * 4


async def test_a_flow_raises_its_own_copy_of_an_error(settings: ProducerSettings) -> None:
    """The errors of a flow's records have no traceback and no context of another raise."""

    async def envelopes() -> AsyncIterator[Any]:
        yield Message(record())
        yield MultiMessage([record()])

    async with (
        fake_producer(settings, answer=factories.rejected) as fake,
        fake.producer.flow(envelopes()) as results,
    ):
        alone = await fails_with(results.receive)
        several = await fails_with(results.receive)
    assert isinstance(several, MultiDeliveryError)
    assert several.errors[0].__traceback__ is None
    assert alone.__context__ is None


async def test_the_end_of_the_block_raises_a_copy_of_an_error_of_offsets(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    fake.offsets_error = TransactionAborted("no member of the group")
    errors: list[BaseException] = []
    async with open_send_producer(settings.evolve(transactional_id="t"), driver=fake) as producer:
        try:
            async with producer.transaction() as tx:
                try:
                    raise LookupError
                except LookupError:
                    errors.append(await fails_with(lambda: tx.send_offsets({("t", 0): 1}, "group")))
        except TransactionAborted as error:
            errors.append(error)
    assert isinstance(errors[0].__context__, LookupError)
    assert errors[1] is not errors[0]
    assert errors[1].__context__ is None


# --- reference cycles ----------------------------------------------------------------------------

BAD: ProducerRecord[Any, Any] = record(topic="")


async def bad_and_good() -> AsyncIterator[Any]:
    yield Message(record())
    yield MultiMessage([record(), record()])
    yield Message(BAD)


async def flow(producer: SendProducer) -> None:
    async with producer.flow(bad_and_good()) as results:
        while True:
            try:
                await results.receive()
            except (DeliveryError, MultiDeliveryError):
                pass
            except anyio.EndOfStream:
                return


async def wait(producer: SendProducer) -> None:
    delivery = producer.enqueue_nowait(record())
    await fails_with(delivery.wait)
    await fails_with(delivery.wait)


async def in_a_transaction(producer: SendProducer) -> None:
    async def transaction() -> None:
        async with producer.transaction() as tx:
            await fails_with(lambda: tx.send(record()))
            await fails_with(lambda: tx.send(BAD))

    await fails_with(transaction)


CALLS: dict[str, Callable[[SendProducer], Awaitable[Any]]] = {
    "send": lambda producer: fails_with(lambda: producer.send(record())),
    "send, refused": lambda producer: fails_with(lambda: producer.send(BAD)),
    "send_envelope": lambda producer: fails_with(lambda: producer.send_envelope(Message(record()))),
    "send_many": lambda producer: fails_with(lambda: producer.send_many([record(), record()])),
    "send_many, refused": lambda producer: fails_with(lambda: producer.send_many([record(), BAD])),
    "enqueue, refused": lambda producer: fails_with(lambda: producer.enqueue(BAD)),
    "wait": wait,
    "flow": flow,
    "partitions_for": lambda producer: fails_with(lambda: producer.partitions_for("")),
    "transaction": in_a_transaction,
}


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="needs reference counting")
@pytest.mark.parametrize("name", CALLS)
async def test_a_failure_leaves_nothing_to_the_garbage_collector(name: str) -> None:
    settings = ProducerSettings(
        bootstrap_servers="broker.invalid:9092",
        transactional_id="t" if name == "transaction" else None,
    )
    async with fake_producer(settings, answer=factories.rejected) as fake:
        await CALLS[name](fake.producer)
        await quiet()
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            for _ in range(50):
                await CALLS[name](fake.producer)
            found = gc.collect()
        finally:
            gc.enable()
            gc.unfreeze()
        # Other code in this process may leave a few objects. A cycle in each call leaves more.
        assert found < 50


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="needs reference counting")
async def test_the_producer_keeps_no_failure_that_its_caller_has_seen() -> None:
    callers: list[weakref.ref[object]] = []

    class Local:
        pass

    async def call(producer: SendProducer) -> None:
        local = Local()
        callers.append(weakref.ref(local))
        with suppress(RecordRejected):
            await producer.send(record())

    async with fake_producer(answer=factories.rejected) as fake:
        for _ in range(3):
            await call(fake.producer)
        await quiet()
        gc.collect()
        # The traceback of a failure refers to the frames of its caller.
        assert [caller() for caller in callers] == [None] * 3
