"""Calls in tasks of their own, and ways to bring the producer and its driver to a known point."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Generic, TypeVar

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.to_thread
import pytest

from anyio_sendproducer import (
    DeliveryError,
    Message,
    Persistence,
    ProducerRecord,
    ProducerSettings,
    RecordMetadata,
    SendProducer,
    SendProducerError,
)
from anyio_sendproducer.testing import FakeDriver, Gate
from tests.support.waiting import PATIENCE

__all__ = [
    "SENT_ONCE",
    "Call",
    "Suspensions",
    "at_gate",
    "end_error",
    "fail",
    "generation",
    "messages",
    "never",
    "outcome_of",
    "quiet",
    "raising",
    "record",
    "refuse",
    "sent_once",
    "sure_of_refusals",
    "taken",
    "task_group",
    "to",
]

T = TypeVar("T")
E = TypeVar("E", bound=SendProducerError)
X = TypeVar("X", bound=BaseException)

AnyRecord = ProducerRecord["bytes | None", bytes]

#: librdkafka does not report whether it sent a record before. Its driver assumes that a record was
#: sent once until the client could have sent it again. By default this time is so short that a busy
#: machine may delay an answer longer. So a test that expects a refusal delays retries by seconds.
SENT_ONCE: dict[str, Any] = {"retry.backoff.ms": 5_000, "retry.backoff.max.ms": 5_000}


def sent_once(driver: str) -> dict[str, Any]:
    """The properties with which a driver reports a refusal as such, however slow the machine is."""
    return SENT_ONCE if driver == "confluent" else {}


def sure_of_refusals(settings: ProducerSettings, driver: str) -> ProducerSettings:
    """Add the properties of :func:`sent_once` to the settings."""
    return settings.with_properties(sent_once(driver))


def record(
    value: bytes = b"v", topic: str = "t", *, key: bytes | None = None, partition: int | None = 0
) -> AnyRecord:
    """Make a record, by default for partition 0, so that all records have one order."""
    return ProducerRecord(topic, value, key, partition=partition)


def messages(count: int) -> list[Any]:
    """Make messages whose value and pass-through are their number."""
    return [Message(record(b"%d" % number), number) for number in range(count)]


def refuse(what: ProducerRecord[Any, Any]) -> DeliveryError:
    """Make the outcome of a refused record."""
    return DeliveryError("refused", record=what, persistence=Persistence.NOT_PERSISTED)


def to(topic: str) -> ProducerRecord[None, bytes]:
    """Make a record for partition 0 of a topic."""
    return ProducerRecord(topic, b"value", partition=0)


async def outcome_of(producer: SendProducer, topic: str) -> RecordMetadata | DeliveryError:
    """Send a record to a topic, and return its outcome."""
    with anyio.fail_after(PATIENCE):
        try:
            return await producer.send(to(topic))
        except DeliveryError as error:
            return error


def fail() -> None:
    """Raise an error. After a bare `raise`, type checkers would treat the next code as
    unreachable."""
    raise ZeroDivisionError


def end_error(
    *, commit: SendProducerError | None = None, abort: SendProducerError | None = None
) -> Callable[[bool], SendProducerError | None]:
    """Make a fake driver's ``end_error`` from the errors of a commit and of an abort."""
    return lambda commits: commit if commits else abort


def never() -> None:
    """A function that must not be called."""
    raise AssertionError


def generation(producer: SendProducer, number: int) -> Callable[[], bool]:
    """Whether the producer has reached this client generation."""
    return lambda: producer.statistics().generations == number


class Call(Generic[T]):
    """A call in a task of its own. It can be cancelled, and keeps its result or error."""

    def __init__(
        self,
        tasks: anyio.abc.TaskGroup,
        function: Callable[..., Awaitable[T]],
        *args: Any,
        scope: anyio.CancelScope | None = None,
    ) -> None:
        self.scope = scope or anyio.CancelScope()
        self.ended = anyio.Event()
        self.error: SendProducerError | None = None
        self._values: list[T] = []
        tasks.start_soon(self._run, function, args)

    async def _run(self, function: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> None:
        try:
            with self.scope:
                self._values.append(await function(*args))
        except SendProducerError as error:
            self.error = error
        finally:
            self.ended.set()

    @property
    def running(self) -> bool:
        return not self.ended.is_set()

    @property
    def cancelled(self) -> bool:
        return self.ended.is_set() and not self._values and self.error is None

    @property
    def value(self) -> T:
        """The result of the call."""
        assert self.error is None
        return self._values[0]

    def error_or_value(self, kind: type[E]) -> E | T:
        """Wait, and return the result, or an error of this type."""
        return self.error if isinstance(self.error, kind) else self.value

    async def wait(self) -> Call[T]:
        """Wait until it has ended."""
        with anyio.fail_after(PATIENCE):
            await self.ended.wait()
        return self

    async def cancel(self) -> None:
        """Cancel it from outside, and wait until it has ended as cancelled."""
        self.scope.cancel()
        await self.wait()
        assert self.cancelled


@contextmanager
def raising(
    kind: type[X], match: str | None = None
) -> Generator[pytest.ExceptionInfo[X], None, None]:
    """pytest.raises() around a block whose exit raises. The block runs to its last statement, so
    variables assigned in it are bound after it."""
    with pytest.raises(kind, match=match) as caught:
        yield caught


@asynccontextmanager
async def task_group() -> AsyncGenerator[anyio.abc.TaskGroup, None]:
    """AnyIO's task group. By its type it may suppress an exception. It does not, so variables
    assigned in its block are bound after it."""
    async with anyio.create_task_group() as tasks:
        yield tasks


async def quiet() -> None:
    """Let every task run until it waits.

    On asyncio, AnyIO's own function sleeps for a tenth of a second if a task does not wait yet. So
    the tasks get their turns first.
    """
    for _ in range(12):
        await anyio.lowlevel.checkpoint()
    await anyio.wait_all_tasks_blocked()


async def taken(fake: FakeDriver, count: int) -> None:
    """Wait until the driver has accepted this number of records in all."""
    await anyio.to_thread.run_sync(fake.wait_until_taken, count, PATIENCE)


async def at_gate(gate: Gate) -> None:
    """Wait until a task waits at the gate."""
    await anyio.to_thread.run_sync(gate.wait_until_someone_waits, PATIENCE)


class Suspensions:
    """Awaits an awaitable, and counts how often it suspended the task."""

    def __init__(self, awaited: Awaitable[Any]) -> None:
        self.awaited = awaited
        self.count = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self.awaited.__await__()
        sent: Any = None
        while True:
            try:
                step = steps.send(sent)
            except StopIteration as end:
                return end.value
            self.count += 1
            sent = yield step
