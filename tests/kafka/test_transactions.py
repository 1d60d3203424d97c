"""Transactions on Apache Kafka. A reader with ``read_committed`` sees all records of a transaction
or none, as the producer reports."""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any, Final

import anyio
import anyio.lowlevel
import confluent_kafka
import pytest
from anyio.to_thread import run_sync

from anyio_sendproducer import (
    ConsumerGroupMetadata,
    DeliveryError,
    DeliveryTimeout,
    Message,
    MultiDeliveryError,
    ProducerBroken,
    ProducerFenced,
    ProducerRecord,
    ProducerSettings,
    ProducerStartError,
    RecordMetadata,
    SendProducer,
    SendProducerError,
    Transaction,
    TransactionAborted,
    TransactionError,
    TransactionOutcomeUnknown,
    TransactionState,
    open_send_producer,
)
from anyio_sendproducer._task_groups import plain_task_group
from anyio_sendproducer.drivers import Driver, DriverName, make_driver
from anyio_sendproducer.drivers.librdkafka import _waits
from anyio_sendproducer.drivers.librdkafka._group_metadata import group_from_bytes, group_to_bytes
from anyio_sendproducer.testing import Gate
from tests.support.brief import IN_FULL
from tests.support.calls import fail, never, quiet, raising, sent_once, task_group
from tests.support.history import History, Isolation, Reader, check, read_topic
from tests.support.kafka_cluster import KafkaCluster
from tests.support.waiting import PATIENCE, blocking_until

kafka: Any = importlib.import_module("kafka")

#: The number of records in a transaction.
EACH = 10

PARTITIONS = 3


@pytest.fixture
def cluster(shared_kafka: KafkaCluster) -> KafkaCluster:
    """One broker."""
    return shared_kafka


def settings_for(cluster: KafkaCluster, name: str, **changes: Any) -> ProducerSettings:
    return ProducerSettings(
        bootstrap_servers=cluster.bootstrap_servers, transactional_id=name, delivery_timeout=60.0
    ).evolve(**changes)


class Transactions:
    """Runs transactions one after the other, and notes all reported outcomes."""

    def __init__(self, cluster: KafkaCluster) -> None:
        self.cluster = cluster
        configs = {"min.insync.replicas": 2} if len(cluster.brokers) > 1 else {}
        self.topic = cluster.create_topic(partitions=PARTITIONS, configs=configs)
        self.history = History()
        self.count = 0

    async def run(
        self,
        producer: SendProducer,
        *,
        before: Callable[[], Any] | None = None,
        between: Callable[[], Any] | None = None,
        at_end: Callable[[], Any] | None = None,
    ) -> bool | None:
        """Run one. A thread calls each function when the transaction reaches its phase.

        Returns:
            Whether it was committed; None if that is unknown.
        """
        name = f"{self.topic}-{self.count}"
        self.count += 1
        held: list[Any] = []
        outcome: bool | None = None
        async with plain_task_group("another task left it") as tasks:

            def begin(fault: Callable[[], Any] | None) -> None:
                if fault is not None:
                    tasks.start_soon(run_sync, fault)

            begin(before)
            try:
                async with producer.transaction() as tx:
                    held.append(tx)
                    for number in range(EACH):
                        if number == EACH // 2:
                            begin(between)
                        id_ = f"{name}-{number}"
                        record = ProducerRecord(
                            self.topic, id_.encode(), partition=number % PARTITIONS
                        )
                        self.history.sending(id_, record, transaction=name)
                        try:
                            self.history.ending(id_, await tx.send(record))
                        except DeliveryError as error:
                            self.history.ending(id_, error)
                            raise
                    begin(at_end)
            except TransactionOutcomeUnknown:
                outcome = None
            except (TransactionAborted, DeliveryError):
                outcome = False
            else:
                outcome = True
            if held:
                assert (
                    held[0].state
                    is {
                        None: TransactionState.UNKNOWN,
                        False: TransactionState.ABORTED,
                        True: TransactionState.COMMITTED,
                    }[outcome]
                )
            self.history.transaction(name, outcome)
        return outcome

    async def judge(self) -> None:
        """Compare the reported outcomes with the log."""
        isolations: list[Isolation] = ["read_committed", "read_uncommitted"]
        readers: list[Reader] = ["kafka-python", "confluent-kafka"]
        for isolation in isolations:
            for reader in readers:
                read = partial(read_topic, isolation=isolation, reader=reader)
                log = await run_sync(read, self.cluster.bootstrap_servers, self.topic)
                report = check(
                    self.history, log, delivery_timeout=60.0, isolation=isolation, killed=True
                )
                assert report.faults == (), f"{isolation}, {reader}:\n{report}"


