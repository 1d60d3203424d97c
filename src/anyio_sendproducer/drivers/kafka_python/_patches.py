"""Private parts of kafka-python's producer, used where its public API is not enough.

All of them were found in the source of 3.0.12. Each function and class that needs a private part
says why, and which test notices a change of kafka-python. If a client differs from 3.0.12, the
functions whose names begin with ``find_`` return None, and :func:`patch_isolate_rejections` changes
nothing unless the client has transactions. ``_network`` has the private parts of the network
client.
"""

# kafka-python has no annotations. Values of unknown types are cast where they leave the module.
# mypy: disable-error-code="misc"
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import functools
import inspect
import math
import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final, cast

from kafka import KafkaProducer

from ._errors import OF_EVERYTHING, OF_ONE_RECORD, REFUSALS, RefusedLater

__all__ = [
    "Accumulator",
    "Append",
    "QuietProducer",
    "drop_batches",
    "find_broken_check",
    "find_direct_append",
    "find_hurry",
    "forget_offsets",
    "patch_cache_metadata",
    "patch_isolate_rejections",
    "patch_request_promptly",
    "skip_flush",
    "transaction_manager_of",
]


#: The first parameters of ``RecordAccumulator.append`` in 3.0.12, in this order.
_APPEND: Final = ("tp", "timestamp_ms", "key", "value", "headers")

#: Attributes of ``TransactionManager``. If an idempotent client without transactions lacks one of
#: them, :func:`patch_isolate_rejections` does not change it.
_OF_THE_MANAGER: Final = (
    "ERROR_CLASS_RETRIABLE",
    "classify_batch_error",
    "has_fatal_error",
    "producer_id_and_epoch",
    "sequence_number",
    "set_sequence_number",
)

#: Takes topic and partition, milliseconds, key, value and headers. Returns the record's future,
#: whether its batch is full, whether its batch is new, and whether nothing was done.
Append = Callable[[Any, int, Any, Any, list[tuple[str, bytes]]], tuple[Any, bool, bool, bool]]


class QuietProducer(KafkaProducer):
    """A KafkaProducer whose text is made only once, and that never silences its module's logger.

    In 3.0.12 ``send`` formats the producer once or twice for each record, for debug messages, even
    if they are off. A producer that is collected as garbage silences the logger for the whole
    process.
    ``tests/broker/test_traps.py::test_bare_collecting_one_producer_disables_the_logger``
    notices a change.
    """

    _text = "<KafkaProducer>"

    def __init__(self, **configs: Any) -> None:
        self._text = f"<KafkaProducer client_id={configs['client_id']}>"
        super().__init__(**configs)

    def __str__(self) -> str:
        return self._text

    def close(self, timeout: float | None = None, null_logger: Any = None) -> None:  # noqa: ARG002
        """Close the producer."""
        super().close(timeout)


def skip_flush(timeout: float | None = None) -> None:
    """Stand in for a client's ``flush``, and do nothing.

    ``close`` of 3.0.12 calls ``flush`` first. If that takes too long, ``close`` raises and leaves
    the sender thread alive. The producer waits for its records before it closes the driver.
    ``tests/broker/test_traps.py::test_bare_close_with_records_pending_raises_and_closes_nothing``
    notices a change.
    """


def transaction_manager_of(producer: Any) -> Any:
    """Return the client's transaction manager.

    3.0.12 has no public way to end a transaction within a bound, or to say why it cannot be ended.
    ``tests/broker/test_kafka_python_transactions.py::test_a_transaction_is_committed_and_another_aborted``
    notices a change.
    """
    return producer._transaction_manager


def forget_offsets(manager: Any) -> None:
    """Forget the offsets that an earlier transaction could not send.

    3.0.12 keeps them, and sends them with the offsets of the next transaction, even to another
    group. So offsets of an aborted transaction could be committed.
    ``tests/unit/test_kafka_python_transactions.py::test_offsets_of_an_aborted_transaction_are_forgotten``
    notices a change.
    """
    manager._pending_txn_offset_commits.clear()


def drop_batches(producer: Any, error: Exception) -> None:
    """Fail the records that wait to be sent, because their transaction is lost.

    When 3.0.12 gets another producer epoch, the brokers abort its transaction. It keeps the records
    of this transaction, and sends them in the next one.
    ``tests/kafka/test_transactions.py::test_records_of_a_lost_transaction_are_not_sent_in_the_next``
    notices a change.

    The client's thread may abort all batches meanwhile, because the client is closed. It takes each
    of them out of its queue first, or finds that it is not there. 3.0.12 raises if a batch is
    aborted twice.
    """
    accumulator = producer._accumulator
    for where, batches in [*accumulator._batches.items()]:
        with accumulator._tp_lock(where):
            dropped = [*batches]
            batches.clear()
            for batch in dropped:
                batch.abort = _abort_nothing
        for batch in dropped:
            accumulator.deallocate(batch)
            type(batch).abort(batch, error)


