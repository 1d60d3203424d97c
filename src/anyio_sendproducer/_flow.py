"""Streams of envelopes: their records are sent, and their results are received in the same order.

A task, the *feeder*, takes an envelope from the source, enters its records, and then appends the
envelope to a bounded queue. The receiver waits for the outcome of the first envelope in the queue.
If the queue is full, the feeder waits, so a slow receiver applies back-pressure to the source. The
queue keeps the results in order; no task is started for an envelope.
"""

# These classes and functions share private state by design.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import dataclasses
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Mapping,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, TypeVar, cast

import anyio
import anyio.abc
import anyio.lowlevel

from ._engine import Engine
from ._exceptions import SettingsError
from ._flow_stream import FlowStream
from ._records import (
    MultiResult,
    Result,
    Results,
)
from ._sending import Sender
from ._task_groups import plain_task_group
from ._validation import check_count, check_is_envelope

__all__ = ["FlowSummary", "Offsets", "run_flow", "run_sink", "run_transactional_flow"]

T = TypeVar("T")

_LEFT_BY_ANOTHER_TASK: Final = (
    "the block of flow() was left by a different task than the one that entered it; the stream was "
    "closed. Enter and leave the block in the same task"
)

Offsets = Callable[[Any], Mapping[tuple[str, int], Any]]
"""A function of an envelope. It returns, by topic and partition, the offsets of the next records to
read after this envelope."""


@dataclasses.dataclass(frozen=True, slots=True)
class FlowSummary:
    """The summary of a flow whose envelopes were all delivered."""

    envelopes: int
    """The number of envelopes."""
    records: int
    """The number of records in these envelopes."""
    last_offsets: Mapping[tuple[str, int], int]
    """The last offset written to each topic and partition, if the brokers reported it."""


@asynccontextmanager
async def _closing_iterator(source: AsyncIterable[T]) -> AsyncGenerator[AsyncIterator[T]]:
    """Make an iterator, and close it at the end of the block if it is an async generator.

    If it were not closed, a generator that is not read to its end would stay open until it is
    garbage-collected.
    """
    iterator = aiter(source)
    try:
        yield iterator
    finally:
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()


async def _feed(flow: FlowStream[Any], sender: Sender, source: AsyncIterable[Any]) -> None:
    await anyio.lowlevel.checkpoint_if_cancelled()  # the block may have been left already
    try:
        async with _closing_iterator(source) as envelopes:
            await flow.enter_all(sender, envelopes)
    except Exception as error:  # noqa: BLE001  # receive() raises it
        flow.end(error)
    else:
        flow.end()


@asynccontextmanager
async def _running(
    flow: FlowStream[Any], *feeders: Callable[[], Any]
) -> AsyncGenerator[anyio.abc.ObjectReceiveStream[Any]]:
    flow._engine.affinity.check()
    scopes = flow.feeder_scopes = [anyio.CancelScope() for _ in feeders]

    async def run(feeder: Callable[[], Any], scope: anyio.CancelScope) -> None:
        try:
            with scope:
                await feeder()
        except BaseException:
            # The scope around the block was cancelled. The receiver may be shielded from that.
            flow.end(anyio.ClosedResourceError())
            raise

    # The feeders raise only cancellation.
    async with plain_task_group(_LEFT_BY_ANOTHER_TASK) as tasks:
        try:
            for feeder, scope in zip(feeders, scopes, strict=True):
                tasks.start_soon(run, feeder, scope)
            yield flow
        finally:
            # This cancels the feeders, and not the group's own scope: if the task that entered the
            # block has ended, AnyIO would try forever to cancel that task.
            flow.close()


def _limit(given: int | None, default: int) -> int:
    limit = default if given is None else given
    check_count("max_in_flight", limit)
    return limit


def run_flow(
    sender: Sender, source: AsyncIterable[Any], max_in_flight: int | None, default: int
) -> AbstractAsyncContextManager[anyio.abc.ObjectReceiveStream[Any]]:
    """See :meth:`SendProducer.flow`."""
    flow: FlowStream[Any] = FlowStream(sender._engine, _limit(max_in_flight, default))

    async def feed() -> None:
        await _feed(flow, sender, source)

    return _running(flow, feed)