@contextlib.asynccontextmanager
async def transactions(
    cluster: KafkaCluster, driver: DriverName, **changes: Any
) -> AsyncGenerator[tuple[Transactions, SendProducer]]:
    """Open a producer for the block, and judge its transactions at the end."""
    made = Transactions(cluster)
    async with open_send_producer(
        settings_for(cluster, made.topic, **changes), driver=driver
    ) as producer:
        yield made, producer
    await made.judge()


# --- on one broker -------------------------------------------------------------------------------


async def test_committed_and_aborted_in_turn(cluster: KafkaCluster, driver: DriverName) -> None:
    async with transactions(cluster, driver) as (made, producer):
        for turn in range(12):
            if turn % 3 != 1:
                assert await made.run(producer) is True
                continue
            name = f"{made.topic}-aborted-{turn}"
            with raising(ZeroDivisionError):
                async with producer.transaction() as tx:
                    for number in range(EACH):
                        id_ = f"{name}-{number}"
                        record = ProducerRecord(made.topic, id_.encode(), partition=0)
                        made.history.sending(id_, record, transaction=name)
                        made.history.ending(id_, await tx.send(record))
                    fail()
            made.history.transaction(name, committed=False)
        assert producer.statistics().generations == 1


#: The stages at which a transaction is cancelled, in order. The last two are stages of a block that
#: raises.
STAGES: Final = (
    "begin requested",
    "begun",
    "first record handed over",
    "first record acknowledged",
    "offsets requested",
    "offsets sent",
    "commit requested",
    "commit answered",
    "abort requested",
    "abort answered",
)


class Halt:
    """Halts a transaction at one stage, in its block or in the driver, until a test continues."""

    def __init__(self, stage: str, driver: DriverName) -> None:
        self._stage = stage
        self._driver: DriverName = driver
        self._reached = threading.Event()
        self.gate = Gate()
        self.gate.shut()

    def make_driver(self, settings: ProducerSettings) -> Driver:
        """Make the driver, with halts in its methods."""
        driver: Any = make_driver(self._driver, settings)
        begin, submit = driver.begin_transaction, driver.submit
        send_offsets, end = driver.send_offsets, driver.end_transaction

        def beginning() -> None:
            self._in_driver("begin requested")
            begin()

        def submitting(batch: Any) -> Any:
            found = submit(batch)
            # The event loop's thread may have called this, and must not block. The client holds the
            # record back.
            self._note("first record handed over")
            return found

        def sending_offsets(*arguments: Any) -> None:
            self._in_driver("offsets requested")
            send_offsets(*arguments)

        def ending(commit: bool, deadline: Any) -> None:  # as it is called
            kind = "commit" if commit else "abort"
            self._in_driver(f"{kind} requested")
            end(commit, deadline)
            self._in_driver(f"{kind} answered")

        driver.begin_transaction, driver.submit = beginning, submitting
        driver.send_offsets, driver.end_transaction = sending_offsets, ending
        made: Driver = driver
        return made

    def _note(self, stage: str) -> bool:
        if stage != self._stage:
            return False
        self._reached.set()
        return True

    def _in_driver(self, stage: str) -> None:
        if self._note(stage):
            self.gate.pass_through()

    async def in_block(self, stage: str) -> None:
        """Wait to be cancelled, if this is the stage."""
        if self._note(stage):
            await anyio.sleep_forever()

    async def until_reached(self) -> None:
        """Wait until the transaction has come to the stage."""
        assert await run_sync(self._reached.wait, PATIENCE), f"it never came to {self._stage!r}"


