"""The demo's consumer, which shares no code with the client that wrote the records.

It is the consumer of confluent-kafka, which is based on librdkafka. All calls block and belong on a
worker thread. Partitions are assigned by hand, because joining a group takes seconds on any broker,
and 23 on the embedded one. It would also leave a group behind in the cluster.

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

#: Seconds for one request to the cluster.
_REQUEST_TIMEOUT: Final = 10.0

#: Seconds that a call of the consumer waits at most, so that a deadline is noticed.
_POLL: Final = 0.1

#: Errors of a partition whose leader changes, has just changed, or is new.
_LEADER_CHANGES: Final = frozenset(
    {
        confluent_kafka.KafkaError.FENCED_LEADER_EPOCH,
        confluent_kafka.KafkaError.LEADER_NOT_AVAILABLE,
        confluent_kafka.KafkaError.NOT_LEADER_FOR_PARTITION,
        confluent_kafka.KafkaError.OFFSET_NOT_AVAILABLE,
        confluent_kafka.KafkaError.UNKNOWN_LEADER_EPOCH,
    }
)

#: librdkafka prints events of its connections to stderr. Errors are reported elsewhere.
_QUIET: Final[Mapping[str, Any]] = {"log_level": 0}


class ClusterError(Exception):
    """The cluster refused a request of the demo, or did not answer it in time."""


def prepare_topic(bootstrap_servers: str, topic: str, partitions: int) -> dict[int, int]:
    """Create a topic if it does not exist, and find the end of each of its partitions.

    Args:
        bootstrap_servers: the cluster's addresses, joined by commas.
        topic: the topic's name.
        partitions: the number of partitions of a new topic. The cluster chooses the number of
            replicas.

    Returns:
        For each partition an offset that is not above the next record's. It may be lower, because
        the embedded broker reports a lower one.

    Raises:
        ClusterError: no broker answered within 10 s, or the topic cannot be created.
    """
    configuration = {**_QUIET, "bootstrap.servers": bootstrap_servers}
    try:
        admin = AdminClient(configuration)
        # Without a name, because a request for one topic may create it, with the broker's default
        # for the number of partitions.
        if topic not in admin.list_topics(timeout=_REQUEST_TIMEOUT).topics:
            wanted = NewTopic(topic, num_partitions=partitions)
            # Its type hints do not name the type of the futures.
            create = cast("Callable[..., dict[str, Future[None]]]", admin.create_topics)  # pyright: ignore[reportUnknownMemberType]
            # The client ends the future in time, with a KafkaException if there is no answer.
            create([wanted], request_timeout=_REQUEST_TIMEOUT)[topic].result()
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
    """The offset after a partition's last record.

    A new leader may not know it yet, so the leader is asked again. Do not use the beginning that
    librdkafka reports with it: the beginning may be any number.

    Args:
        consumer: the client to ask with.
        topic: the topic's name.
        partition: which of its partitions.
        deadline: when to give up, in the time of :func:`time.monotonic`.

    Raises:
        KafkaException: no broker answers, or the answer is a permanent error.
        ClusterError: no leader knew it before the deadline.
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
                    f"the cluster did not report the end of partition {partition} of topic "
                    f"{topic!r}: {error.args[0].str()}"
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
        clock: returns the time in seconds.

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
                f"the consumer did not reach the ends of the partitions {sorted(unfinished)} in "
                f"time at {bootstrap_servers}"
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
            # The client requires a group. No offset is committed.
            "group.id": "anyio-sendproducer-demo",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            # The end is reported after an empty fetch, which waits for this many milliseconds.
            "fetch.wait.max.ms": 50,
            # A missing offset is an error; the client must not start elsewhere.
            "auto.offset.reset": "error",
        }
    )


def _partitions(consumer: confluent_kafka.Consumer, topic: str) -> list[int]:
    """The partitions of a topic, which may be new."""
    deadline = time.monotonic() + _REQUEST_TIMEOUT
    while True:
        found = consumer.list_topics(topic, timeout=_REQUEST_TIMEOUT).topics[topic]
        if found.error is None and found.partitions:
            return sorted(found.partitions)
        if time.monotonic() > deadline:
            raise ClusterError(f"the cluster does not know the topic {topic!r}: {found.error}")
        time.sleep(_POLL)


def _headers(message: confluent_kafka.Message) -> tuple[tuple[str, bytes | None], ...]:
    return tuple(cast("list[tuple[str, bytes | None]]", message.headers() or []))


def _cluster_error(bootstrap_servers: str, error: confluent_kafka.KafkaError) -> ClusterError:
    return ClusterError(f"the cluster at {bootstrap_servers}: {error.str()}")
