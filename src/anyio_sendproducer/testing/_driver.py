"""A driver without a broker. If a test shuts its gates, they hold it until the test opens them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from .. import (
    ConsumerGroupMetadata,
    DeliveryError,
    Persistence,
    ProducerRecord,
    ProducerSettings,
    SendProducerError,
)
from ..drivers import (
    BrokerDescription,
    ClusterDescription,
    ConsumedOffset,
    Deadline,
    Outcome,
    Sink,
    Submission,
    Submitted,
    choose_partition,
    serialize_record,
)
from ._checks import check_callable, check_count, check_timeout, check_topic
from ._fake_cluster import FakeTopics, FakeTransactions

__all__ = ["FakeDriver", "Gate"]

T = TypeVar("T")


class Gate:
    """A gate for threads. While the gate is shut, threads that reach it wait.

    Several threads may use the same gate. A new gate is open.
    """

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self._waiting = threading.Semaphore(0)

    def shut(self) -> None:
        """Shut the gate, so that threads that reach it wait."""
        self._open.clear()

    def open(self) -> None:
        """Open the gate, so that waiting threads continue."""
        self._open.set()

    def pass_through(self) -> None:
        """Pass the gate. If it is shut, wait until it is opened."""
        if not self._open.is_set():
            self._waiting.release()
            self._open.wait()

    def wait_until_someone_waits(self, timeout: float = 10.0) -> None:
        """Block the calling thread until another thread has reached the shut gate.

        Each arrival of a thread ends one call of this method. An arrival before the call also
        counts, even if the gate is open again.

        Args:
            timeout: seconds.

        Raises:
            TimeoutError: no thread reached the gate in time.
            ValueError: ``timeout`` is negative or NaN.
        """
        check_timeout(timeout)
        if not self._waiting.acquire(timeout=timeout):
            raise TimeoutError(f"no thread came to the gate within {timeout:g} s")


class FakeDriver:
    """An in-memory :class:`~anyio_sendproducer.drivers.Driver`, which is also its own factory.

    ::

        fake = FakeDriver()
        async with open_send_producer(settings, driver=fake) as producer: ...

    The driver acknowledges records at once. If ``manual`` is set, records stay pending until the
    test calls :meth:`acknowledge` or :meth:`fail`. The driver calls the serializers and the
    partitioner of the settings. A record fails if one of them raises an exception.

    Args:
        partitions: how many partitions each topic has.
        manual: whether the test decides when, and how, each record is completed.

    Attributes:
        manual: see above.
        on_open: a gate in :meth:`open`.
        on_submit: a gate at the beginning of :meth:`submit`.
        on_close: a gate in :meth:`close`.
        on_end: a gate in :meth:`end_transaction`, and in :meth:`send_offsets`.
        submitted: all records that the driver took, in order. Keys and values are not serialized.
        batches: how many records each call of :meth:`submit` got.
        opened: how many times the driver was opened.
        closed: the timeout of each call of :meth:`close`.
        open_error: the error that :meth:`open` raises; None for no error.
        submit_error: the error that :meth:`submit` raises, although drivers must not do this; None
            for no error.
        in_trouble: the result of :meth:`last_error`.
        is_cut_off: the result of :meth:`is_disconnected`.
        judge: a function that is called with each record before the record is acknowledged. If the
            function returns an error, the record fails.
        settings: the producer's settings; None until the producer has created its driver.

    Raises:
        ValueError: ``partitions`` is not an int of 1 or more.
    """

    def __init__(self, *, partitions: int = 4, manual: bool = False) -> None:
        self.manual = manual
        self.on_open: Gate = Gate()
        self.on_submit: Gate = Gate()
        self.on_close: Gate = Gate()
        self.on_end: Gate = Gate()
        self.submitted: list[ProducerRecord[Any, Any]] = []
        self.batches: list[int] = []
        self.opened: int = 0
        self.closed: list[float] = []
        self.open_error: BaseException | None = None
        self.submit_error: BaseException | None = None
        self.in_trouble: Exception | None = None
        self.is_cut_off: bool = False
        self.judge: Callable[[ProducerRecord[Any, Any]], DeliveryError | None] = lambda _: None
        self.settings: ProducerSettings | None = None
        self._topics = FakeTopics(partitions)
        self._transactions = FakeTransactions()
        self._sink: Sink | None = None
        # Reentrant: callables of the test run while it is held, and may use this driver.
        self._lock = threading.Condition(threading.RLock())
        self._under_way: list[tuple[Any, ProducerRecord[Any, Any]]] = []

    def __call__(self, settings: ProducerSettings) -> FakeDriver:
        """Return this driver. A producer makes this call for each client that it opens."""
        self.settings = settings
        return self

    # --- the fake cluster --------------------------------------------------------------------

    @property
    def partitions(self) -> int:
        """How many partitions each topic has: an int of 1 or more."""
        return self._topics.partitions

    @partitions.setter
    def partitions(self, count: int) -> None:
        self._topics.partitions = count

    @property
    def unknown_topics(self) -> set[str]:
        """Topics without metadata; see :meth:`learn`."""
        return self._topics.unknown

    @unknown_topics.setter
    def unknown_topics(self, topics: set[str]) -> None:
        self._topics.unknown = topics

    @property
    def describe_error(self) -> SendProducerError | None:
        """The error that :meth:`describe` raises; None if the cluster answers."""
        return self._topics.describe_error

    @describe_error.setter
    def describe_error(self, error: SendProducerError | None) -> None:
        self._topics.describe_error = error

    @property
    def written(self) -> dict[tuple[str, int], list[ProducerRecord[Any, Any]]]:
        """The acknowledged records in serialized form, by topic and partition, in the order of
        their offsets. Records of aborted transactions are included."""
        return self._topics.written

    @written.setter
    def written(self, logs: dict[tuple[str, int], list[ProducerRecord[Any, Any]]]) -> None:
        self._topics.written = logs

    @property
    def transactions(self) -> list[tuple[str, list[ProducerRecord[Any, Any]]]]:
        """For each transaction that has ended, ``"committed"`` or ``"aborted"``, and the records
        that were submitted in the transaction. The acknowledged records of both kinds of
        transactions are in :attr:`written`."""
        return self._transactions.ended

    @transactions.setter
    def transactions(self, ended: list[tuple[str, list[ProducerRecord[Any, Any]]]]) -> None:
        self._transactions.ended = ended

    @property
    def offsets(self) -> list[tuple[ConsumedOffset, ConsumerGroupMetadata]]:
        """The offsets that were sent in transactions, each with its consumer group."""
        return self._transactions.offsets

    @offsets.setter
    def offsets(self, sent: list[tuple[ConsumedOffset, ConsumerGroupMetadata]]) -> None:
        self._transactions.offsets = sent

    @property
    def end_error(self) -> Callable[[bool], SendProducerError | None]:
        """A function that :meth:`end_transaction` calls with a bool, which says whether to commit.
        If the function returns an error, :meth:`end_transaction` raises this error, and the
        transaction stays open."""
        return self._transactions.end_error

    @end_error.setter
    def end_error(self, find: Callable[[bool], SendProducerError | None]) -> None:
        self._transactions.end_error = find

    @property
    def offsets_error(self) -> SendProducerError | None:
        """The error that :meth:`send_offsets` raises, or None."""
        return self._transactions.offsets_error

    @offsets_error.setter
    def offsets_error(self, error: SendProducerError | None) -> None:
        self._transactions.offsets_error = error

    # --- what the producer calls -------------------------------------------------------------

    def open(self, sink: Sink, /) -> None:
        """Open the driver. The driver opens no connection."""
        self.on_open.pass_through()
        if self.open_error is not None:
            raise self.open_error
        self._sink = sink
        self.opened += 1

    def submit(self, batch: Sequence[Submission], /) -> Submitted:
        """Take records."""
        self.on_submit.pass_through()
        if self.submit_error is not None:
            raise self.submit_error
        answer = Submitted()
        with self._lock:
            self.batches.append(len(batch))
            taken: list[Submission] = []
            for submission in batch:
                unknown = submission.record.topic in self.unknown_topics
                (answer.held if unknown else taken).append(submission)
        # The user's hooks run without the lock, because they may wait for another thread.
        ready: list[tuple[Submission, ProducerRecord[Any, Any]]] = []
        bad: list[Submission] = []
        errors: list[Outcome] = []
        for submission in taken:
            try:
                ready.append((submission, self._serialize(submission, answer)))
            except DeliveryError as error:
                bad.append(submission)
                errors.append(error)
        with self._lock:
            records = [submission.record for submission in taken]
            self._on_taken(len(records))
            self.submitted += records
            self._transactions.add(records)
            self._under_way += ready
            self._lock.notify_all()
        self._report(bad, errors)
        if not self.manual:
            self.acknowledge()
        return answer

    def _serialize(self, submission: Submission, answer: Submitted) -> ProducerRecord[Any, Any]:
        record = submission.record
        settings = self.settings
        if settings is None:
            return record
        if settings.key_serializer is not None or settings.value_serializer is not None:
            record, size = serialize_record(record, settings)
            answer.sizes.append((submission, size))
        if settings.partitioner is None or record.partition is not None:
            return record
        partition = choose_partition(
            settings.partitioner, submission.record, record.key, tuple(range(self.partitions))
        )
        # Not dataclasses.replace: a subclass may have a constructor with other arguments.
        return ProducerRecord(
            record.topic,
            record.value,
            record.key,
            partition=partition,
            timestamp_ms=record.timestamp_ms,
            headers=record.headers,
        )

    def partitions_for(self, topic: str, /) -> frozenset[int] | None:
        """Return the partitions of a topic; None if it is unknown."""
        return None if topic in self.unknown_topics else frozenset(range(self.partitions))

    def describe(self, timeout: float, /) -> ClusterDescription:  # noqa: ARG002
        """Describe a cluster of one broker, or raise :attr:`describe_error`."""
        if self.describe_error is not None:
            raise self.describe_error
        return ClusterDescription("fake", 1, (BrokerDescription(1, "fake.invalid", 9092, None),))

    def begin_transaction(self) -> None:
        """Begin a transaction, unless one is open."""
        self._transactions.begin()

    def send_offsets(
        self,
        offsets: Sequence[ConsumedOffset],
        group: ConsumerGroupMetadata,
        deadline: Deadline,  # noqa: ARG002
        /,
    ) -> None:
        """Add offsets to the transaction, or raise :attr:`offsets_error`."""
        self.on_end.pass_through()
        if self.offsets_error is not None:
            raise self.offsets_error
        self._transactions.offsets += [(offset, group) for offset in offsets]

    def end_transaction(self, commit: bool, deadline: Deadline, /) -> None:  # noqa: ARG002, FBT001
        """End the transaction. If :attr:`end_error` returns an error, raise this error instead.

        If the transaction is aborted, pending records fail.
        """
        self.on_end.pass_through()
        error = self.end_error(commit)
        if error is not None:
            raise error
        if not commit:
            self.fail(functools.partial(_pending_error, "the transaction was aborted"))
        self._transactions.end(commit=commit)

    def last_error(self) -> Exception | None:
        """Return :attr:`in_trouble`."""
        return self.in_trouble

    def is_disconnected(self) -> bool:
        """Return :attr:`is_cut_off`."""
        return self.is_cut_off

    def metrics(self) -> Mapping[str, Any]:
        """Return no metrics."""
        return {}

    def close(self, timeout: float, /) -> None:
        """Close the driver. Pending records fail as possibly persisted.

        The method first opens all gates except :attr:`on_close`.
        """
        self.closed.append(timeout)
        self.on_submit.open()
        self.on_open.open()
        self.on_end.open()
        self._transactions.abandon()
        self.on_close.pass_through()
        self.fail(functools.partial(_pending_error, "the fake driver was closed"))

    # --- what the test calls -----------------------------------------------------------------

    @property
    def under_way(self) -> list[ProducerRecord[Any, Any]]:
        """The pending records, in order."""
        with self._lock:
            return [submission.record for submission, _ in self._under_way]

    def wait_until_taken(self, count: int, timeout: float = 10.0) -> None:
        """Block the calling thread until ``count`` records were submitted in total.

        Args:
            count: how many records.
            timeout: seconds.

        Raises:
            TimeoutError: fewer records were submitted in time.
            ValueError: ``timeout`` is negative or NaN.
        """
        check_timeout(timeout)
        with self._lock:
            if not self._lock.wait_for(lambda: len(self.submitted) >= count, timeout):
                raise TimeoutError(f"{count} records were not taken within {timeout:g} s")

    def acknowledge(
        self,
        count: int | None = None,
        *,
        topic: str | None = None,
        where: Callable[[ProducerRecord[Any, Any]], bool] | None = None,
    ) -> int:
        """Acknowledge the oldest pending records. A record for which ``judge`` returns an error
        fails.

        Args:
            count: at most how many; None for all.
            topic: only records for this topic; None for every topic.
            where: only records for which this function returns True; None for all.

        Returns:
            The number of records that were acknowledged or failed.

        Raises:
            TypeError: ``topic`` is not a str, or ``where`` is not callable.
            ValueError: ``count`` is neither None nor an int of 0 or more.
            BaseException: an exception that ``judge`` or ``where`` raises. The records stay
                pending.
        """
        with self._lock:
            before = [*self._under_way]
            taken = self._take(count, topic, where)
            errors = self._ask(self.judge, taken, before)
            outcomes = [
                error or self._write(wire) for error, (_, wire) in zip(errors, taken, strict=True)
            ]
        return self._report([submission for submission, _ in taken], outcomes)

    def fail(
        self,
        error: Callable[[ProducerRecord[Any, Any]], DeliveryError],
        count: int | None = None,
        *,
        topic: str | None = None,
        where: Callable[[ProducerRecord[Any, Any]], bool] | None = None,
    ) -> int:
        """Fail the oldest pending records.

        Args:
            error: a callable that takes a record and returns its error, such as
                ``factories.timeout``.
            count: at most how many; None for all.
            topic: only records for this topic; None for every topic.
            where: only records for which this function returns True; None for all.

        Returns:
            The number of records that failed.

        Raises:
            TypeError: ``error`` or ``where`` is not callable, or ``topic`` is not a str.
            ValueError: ``count`` is neither None nor an int of 0 or more.
            BaseException: an exception that ``error`` or ``where`` raises. The records stay
                pending.
        """
        check_callable("error", error)
        with self._lock:
            before = [*self._under_way]
            taken = self._take(count, topic, where)
        errors = self._ask(error, taken, before)
        return self._report([submission for submission, _ in taken], [*errors])

    def learn(self, topic: str) -> None:
        """Give metadata to a topic, so that the driver takes its records."""
        with self._lock:  # not in the middle of a batch, whose records must be treated alike
            self.unknown_topics.discard(topic)
        if self._sink is not None:
            self._sink.metadata_changed()

    def break_client(self, error: BaseException | None = None) -> None:
        """Report that the client can no longer send, so that the producer replaces it."""
        if self._sink is not None:
            self._sink.broken(error or SendProducerError("the fake client broke"))

    # -----------------------------------------------------------------------------------------

    def _take(
        self,
        count: int | None,
        topic: str | None,
        where: Callable[[ProducerRecord[Any, Any]], bool] | None,
    ) -> list[tuple[Any, ProducerRecord[Any, Any]]]:
        if count is not None:
            check_count("count", count, 0)
        check_topic(topic)
        if where is not None:
            check_callable("where", where)
        if topic is None and where is None:
            matching = self._under_way[:count]
            del self._under_way[: len(matching)]
            return matching
        matching = [
            one
            for one in self._under_way
            if topic in {None, one[0].record.topic} and (where is None or where(one[0].record))
        ][:count]
        chosen = {id(one) for one in matching}
        self._under_way = [one for one in self._under_way if id(one) not in chosen]
        return matching

    def _ask(
        self,
        find_error: Callable[[ProducerRecord[Any, Any]], T],
        taken: Sequence[tuple[Any, ProducerRecord[Any, Any]]],
        before: Sequence[tuple[Any, ProducerRecord[Any, Any]]],
    ) -> list[T]:
        """Call a function of the test with each record. If the function raises, all these records
        are pending again, at their places in ``before``."""
        try:
            return [find_error(submission.record) for submission, _ in taken]
        except BaseException:
            with self._lock:
                place = {id(one): n for n, one in enumerate(before)}
                self._under_way = sorted(
                    (*taken, *self._under_way), key=lambda one: place.get(id(one), len(place))
                )
            raise

    def _on_taken(self, count: int) -> None:
        """Note that records were taken, each of which will have an outcome, before the first of
        these outcomes."""

    def _write(self, record: ProducerRecord[Any, Any]) -> Outcome:
        return self._topics.write(record)

    def _report(self, submissions: list[Any], outcomes: list[Outcome]) -> int:
        if submissions and self._sink is not None:
            self._sink.completed(submissions, outcomes)
        return len(submissions)


def _pending_error(why: str, record: ProducerRecord[Any, Any]) -> DeliveryError:
    return DeliveryError(why, record=record, persistence=Persistence.POSSIBLY_PERSISTED)