@pytest.mark.parametrize("stage", STAGES)
async def test_cancelled_at_a_stage(cluster: KafkaCluster, stage: str, driver: DriverName) -> None:
    """The log has all of its records or none, as its state reports, and the next one is
    committed."""
    topic = cluster.create_topic()
    halt = Halt(stage, driver)
    settings = settings_for(cluster, topic, cancel_timeout=PATIENCE)
    if stage == "first record handed over":
        settings = settings.with_property("linger.ms", 5_000)
    held: list[Transaction] = []
    async with open_send_producer(settings, driver=halt.make_driver) as producer:
        async with task_group() as tasks:
            scope = anyio.CancelScope()

            async def transact() -> None:
                with scope:
                    async with producer.transaction() as tx:
                        held.append(tx)
                        await halt.in_block("begun")
                        for number in range(3):
                            await tx.send(ProducerRecord(topic, b"%d" % number))
                            await halt.in_block("first record acknowledged")
                        await tx.send_offsets({(topic, 0): 1}, topic)
                        await halt.in_block("offsets sent")
                        if stage.startswith("abort"):
                            fail()

            async def transact_and_be_aborted() -> None:
                with contextlib.suppress(ZeroDivisionError):
                    await transact()

            tasks.start_soon(transact_and_be_aborted)
            await halt.until_reached()
            scope.cancel()
            await quiet()
            halt.gate.open()
        assert producer.statistics().generations == 1
        async with producer.transaction() as tx:
            await tx.send(ProducerRecord(topic, b"after"))
    committed = stage.startswith("commit")
    if stage == "begin requested":
        assert not held
    else:
        states = TransactionState.COMMITTED, TransactionState.ABORTED
        assert held[0].state is states[not committed]
    found = await run_sync(
        lambda: read_topic(cluster.bootstrap_servers, topic, isolation="read_committed")
    )
    expected = [b"0", b"1", b"2", b"after"] if committed else [b"after"]
    assert [one.value for one in found] == expected
    offset = await run_sync(committed_offset, cluster, topic, topic)
    assert offset == (1 if committed else None)


def wait_until_decided(cluster: KafkaCluster, sent: RecordMetadata) -> None:
    """Wait until the brokers have committed or aborted the transaction of a record."""
    consumer = kafka.KafkaConsumer(
        bootstrap_servers=cluster.bootstrap_servers,
        isolation_level="read_committed",
        metrics_enabled=False,
    )
    partition = kafka.TopicPartition(sent.topic, sent.partition)
    try:
        blocking_until(lambda: consumer.end_offsets([partition])[partition] > sent.offset)
    finally:
        consumer.close()


async def test_the_brokers_abort_a_transaction_that_takes_too_long(
    cluster: KafkaCluster, driver: DriverName
) -> None:
    """A producer on kafka-python goes on, because it is not fenced by that. librdkafka does not
    ask the brokers
    for the cause (KIP-588), so it assumes that it is fenced."""
    # A stall of the machine does not exceed the timeout of the others.
    properties = {"transaction.timeout.ms": 5000}
    goes_on = driver == "kafka-python"
    async with transactions(cluster, driver, properties=properties) as (made, producer):
        assert await made.run(producer) is True
        with raising(SendProducerError) as caught:
            async with producer.transaction() as tx:
                sent = await tx.send(ProducerRecord(made.topic, b"never", partition=0))
                await run_sync(wait_until_decided, cluster, sent)
                await tx.send(ProducerRecord(made.topic, b"never again", partition=0))
        for one in (b"never", b"never again"):
            record = ProducerRecord(made.topic, one, partition=0)
            made.history.sending(one.decode(), record, transaction="too long")
        made.history.transaction("too long", committed=False)
        if goes_on:
            assert not isinstance(caught.value, (ProducerFenced, ProducerBroken))
            assert await made.run(producer) is True
        else:
            assert isinstance(caught.value.__cause__, ProducerFenced)
            with raising(ProducerBroken, match=r"or its transaction took longer than .*=5000"):
                async with producer.transaction():
                    never()
    if not goes_on:
        async with open_send_producer(settings_for(cluster, made.topic), driver=driver) as another:
            assert await made.run(another) is True
        await made.judge()


async def test_a_commit_of_a_transaction_that_took_too_long_names_the_timeout(
    cluster: KafkaCluster, driver: DriverName
) -> None:
    """The coordinator sends the same error as for a producer that another one fenced."""
    settings = settings_for(cluster, "late", properties={"transaction.timeout.ms": 5000})
    topic = cluster.create_topic()
    async with open_send_producer(settings, driver=driver) as producer:
        with raising(ProducerFenced, match=r"or its transaction took longer than .*=5000"):
            async with producer.transaction() as tx:
                sent = await tx.send(ProducerRecord(topic, b"never"))
                await run_sync(wait_until_decided, cluster, sent)


