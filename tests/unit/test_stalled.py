"""Batches in kafka-python's accumulator whose partition has no reachable leader, or is gone.

The accumulator and the transaction manager are kafka-python's. The cluster and the time are fakes.
"""

from __future__ import annotations

import importlib
import types
from typing import Any

import pytest

from anyio_sendproducer.drivers.kafka_python._errors import GivenUp
from anyio_sendproducer.drivers.kafka_python._stalled import StalledPartitions

# kafka-python has no types: everything imported from it is Any.
accumulators: Any = importlib.import_module("kafka.producer.record_accumulator")
transactions: Any = importlib.import_module("kafka.producer.transaction_manager")
structs: Any = importlib.import_module("kafka.structs")

HERE: Any = structs.TopicPartition("orders", 0)
THERE: Any = structs.TopicPartition("orders", 1)

DELIVERY_TIMEOUT = 120.0
UNKNOWN_TOPIC_TIMEOUT = 5.0


class Cluster:
    """The metadata: two brokers, each the leader of a partition."""

    def __init__(self) -> None:
        self.leaders: dict[Any, int] = {HERE: 1, THERE: 2}
        self.brokers = {1, 2}
        self.unauthorized_topics: set[str] = set()
        self.requests = 0

    def leader_for_partition(self, where: Any) -> int | None:
        return self.leaders.get(where)

    def partitions_for_broker(self, broker: int) -> set[Any]:
        return {where for where, leader in self.leaders.items() if leader == broker}

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return {one.partition for one in self.leaders if one.topic == topic} or None

    def broker_metadata(self, broker: int) -> object:
        return broker if broker in self.brokers else None

    def request_update(self) -> None:
        self.requests += 1


class Client:
    """A client without a network. The test makes the calls of its thread."""

    def __init__(
        self, *, transactional_id: str | None = None, idempotent: bool = True, **changes: float
    ) -> None:
        self.cluster = Cluster()
        self.failures: dict[int, Exception] = {}
        self.is_cut_off = False
        self.unwritten: set[tuple[str, int]] = set()
        manager = None
        if idempotent:
            manager = transactions.TransactionManager()
            manager.set_producer_id_and_epoch(transactions.ProducerIdAndEpoch(1, 0))
        self.accumulator = accumulators.RecordAccumulator(
            delivery_timeout_ms=2**31 - 1, transaction_manager=manager, batch_size=200
        )
        self.manager = manager
        timeouts = {
            "delivery_timeout": DELIVERY_TIMEOUT,
            "unknown_topic_timeout": UNKNOWN_TOPIC_TIMEOUT,
        }
        self.stalled = StalledPartitions(
            types.SimpleNamespace(
                _accumulator=self.accumulator,
                _transaction_manager=manager,
                config={"transactional_id": transactional_id},
            ),
            self,
            self.unwritten,
            **{**timeouts, **changes},
        )
        self.now = 1000.0
        self.passes = 0

    def is_disconnected(self) -> bool:
        return self.is_cut_off

    def append(self, where: Any = HERE, value: bytes = b"value") -> Any:
        """Append a record. Returns its future."""
        return self.accumulator.append(where, 0, None, value, [], now=self.now)[0]

    def run_one_pass(self) -> tuple[set[int], float]:
        """Run one pass of the sender. Returns the brokers to send to, and the delay after it."""
        self.passes += 1
        nodes, delay, requests = self.accumulator.ready(self.cluster, now=self.now)
        assert not requests
        return nodes, delay

    def run(self, seconds: float) -> None:
        """Run all passes that the sender makes within this time."""
        end = self.now + seconds
        while self.now < end:
            delay = self.run_one_pass()[1]
            assert delay > 0
            self.now = min(self.now + delay, end)
        self.run_one_pass()

    def drain(self, broker: int = 1) -> list[Any]:
        """Send all batches for a broker. Returns the batches."""
        drained = self.accumulator.drain(self.cluster, [broker], 2**20, now=self.now)
        batches: list[Any] = drained[broker]
        return batches

    def refuse(self, batch: Any) -> None:
        """Answer that the broker does not know the batch's partition."""
        self.unwritten.add((batch.topic_partition.topic, batch.topic_partition.partition))
        self.accumulator.reenqueue(batch, now=self.now)

    def lose(self, batch: Any) -> None:
        """Lose the answer to the batch."""
        self.accumulator.reenqueue(batch, now=self.now)


def failure(future: Any) -> GivenUp:
    assert isinstance(future.exception, GivenUp), future.exception
    return future.exception


# --- how often the sender checks, and requests metadata -------------------------------------------


@pytest.mark.parametrize(
    ("leader", "requests"),
    [(-1, (55, 70)), (7, (55, 70)), (8, (55, 70)), (2, (0, 0)), (None, (55, 70))],
)
def test_while_a_partition_has_no_leader_the_sender_waits(
    leader: int | None, requests: tuple[int, int]
) -> None:
    """The cases: no leader, an unknown leader (reached before or not), no connection, no partition.

    If the leader cannot be reached, the failed connection requests the metadata.
    """
    client = Client(unknown_topic_timeout=DELIVERY_TIMEOUT)
    client.failures[2] = client.failures[8] = OSError("refused")
    client.append()
    if leader is None:
        del client.cluster.leaders[HERE]
    else:
        client.cluster.leaders[HERE] = leader
    client.run(60)
    assert client.passes < 150
    assert requests[0] <= client.cluster.requests <= requests[1]