def _abort_nothing(_: Exception) -> None:
    """Stand in for the ``abort`` of a batch that was dropped."""


def find_broken_check(producer: Any) -> Callable[[], bool] | None:
    """Find the function that returns whether an idempotent client can never send again.

    3.0.12 has no public way to ask. Such a client fails record after record.
    ``tests/broker/test_kafka_python_driver.py::test_a_refusal_still_ends_the_client`` notices a
    change.

    Returns:
        The function; None if the client is not idempotent, or differs from 3.0.12.
    """
    manager: Any = getattr(producer, "_transaction_manager", None)
    return cast("Callable[[], bool] | None", getattr(manager, "has_fatal_error", None))


def find_direct_append(producer: Any) -> Append | None:
    """Find the function by which ``send`` queues a record that it has checked.

    In 3.0.12 the checks, look-ups and log messages take more than half of the time of ``send``. The
    driver has already made these checks, and there is no public way to skip them in ``send``.
    ``tests/broker/test_kafka_python_driver.py::test_a_direct_append_is_possible`` notices a change.

    Returns:
        The function. None if the client has transactions, which must know each record's partition;
        if its ``send`` is not kafka-python's own, because a subclass or a tracing agent must see
        every record; or if the client differs from 3.0.12.
    """
    if producer.config["transactional_id"] is not None:
        return None
    if not _is_kafka_pythons(inspect.getattr_static(producer, "send", None)):
        return None
    append = getattr(getattr(producer, "_accumulator", None), "append", None)
    try:
        parameters = [*inspect.signature(cast("Append", append)).parameters]
    except (TypeError, ValueError):
        return None
    return cast("Append", append) if tuple(parameters[: len(_APPEND)]) == _APPEND else None


def find_hurry(producer: Any) -> Callable[[bool], None] | None:
    """Find a way to end the client's lingering without waiting for its records.

    ``flush`` ends it for as long as it waits, and the event loop must not wait. 3.0.12 has no other
    public way, so this counts one more flush as in progress.
    ``tests/broker/test_lingering.py::test_the_lingering_of_kafka_python_can_be_ended``
    notices a change.

    Returns:
        A function that ends the lingering, or lets it begin again; None if the client does not
        linger, or differs from 3.0.12.
    """
    config: dict[str, Any] = getattr(producer, "config", {})
    flushes: Any = getattr(getattr(producer, "_accumulator", None), "_flushes_in_progress", None)
    sender: Any = getattr(producer, "_sender", None)
    if not config.get("linger_ms"):
        return None
    try:
        begin, end, wake_up = flushes.increment, flushes.decrement, sender.wakeup
    except AttributeError:
        return None

    def hurry(on: bool) -> None:  # noqa: FBT001
        if on:
            begin()
            wake_up()
        else:
            end()

    return hurry


def _is_kafka_pythons(method: Any) -> bool:
    """Return whether a function is kafka-python's, and neither replaced nor wrapped."""
    return (
        isinstance(method, types.FunctionType)
        and method.__module__.startswith("kafka.")
        and not hasattr(method, "__wrapped__")
    )