async def test_records_of_a_lost_transaction_are_not_sent_in_the_next(
    cluster: KafkaCluster,
) -> None:
    """The client still had records of a transaction that took too long."""
    properties = {"transaction.timeout.ms": 5000, "batch.size": 100}
    topic = cluster.create_topic()
    settings = settings_for(cluster, topic, properties=properties)
    async with open_send_producer(settings) as producer:
        with raising(MultiDeliveryError) as caught:
            async with producer.transaction() as tx:
                sent = await tx.send(ProducerRecord(topic, b"never"))
                await run_sync(wait_until_decided, cluster, sent)
                await tx.send_many([ProducerRecord(topic, b"never" * 20) for _ in range(10)])
        assert tx.state is TransactionState.ABORTED
        assert not any(isinstance(one, DeliveryTimeout) for one in caught.value.errors)
        async with producer.transaction() as tx:
            await tx.send(ProducerRecord(topic, b"next"))
        assert producer.statistics().generations == 1
    read = partial(read_topic, isolation="read_committed")
    found = await run_sync(read, cluster.bootstrap_servers, topic)
    assert [one.value for one in found] == [b"next"]


async def test_a_second_producer_with_the_same_transactional_id_fences_the_first(
    cluster: KafkaCluster, driver: DriverName
) -> None:
    made = Transactions(cluster)
    settings = settings_for(cluster, made.topic)
    async with open_send_producer(settings, driver=driver) as first:
        assert await made.run(first) is True
        async with contextlib.AsyncExitStack() as stack:
            with raising(ProducerFenced):
                async with first.transaction() as tx:
                    record = ProducerRecord(made.topic, b"zombie", partition=0)
                    made.history.sending("zombie", record, transaction="zombie")
                    made.history.ending("zombie", await tx.send(record))
                    second = await stack.enter_async_context(
                        open_send_producer(settings, driver=driver)
                    )
                    assert await made.run(second) is True
            made.history.transaction("zombie", committed=False)
            assert first.statistics().state == "broken"
            with raising(ProducerBroken, match="another producer took over"):
                async with first.transaction():
                    never()
            assert await made.run(second) is True
    await made.judge()


async def test_a_record_of_a_fenced_producer_fails_with_the_reason(
    cluster: KafkaCluster, driver: DriverName
) -> None:
    topic = cluster.create_topic()
    settings = settings_for(cluster, topic)
    async with (
        open_send_producer(settings, driver=driver) as first,
        open_send_producer(settings, driver=driver),
    ):
        with raising(DeliveryError) as caught:
            async with first.transaction() as tx:
                await tx.send(ProducerRecord(topic, b"zombie"))
        assert isinstance(caught.value.__cause__, ProducerFenced)
        assert first.statistics().generations == 1
    found = await run_sync(lambda: read_topic(cluster.bootstrap_servers, topic))
    assert found == []


async def test_records_that_wait_for_room_belong_to_their_transaction(
    cluster: KafkaCluster, driver: DriverName
) -> None:
    """Tasks still wait to send when the block ends. They send before the commit."""
    async with transactions(cluster, driver, max_in_flight=2) as (made, producer):
        called: list[int] = []
        waiting: list[int] = []

        async def send(tx: Transaction, name: str, number: int) -> None:
            called.append(number)
            waiting.append(producer.statistics().waiting)
            id_ = f"{name}-{number}"
            record = ProducerRecord(made.topic, id_.encode(), partition=number % PARTITIONS)
            made.history.sending(id_, record, transaction=name)
            made.history.ending(id_, await tx.send(record))

        async with plain_task_group("another task left it") as tasks:
            for turn in range(3):
                name = f"{made.topic}-waits-{turn}"
                async with producer.transaction() as tx:
                    for number in range(EACH):
                        tasks.start_soon(send, tx, name, number)
                    while len(called) < (turn + 1) * EACH:
                        await anyio.lowlevel.checkpoint()
                made.history.transaction(name, committed=True)
                assert await made.run(producer) is True
        # Two records have room at a time, and the others have waited.
        assert max(waiting) > 0
        assert producer.statistics().delivered == 6 * EACH
        assert producer.statistics().generations == 1


