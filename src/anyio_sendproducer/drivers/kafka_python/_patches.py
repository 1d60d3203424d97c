"""What kafka-python has no public way for: changes to one client's objects, each with its reason.

All of it was read in 3.0.12. Where a release differs, each function leaves the client as it is.
"""

# kafka-python has no annotations. Its values have unknown types, and are cast where they leave.
# mypy: disable-error-code="misc"
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any, Final, cast

from kafka import KafkaProducer

from ._errors import OF_EVERYTHING, OF_ONE_RECORD

__all__ = [
    "Append",
    "QuietProducer",
    "find_direct_append",
    "find_hurry",
    "flush_nothing",
    "patch_cache_metadata",
    "patch_isolate_rejections",
    "patch_request_promptly",
]


#: What ``RecordAccumulator.append`` of 3.0.12 takes first, and in this order.
_APPEND: Final = ("tp", "timestamp_ms", "key", "value", "headers")

#: Topic and partition, milliseconds, key, value, headers; gives the record's future, whether its
#: batch is full, whether it is a new one, and whether nothing was done.
Append = Callable[[Any, int, Any, Any, list[tuple[str, bytes]]], tuple[Any, bool, bool, bool]]


class QuietProducer(KafkaProducer):
    """KafkaProducer, but for two habits of 3.0.12."""

    _text = "<KafkaProducer>"

    def __init__(self, **configs: Any) -> None:
        self._text = f"<KafkaProducer client_id={configs['client_id']}>"
        super().__init__(**configs)

    def __str__(self) -> str:
        # send() formats the client once or twice a record, for debug messages that are off.
        return self._text

    def close(self, timeout: float | None = None, null_logger: Any = None) -> None:  # noqa: ARG002
        """Close, and never silence the whole module's logger, as collecting garbage does."""
        super().close(timeout)


def flush_nothing(timeout: float | None = None) -> None:
    """In place of a client's ``flush``: ``close`` calls it first, raises when that takes too long,
    and then leaves the sender thread alive. What is to be waited for was waited for before."""


def find_direct_append(producer: Any) -> Append | None:
    """What ``send`` does with a record when it has checked it; None where it does more, or where it
    is not kafka-python's own: a tracing agent or a subclass of the user's sees every record.

    In 3.0.12 the checks, look-ups and messages for a log that is off take more than half of the
    time of ``send``. Ours are done by then, and there is no public way past them. Where this is
    not as it was when this was written, ``send`` serves, only slower.
    """
    if producer.config["transactional_id"] is not None:
        return None  # a transaction is told of each partition
    if not _is_kafka_pythons(inspect.getattr_static(type(producer), "send", None)):
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

    Returns:
        Ends the lingering, or lets it begin again; None if the client does not linger, or differs
        from 3.0.12.
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
    """Whether this is a function of kafka-python, and neither replaced nor wrapped by others."""
    return (
        isinstance(method, types.FunctionType)
        and method.__module__.startswith("kafka.")
        and not hasattr(method, "__wrapped__")
    )


def patch_isolate_rejections(
    producer: Any, refused: set[tuple[str, int]]
) -> Callable[[], bool] | None:
    """Have what a broker refuses fail alone, as with the Java client.

    In 3.0.12 one refusal ends the whole idempotent client, for the sake of the sequence numbers:
    the broker never saw those of the refused batch. The Java client takes them back, which is safe
    for a batch that was sent once: of each partition one is under way at a time. And where single
    records of a batch are at fault, halves of it are tried, as 3.0.12 does with one that is too
    large, until what is refused is alone. There is no public way to either.

    Args:
        producer: the client.
        refused: topics and partitions whose last produce request was refused.

    Returns:
        Tells whether the client is broken, by whatever else; None where the client is not
        idempotent, or not as it was when this was written, and left as it is.
    """
    manager: Any = getattr(producer, "_transaction_manager", None)
    if producer.config["transactional_id"] is not None:
        # What is refused there ends the transaction, and not the client.
        classify_aborting = manager.classify_batch_error

        def classify_retried(error: Exception, batch: Any, **details: Any) -> Any:
            if batch.attempts:
                refused.discard((batch.topic_partition.topic, batch.topic_partition.partition))
            return classify_aborting(error, batch, **details)

        manager.classify_batch_error = classify_retried
        return cast("Callable[[], bool]", manager.has_fatal_error)
    sender: Any = getattr(producer, "_sender", None)
    if not hasattr(sender, "_can_split"):
        return None
    can_split = sender._can_split

    def can_split_refused(batch: Any, error: type[Exception]) -> bool:
        return can_split(batch, error) or (
            issubclass(error, OF_ONE_RECORD)
            and batch.record_count > 1
            and batch.attempts == 0
            and batch.final_state is None
        )

    sender._can_split = can_split_refused
    try:
        classify = manager.classify_batch_error
        goes_on = manager.ERROR_CLASS_RETRIABLE
        take_back = manager.set_sequence_number
        is_broken = manager.has_fatal_error
    except AttributeError:  # of None too: not idempotent
        return None

    def classify_refused(error: Exception, batch: Any, **details: Any) -> Any:
        where = batch.topic_partition
        if (where.topic, where.partition) in refused:
            if batch.attempts:
                # What went before may have been written, with its answer lost.
                refused.discard((where.topic, where.partition))
            elif not isinstance(error, OF_EVERYTHING) and manager.producer_id_and_epoch.match(
                batch
            ):
                take_back(where, batch.base_sequence)
                return goes_on
        return classify(error, batch, **details)

    manager.classify_batch_error = classify_refused
    return cast("Callable[[], bool]", is_broken)


def patch_cache_metadata(cluster: Any) -> Callable[[], None]:
    """Have the metadata of topics looked up once for each answer of the brokers.

    3.0.12 makes three new sets of it in every ``send``, a twentieth of the whole call's price. The
    answers stand in for the public methods of this one object.

    A topic that nobody asked for is not known, even if a broker told of it: some answer the first
    request with all that they have. The client's next request is for what was asked for, it forgets
    the others, and 3.0.12 then keeps their records for ever.

    Returns:
        Forgets what was looked up: to be called after each answer, before anybody is told of it.
    """
    partitions_for_topic = cluster.partitions_for_topic
    topics = cluster.topics
    partitions: dict[str, set[int]] = {}
    names: dict[bool, set[str]] = {}
    asked: set[str] = set()

    # Another answer may come while one is looked up: what is noted then is noted in what is not
    # looked at any more.
    def partitions_once(topic: str) -> set[int] | None:
        known = partitions
        found = known.get(topic)
        if found is None:
            if topic not in asked:
                asked.add(topic)  # the client does, when it is told that this is not known
                return None
            # A broker may name a topic without partitions: then it is not known either.
            found = partitions_for_topic(topic) or None
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
    """Have the metadata of a new topic requested as soon as a record needs it.

    3.0.12 first waits for ``retry_backoff_ms`` after the last answer, whatever that was about. And
    if a topic is new while an answer is on its way, it takes the answer for one about that topic
    too. The replacements stand in for the public methods of this one object.

    Args:
        cluster: the client's metadata.
        make_request: its next request for metadata.
        is_backing_off: whether the client waits because it found no broker to ask.

    Returns:
        Makes the next request for metadata, and notes its topics.
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

    def wait_for_old() -> float:
        milliseconds: float = wait()
        if milliseconds and cluster.need_update and not is_backing_off() and has_new():
            return 0
        return milliseconds

    def look_again(_: Any) -> None:
        if not cluster.need_update and has_new():
            cluster.request_update()

    cluster.ttl = wait_for_old
    cluster.add_listener(look_again)
    return request