def patch_isolate_rejections(
    producer: Any, refused: set[tuple[str, int]]
) -> Callable[[], bool] | None:
    """Let a record that a broker refuses fail alone.

    In 3.0.12 one refusal ends the whole idempotent client, because the broker has not stored the
    sequence numbers of the refused batch. The patched client takes these numbers back, as Kafka's
    Java client does. That is safe for a batch that was sent only once, since only one batch per
    partition is in flight. If single records of a batch are at fault, the patched client divides
    the batch, and sends the halves. It goes on until each refused record is alone, as 3.0.12 does
    with a batch that is too large. 3.0.12 also divides a batch that was sent before, and may write
    its records twice. The patched client does not. There is no public way to do any of this.
    ``tests/broker/test_kafka_python_driver.py::test_a_refusal_still_ends_the_client`` notices a
    change.

    With transactions, a refusal ends the transaction, and no batch is divided. The patched client
    then takes the numbers back for the next transaction, removes from ``refused`` the partition of
    a failed batch that was sent more than once, and drops the records of a transaction that is
    lost.
    Without idempotence, the error of such a batch becomes a ``RefusedLater``.

    Args:
        producer: the client.
        refused: topics and partitions whose last produce request was refused.

    Returns:
        A function that returns whether the client is broken. None if the client is not idempotent:
        the patched client then divides batches, and no refusal breaks it. Also None if the client
        differs from 3.0.12; it is then not changed.
    """
    manager: Any = getattr(producer, "_transaction_manager", None)
    if producer.config["transactional_id"] is not None:
        # A refusal ends the transaction, not the client.
        _patch_sequence_numbers(manager)
        classify_aborting = manager.classify_batch_error

        def classify_retried(error: Exception, batch: Any, **details: Any) -> Any:
            where = batch.topic_partition
            if batch.attempts:
                refused.discard((where.topic, where.partition))
            elif (where.topic, where.partition) in refused and manager.producer_id_and_epoch.match(
                batch
            ):
                manager.set_sequence_number(where, batch.base_sequence)
            found = classify_aborting(error, batch, **details)
            if found == manager.ERROR_CLASS_NEEDS_EPOCH_BUMP:
                drop_batches(producer, error)
            return found

        manager.classify_batch_error = classify_retried
        return cast("Callable[[], bool]", manager.has_fatal_error)
    sender: Any = getattr(producer, "_sender", None)
    known = manager is None or all(hasattr(manager, name) for name in _OF_THE_MANAGER)
    if not known or not hasattr(sender, "_can_split"):
        return None
    can_split = sender._can_split

    def can_split_refused(batch: Any, error: type[Exception]) -> bool:
        if batch.attempts:
            if manager is not None:
                # An earlier attempt may have been written, and its answer lost. The halves have
                # other sequence numbers, so the broker would write their records again.
                return False
            batch.complete_exceptionally = functools.partial(_complete_later, batch)
        return can_split(batch, error) or (
            issubclass(error, OF_ONE_RECORD)
            and batch.record_count > 1
            and batch.attempts == 0
            and batch.final_state is None
        )

    sender._can_split = can_split_refused
    if manager is None:
        return None
    _patch_sequence_numbers(manager)
    classify = manager.classify_batch_error
    retriable = manager.ERROR_CLASS_RETRIABLE
    take_back = manager.set_sequence_number

    def classify_refused(error: Exception, batch: Any, **details: Any) -> Any:
        where = batch.topic_partition
        if (where.topic, where.partition) in refused:
            if batch.attempts:
                # An earlier attempt may have been written, and its answer lost.
                refused.discard((where.topic, where.partition))
            elif not isinstance(error, OF_EVERYTHING) and manager.producer_id_and_epoch.match(
                batch
            ):
                take_back(where, batch.base_sequence)
                return retriable
        return classify(error, batch, **details)

    manager.classify_batch_error = classify_refused
    return cast("Callable[[], bool]", manager.has_fatal_error)


def _patch_sequence_numbers(manager: Any) -> None:
    """Fix two errors of 3.0.12 when a producer gets another epoch, or another id.

    The numbers of a new epoch begin at 0. If a batch of the old epoch is refused while the client
    gets another epoch, or later, 3.0.12 takes its number back and begins the partition there. Then
    the broker refuses the next batch. Only one batch per partition is in flight, so the partition
    is still at 0 then.
    ``tests/broker/test_kafka_python_driver.py::test_a_new_epoch_begins_at_0_after_a_refusal``
    notices a change.

    If a broker does not know the producer id any more, and its log begins after the last
    acknowledged offset, 3.0.12 sends the batch again without end, with the same number.
    ``tests/broker/test_written_once.py::test_a_broker_does_not_know_the_producer_id`` notices a
    change.
    """
    take_back = manager.set_sequence_number

    def take_back_in_this_epoch(where: Any, number: int) -> None:
        if manager.sequence_number(where):
            take_back(where, number)

    def find_no_gap(_: Any) -> float:
        return math.inf

    manager.set_sequence_number = take_back_in_this_epoch
    manager.last_acked_offset = find_no_gap


def _complete_later(batch: Any, exception: Exception, find_error: Callable[[int], Any]) -> bool:
    """Stand in for the ``complete_exceptionally`` of a batch that was sent more than once."""

    def find_doubtful(index: int) -> Any:
        error = find_error(index)
        return RefusedLater(error) if isinstance(error, REFUSALS) else error

    return cast("bool", type(batch).complete_exceptionally(batch, exception, find_doubtful))


