"""The metadata of topics: which partitions exist, and for how long a record waits for one."""

from __future__ import annotations

import math
import threading
import time
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

#: How often the metadata of a topic are requested while its records wait for a partition.
_REFRESH_SECONDS: Final = 0.1
#: For how long an answer counts that lacks a partition.
_FRESH_SECONDS: Final = 1.0
#: For how long the driver remembers that records have waited long enough for a partition.
_MISSING_SECONDS: Final = 60.0


class TopicMetadata:
    """The metadata that the driver requests itself, beside those that librdkafka requests."""

    def __init__(self, handle: ClientHandle, health: Health, settings: ProducerSettings) -> None:
        self._handle = handle
        self._health = health
        self._settings = settings
        #: When partitions_for() was first called for a topic that is not known yet.
        self._asked: dict[str, float] = {}
        #: Since when records wait for a partition that does not exist; -1 stands for the topic.
        self._missing: dict[tuple[str, int], float] = {}
        #: When the metadata of such a topic last came, and how many partitions it had.
        self._counts: dict[str, tuple[float, int]] = {}
        #: The topics of records that were given back, and the thread that requests their metadata
        #: as long as there are any. Both change under the handle's lock ``using``.
        self._wanted: set[str] = set()
        self._refresher: threading.Thread | None = None

    def partition_count(self, topic: str) -> int | None:
        """Return how many partitions a topic had whose records waited for one; else None."""
        count = self._counts.get(topic)
        return None if count is None else count[1]

    def is_awaited(self, topic: str, partition: int) -> bool:
        """Return whether a record must wait, because its partition is missing in the metadata.

        The partition may be newer than the metadata, so they are requested again. An answer that
        came after ``unknown_topic_timeout`` counts for one second.
        """
        now = time.monotonic()
        patience = self._settings.unknown_topic_timeout
        since = self._missing.get((topic, partition), -math.inf)
        if now - since > patience + _MISSING_SECONDS:
            since = self._missing[topic, partition] = now
        came_at, _ = self._counts.get(topic, (-math.inf, 0))
        if came_at - since >= patience and now - came_at < _FRESH_SECONDS:
            return False
        with self._handle.using:
            self._wanted.add(topic)
            if self._refresher is None:
                # If no thread can be started, the next attempt to submit the record tries again.
                self._refresher = start_thread(self._refresh, name="librdkafka-topics")
        return True

    def join(self, seconds: float) -> None:
        """Wait until the thread has ended that requests metadata, for at most ``seconds``."""
        refresher = self._refresher
        if refresher is not None:
            refresher.join(seconds)

    def _refresh(self) -> None:
        """Request the metadata of topics until no record waits for them. Runs on a thread."""
        while True:
            with self._handle.using:
                wanted = [] if self._handle.closing.is_set() else [*self._wanted]
                if not wanted:
                    self._refresher = None
                    return
            for topic in wanted:
                if self._is_decided(topic):
                    with self._handle.using:
                        self._wanted.discard(topic)
                    self._handle.sink.metadata_changed()
            self._handle.closing.wait(_REFRESH_SECONDS)

    def _is_decided(self, topic: str) -> bool:
        """Request a topic's metadata.

        Returns:
            Whether a record that waits for a partition of the topic can be sent or refused now.
        """
        try:
            with self._handle.call():
                found = self._topic(topic)
        except (KafkaException, ProducerClosed):
            return False
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

    def _topic(self, topic: str) -> Any:
        return look_up(self._handle.client, topic, waits.ANSWER_SECONDS).topics[topic]

    def partitions_for(self, topic: str) -> frozenset[int] | None:
        """A topic's partitions; see :meth:`anyio_sendproducer.drivers.Driver.partitions_for`."""
        since = self._asked.setdefault(topic, time.monotonic())
        try:
            with self._handle.call():
                found = self._topic(topic)
        except KafkaException as error:
            if self._health.failure is None:  # an earlier failure says more
                self._health.note(error.args[0])
            return None
        problem = found.error
        if problem is None and found.partitions:
            del self._asked[topic]
            return frozenset(found.partitions)
        patience = self._settings.unknown_topic_timeout
        is_missing = problem is None or problem.code() in {
            KafkaError.LEADER_NOT_AVAILABLE,
            KafkaError.UNKNOWN_TOPIC_OR_PART,
        }
        if is_missing and time.monotonic() - since < patience:
            return None
        del self._asked[topic]
        failure = SendProducerError(
            f"the cluster does not know topic {topic!r} and did not create it within "
            f"{patience:g} s (unknown_topic_timeout)"
            if is_missing
            else f"this client may not use topic {topic!r}: {text_of(problem)}"
        )
        failure.__cause__ = None if problem is None else exception_of(problem)
        raise failure

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
                f"the cluster does not say what it is: {text_of_failure(error)}"
            ) from harmless_failure(error)
        return ClusterDescription(
            one_line(found.cluster_id or "") or None,
            None if found.controller_id < 0 else found.controller_id,
            tuple(
                BrokerDescription(number, one_line(broker.host), broker.port, None)
                for number, broker in sorted(found.brokers.items())
            ),
        )
