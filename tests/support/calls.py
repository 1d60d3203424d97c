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

#: librdkafka does not say whether it sent a record before. Its driver takes a record to have been
#: sent once as long as it can't have been sent again: by default no longer than a busy machine may
#: hold up an answer. So whoever looks for a refusal has nothing sent again for seconds.
SENT_ONCE: dict[str, Any] = {"retry.backoff.ms": 5_000, "retry.backoff.max.ms": 5_000}


def sent_once(driver: str) -> dict[str, Any]:
    """The properties by which a driver tells a refusal as one, however slow the machine is."""
    return SENT_ONCE if driver == "confluent" else {}


def sure_of_refusals(settings: ProducerSettings, driver: str) -> ProducerSettings:
    """Settings with these."""
    return settings.with_properties(sent_once(driver))


def record(
    value: bytes = b"v", topic: str = "t", *, key: bytes | None = None, partition: int | None = 0
) -> AnyRecord:
    """A record, to partition 0 unless told otherwise, so that there is one order."""
    return ProducerRecord(topic, value, key, partition=partition)


def messages(count: int) -> list[Any]:
    """Messages whose value and pass-through are their number."""
    return [Message(record(b"%d" % number), number) for number in range(count)]


def refuse(what: ProducerRecord[Any, Any]) -> DeliveryError:
    """The outcome of a record that was refused."""
    return DeliveryError("refused", record=what, persistence=Persistence.NOT_PERSISTED)


def to(topic: str) -> ProducerRecord[None, bytes]:
    """A record to partition 0 of a topic."""
    return ProducerRecord(topic, b"value", partition=0)


async def outcome_of(producer: SendProducer, topic: str) -> RecordMetadata | DeliveryError:
    """Send a record to a topic, and return its outcome."""
    with anyio.fail_after(PATIENCE):
        try:
            return await producer.send(to(topic))
        except DeliveryError as error:
            return error


def fail() -> None:
    """End a block; a bare `raise` would have type checkers take what follows for unreachable."""
    raise ZeroDivisionError


def end_error(
    *, commit: SendProducerError | None = None, abort: SendProducerError | None = None
) -> Callable[[bool], SendProducerError | None]:
    """What a fake driver's ``end_error`` is set to: the errors of a commit and of an abort."""
    return lambda commits: commit if commits else abort


def never() -> None:
    """What is not to be reached."""
    raise AssertionError


def generation(producer: SendProducer, number: int) -> Callable[[], bool]:
    """Whether so many clients were opened one after the other."""
    return lambda: producer.statistics().generations == number


class Call(Generic[T]):
    """A call in a task of its own: it can be cancelled, and tells how it ended."""

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
        """What it returned."""
        assert self.error is None
        return self._values[0]

    def error_or_value(self, kind: type[E]) -> E | T:
        """How it ended, where an error of that kind is an end like any other."""
        return self.error if isinstance(self.error, kind) else self.value

    async def wait(self) -> Call[T]:
        """Wait until it has ended."""
        with anyio.fail_after(PATIENCE):
            await self.ended.wait()
        return self

    async def cancel(self) -> None:
        """Cancel it from outside, and wait until it has ended so."""
        self.scope.cancel()
        await self.wait()
        assert self.cancelled


@contextmanager
def raising(
    kind: type[X], match: str | None = None
) -> Generator[pytest.ExceptionInfo[X], None, None]:
    """pytest.raises() around a block whose end is what raises: it is run to its last statement, so
    what is assigned in it is there after it."""
    with pytest.raises(kind, match=match) as caught:
        yield caught


@asynccontextmanager
async def task_group() -> AsyncGenerator[anyio.abc.TaskGroup, None]:
    """AnyIO's task group, whose type says that it may swallow an exception; it does not, and what
    is assigned in its block is there after it."""
    async with anyio.create_task_group() as tasks:
        yield tasks


async def quiet() -> None:
    """Let every task run until it waits.

    On asyncio, AnyIO's own function sleeps for a tenth of a second where it finds one that does
    not wait yet, so the tasks get their turns first.
    """
    for _ in range(12):
        await anyio.lowlevel.checkpoint()
    await anyio.wait_all_tasks_blocked()


async def taken(fake: FakeDriver, count: int) -> None:
    """Wait until the driver has taken so many records in all."""
    await anyio.to_thread.run_sync(fake.wait_until_taken, count, PATIENCE)


async def at_gate(gate: Gate) -> None:
    """Wait until somebody stands before the gate."""
    await anyio.to_thread.run_sync(gate.wait_until_someone_waits, PATIENCE)


class Suspensions:
    """Awaits something, and counts how often it suspended the task."""

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
