"""Batches in kafka-python's accumulator whose partition has no reachable leader, or is gone.

The private parts of the accumulator are in ``_patches.Accumulator``; this module does not import
``kafka``. This was written from the source of kafka-python 3.0.12, and tested with it.

As long as a partition has no leader, each pass of 3.0.12's sender requests metadata, and the answer
wakes the sender up for the next pass. The sender does so even for a partition whose last record was
acknowledged long ago. Batches for such a partition stay until ``delivery_timeout_ms``.

A batch that was never sent has no sequence number yet, so it can leave the accumulator at any time.
A batch that was already sent may have been written, and its sequence numbers are used up. Only
another attempt with the same numbers can tell, and without it the next batch would look like a gap
to the broker. So its records leave, and a copy of the batch stays, for which no caller waits. There
is at most one such batch for each partition, because the idempotent client sends one batch per
partition at a time.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Protocol

from ._errors import GivenUp
from ._patches import Accumulator

__all__ = ["StalledPartitions"]

#: Seconds between two requests for metadata while a partition has no leader: the first, and the
#: longest. Each pause is twice as long as the one before.
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 1.0

#: How often the sender looks at stalled partitions within a delivery timeout. The seconds between
#: two looks have bounds.
_LOOKS: Final = 20
_LEAST_TICK: Final = 0.05
_LONGEST_TICK: Final = 1.0


class Connections(Protocol):
    """The connection manager of the driver."""

    @property
    def failures(self) -> Mapping[Any, Exception]:
        """Why the last attempt to connect to a broker failed, by broker."""
        ...

    def is_disconnected(self) -> bool:
        """Return whether the last attempt to connect to each broker failed."""
        ...


class _Sent(NamedTuple):
    """A batch that was sent and waits for another attempt."""

    at: float
    """When it was first sent, in seconds of time.monotonic()."""
    unwritten: bool
    """Whether each attempt was answered, and no attempt wrote anything."""


def _append_nothing(*_: object, **__: object) -> None:
    """Stands in for a batch's ``try_append``: the accumulator starts another batch."""