def test_the_first_request_for_metadata_is_made_at_once_and_the_next_ones_soon() -> None:
    client = Client()
    client.append()
    for _ in range(2):
        client.cluster.leaders[HERE] = -1
        before = client.cluster.requests
        client.run_one_pass()
        assert client.cluster.requests == before + 1
        client.run_one_pass()
        assert client.cluster.requests == before + 1
        client.run(1)
        assert client.cluster.requests == before + 4
        # The next time without a leader starts in the same way.
        client.cluster.leaders[HERE] = 1
        client.run_one_pass()


def test_a_partition_without_records_needs_no_leader() -> None:
    client = Client()
    client.append()
    [batch] = client.drain()
    batch.complete(0, -1)
    client.accumulator.deallocate(batch)
    client.cluster.leaders[HERE] = -1
    assert client.run_one_pass()[1] > DELIVERY_TIMEOUT
    assert client.cluster.requests == 0


def test_records_with_a_leader_are_sent_at_once() -> None:
    client = Client()
    client.append()
    client.append(THERE)
    client.cluster.leaders[HERE] = 7
    nodes, _ = client.run_one_pass()
    assert nodes == {2}
    client.cluster.leaders[HERE] = 1
    nodes, delay = client.run_one_pass()
    assert (nodes, delay > DELIVERY_TIMEOUT) == ({1, 2}, True)


# --- records past their deadline ------------------------------------------------------------------


def test_an_unsent_record_fails_soon_after_its_deadline() -> None:
    client = Client()
    client.cluster.leaders[HERE] = -1
    first = client.append()
    client.run(10)
    second = client.append()
    client.run(DELIVERY_TIMEOUT - 10.1)
    assert not first.is_done
    client.run(2.1)
    error = failure(first)
    assert (error.gone, error.sent) == (False, False)
    assert (
        str(error) == "partition 0 of topic 'orders' had no leader within 120 s (delivery_timeout)"
    )
    assert not second.is_done
    client.run(10)
    assert failure(second).sent is False
    assert not client.accumulator.has_incomplete
    assert not client.stalled.holds("orders")


def test_each_unsent_record_fails_at_its_own_deadline() -> None:
    """The accumulator alone would put records of all ages into one batch, which ends as a whole."""
    client = Client(delivery_timeout=2.0)
    client.cluster.leaders[HERE] = -1
    sent: list[tuple[float, Any]] = []
    for _ in range(100):
        client.append()
        sent.append((client.now, client.append(value=b"")))
        client.run(0.02)
        for entered, future in sent:
            age = client.now - entered
            assert future.is_done <= (age >= 2.0)
            assert future.is_done >= (age >= 2.25)


@pytest.mark.parametrize("unreachable", [False, True])
def test_a_batch_that_may_be_written_leaves_a_copy_for_the_next_leader(
    unreachable: bool,
) -> None:
    """The copy has the same sequence numbers: without them, the broker would see a gap."""
    client = Client()
    lost = client.append()
    [batch] = client.drain()
    client.now += 10
    client.lose(batch)
    [batch] = client.drain() or [batch]
    client.now += 1
    [batch] = client.drain()
    client.lose(batch)
    behind = client.append(value=b"behind")
    if unreachable:
        client.failures[1] = OSError("refused")
    else:
        client.cluster.leaders[HERE] = -1
    client.run(DELIVERY_TIMEOUT - 11 - 0.1)
    assert not lost.is_done
    client.run(2.1)
    error = failure(lost)
    assert (error.gone, error.sent) == (False, True)
    client.run(30)
    assert failure(behind).sent is False
    # The copy stays, however long the partition has no leader.
    client.run(2 * DELIVERY_TIMEOUT)
    client.failures.clear()
    client.cluster.leaders[HERE] = 1
    new = client.append(value=b"new")
    client.now += 1
    [copy] = client.drain()
    assert bytes(copy.records.buffer()) == bytes(batch.records.buffer())
    assert (copy.base_sequence, copy.producer_id, copy.producer_epoch) == (0, 1, 0)
    copy.complete(0, -1)
    client.accumulator.deallocate(copy)
    [batch] = client.drain()
    assert batch.base_sequence == 1
    batch.complete(1, -1)
    client.accumulator.deallocate(batch)
    assert new.value.offset == 1
    assert not client.accumulator.has_incomplete


def test_without_sequence_numbers_no_copy_stays() -> None:
    client = Client(idempotent=False)
    lost = client.append()
    [batch] = client.drain()
    client.lose(batch)
    client.cluster.leaders[HERE] = -1
    client.run(DELIVERY_TIMEOUT + 2)
    assert failure(lost).sent is True
    assert not client.accumulator.has_incomplete