# --- in transactions -----------------------------------------------------------------------------


def run_transactional_flow(
    begin: Callable[[], AbstractAsyncContextManager[Any]],
    engine: Engine,
    source: AsyncIterable[Any],
    *,
    limit: int,
    max_in_flight: int | None,
    interval: float,
    offsets: Offsets | None,
    group_metadata: Any,
) -> AbstractAsyncContextManager[anyio.abc.ObjectReceiveStream[Any]]:
    """See :meth:`SendProducer.flow`. Results can be received after their transaction's commit."""
    if (offsets is None) != (group_metadata is None):
        raise SettingsError("flow: offsets and group_metadata must be given together")
    flow: FlowStream[Any] = FlowStream(engine, _limit(max_in_flight, limit))
    # The commit interval must not cancel the iteration of the source, because cancelling an async
    # generator ends it. So one task reads the source, and another task, with the timeout, receives
    # from a stream.
    to_commit_send, to_commit = anyio.create_memory_object_stream[Any]()
    failed: list[Exception] = []

    async def read() -> None:
        with to_commit_send:
            await anyio.lowlevel.checkpoint_if_cancelled()  # as in _feed()
            try:
                async with _closing_iterator(source) as envelopes:
                    async for envelope in envelopes:
                        check_is_envelope(envelope)
                        await to_commit_send.send(envelope)
                        if flow.is_closed:
                            break
            except Exception as error:  # noqa: BLE001  # receive() raises it
                # Usually this is the source's error, which commit_each() passes on. If a
                # transaction failed, the flow has ended with the transaction's error, `to_commit`
                # is closed, and this error only says so. Nobody reads it.
                failed.append(error)

    async def commit_each() -> None:
        try:
            with to_commit:
                while True:
                    # The reader can't wait for a place: when it has the next envelope, the last one
                    # may not be in the queue yet.
                    await flow.wait_until_not_full()
                    if flow.is_closed:
                        break
                    try:
                        envelope = await to_commit.receive()
                    except anyio.EndOfStream:
                        break
                    await commit_some(envelope)
        except Exception as error:  # noqa: BLE001  # as above
            flow.end(error)
        else:
            flow.end(failed.pop() if failed else None)

    async def commit_some(envelope: Any) -> None:
        """Send this envelope, and the envelopes that follow within the interval, in one
        transaction."""
        sent: list[Any] = []
        async with begin() as tx:
            with anyio.move_on_after(interval):
                while True:
                    sent.append(envelope)
                    with anyio.CancelScope(shield=True):
                        # The interval may end between two envelopes, but not within one.
                        await flow.enter(tx, envelope, committed=False)
                    if flow.is_closed or flow.is_full:
                        break
                    try:
                        envelope = await to_commit.receive()
                    except anyio.EndOfStream:
                        break
            if flow.is_closed:
                # Abort the transaction, because its results will not be received.
                raise anyio.ClosedResourceError
            if offsets is not None:
                read_so_far: dict[tuple[str, int], Any] = {}
                for envelope in sent:
                    read_so_far.update(offsets(envelope))
                await tx.send_offsets(read_so_far, group_metadata)
        flow.commit()

    return _running(flow, read, commit_each)


async def run_sink(
    running: AbstractAsyncContextManager[anyio.abc.ObjectReceiveStream[Any]],
) -> FlowSummary:
    """See :meth:`SendProducer.sink`."""
    envelopes = records = 0
    last: dict[tuple[str, int], int] = {}
    async with running as stream:
        results = cast("FlowStream[Results[Any, Any, Any]]", stream)
        is_at_end = False
        while not is_at_end:
            written = results.take_delivered()
            envelopes += len(written)
            try:
                result = await results.receive()
            except anyio.EndOfStream:
                is_at_end = True
            else:
                envelopes += 1
                if isinstance(result, Result):
                    written.append(result.metadata)
                elif isinstance(result, MultiResult):
                    written += [part.metadata for part in result.parts]
            records += len(written)
            for metadata in written:
                if (offset := metadata.offset) is not None:
                    last[metadata[:2]] = offset
    return FlowSummary(envelopes, records, last)
