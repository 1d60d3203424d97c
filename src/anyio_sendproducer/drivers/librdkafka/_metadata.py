"""The metadata of topics: which partitions exist, and for how long a record waits for one.

librdkafka chooses partitions by metadata of its own. The driver itself requests the metadata of a
topic in three cases: for ``partitions_for``, for records of a partition that librdkafka does not
know, and for the user's partitioner, which gets the numbers of a topic's partitions.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException

from ..._exceptions import ProducerClosed, SendProducerError
from ..._settings import ProducerSettings
from ..._shown import one_line
from .._protocols import BrokerDescription, ClusterDescription
from . import _waits as waits
from ._client import NO_TOPIC, ClientHandle, look_up
from ._errors import exception_of, harmless_failure, text_of, text_of_failure
from ._health import Health
from ._threads import start_thread

__all__ = ["TopicMetadata"]

#: The least time between two requests for the metadata of a topic whose records wait for them.
_REFRESH_SECONDS: Final = 0.1
#: librdkafka's default of topic.metadata.refresh.interval.ms.
_MAX_AGE_MS: Final = 300_000
#: If no caller asks about an unknown topic for this many seconds, its ``unknown_topic_timeout``
#: starts again. The time that answers take does not count: while the driver asks about many other
#: topics, one after the other, it cannot ask about this one.
_OVER_SECONDS: Final = 5.0
#: For how many seconds records are refused because an answer lacks their topic or partition.
_FRESH_SECONDS: Final = 1.0
#: After ``unknown_topic_timeout``, the driver remembers for this many seconds that records have
#: waited for a partition.
_MISSING_SECONDS: Final = 60.0


class TopicMetadata:
    """The metadata that the driver requests itself, in addition to those that librdkafka requests.

    Args:
        handle: the client.
        health: the state of its connections.
        settings: the producer's settings.
        config: librdkafka's configuration.
    """

    def __init__(
        self,
        handle: ClientHandle,
        health: Health,
        settings: ProducerSettings,
        config: Mapping[str, Any],
    ) -> None:
        self._handle = handle
        self._health = health
        self._settings = settings
        #: The seconds after which a partitioner's list of partitions is requested again.
        self._max_age = config.get("topic.metadata.refresh.interval.ms", _MAX_AGE_MS) / 1000
        #: Since when the cluster says that it does not know a topic, and when it last said so. The
        #: latter is without the time that answers took.
        self._unknown: dict[str, tuple[float, float]] = {}
        #: How many seconds the answers took so far. It changes under the handle's lock ``calling``.
        self._answering = 0.0
        #: Since when records wait for a partition that does not exist. The partition is -1 if the
        #: record names none; then the topic is unknown.
        self._missing: dict[tuple[str, int], float] = {}
        #: When the metadata of such a topic last came, and how many partitions it had.
        self._counts: dict[str, tuple[float, int]] = {}
        #: For a partitioner: when the metadata of a topic last came, and its partitions, or the
        #: error that refuses its records.
        self._lists: dict[str, tuple[float, tuple[int, ...] | SendProducerError]] = {}
        #: The topics of records that were given back because a partition is missing.
        self._wanted: set[str] = set()
        #: The topics of records that were given back because a partitioner needs the partitions.
        self._unlisted: set[str] = set()
        #: Requests the metadata of these topics as long as there are any. This attribute and both
        #: sets change under the handle's lock ``using``.
        self._refresher: threading.Thread | None = None
        #: Set when another topic is wanted, or the driver is being closed.
        self._asked = threading.Event()

    def partition_count(self, topic: str) -> int | None:
        """Return how many partitions a topic had in the last answer, if its records waited for a
        missing partition; otherwise None."""
        count = self._counts.get(topic)
        return None if count is None else count[1]

    def is_awaited(self, topic: str, partition: int) -> bool:
        """Return whether a record must wait, because its partition is missing in the metadata.

        The partition may be newer than the metadata, so they are requested again. When a record has
        waited for ``unknown_topic_timeout``, an answer that lacks its partition refuses records for
        one second.
        """
        now = time.monotonic()
        patience = self._settings.unknown_topic_timeout
        since = self._missing.get((topic, partition), -math.inf)
        if now - since > patience + _MISSING_SECONDS:
            since = self._missing[topic, partition] = now
        came_at, _ = self._counts.get(topic, (-math.inf, 0))
        if came_at - since >= patience and now - came_at < _FRESH_SECONDS:
            return False
        self._want(topic, self._wanted)
        return True

    def partitions_of(self, topic: str) -> tuple[int, ...] | SendProducerError | None:
        """Return the partitions from which a partitioner may choose.

        They are requested again after ``topic.metadata.refresh.interval.ms`` (Kafka's
        ``metadata.max.age.ms``), as librdkafka itself does. Until the answer comes, the old ones
        are used.

        Returns:
            The partitions in ascending order, or the error that refuses records for the topic, or
            None if the metadata are missing and were requested.
        """
        came_at, found = self._lists.get(topic, (-math.inf, None))
        is_known = isinstance(found, tuple)
        if time.monotonic() - came_at < (self._max_age if is_known else _FRESH_SECONDS):
            return found
        self._want(topic, self._unlisted)
        return found if is_known else None

    def forget(self, topic: str) -> None:
        """Forget a topic's partitions: librdkafka does not know one that the partitioner chose.

        The topic was deleted, and created again with fewer partitions.
        """
        self._lists.pop(topic, None)

    def _want(self, topic: str, waiting: set[str]) -> None:
        """Have the thread request a topic's metadata, for the records of one of the two sets."""
        with self._handle.using:
            is_new = topic not in waiting
            waiting.add(topic)
            if self._refresher is None:
                # If no thread can be started, the next attempt to submit the record tries again.
                self._refresher = start_thread(self._refresh, name="librdkafka-topics")
        if is_new:
            self._asked.set()

    def join(self, seconds: float) -> None:
        """Wait until the thread that requests metadata has ended, for at most ``seconds``."""
        self._asked.set()
        refresher = self._refresher
        if refresher is not None:
            refresher.join(seconds)

    def _refresh(self) -> None:
        """Request the metadata of topics until no record waits for them. Runs on a thread."""
        requested_at: dict[str, float] = {}
        while True:
            self._asked.clear()
            with self._handle.using:
                is_closing = self._handle.closing.is_set()
                wanted = [] if is_closing else [*self._wanted, *self._unlisted]
                if not wanted:
                    self._refresher = None
                    return
            due_at = time.monotonic() - _REFRESH_SECONDS
            due = [topic for topic in {*wanted} if requested_at.get(topic, due_at) <= due_at]
            for topic in due:
                requested_at[topic] = time.monotonic()
                self._request(topic)
            if not due:
                self._asked.wait(_REFRESH_SECONDS)

    def _request(self, topic: str) -> None:
        """Request a topic's metadata. If records that wait can be sent or refused, report that."""
        try:
            with self._handle.call():
                found = self._topic(topic)
        except (KafkaException, ProducerClosed):
            return
        is_changed = False
        for waiting, is_decided in (
            (self._wanted, self._decides_missing),
            (self._unlisted, self._decides_list),
        ):
            if topic in waiting and is_decided(topic, found):
                with self._handle.using:
                    waiting.discard(topic)
                is_changed = True
        if is_changed:
            self._handle.sink.metadata_changed()

    def _decides_missing(self, topic: str, found: Any) -> bool:
        """Take in new metadata for records that wait for a partition that does not exist.

        Returns:
            Whether one of them can be sent or refused now.
        """
        now = time.monotonic()
        self._counts[topic] = now, len(found.partitions)
        is_decided = False
        for (name, partition), since in [*self._missing.items()]:
            if name == topic and (found.partitions and partition < len(found.partitions)):
                del self._missing[name, partition]
                is_decided = True
            elif name == topic and now - since >= self._settings.unknown_topic_timeout:
                is_decided = True
        return is_decided

    def _decides_list(self, topic: str, found: Any) -> bool:
        """Take in new metadata for records whose partitioner needs the partitions.

        Returns:
            Whether they can be sent or refused now.
        """
        answer = self._judge(topic, found)
        if answer is None:
            return False
        self._lists[topic] = time.monotonic(), answer
        return True

    def _judge(self, topic: str, found: Any) -> tuple[int, ...] | SendProducerError | None:
        """Judge a topic by new metadata.

        Returns:
            The partitions in ascending order, or the error of a topic that can't be used, or None
            if the cluster does not know the topic, and may still create it.
        """
        problem = found.error
        if problem is None and found.partitions:
            self._unknown.pop(topic, None)
            return tuple(sorted(found.partitions))
        patience = self._settings.unknown_topic_timeout
        is_missing = problem is None or problem.code() in {
            KafkaError.LEADER_NOT_AVAILABLE,
            KafkaError.UNKNOWN_TOPIC_OR_PART,
        }
        now = time.monotonic()
        idle = now - self._answering
        since, last = self._unknown.pop(topic, (now, idle))
        if idle - last > _OVER_SECONDS:
            since = now
        if is_missing and now - since < patience:
            self._unknown[topic] = since, idle
            return None
        failure = SendProducerError(
            f"the cluster does not know topic {topic!r} and did not create it within "
            f"{patience:g} s (unknown_topic_timeout)"
            if is_missing
            else f"this client may not use topic {topic!r}: {text_of(problem)}"
        )
        failure.__cause__ = None if problem is None else exception_of(problem)
        return failure

    def _topic(self, topic: str) -> Any:
        began = time.monotonic()
        found = look_up(self._handle.client, topic, waits.ANSWER_SECONDS).topics[topic]
        self._answering += time.monotonic() - began
        return found

    def partitions_for(self, topic: str) -> frozenset[int] | None:
        """A topic's partitions; see :meth:`anyio_sendproducer.drivers.Driver.partitions_for`."""
        try:
            with self._handle.call():
                found = self._topic(topic)
        except KafkaException as error:
            if self._health.failure is None:  # an earlier failure says more
                self._health.note(error.args[0])
            return None
        answer = self._judge(topic, found)
        if isinstance(answer, SendProducerError):
            raise answer
        if answer is None:
            return None
        self._lists[topic] = time.monotonic(), answer
        return frozenset(answer)

    def describe(self) -> ClusterDescription:
        """Describe the cluster.

        Raises:
            SendProducerError: the cluster does not answer.
        """
        try:
            with self._handle.call():
                found = look_up(self._handle.client, NO_TOPIC, self._settings.start_timeout)
        except KafkaException as error:
            raise SendProducerError(
                f"the cluster did not describe itself: {text_of_failure(error)}"
            ) from harmless_failure(error)
        return ClusterDescription(
            one_line(found.cluster_id or "") or None,
            None if found.controller_id < 0 else found.controller_id,
            tuple(
                BrokerDescription(number, one_line(broker.host), broker.port, None)
                for number, broker in sorted(found.brokers.items())
            ),
        )