def test_halves_of_a_batch_that_was_sent_again_may_be_written() -> None:
    """The batch was lost, and then refused as too large. kafka-python 3.0.12 sends its halves."""
    client = Client()
    futures = [client.append(), client.append()]
    [batch] = client.drain()
    client.lose(batch)
    client.now += 1
    [batch] = client.drain()
    client.accumulator.split_and_reenqueue(batch, now=client.now)
    client.accumulator.deallocate(batch)
    client.cluster.leaders[HERE] = -1
    client.run(DELIVERY_TIMEOUT + 2)
    assert [failure(future).sent for future in futures] == [True, True]
    # The halves have no sequence numbers yet, so no copy stays.
    assert not client.accumulator.has_incomplete


def test_records_stay_while_no_broker_is_reachable() -> None:
    """In this case, the client is given up, and another one connects to the bootstrap servers."""
    client = Client()
    future = client.append()
    client.failures[1] = OSError("refused")
    client.is_cut_off = True
    client.run(DELIVERY_TIMEOUT + 10)
    assert not future.is_done
    client.is_cut_off = False
    client.run(1)
    failure(future)


def test_the_records_of_a_transaction_stay() -> None:
    client = Client(transactional_id="t")
    futures = [client.append(), client.append(THERE)]
    del client.cluster.leaders[HERE]
    client.cluster.leaders[THERE] = -1
    client.run(DELIVERY_TIMEOUT + 10)
    assert [future.is_done for future in futures] == [False, False]
    assert client.passes < 3000


# --- partitions that are gone ---------------------------------------------------------------------


def test_an_unsent_record_is_rejected_when_its_partition_is_gone() -> None:
    client = Client()
    future, other = client.append(THERE), client.append()
    del client.cluster.leaders[THERE]
    client.run(UNKNOWN_TOPIC_TIMEOUT - 0.1)
    assert not future.is_done
    assert client.stalled.holds("orders")
    client.run(0.2)
    error = failure(future)
    assert (error.gone, error.sent) == (True, False)
    assert str(error) == (
        "topic 'orders' does not have partition 1 any more; it has 1, numbered from 0, and this "
        "did not change within 5 s (unknown_topic_timeout)"
    )
    assert not other.is_done


@pytest.mark.parametrize("authorized", [True, False])
def test_an_unsent_record_is_rejected_when_its_topic_is_gone(authorized: bool) -> None:
    client = Client(unknown_topic_timeout=0)
    future = client.append()
    client.cluster.leaders.clear()
    if not authorized:
        client.cluster.unauthorized_topics.add("orders")
    client.run_one_pass()
    said = "the cluster does not know" if authorized else "this client may not use"
    assert str(failure(future)).startswith(f"{said} topic 'orders' any more, and this did not")


@pytest.mark.parametrize("leader", [-1, 1])
def test_a_partition_that_comes_back_in_time_is_not_gone(leader: int) -> None:
    client = Client()
    future = client.append()
    for _ in range(3):
        del client.cluster.leaders[HERE]
        client.run(UNKNOWN_TOPIC_TIMEOUT - 1)
        client.cluster.leaders[HERE] = leader
        client.run_one_pass()
    assert not future.is_done


def test_a_batch_that_was_always_refused_is_unwritten_and_frees_its_sequence_numbers() -> None:
    client = Client()
    future = client.append()
    for _ in range(3):
        [batch] = client.drain()
        client.refuse(batch)
        client.now += 1
    behind = client.append(value=b"behind")
    del client.cluster.leaders[HERE]
    client.run(UNKNOWN_TOPIC_TIMEOUT)
    assert [failure(one).sent for one in (future, behind)] == [False, False]
    assert not client.accumulator.has_incomplete
    client.cluster.leaders[HERE] = 1
    client.append()
    [batch] = client.drain()
    assert batch.base_sequence == 0


@pytest.mark.parametrize("answered", ["before", "after", "never"])
def test_a_batch_that_was_lost_once_may_be_written(answered: str) -> None:
    client = Client()
    future = client.append()
    [batch] = client.drain()
    if answered == "before":
        client.refuse(batch)
        client.now += 1
        [batch] = client.drain()
    client.lose(batch)
    if answered == "after":
        client.now += 1
        [batch] = client.drain()
        client.refuse(batch)
    del client.cluster.leaders[HERE]
    client.run(UNKNOWN_TOPIC_TIMEOUT)
    error = failure(future)
    assert (error.gone, error.sent) == (True, True)
    # A record with its sequence numbers may be written.
    client.cluster.leaders[HERE] = 1
    client.append()
    [batch] = client.drain()
    assert batch.base_sequence == 1


def test_sequence_numbers_of_an_old_epoch_are_not_reused() -> None:
    client = Client()
    client.append()
    [batch] = client.drain()
    client.refuse(batch)
    manager: Any = client.manager
    manager.set_producer_id_and_epoch(transactions.ProducerIdAndEpoch(1, 1))
    manager.set_sequence_number(HERE, 5)
    del client.cluster.leaders[HERE]
    client.run(UNKNOWN_TOPIC_TIMEOUT)
    assert manager.sequence_number(HERE) == 5
