"""A driver without a broker, whose every step waits for the test where the test wants it to.

Instead of sleeping and hoping, a test shuts a gate, does what it came for while the driver stands
before it, and opens the gate again.
"""

from __future__ import annotations

import functools
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .._exceptions import DeliveryError, Persistence, SendProducerError
from .._records import ConsumerGroupMetadata, ProducerRecord, RecordMetadata
from .._settings import ProducerSettings
from ..drivers import ConsumedOffset, Deadline, Outcome, Sink, Submission, Submitted
from ..drivers._serializing import Serialize, parts_of, serialize_with, size_of

__all__ = ["FakeDriver", "Gate"]


class Gate:
    """Open, or shut: whoever passes while it is shut waits until it is opened.

    Used from several threads. A gate is open at first.
    """

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self._waiting = threading.Semaphore(0)

    def shut(self) -> None:
        """From now on, whoever passes waits."""
        self._open.clear()

    def open(self) -> None:
        """Let through whoever waits, and whoever comes."""
        self._open.set()

    def pass_through(self) -> None:
        """Pass; where the gate is shut, wait until it is opened."""
        if not self._open.is_set():
            self._waiting.release()
            self._open.wait()

    def wait_until_someone_waits(self, timeout: float = 10.0) -> None:
        """Block the calling thread until somebody stands before the shut gate.

        Raises:
            TimeoutError: nobody came.
        """
        if not self._waiting.acquire(timeout=timeout):
            raise TimeoutError(f"nobody came to the gate within {timeout:g} s")