async def test_a_refused_record_aborts_the_transaction(
    cluster: KafkaCluster, driver: DriverName
) -> None:
    async with transactions(cluster, driver, properties=sent_once(driver)) as (made, producer):
        small = cluster.create_topic(configs={"max.message.bytes": 1000})
        assert await made.run(producer) is True
        with raising(TransactionAborted, match="the broker refused the record") as caught:
            async with producer.transaction() as tx:
                record = ProducerRecord(made.topic, b"among bad ones", partition=0)
                made.history.sending("good", record, transaction="refused")
                made.history.ending("good", await tx.send(record))
                with contextlib.suppress(DeliveryError):
                    await tx.send(ProducerRecord(small, bytes(2000)))
        assert isinstance(caught.value.__cause__, DeliveryError)
        made.history.transaction("refused", committed=False)
        assert await made.run(producer) is True
        assert producer.statistics().generations == (2 if driver == "confluent" else 1)


async def test_the_transaction_after_a_refused_record_is_committed(
    cluster: KafkaCluster, driver: DriverName
) -> None:
    """The broker has not stored the sequence numbers of the refused record."""
    topic = cluster.create_topic(configs={"max.message.bytes": 1000})
    settings = settings_for(cluster, topic)
    async with open_send_producer(settings, driver=driver) as producer:
        for _ in range(3):
            async with producer.transaction() as tx:
                await tx.send(ProducerRecord(topic, b"good"))
            with raising(SendProducerError):
                async with producer.transaction() as tx:
                    await tx.send(ProducerRecord(topic, b"good"))
                    await tx.send(ProducerRecord(topic, bytes(2000)))
    read = partial(read_topic, isolation="read_committed")
    found = await run_sync(read, cluster.bootstrap_servers, topic)
    assert [one.value for one in found] == [b"good"] * 3


async def test_a_forbidden_transactional_id_and_a_timeout_that_is_too_long(
    cluster: KafkaCluster,
    driver: DriverName,
) -> None:
    settings = settings_for(cluster, "id", properties={"transaction.timeout.ms": 10**9})
    with raising(ProducerStartError, match="transactional_id 'id' could not be initialized"):
        async with open_send_producer(settings, driver=driver):
            never()


# --- offsets -------------------------------------------------------------------------------------


def committed_offset(cluster: KafkaCluster, group: str, topic: str) -> int | None:
    """Read a group's offset, after the end of a transaction that may have written it.

    A commit returns before the markers are written. With ``read_committed``, the broker makes the
    consumer wait for the marker (KIP-447). Otherwise it returns the previous offset.
    """
    consumer = kafka.KafkaConsumer(
        bootstrap_servers=cluster.bootstrap_servers,
        group_id=group,
        enable_auto_commit=False,
        isolation_level="read_committed",
        metrics_enabled=False,
    )
    try:
        offset: int | None = consumer.committed(kafka.TopicPartition(topic, 0))
        return offset
    finally:
        consumer.close()


async def test_offsets_are_committed_with_the_records_or_not_at_all(
    cluster: KafkaCluster, driver: DriverName
) -> None:
    source = cluster.create_topic()
    async with transactions(cluster, driver) as (made, producer):
        for offset, good in ((5, True), (7, False), (9, True)):
            with contextlib.suppress(ZeroDivisionError):
                async with producer.transaction() as tx:
                    position = kafka.structs.OffsetAndMetadata(offset, "note", -1)
                    await tx.send_offsets({kafka.TopicPartition(source, 0): position}, made.topic)
                    if not good:
                        fail()
            found = await run_sync(committed_offset, cluster, made.topic, source)
            assert found == (offset if good else 5)
        assert producer.statistics().generations == 1


async def test_offsets_of_a_consumer_outside_the_group_are_refused(
    cluster: KafkaCluster, driver: DriverName
) -> None:
    """KIP-447: another consumer reads its records already."""
    source = cluster.create_topic()
    async with transactions(cluster, driver) as (made, producer):
        member = kafka.structs.ConsumerGroupMetadata(made.topic, 3, "nobody", None)
        # Each client has its own message for ILLEGAL_GENERATION.
        with raising(TransactionAborted, match=r"consumer group|group generation id"):
            async with producer.transaction() as tx:
                await tx.send_offsets({(source, 0): 1}, member)
        assert await made.run(producer) is True
        assert await run_sync(committed_offset, cluster, made.topic, source) is None


