"""The metadata of topics that the driver knows, waits for and requests.

Two threads use a ``TopicMetadata`` at the same time. The submitting thread (the driver thread, or
the event loop's for a small batch) asks about topics. The client's thread brings answers. Each step
is one operation on one entry of a dictionary, and each answer replaces ``topics`` as a whole.
"""

# kafka-python has no annotations. Values of unknown types are cast where they leave the module.
# mypy: disable-error-code="misc"
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any, Final

import kafka.errors as kafka_errors

from ..._exceptions import SendProducerError
from .._protocols import Sink
from ._batches import TopicPartitions
from ._errors import no_metadata, translated
from ._freshness import MissingPartitions, Refreshes
from ._network import NetClient
from ._patches import patch_cache_metadata, patch_request_promptly

__all__ = ["TopicMetadata"]

#: Seconds for which the client requests an unknown topic after it was needed last.
_UNKNOWN_SECONDS: Final = 30.0

#: Seconds between two requests for the metadata of topics that this client may not use.
_FORBIDDEN_SECONDS: Final = 0.5


class TopicMetadata:
    """The metadata of topics that the driver of one client uses.

    Args:
        unknown_topic_timeout: seconds after which records for an unknown topic are refused.
    """

    def __init__(self, unknown_topic_timeout: float) -> None:
        self._patience = unknown_topic_timeout
        #: The partitions of each topic that was looked up in the last answer.
        self.topics: dict[str, TopicPartitions] = {}
        #: Where the round of partitions of each topic goes on after a look-up.
        self._turns: dict[str, int] = {}
        #: Topics without metadata. The value is the time at which a broker first said that it does
        #: not know the topic, or None.
        self.awaited: dict[str, float | None] = {}
        #: When a record, or partitions_for(), last found such a topic unknown.
        self.needed_at: dict[str, float] = {}
        self._missing = MissingPartitions(unknown_topic_timeout)
        self._refreshes = Refreshes()
        #: When the client made the request that is in progress.
        self._requesting_at = -math.inf
        #: When the client requested the metadata that came last.
        self.requested_at = -math.inf
        #: The topics in the client's last request.
        self.requested: set[str] = set()
        self._retried_at = 0.0
        #: Forgets what was looked up in the last answer.
        self._forget: Callable[[], None] = dict[str, Any]().clear
        self._cluster: Any = None
        self._producer: Any = None
        self._has_batches: Callable[[str], bool] = bool

    def attach(self, client: NetClient, sink: Sink) -> None:
        """Follow the metadata of a client that is about to connect."""
        cluster: Any = client.cluster
        self._cluster = cluster
        self._forget = patch_cache_metadata(cluster)
        make_request = patch_request_promptly(
            cluster,
            cluster.metadata_request,
            lambda: client.manager.connection_delay("metadata"),
        )
        cluster.metadata_request = functools.partial(self.make_request, make_request)
        cluster.add_listener(functools.partial(self.update, sink))

    def use(self, producer: Any, has_batches: Callable[[str], bool]) -> None:
        """Look topics up in a producer that has connected.

        Args:
            producer: a KafkaProducer.
            has_batches: returns whether the producer has batches to send to a topic.
        """
        self._has_batches = has_batches
        self._producer = producer

    # --- for the submitting thread -----------------------------------------------------------

    def partitions_of(self, topic: str) -> TopicPartitions | SendProducerError | None:
        """Look up a topic.

        Returns:
            The partitions, or the error that explains why records for this topic are refused, or
            None if the metadata are missing and were requested.
        """
        known = self.topics.get(topic)
        if known is not None:
            return known
        topics = self.topics
        # Before the request: the answer may come at once, and update() reports it to the sink only
        # if a topic is awaited.
        self._await(topic)
        try:
            # With max_block_ms=0 this never waits. If the topic is unknown, it raises; if the topic
            # is also new to the client, the client requests it in the background.
            partitions = self._producer.partitions_for(topic)
        except kafka_errors.KafkaTimeoutError:
            return self._unknown(topic)
        except kafka_errors.KafkaError as error:
            self.awaited.pop(topic, None)
            return no_metadata(topic, error)
        self.awaited.pop(topic, None)
        try:
            available = self._cluster.available_partitions_for_topic(topic) or set()
        except KeyError:  # an answer drops the topic between two look-ups of 3.0.12
            available = set()
        turn = self._turns.get(topic, hash(topic) % 1024)
        self._turns[topic] = turn + 1
        known = topics[topic] = TopicPartitions(partitions, available, turn)
        return known

    def current_partitions(self, topic: str) -> frozenset[int] | None:
        """Return a topic's partitions according to metadata that are new enough.

        Returns:
            The partitions, or None if metadata were requested.

        Raises:
            SendProducerError: there is no such topic, or this client may not use it.
        """
        known = self.partitions_of(topic)
        if isinstance(known, SendProducerError):
            raise known
        if known is None:
            return None
        if self._refreshes.is_new(topic, time.monotonic(), self.requested_at):
            return frozenset(known.numbers)
        self._request()
        return None

    def refusal(
        self, topic: str, partition: int, known: TopicPartitions, held: set[tuple[str, int]]
    ) -> str | None:
        """Return why a record for a partition is refused.

        Args:
            topic: of the record.
            partition: of the record.
            known: the partitions of the topic.
            held: the partitions for which earlier records of the same batch are held. If the record
                must be held, its partition is added.

        Returns:
            The reason; empty if the partition exists. None if the record must be held: the
            metadata may be too old to have the partition, or an earlier record for it is held.
        """
        if (topic, partition) in held:
            return None
        if partition in known.numbers:
            return ""
        if not self._missing.is_refused(topic, partition, time.monotonic(), self.requested_at):
            held.add((topic, partition))
            self._request()
            return None
        return (
            f"topic {topic!r} has no partition {partition}; "
            f"it has {len(known.numbers)}, numbered from 0"
        )

    def await_dropped(self, topic: str, sink: Sink) -> None:
        """Note that records wait for a topic that an answer has just dropped, and request it."""
        self._await(topic)
        if self._cluster.partitions_for_topic(topic) is None:
            self._request()
        else:
            # Another answer has come before the topic was awaited, and has not reported it.
            sink.metadata_changed()

    def _await(self, topic: str) -> None:
        self.needed_at[topic] = time.monotonic()
        self.awaited.setdefault(topic, None)

    def _unknown(self, topic: str) -> SendProducerError | None:
        cluster = self._cluster
        if topic in cluster.unauthorized_topics:
            # Request it again, so that a later record finds it allowed. One request serves many
            # records.
            if time.monotonic() - self._retried_at >= _FORBIDDEN_SECONDS:
                self._retried_at = time.monotonic()
                cluster.request_update()
            self.awaited.pop(topic, None)
            error = kafka_errors.TopicAuthorizationFailedError(topic)
            return translated(error, f"this client may not use topic {topic!r}: {error}")
        since = self.awaited.get(topic)
        if since is None or time.monotonic() - since < self._patience:
            self._request()
            return None
        self.awaited.pop(topic, None)  # the client's thread may have removed it just now
        error = kafka_errors.UnknownTopicOrPartitionError(topic)
        return translated(
            error,
            f"the cluster does not know topic {topic!r} and did not create it within "
            f"{self._patience:g} s (unknown_topic_timeout)",
        )

    def _request(self) -> None:
        """Have the client request metadata, unless it is about to.

        3.0.12 does so by itself for a topic that is new, but not for one that was known before.
        """
        if not self._cluster.need_update:
            self._cluster.request_update()

    # --- for the client's thread -------------------------------------------------------------

    def make_request(self, make_request: Callable[[], Any]) -> Any:
        """Make the client's next request for metadata. The client makes one request at a time.

        3.0.12 never forgets a topic. It requests metadata again 0.1 s after an answer that names an
        unknown topic, so it would do so forever once a topic is deleted.
        """
        self._requesting_at = now = time.monotonic()
        for topic, needed_at in list(self.needed_at.items()):
            if topic not in self.awaited or now - needed_at > _UNKNOWN_SECONDS:
                self.needed_at.pop(topic, None)
                self.awaited.pop(topic, None)
        request = make_request()
        if self._producer is not None and request.topics:
            request.topics = [topic for topic in request.topics if self._is_needed(topic.name)]
        self.requested = {topic.name for topic in request.topics or ()}
        return request

    def _is_needed(self, topic: str) -> bool:
        """Whether to request a topic: records or callers wait for it, it exists, this client may
        not use it, or there are batches to send to it."""
        cluster = self._cluster
        return (
            topic in self.awaited
            or cluster.partitions_for_topic(topic) is not None
            or topic in cluster.unauthorized_topics
            or self._has_batches(topic)
        )

    def update(self, sink: Sink, cluster: Any) -> None:
        """Take in an answer with metadata."""
        self._forget()
        self.topics = {}
        now = time.monotonic()
        for topic, since in list(self.awaited.items()):
            # An answer says nothing about a topic that was first needed after the request.
            if (
                since is None
                and topic in self.requested
                and cluster.partitions_for_topic(topic) is None
            ):
                self.awaited[topic] = now
        self.requested_at = self._requesting_at
        self._missing.answer(self.requested, cluster.partitions_for_topic, now, self.requested_at)
        if self.awaited or self._missing or self._refreshes:
            sink.metadata_changed()