class Accumulator:
    """The private parts of ``RecordAccumulator`` by which stalled partitions are found and emptied.

    3.0.12 has no public way to remove a batch, or to decide when the sender looks again. The tests
    in ``tests/unit/test_stalled.py`` use kafka-python's own accumulator and transaction manager.
    So each of these tests notices a change, for example
    ``tests/unit/test_stalled.py::test_an_unsent_record_fails_soon_after_its_deadline``.

    Args:
        producer: a KafkaProducer.
    """

    def __init__(self, producer: Any) -> None:
        self._own: Any = producer._accumulator
        #: Gives out the sequence numbers; None if the client is not idempotent.
        self.sequences: Any = producer._transaction_manager
        self.find_ready: Callable[..., Any] = self._own.ready
        self.put_back: Callable[..., Any] = self._own.reenqueue
        #: Counts a batch as completed.
        self.deallocate: Callable[[Any], Any] = self._own.deallocate

    def replace(self, *, ready: Callable[..., Any], reenqueue: Callable[..., Any]) -> None:
        """Have the client call other functions in place of ``find_ready`` and ``put_back``."""
        self._own.ready = ready
        self._own.reenqueue = reenqueue

    def batches(self) -> list[tuple[Any, Any]]:
        """Return each partition with the queue of its batches. A queue may be empty."""
        return [*self._own._batches.items()]

    def lock(self, where: Any) -> AbstractContextManager[Any]:
        """Return the lock of a partition's queue."""
        return cast("AbstractContextManager[Any]", self._own._tp_lock(where))

    def note_incomplete(self, batch: Any) -> None:
        """Count a batch that the driver made as one that the client has to complete."""
        self._own._incomplete.add(batch)


def patch_cache_metadata(cluster: Any) -> Callable[[], None]:
    """Look up the metadata of a topic only once after each answer of the brokers.

    In every ``send``, 3.0.12 makes new sets of all topics and of the topic's partitions, which is a
    twentieth of the cost of the call. This replaces two public methods of ``cluster``, and of no
    other object.

    A topic that was not requested counts as unknown, even if a broker named it: some brokers answer
    the first request with all their topics. The client's next request is only for topics that were
    asked for; the client then forgets the others, and 3.0.12 keeps their records forever.
    ``tests/broker/test_kafka_python_driver.py::test_an_unrequested_topic_of_an_answer_is_requested``
    notices a change.

    Returns:
        A function that forgets what was looked up. Call it after each answer, before the
        driver reports the answer.
    """
    partitions_for_topic = cluster.partitions_for_topic
    topics = cluster.topics
    partitions: dict[str, set[int]] = {}
    names: dict[bool, set[str]] = {}
    asked: set[str] = set()

    # An answer may come while this thread looks a topic up. The result then goes into a dictionary
    # that is not used any more.
    def partitions_once(topic: str) -> set[int] | None:
        known = partitions
        found = known.get(topic)
        if found is None:
            if topic not in asked:
                asked.add(topic)  # the client requests it when it finds the topic unknown
                return None
            # A broker may name a topic without partitions: it counts as unknown.
            try:
                found = partitions_for_topic(topic) or None
            except KeyError:  # an answer drops the topic between two look-ups of 3.0.12
                return None
            if found is not None:
                known[topic] = found
        return found

    def topics_once(exclude_internal_topics: bool = True) -> set[str]:  # noqa: FBT001, FBT002
        known = names
        found = known.get(exclude_internal_topics)
        if found is None:
            found = known[exclude_internal_topics] = topics(exclude_internal_topics)
        return found

    def forget() -> None:
        nonlocal partitions, names
        partitions, names = {}, {}

    cluster.partitions_for_topic = partitions_once
    cluster.topics = topics_once
    return forget


def patch_request_promptly(
    cluster: Any, make_request: Callable[[], Any], is_backing_off: Callable[[], object]
) -> Callable[[], Any]:
    """Request the metadata of a new topic as soon as a record needs them.

    3.0.12 first waits for ``retry_backoff_ms`` after the last answer, even if that answer was about
    other topics. If a topic is new while an answer is on its way, 3.0.12 also treats that answer as
    one about the topic. This replaces the public method ``ttl`` of ``cluster``, and of no other
    object.
    ``tests/broker/test_connecting.py::test_the_first_record_of_each_topic_waits_for_no_backoff``
    notices a change.

    Args:
        cluster: the client's metadata.
        make_request: makes its next request for metadata.
        is_backing_off: whether the client waits because it found no broker to ask.

    Returns:
        A function that makes the next request for metadata, and notes its topics. The client must
        call it in place of ``make_request``.
    """
    wait = cluster.ttl
    requested: set[str] = set()

    def topics_of(request: Any) -> set[str]:
        return {topic.name for topic in request.topics or ()}

    def has_new() -> bool:
        return not topics_of(make_request()) <= requested

    def request() -> Any:
        nonlocal requested
        made = make_request()
        requested = topics_of(made)
        return made

    def wait_for_known() -> float:
        milliseconds: float = wait()
        if milliseconds and cluster.need_update and not is_backing_off() and has_new():
            return 0
        return milliseconds

    def look_again(_: Any) -> None:
        if not cluster.need_update and has_new():
            cluster.request_update()

    cluster.ttl = wait_for_known
    cluster.add_listener(look_again)
    return request