class FakeDriver:
    """A :class:`~anyio_sendproducer.drivers.Driver` in memory, and its own factory.

    ::

        fake = FakeDriver()
        async with open_send_producer(settings, driver=fake) as producer: ...

    It acknowledges what it is given at once, unless ``manual`` is set: then everything stays under
    way until the test calls :meth:`acknowledge` or :meth:`fail`. The settings' serializers are
    called, and what they raise fails the record.

    Args:
        partitions: how many partitions each topic has.
        manual: leave it to the test when, and how, each record is completed.

    Attributes:
        on_open: a gate in :meth:`open`.
        on_submit: a gate in :meth:`submit`, before the batch is looked at.
        on_close: a gate in :meth:`close`.
        on_end: a gate in :meth:`end_transaction`, and in :meth:`send_offsets`.
        unknown_topics: topics without metadata; see :meth:`learn`.
        written: the records acknowledged, as a consumer would read them, by topic and partition, in
            the order of their offsets.
        submitted: every record ever taken, as it was sent, in order.
        batches: how many records each batch brought.
        opened: how often it was opened.
        closed: the time-out that each call of :meth:`close` gave.
        open_error: raised by :meth:`open`.
        submit_error: raised by :meth:`submit`, which a driver must not do.
        in_trouble: what :meth:`last_error` says.
        is_cut_off: what :meth:`is_disconnected` says.
        transactions: ``"committed"`` or ``"aborted"``, and the records that were taken in it, for
            each transaction that has ended. Records of both are in ``written``.
        offsets: the offsets that were sent in transactions, each with its group.
        end_error: asked whether to commit or to abort, each time that a transaction is to end: an
            error is raised, and the transaction goes on.
        offsets_error: raised by :meth:`send_offsets`.
        judge: asked about each record before it is acknowledged: an error makes it fail.
    """

    def __init__(self, *, partitions: int = 4, manual: bool = False) -> None:
        self.partitions = partitions
        self.manual = manual
        self.on_open: Gate = Gate()
        self.on_submit: Gate = Gate()
        self.on_close: Gate = Gate()
        self.on_end: Gate = Gate()
        self.unknown_topics: set[str] = set()
        self.written: dict[tuple[str, int], list[ProducerRecord[Any, Any]]] = {}
        self.submitted: list[ProducerRecord[Any, Any]] = []
        self.batches: list[int] = []
        self.opened: int = 0
        self.closed: list[float] = []
        self.open_error: BaseException | None = None
        self.submit_error: BaseException | None = None
        self.in_trouble: Exception | None = None
        self.is_cut_off: bool = False
        self.judge: Callable[[ProducerRecord[Any, Any]], DeliveryError | None] = lambda _: None
        self.transactions: list[tuple[str, list[ProducerRecord[Any, Any]]]] = []
        self.offsets: list[tuple[ConsumedOffset, ConsumerGroupMetadata]] = []
        self.end_error: Callable[[bool], SendProducerError | None] = lambda _: None
        self.offsets_error: SendProducerError | None = None
        self.settings: ProducerSettings | None = None
        self._sink: Sink | None = None
        # One that may be taken again: what the test gives to be asked may look at what is here.
        self._lock = threading.Condition(threading.RLock())
        self._under_way: list[tuple[Any, ProducerRecord[Any, Any]]] = []
        self._in_transaction: list[ProducerRecord[Any, Any]] | None = None
        self._turn = 0
        self._serializes: dict[str, Serialize | None] = {"key": None, "value": None}

    def __call__(self, settings: ProducerSettings) -> FakeDriver:
        """Be the factory of itself; each further generation of a producer is this driver too."""
        self.settings = settings
        self._serializes = {
            "key": serialize_with(settings.key_serializer),
            "value": serialize_with(settings.value_serializer),
        }
        return self

    # --- what the producer calls -------------------------------------------------------------

    def open(self, sink: Sink, /) -> None:
        """Connect to nothing."""
        self.on_open.pass_through()
        if self.open_error is not None:
            raise self.open_error
        self._sink = sink
        self.opened += 1

    def submit(self, batch: Sequence[Submission], /) -> Submitted:
        """Take a batch."""
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
        # The user's code runs without the lock: it may look at what is here.
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
            self.submitted += records
            if self._in_transaction is not None:
                self._in_transaction += records
            self._under_way += ready
            self._lock.notify_all()
        self._report(bad, errors)
        if not self.manual:
            self.acknowledge()
        return answer

    def _serialize(self, submission: Submission, answer: Submitted) -> ProducerRecord[Any, Any]:
        record = submission.record
        if not any(self._serializes.values()):
            return record
        headers = [*record.headers]
        key, value = parts_of(record, self._serializes["key"], self._serializes["value"], headers)
        answer.sizes.append((submission, size_of(key, value, headers)))
        return ProducerRecord(
            record.topic,
            value,
            key,
            partition=record.partition,
            timestamp_ms=record.timestamp_ms,
            headers=headers,
        )

    def partitions_for(self, topic: str, /) -> frozenset[int] | None:
        """The same partitions for each topic that is known."""
        if topic in self.unknown_topics:
            return None
        return frozenset(range(self.partitions))

    def begin_transaction(self) -> None:
        """Begin one."""
        if not self._in_transaction:
            self._in_transaction = []

    def send_offsets(
        self,
        offsets: Sequence[ConsumedOffset],
        group: ConsumerGroupMetadata,
        deadline: Deadline,  # noqa: ARG002
        /,
    ) -> None:
        """Take them, unless :attr:`offsets_error` is set."""
        self.on_end.pass_through()
        if self.offsets_error is not None:
            raise self.offsets_error
        self.offsets += [(offset, group) for offset in offsets]

    def end_transaction(self, commit: bool, deadline: Deadline, /) -> None:  # noqa: ARG002, FBT001
        """End it, unless :attr:`end_error` has an error. To abort, fail what is under way."""
        self.on_end.pass_through()
        error = self.end_error(commit)
        if error is not None:
            raise error
        if not commit:
            self.fail(functools.partial(_left_open, "the transaction was aborted"))
        records, self._in_transaction = self._in_transaction or [], None
        self.transactions.append(("committed" if commit else "aborted", records))

    def last_error(self) -> Exception | None:
        """What :attr:`in_trouble` says."""
        return self.in_trouble

    def is_disconnected(self) -> bool:
        """What :attr:`is_cut_off` says."""
        return self.is_cut_off

    def metrics(self) -> Mapping[str, Any]:
        """Nothing is counted."""
        return {}

    def close(self, timeout: float, /) -> None:
        """Close: what is under way fails, as possibly persisted."""
        self.closed.append(timeout)
        self.on_submit.open()
        self.on_open.open()
        self.on_end.open()
        # Where it was open, the next client aborts it.
        records, self._in_transaction = self._in_transaction, None
        if records:
            self.transactions.append(("aborted", records))
        self.on_close.pass_through()
        self.fail(functools.partial(_left_open, "the fake driver was closed"))

    # --- what the test calls -----------------------------------------------------------------

    @property
    def under_way(self) -> list[ProducerRecord[Any, Any]]:
        """The records taken and not completed, in order."""
        with self._lock:
            return [submission.record for submission, _ in self._under_way]

    def wait_until_taken(self, count: int, timeout: float = 10.0) -> None:
        """Block the calling thread until the driver has taken so many records, counted from its
        making.

        Raises:
            TimeoutError: it was not given so many.
        """
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
        """Complete the oldest records under way: written, unless ``judge`` has an error for them.

        Args:
            count: how many; None for all.
            topic: those to this topic alone; None for all.
            where: those alone for which it returns True; None for all.

        Returns:
            How many there were.
        """
        with self._lock:
            taken = self._take(count, topic, where)
            outcomes = [
                self.judge(submission.record) or self._write(wire) for submission, wire in taken
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
        """Fail the oldest records under way.

        Args:
            error: makes the error of each, as the factories of
                :mod:`~anyio_sendproducer.testing.factories` do.
            count: how many; None for all.
            topic: those to this topic alone; None for all.
            where: those alone for which it returns True; None for all.

        Returns:
            How many there were.
        """
        with self._lock:
            taken = self._take(count, topic, where)
        submissions = [submission for submission, _ in taken]
        return self._report(submissions, [error(submission.record) for submission in submissions])

    def learn(self, topic: str) -> None:
        """From now on this topic has metadata."""
        with self._lock:  # not in the middle of a batch: its records would be parted
            self.unknown_topics.discard(topic)
        if self._sink is not None:
            self._sink.metadata_changed()

    def break_client(self, error: BaseException | None = None) -> None:
        """Say that the client is broken for good: the producer opens another."""
        if self._sink is not None:
            self._sink.broken(error or SendProducerError("the fake client broke"))

    # -----------------------------------------------------------------------------------------

    def _take(
        self,
        count: int | None,
        topic: str | None,
        where: Callable[[ProducerRecord[Any, Any]], bool] | None,
    ) -> list[tuple[Any, ProducerRecord[Any, Any]]]:
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

    def _write(self, record: ProducerRecord[Any, Any]) -> Outcome:
        partition = record.partition
        if partition is None:
            if record.key is not None:
                partition = zlib.crc32(repr(record.key).encode()) % self.partitions
            else:
                partition = self._turn = (self._turn + 1) % self.partitions
        log = self.written.setdefault((record.topic, partition), [])
        log.append(record)
        return RecordMetadata(
            record.topic,
            partition,
            len(log) - 1,
            record.timestamp_ms or 0,
            None if record.key is None else len(record.key),
            None if record.value is None else len(record.value),
        )

    def _report(self, submissions: list[Any], outcomes: list[Outcome]) -> int:
        if submissions and self._sink is not None:
            self._sink.completed(submissions, outcomes)
        return len(submissions)


def _left_open(why: str, record: ProducerRecord[Any, Any]) -> DeliveryError:
    return DeliveryError(why, record=record, persistence=Persistence.POSSIBLY_PERSISTED)