class StalledPartitions:
    """Fails records of stalled partitions, on the client's thread.

    Args:
        producer: a KafkaProducer. Two methods of its accumulator are replaced.
        connections: see :class:`Connections`.
        unwritten: topics and partitions whose last produce request was answered, and wrote nothing
            because the broker does not know the partition.
        delivery_timeout: seconds after which records leave a stalled partition.
        unknown_topic_timeout: seconds after which records leave a partition that is gone.
    """

    def __init__(
        self,
        producer: Any,
        connections: Connections,
        unwritten: set[tuple[str, int]],
        *,
        delivery_timeout: float,
        unknown_topic_timeout: float,
    ) -> None:
        self._accumulator = Accumulator(producer)
        # A transaction ends as a whole, by its own deadline.
        self._gives_up = producer.config["transactional_id"] is None
        self._connections = connections
        self._unwritten = unwritten
        self._delivery_timeout = delivery_timeout
        self._unknown_topic_timeout = unknown_topic_timeout
        self._tick = min(max(delivery_timeout / _LOOKS, _LEAST_TICK), _LONGEST_TICK)
        self._pause = _FIRST_PAUSE
        self._next_request = 0.0
        #: The partitions that are gone, and since when.
        self._gone: dict[Any, float] = {}
        self._sent: weakref.WeakKeyDictionary[Any, _Sent] = weakref.WeakKeyDictionary()
        #: Batches that stay only for their sequence numbers.
        self._copies: weakref.WeakSet[Any] = weakref.WeakSet()
        self._accumulator.replace(ready=self.ready, reenqueue=self.reenqueue)

    def holds(self, topic: str) -> bool:
        """Return whether the client has batches to send to a topic, for the first time or again."""
        return any(
            waiting and where.topic == topic for where, waiting in self._accumulator.batches()
        )

    def reenqueue(self, batch: Any, now: float | None = None) -> None:
        """Put back a batch that is to be sent again, and note whether it may have been written."""
        where = (batch.topic_partition.topic, batch.topic_partition.partition)
        before = self._sent.get(batch)
        is_clear = batch.attempts == 0 if before is None else before.unwritten
        self._sent[batch] = _Sent(
            batch.drained if before is None else before.at, is_clear and where in self._unwritten
        )
        self._unwritten.discard(where)
        self._accumulator.put_back(batch, now=now)

    def ready(self, cluster: Any, now: float) -> tuple[set[Any], float, bool]:
        """Find the brokers to which batches can be sent, as ``RecordAccumulator.ready`` does.

        Returns:
            The brokers; the seconds after which the sender is to look again; and False, because
            this method requests metadata itself if a leader is unknown.
        """
        nodes, delay, is_unknown = self._accumulator.find_ready(cluster, now=now)
        lost = {node for node in nodes if cluster.broker_metadata(node) is None}
        nodes -= lost
        if is_unknown or lost or not nodes.isdisjoint(self._connections.failures):
            delay = min(delay, self._attend(cluster, now))
        else:
            self._recover()
        return nodes, delay, False

    def _recover(self) -> None:
        """Forget earlier stalled partitions: there are none now."""
        self._gone = {}
        self._pause = _FIRST_PAUSE
        self._next_request = 0.0

    def _attend(self, cluster: Any, now: float) -> float:
        """Look at all partitions with batches, and return the seconds until the next look."""
        failures = self._connections.failures
        # If no broker can be reached, no healthy partition needs the room of these records, and
        # the producer will replace the client.
        lets_go = self._gives_up and not self._connections.is_disconnected()
        gone: dict[Any, float] = {}
        is_stalled = is_leaderless = False
        for where, batches in self._accumulator.batches():
            if not batches:
                continue
            leader = cluster.leader_for_partition(where)
            if leader is None:
                since = self._gone.get(where, now)
                if self._gives_up and now - since >= self._unknown_topic_timeout:
                    self._remove(where, batches, cluster)
                    continue
                gone[where] = since
            is_known = cluster.broker_metadata(leader) is not None
            if is_known and leader not in failures:
                continue
            is_stalled = True
            # The client tries again to connect to a leader that it could not reach, but only if the
            # leader is still among the brokers.
            is_leaderless = is_leaderless or not is_known
            if lets_go:
                self._let_go(where, batches, now)
        if not is_stalled:
            self._recover()
            return math.inf
        self._gone = gone
        looks_at = [now + self._tick]
        looks_at += [since + self._unknown_topic_timeout for since in gone.values()]
        if is_leaderless:
            if now >= self._next_request:
                cluster.request_update()
                self._next_request = now + self._pause
                self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            looks_at.append(self._next_request)
        # A transaction's batches stay when their partition is gone. Without a minimum the sender
        # would look at them all the time.
        return max(min(looks_at) - now, _LEAST_TICK)

    def _remove(self, where: Any, batches: Any, cluster: Any) -> None:
        """Remove the batches of a partition that is gone."""
        with self._accumulator.lock(where):
            removed = [*batches]
            batches.clear()
        topic = where.topic
        partitions = cluster.partitions_for_topic(topic)
        if topic in cluster.unauthorized_topics:
            what = f"this client may not use topic {topic!r} any more"
        elif partitions is None:
            what = f"the cluster does not know topic {topic!r} any more"
        else:
            what = (
                f"topic {topic!r} does not have partition {where.partition} any more; "
                f"it has {len(partitions)}, numbered from 0"
            )
        seconds = f"{self._unknown_topic_timeout:g} s (unknown_topic_timeout)"
        self._fail(removed, f"{what}, and this did not change within {seconds}", gone=True)

    def _let_go(self, where: Any, batches: Any, now: float) -> None:
        """Remove the batches of a stalled partition whose records are all past their deadline."""
        removed: list[Any] = []
        with self._accumulator.lock(where):
            # Batches leave as a whole, so the records of a batch must be of about the same age.
            newest = batches[-1]
            if now - newest.created >= self._tick:
                newest.try_append = _append_nothing
            kept = batches.popleft() if batches[0] in self._copies else None
            while batches and self._last_entered(batches[0]) + self._delivery_timeout <= now:
                removed.append(batches.popleft())
            if removed and self._may_be_written(removed[0]) and removed[0].has_sequence:
                kept = self._copy(removed[0], now)
            if kept is not None:
                batches.appendleft(kept)
        if removed:
            seconds = f"{self._delivery_timeout:g} s (delivery_timeout)"
            name = f"partition {where.partition} of topic {where.topic!r}"
            self._fail(removed, f"{name} had no leader within {seconds}", gone=False)

    def _last_entered(self, batch: Any) -> float:
        """Return a time by which every record of a batch had been added."""
        sent = self._sent.get(batch)
        found: float = batch.last_append if sent is None else sent.at
        return found

    def _may_be_written(self, batch: Any) -> bool:
        sent = self._sent.get(batch)
        return bool(batch.attempts > 0 if sent is None else not sent.unwritten)

    def _copy(self, batch: Any, now: float) -> Any:
        """Make a batch with the same bytes and sequence numbers, for which no caller waits."""
        copy = type(batch)(batch.topic_partition, batch.records, now=now)
        copy.attempts = batch.attempts
        copy.drained = batch.drained
        copy.retry(now=now)
        self._copies.add(copy)
        self._accumulator.note_incomplete(copy)
        return copy

    def _fail(self, batches: list[Any], message: str, *, gone: bool) -> None:
        for batch in batches:
            sent = self._may_be_written(batch)
            if not sent and batch.has_sequence:
                # It was sent, and refused each time. The next batch takes its numbers.
                numbers = self._accumulator.sequences
                if numbers.producer_id_and_epoch.match(batch):
                    numbers.set_sequence_number(batch.topic_partition, batch.base_sequence)
            self._accumulator.deallocate(batch)
            batch.abort(GivenUp(message, gone=gone, sent=sent))
