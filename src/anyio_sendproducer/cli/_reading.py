"""The demo's second opinion: a client that shares no code with the one that wrote.

It is confluent-kafka, which is librdkafka's C. All calls here block and belong on a worker thread.
Partitions are assigned by hand: joining a group takes seconds on any broker and 23 on the embedded
one, and leaves a group behind in the cluster.

It needs ``confluent_kafka`` (extra ``demo``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, Final, cast

import confluent_kafka
from confluent_kafka.admin import AdminClient

# confluent_kafka.admin has it too, but does not tell type checkers that it exports it.
from confluent_kafka.cimpl import NewTopic

from ._verdict import Content, ReadBack

__all__ = ["ClusterError", "end_of", "prepare_topic", "read_back"]

#: Seconds for one question to the cluster.
_REQUEST_TIMEOUT: Final = 10.0

#: Seconds that a call of the consumer waits at most, so that a deadline is seen.
_POLL: Final = 0.1

#: What brokers say of a partition whose leader changes, has just changed, or was made just now.
_LEADER_CHANGES: Final = frozenset(
    {
        confluent_kafka.KafkaError.FENCED_LEADER_EPOCH,
        confluent_kafka.KafkaError.LEADER_NOT_AVAILABLE,
        confluent_kafka.KafkaError.NOT_LEADER_FOR_PARTITION,
        confluent_kafka.KafkaError.OFFSET_NOT_AVAILABLE,
        confluent_kafka.KafkaError.UNKNOWN_LEADER_EPOCH,
    }
)

#: librdkafka prints what happens to its connections to stderr; what matters comes as an error.
_QUIET: Final[Mapping[str, Any]] = {"log_level": 0}


class ClusterError(Exception):
    """The cluster did not do what the demo asked for."""


def prepare_topic(bootstrap_servers: str, topic: str, partitions: int) -> dict[int, int]:
    """Make sure that a topic is there, and tell where each of its partitions ends.

    Args:
        bootstrap_servers: the cluster's addresses, joined by commas.
        topic: the topic's name.
        partitions: how many partitions it gets where it does not exist yet; as many replicas as
            the cluster thinks right.

    Returns:
        For each partition the offset from which on whatever is written next will be found. It may
        be too low (the embedded broker tells a latest offset that is), never too high.

    Raises:
        ClusterError: no broker answered within 10 s, or the topic can't be created.
    """
    configuration = {**_QUIET, "bootstrap.servers": bootstrap_servers}
    try:
        admin = AdminClient(configuration)
        # Without a name: asking for one topic may create it, with a number of partitions of the
        # broker's own.
        if topic not in admin.list_topics(timeout=_REQUEST_TIMEOUT).topics:
            wanted = NewTopic(topic, num_partitions=partitions)
            # Its type hints leave open what the futures give.
            created = cast("dict[str, Future[None]]", admin.create_topics([wanted]))  # pyright: ignore[reportUnknownMemberType]
            created[topic].result(_REQUEST_TIMEOUT)
        consumer = _consumer(configuration)
        try:
            deadline = time.monotonic() + _REQUEST_TIMEOUT
            return {
                partition: end_of(consumer, topic, partition, deadline)
                for partition in _partitions(consumer, topic)
            }
        finally:
            consumer.close()
    except confluent_kafka.KafkaException as error:
        raise _cluster_error(bootstrap_servers, error.args[0]) from error


def end_of(consumer: Any, topic: str, partition: int, deadline: float) -> int:
    """The offset behind a partition's last record.

    A leader that is new does not tell it before it knows it, so it is asked again. What librdkafka
    tells as the beginning meanwhile may be anything.

    Args:
        consumer: the client to ask with.
        topic: the topic's name.
        partition: which of its partitions.
        deadline: until when, as :func:`time.monotonic` tells it.

    Raises:
        KafkaException: nobody answers, or the answer is an error that does not pass by itself.
        ClusterError: there was no leader that knew, until the deadline.
    """
    place = confluent_kafka.TopicPartition(topic, partition)
    while True:
        try:
            seconds = max(_POLL, deadline - time.monotonic())
            end: int = consumer.get_watermark_offsets(place, timeout=seconds)[1]
        except confluent_kafka.KafkaException as error:
            if error.args[0].code() not in _LEADER_CHANGES:
                raise
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"the end of partition {partition} of topic {topic!r} was not told: "
                    f"{error.args[0].str()}"
                ) from error
            time.sleep(_POLL)
        else:
            return end


def read_back(
    bootstrap_servers: str,
    topic: str,
    starts: Mapping[int, int],
    timeout: float,
    clock: Callable[[], float] = time.monotonic,
) -> list[ReadBack]:
    """Read each partition of a topic from a given offset to its end.

    Args:
        bootstrap_servers: the cluster's addresses, joined by commas.
        topic: the topic's name.
        starts: for each partition the offset to begin at.
        timeout: how many seconds this may take in all.
        clock: what tells the time, in seconds.

    Returns:
        The records in the order of reading.

    Raises:
        ClusterError: the cluster answered with an error, or the ends were not reached in time.
    """
    deadline = clock() + timeout
    consumer = _consumer({**_QUIET, "bootstrap.servers": bootstrap_servers})
    try:
        consumer.assign([confluent_kafka.TopicPartition(topic, *start) for start in starts.items()])
        return list(_read_to_ends(consumer, set(starts), bootstrap_servers, deadline, clock))
    except confluent_kafka.KafkaException as error:
        raise _cluster_error(bootstrap_servers, error.args[0]) from error
    finally:
        consumer.close()


def _read_to_ends(
    consumer: confluent_kafka.Consumer,
    unfinished: set[int],
    bootstrap_servers: str,
    deadline: float,
    clock: Callable[[], float],
) -> Iterator[ReadBack]:
    while unfinished:
        if clock() > deadline:
            raise ClusterError(
                f"the ends of the partitions {sorted(unfinished)} were not reached in time "
                f"at {bootstrap_servers}"
            )
        message = consumer.poll(_POLL)
        if message is None:
            continue
        error = message.error()
        partition = cast("int", message.partition())
        if error is None:
            yield ReadBack(
                Content(message.key(), message.value(), _headers(message)),
                partition,
                cast("int", message.offset()),
            )
        elif error.code() == confluent_kafka.KafkaError._PARTITION_EOF:
            unfinished.discard(partition)
        else:
            raise confluent_kafka.KafkaException(error)


def _consumer(configuration: Mapping[str, Any]) -> confluent_kafka.Consumer:
    return confluent_kafka.Consumer(
        {
            **configuration,
            # Required by the client; nothing is ever committed under this name.
            "group.id": "anyio-sendproducer-demo",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            # An end is told after a fetch that found nothing, which waits so many milliseconds.
            "fetch.wait.max.ms": 50,
            # An offset that is not there is an error, not a reason to begin elsewhere.
            "auto.offset.reset": "error",
        }
    )


def _partitions(consumer: confluent_kafka.Consumer, topic: str) -> list[int]:
    """The partitions of a topic, which may have been created a moment ago."""
    deadline = time.monotonic() + _REQUEST_TIMEOUT
    while True:
        found = consumer.list_topics(topic, timeout=_REQUEST_TIMEOUT).topics[topic]
        if found.error is None and found.partitions:
            return sorted(found.partitions)
        if time.monotonic() > deadline:
            raise ClusterError(f"the topic {topic!r} does not become known: {found.error}")
        time.sleep(_POLL)


def _headers(message: confluent_kafka.Message) -> tuple[tuple[str, bytes | None], ...]:
    return tuple(cast("list[tuple[str, bytes | None]]", message.headers() or []))


def _cluster_error(bootstrap_servers: str, error: confluent_kafka.KafkaError) -> ClusterError:
    return ClusterError(f"the cluster at {bootstrap_servers}: {error.str()}")