async def test_offsets_of_an_aborted_transaction_are_not_sent_with_the_next(
    cluster: KafkaCluster, driver: DriverName
) -> None:
    source = cluster.create_topic(partitions=2)
    async with transactions(cluster, driver) as (made, producer):
        member = kafka.structs.ConsumerGroupMetadata(made.topic, 3, "nobody", None)
        with raising(TransactionAborted):
            async with producer.transaction() as tx:
                await tx.send_offsets({(source, 0): 1}, member)
        async with producer.transaction() as tx:
            await tx.send_offsets({(source, 1): 2}, made.topic)
        assert await run_sync(committed_offset, cluster, made.topic, source) is None
        assert producer.statistics().generations == 1


#: The time after which the group removes a member whose request to leave did not arrive.
SESSION_MS: Final = 10_000


class Member:
    """A consumer that has joined its group and reads the one partition of a topic."""

    def __init__(self, cluster: KafkaCluster, kind: str, group: str, topic: str) -> None:
        self._kind = kind
        if kind == "kafka-python":
            self._consumer: Any = kafka.KafkaConsumer(
                bootstrap_servers=cluster.bootstrap_servers,
                group_id=group,
                enable_auto_commit=False,
                metrics_enabled=False,
                session_timeout_ms=SESSION_MS,
            )
            # A leader of the group that does not know the topic yet assigns it to no member, and
            # may not correct that.
            blocking_until(lambda: self._consumer.partitions_for_topic(topic))
        else:
            self._consumer = confluent_kafka.Consumer(
                {
                    "bootstrap.servers": cluster.bootstrap_servers,
                    "group.id": group,
                    "enable.auto.commit": False,
                    "session.timeout.ms": SESSION_MS,
                    **({"group.instance.id": "instance"} if kind == "static" else {}),
                }
            )
        self._consumer.subscribe([topic])
        blocking_until(self._is_given_some)

    def _is_given_some(self) -> bool:
        if self._kind == "kafka-python":
            self._consumer.poll(timeout_ms=50)
        else:
            self._consumer.poll(0.05)
        return bool(self._consumer.assignment())

    def group_metadata(self) -> Any:
        """The group metadata, as the consumer's client represents them."""
        if self._kind == "kafka-python":
            return self._consumer.group_metadata()
        return self._consumer.consumer_group_metadata()

    def id(self) -> str:
        """Its member id in the group."""
        member: str = self._consumer.memberid()
        return member

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()


@pytest.mark.parametrize("kind", ["confluent", "static"])
def test_group_metadata_have_the_encoding_of_librdkafka(cluster: KafkaCluster, kind: str) -> None:
    topic = cluster.create_topic()
    member = Member(cluster, kind, topic, topic)
    try:
        given = member.group_metadata()
        group = ConsumerGroupMetadata(
            topic, 1, member.id(), "instance" if kind == "static" else None
        )
        assert group.member_id
        assert group_to_bytes(group) == given
        assert group_from_bytes(given) == group
    finally:
        member.close()


@pytest.mark.parametrize("kind", ["kafka-python", "confluent", "static"])
async def test_offsets_of_a_member_are_accepted_until_it_leaves_the_group(
    cluster: KafkaCluster, driver: DriverName, kind: str
) -> None:
    source = cluster.create_topic()
    async with transactions(cluster, driver) as (made, producer):
        member = await run_sync(Member, cluster, kind, made.topic, source)
        try:
            metadata = await run_sync(member.group_metadata)
            async with producer.transaction() as tx:
                position = confluent_kafka.TopicPartition(source, 0, 5)
                await tx.send_offsets({(source, 0): position}, metadata)
        finally:
            await run_sync(member.close)
        assert await run_sync(committed_offset, cluster, made.topic, source) == 5
        # A static member remains in the group when it leaves, until another one replaces it.
        another = await run_sync(Member, cluster, kind, made.topic, source)
        try:
            with raising(TransactionAborted):
                async with producer.transaction() as tx:
                    await tx.send_offsets({(source, 0): 7}, metadata)
        finally:
            await run_sync(another.close)
        assert await run_sync(committed_offset, cluster, made.topic, source) == 5
        assert await made.run(producer) is True
        assert producer.statistics().generations == 1


async def test_a_sink_commits_offsets_together_with_records(
    cluster: KafkaCluster, driver: DriverName
) -> None:
    """The sink uses transactions of its own. The log has all records of each."""
    source, topic = cluster.create_topic(), cluster.create_topic(partitions=PARTITIONS)
    count = 2_000

    async def envelopes() -> AsyncGenerator[Message[None, bytes, int]]:
        for number in range(count):
            record = ProducerRecord(topic, b"%d" % number, partition=number % PARTITIONS)
            yield Message(record, number)
            if number % 100 == 0:
                await anyio.sleep(0.02)

    settings = settings_for(cluster, topic).with_eos_commit_interval(0.05)
    async with open_send_producer(settings, driver=driver) as producer:
        summary = await producer.sink(
            envelopes(),
            offsets=lambda envelope: {(source, 0): envelope.pass_through + 1},
            group_metadata=topic,
        )
        assert (summary.envelopes, summary.records) == (count, count)
        assert producer.statistics().generations == 1
    assert await run_sync(committed_offset, cluster, topic, source) == count
    read = partial(read_topic, cluster.bootstrap_servers, topic, isolation="read_committed")
    found = await run_sync(read)
    for partition in range(PARTITIONS):
        values = [int(one.value or b"") for one in found if one.partition == partition]
        assert values == list(range(partition, count, PARTITIONS))


# --- under faults --------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["before", "between", "at_end"])
async def test_a_broker_is_killed(
    three_brokers: KafkaCluster, phase: str, driver: DriverName
) -> None:
    """In each phase of a transaction: the coordinator, and in a full run also the other brokers."""
    async with transactions(three_brokers, driver) as (made, producer):
        assert await made.run(producer) is True
        coordinator = await run_sync(three_brokers.leader_of, "__transaction_state")
        assert coordinator is not None
        brokers = [broker for broker in three_brokers.brokers if broker != coordinator]
        # In a brief run, a broker that is not the coordinator is killed in one phase only.
        others = brokers if IN_FULL else brokers[: phase == "between"]
        for broker in (coordinator, *others):

            def fault(broker: int = broker) -> None:
                three_brokers.kill(broker)
                time.sleep(1.0)
                three_brokers.start(broker)

            outcome = await made.run(producer, **{phase: fault})
            assert outcome is not None or producer.statistics().generations > 1
            while await made.run(producer) is not True:
                pass
            await run_sync(three_brokers.wait_until_in_sync, made.topic)


async def test_all_brokers_are_killed_and_the_answer_to_the_commit_is_lost(
    three_brokers: KafkaCluster, driver: DriverName
) -> None:
    def fault() -> None:
        for broker in three_brokers.brokers:
            three_brokers.kill(broker)

    async with transactions(three_brokers, driver, delivery_timeout=3.0) as (made, producer):
        assert await made.run(producer) is True
        name = f"{made.topic}-unknown"
        with raising(TransactionError) as caught:
            async with producer.transaction() as tx:
                record = ProducerRecord(made.topic, name.encode(), partition=0)
                made.history.sending(name, record, transaction=name)
                made.history.ending(name, await tx.send(record))
                await run_sync(fault)
        assert isinstance(caught.value, TransactionOutcomeUnknown)
        assert tx.state is TransactionState.UNKNOWN
        made.history.transaction(name, None)
        await run_sync(three_brokers.heal)
        for _ in range(20):
            with contextlib.suppress(TransactionError):
                if await made.run(producer) is True:
                    break
        else:
            raise AssertionError
        assert producer.statistics().generations >= 2
        await run_sync(three_brokers.wait_until_in_sync, made.topic)


async def test_an_abort_right_after_the_first_record_keeps_the_client(
    shared_kafka: KafkaCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator may still be ending the previous transaction, and does not know this one."""
    # The abort waits for the first record. Otherwise it would drop the record.
    monkeypatch.setattr(_waits, "FINISH_SECONDS", PATIENCE)
    topic = await run_sync(shared_kafka.create_topic)
    settings = ProducerSettings(
        bootstrap_servers=shared_kafka.bootstrap_servers, transactional_id=topic
    )
    async with open_send_producer(settings, driver="confluent") as producer:
        for _ in range(60):
            async with producer.transaction() as tx:
                await tx.enqueue(ProducerRecord(topic, b"committed"))
            with raising(ZeroDivisionError):
                async with producer.transaction() as tx:
                    await tx.enqueue(ProducerRecord(topic, b"aborted"))
                    fail()
        assert producer.statistics().generations == 1
