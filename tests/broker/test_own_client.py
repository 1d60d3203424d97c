"""An external client, which its owner made, and a factory that makes one."""

from __future__ import annotations

import dataclasses
import importlib
import threading
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any, cast

import anyio
import anyio.to_thread
import kafka
import kafka.errors
import pytest

from anyio_sendproducer import (
    DeliveryError,
    DeliveryTimeout,
    Message,
    Persistence,
    ProducerBroken,
    ProducerRecord,
    ProducerSettings,
    ProducerStartError,
    RecordMetadata,
    RecordRejected,
    SendProducer,
    SendProducerError,
    SerializationFailed,
    SettingsError,
    Statistics,
    TransactionError,
    UndeliveredRecords,
    drivers,
    open_send_producer,
)
from anyio_sendproducer._engine import RETRY_SECONDS
from anyio_sendproducer.drivers import Submitted
from anyio_sendproducer.drivers.kafka_python import _driver as _kafka_python
from anyio_sendproducer.drivers.kafka_python._external_client import ExternalClientDriver
from anyio_sendproducer.testing import EmbeddedBroker, FakeDriver, Gate, mock_cluster
from tests.support.bare import BareProducer, bare, nothing
from tests.support.calls import Call, at_gate, quiet, raising, record, task_group
from tests.support.client_threads import client_threads
from tests.support.clock import ManualClock
from tests.support.lent_client import FakeClient
from tests.support.mock_cluster import FOR_MOCK
from tests.support.recorder import PATIENCE, Parcel, Recorder, open_sockets
from tests.support.sequenced_broker import Batch, sequenced_brokers
from tests.support.waiting import blocking_until, until

Partitioner: Any = importlib.import_module("kafka.partitioner.abc").Partitioner
Serializer: Any = importlib.import_module("kafka.serializer").Serializer

#: The broker's error for a refused record.
INVALID_RECORD = 87


def with_client(client: Any, **changes: Any) -> ProducerSettings:
    return ProducerSettings(bootstrap_servers="x:1").with_producer(client).evolve(**changes)


def figures(producer: SendProducer) -> Statistics:
    """The callbacks of the records. A late one may still wake up the loop."""
    return dataclasses.replace(producer.statistics(), wake_ups=0)


# --- a client that is there ----------------------------------------------------------------------


def _bare(broker: EmbeddedBroker) -> Any:
    return BareProducer(bootstrap_servers=broker.bootstrap_servers)


@pytest.fixture
async def client(broker: EmbeddedBroker) -> AsyncGenerator[Any, None]:
    made = await anyio.to_thread.run_sync(_bare, broker)
    yield made
    await anyio.to_thread.run_sync(made.close, 10)


async def test_a_shared_client(client: Any) -> None:
    settings = ProducerSettings(producer=client, close_producer_on_exit=False)
    assert (
        repr(settings) == "ProducerSettings(producer=KafkaProducer, close_producer_on_exit=False)"
    )
    async with open_send_producer(settings) as producer:
        assert repr(producer) == "<SendProducer open KafkaProducer>"
        metadata = await producer.send(ProducerRecord("t", b"ours", b"k", partition=0))
        assert (metadata.partition, metadata.offset) == (0, 0)
        result = await producer.send_envelope(
            Message(ProducerRecord("t", b"with headers", headers=[("a", b"b")], partition=0), "p")
        )
        assert (result.offset, result.pass_through) == (1, "p")
        assert await producer.partitions_for("t")
        with pytest.raises(RecordRejected, match="refused the record") as caught:
            await producer.send(ProducerRecord("t", b"v", partition=700))
        assert caught.value.persistence is Persistence.NOT_PERSISTED
        left = producer.enqueue_nowait(ProducerRecord("t", b"left", partition=0))
    assert (await left.wait()).offset == 2
    # The client belongs to its owner, and still works.
    future = client.send("t", b"theirs", partition=0)
    assert (await anyio.to_thread.run_sync(future.get, 10)).offset == 3


async def test_it_is_closed_on_request(broker: EmbeddedBroker) -> None:
    made = await anyio.to_thread.run_sync(_bare, broker)
    settings = ProducerSettings(producer=made)
    async with open_send_producer(settings) as producer:
        await producer.send(record())
    with pytest.raises(kafka.errors.IllegalStateError):
        made.send("t", b"v")
    async with open_send_producer(settings) as producer:
        with pytest.raises(DeliveryError, match="already closed") as caught:
            await producer.send(record())
        assert caught.value.persistence is Persistence.NOT_PERSISTED


@pytest.mark.parametrize("closes", [True, False])
async def test_the_end_waits_for_records_in_flight_and_may_close_the_client(closes: bool) -> None:
    fake = FakeClient()
    fake.answers = False
    settings = with_client(fake).with_close_producer_on_exit(closes)
    async with task_group() as tasks:
        async with open_send_producer(settings) as producer:
            delivery = producer.enqueue_nowait(record(b"1"))
            await until(lambda: len(fake.sent) == 1)

            async def answer() -> None:
                assert fake.closed == []
                fake.answer(fake.sent[0][1])

            tasks.start_soon(answer)
        assert (await delivery.wait()).offset == 7
    assert len(fake.closed) == closes


async def test_a_client_that_can_not_be_closed_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake = FakeClient()
    fake.close_error = kafka.errors.KafkaTimeoutError("records pending")
    async with open_send_producer(with_client(fake, close_producer_on_exit=True)):
        pass
    assert "settings.producer could not be closed" in caplog.text


async def test_serializers_run_on_the_producer_s_thread() -> None:
    threads: list[str] = []

    def serialize(text: str) -> bytes:
        threads.append(threading.current_thread().name)
        return text.encode()

    fake = FakeClient()
    settings = with_client(fake, value_serializer=serialize)
    async with open_send_producer(settings) as producer:
        await producer.send(ProducerRecord("t", "text", b"key"))
        with pytest.raises(SerializationFailed):
            await producer.send(ProducerRecord("t", cast("str", 7)))
    sent = fake.sent[0][0]
    assert (sent[1], sent[2]) == (b"text", b"key")
    assert all(name.startswith("anyio-sendproducer") for name in threads)


async def test_a_record_that_the_client_fails_may_have_been_written() -> None:
    fake = FakeClient()
    fake.answers = False
    async with open_send_producer(with_client(fake)) as producer:
        async with task_group() as tasks:
            call = Call(tasks, producer.send, record())
            await until(lambda: len(fake.sent) == 1)
            cause = kafka.errors.TopicAuthorizationFailedError()
            fake.answer(fake.sent[0][1], cause)
        assert isinstance(call.error, DeliveryError)
        assert call.error.persistence is Persistence.POSSIBLY_PERSISTED
        assert call.error.__cause__ is cause


async def test_a_topic_without_metadata_is_requested_again_and_keeps_its_order(
    clock: ManualClock,
) -> None:
    fake = FakeClient()
    fake.errors = [kafka.errors.KafkaTimeoutError() for _ in range(3)]
    fake.gate.shut()
    async with clock.open(with_client(fake, delivery_timeout=timedelta(seconds=1e9))) as producer:
        deliveries = [producer.enqueue_nowait(record(b"%d" % number)) for number in range(5)]
        fake.gate.open()
        for delivery in deliveries:
            await clock.until(lambda: delivery.done, step=RETRY_SECONDS)  # noqa: B023
            await delivery.wait()
        assert [sent[1] for sent, _ in fake.sent] == [b"%d" % number for number in range(5)]
        fake.known = kafka.errors.KafkaTimeoutError()
        async with task_group() as tasks:
            call = Call(tasks, producer.partitions_for, "t")
            asked = fake.asked
            await clock.until(lambda: fake.asked > asked + 1, step=RETRY_SECONDS)
            await call.cancel()
        fake.known = cause = kafka.errors.TopicAuthorizationFailedError()
        says = r"no metadata for topic 't': .*TopicAuthorizationFailedError"
        with pytest.raises(SendProducerError, match=says) as caught:
            await producer.partitions_for("t")
        assert caught.value.__cause__ is cause


async def test_with_acks_0_there_is_no_offset() -> None:
    async with open_send_producer(with_client(FakeClient(acks=0))) as producer:
        assert (await producer.send(record())).offset is None


async def test_a_client_without_progress_breaks_the_producer(clock: ManualClock) -> None:
    fake = FakeClient()
    fake.answers = False
    async with clock.open(with_client(fake)) as producer:
        delivery = producer.enqueue_nowait(record())
        await until(lambda: len(fake.sent) == 1)
        clock.advance(121)
        with pytest.raises(DeliveryTimeout):
            await delivery.wait()
        clock.advance(11)
        await until(lambda: producer.statistics().state == "broken")
        with pytest.raises(ProducerBroken) as caught:
            await producer.send(record())
        assert "too long after their delivery_timeout" in str(caught.value.__cause__)


async def test_a_blocking_client_delays_no_caller_beyond_the_deadline() -> None:
    fake = FakeClient()
    fake.gate.shut()
    async with open_send_producer(with_client(fake, delivery_timeout=0.05)) as producer:
        with pytest.raises(DeliveryTimeout):
            await producer.send(record())
        fake.gate.open()


async def test_an_outcome_is_reported_while_another_record_is_held() -> None:
    fake = FakeClient()
    gate = fake.gates["slow"] = Gate()
    gate.shut()
    async with open_send_producer(with_client(fake, value_serializer=str.encode)) as producer:
        values = [("t", "1"), ("t", cast("str", 7)), ("slow", "2"), ("t", "3")]
        first, refused, *rest = [
            producer.enqueue_nowait(ProducerRecord(topic, value)) for topic, value in values
        ]
        await at_gate(gate)
        assert (await first.wait()).offset == 7
        with pytest.raises(SerializationFailed):
            await refused.wait()
        gate.open()
        for delivery in rest:
            await delivery.wait()


async def test_an_acknowledged_record_does_not_wait_for_other_partitions() -> None:
    fake = FakeClient()
    fake.answers = False
    async with open_send_producer(with_client(fake)) as producer:
        deliveries = [producer.enqueue_nowait(record(b"%d" % number)) for number in range(3)]
        await until(lambda: len(fake.sent) == 3)
        for number in (1, 0, 2):
            fake.answer(fake.sent[number][1], offset=number)
            assert (await deliveries[number].wait()).offset == number


async def test_the_client_gets_no_record_after_the_end_of_the_block(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("anyio_sendproducer._bridge.GRACE_SECONDS", 0.01)
    fake = FakeClient()
    fake.gate.shut()
    with raising(UndeliveredRecords) as caught:
        async with open_send_producer(with_client(fake, close_timeout=0.05)) as producer:
            deliveries = [producer.enqueue_nowait(record(b"%d" % number)) for number in range(3)]
            await at_gate(fake.gate)
    assert "it hangs in the client library" in caplog.text
    assert {error.record.value: error.persistence for error in caught.value.errors} == {
        b"0": Persistence.POSSIBLY_PERSISTED,
        b"1": Persistence.NOT_PERSISTED,
        b"2": Persistence.NOT_PERSISTED,
    }
    before = figures(producer)
    fake.gate.open()
    await until(lambda: not _threads())
    await quiet()
    # The client got only the record in flight, and its report of that has no effect.
    assert [sent[1] for sent, _ in fake.sent] == [b"0"]
    assert figures(producer) == before
    for delivery in deliveries:
        with pytest.raises(DeliveryError):
            await delivery.wait()


async def test_reports_after_the_end_of_the_block_are_ignored() -> None:
    fake = FakeClient()
    fake.answers = False
    with raising(UndeliveredRecords):
        async with open_send_producer(with_client(fake, close_timeout=0.05)) as producer:
            delivery = producer.enqueue_nowait(record())
            await until(lambda: len(fake.sent) == 1)
    before = figures(producer)
    fake.answer(fake.sent[0][1])
    await quiet()
    assert figures(producer) == before
    with pytest.raises(DeliveryError, match="was closed before the record was acknowledged"):
        await delivery.wait()


def test_records_that_are_held_at_the_end_are_not_persisted() -> None:
    fake = FakeClient()
    gate = fake.gates["slow"] = Gate()
    gate.shut()
    fake.errors = [kafka.errors.KafkaTimeoutError()]
    driver = ExternalClientDriver(with_client(fake))
    recorder = Recorder()
    driver.open(recorder)
    parcels = [Parcel(record(topic=topic)) for topic in ("unknown", "slow", "t", "unknown")]
    answers: list[Submitted] = []
    thread = threading.Thread(target=lambda: answers.append(driver.submit(parcels)))
    thread.start()
    gate.wait_until_someone_waits(PATIENCE)
    driver.close(0)
    refused = {id(parcel) for parcel, _ in recorder.reports}
    assert refused == {id(parcels[number]) for number in (0, 2, 3)}
    gate.open()
    thread.join()
    assert answers == [Submitted()]
    late = [Parcel(record())]
    assert driver.submit(late) == Submitted()
    outcomes = recorder.outcomes_of([*parcels, *late])
    for outcome in (outcomes[0], *outcomes[2:]):
        assert isinstance(outcome, DeliveryError)
        assert outcome.persistence is Persistence.NOT_PERSISTED
    assert isinstance(outcomes[1], RecordMetadata)
    assert [sent[0] for sent, _ in fake.sent] == ["slow"]


class Auditing(BareProducer):  # type: ignore[misc]
    """A client that fails after it has sent the record."""

    error: Exception

    def send(self, *args: Any, **options: Any) -> Any:
        BareProducer.send(self, *args, **options)
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("ours"),
        kafka.errors.IllegalStateError("ours"),
        kafka.errors.KafkaTimeoutError("ours"),
    ],
)
@pytest.mark.parametrize("lent", [True, False])
async def test_a_record_whose_send_raises_in_a_subclass_is_possibly_persisted(
    broker: EmbeddedBroker, error: Exception, lent: bool
) -> None:
    def make(configs: dict[str, Any]) -> Auditing:
        made = Auditing(**configs)
        made.error = error
        return made

    servers = broker.bootstrap_servers
    settings = ProducerSettings(bootstrap_servers=servers, producer_factory=make)
    if lent:
        settings = ProducerSettings(
            producer=await anyio.to_thread.run_sync(make, {"bootstrap_servers": servers})
        )
    async with open_send_producer(settings) as producer:
        with pytest.raises(DeliveryError, match=r"did not take the record: .*ours") as caught:
            await producer.send(ProducerRecord("t", None, b"key"))
        assert caught.value.persistence is Persistence.POSSIBLY_PERSISTED


class Waiting(BareProducer):  # type: ignore[misc]
    """A client that waits for each record, but not for long."""

    def send(self, *args: Any, **options: Any) -> Any:
        future = BareProducer.send(self, *args, **options)
        future.get(0)
        return future


@pytest.mark.parametrize("lent", [True, False])
async def test_a_record_for_which_send_waited_in_vain_is_not_sent_again(lent: bool) -> None:
    with sequenced_brokers() as brokers:
        may_answer = threading.Event()

        def judge(_: Batch) -> int:
            may_answer.wait(PATIENCE)
            return 0

        brokers.judge = judge
        settings = ProducerSettings(
            bootstrap_servers=brokers.address,
            producer_factory=lambda configs: Waiting(**configs),
            properties=FOR_MOCK,
        )
        if lent:
            made = await anyio.to_thread.run_sync(
                lambda: Waiting(bootstrap_servers=brokers.address, **FOR_MOCK)
            )
            settings = ProducerSettings(producer=made, close_producer_on_exit=True)
        async with open_send_producer(settings) as producer:
            with pytest.raises(DeliveryError, match="Timeout after waiting for 0") as caught:
                await producer.send(record())
            assert caught.value.persistence is Persistence.POSSIBLY_PERSISTED
            may_answer.set()
        assert len(brokers.log) == 1


# --- a client that breaks, or is closed ----------------------------------------------------------


async def test_a_client_that_broke_breaks_the_producer() -> None:
    with mock_cluster(1) as cluster, bare(cluster) as made:
        cluster.create_topic("t", [1])
        async with open_send_producer(with_client(made)) as producer:
            await producer.send(record())
            cluster.answer_next(1, INVALID_RECORD)
            with pytest.raises(DeliveryError, match="not acknowledged") as refused:
                await producer.send(record())
            assert isinstance(refused.value.__cause__, kafka.errors.InvalidRecordError)
            await until(lambda: producer.statistics().state == "broken")
            with pytest.raises(ProducerBroken) as caught:
                await producer.send(record())
            assert caught.value.__cause__ is refused.value.__cause__


async def test_a_client_is_closed_although_its_broker_is_down(
    broker: EmbeddedBroker,
) -> None:
    made = await anyio.to_thread.run_sync(_bare, broker)
    settings = ProducerSettings(producer=made, close_timeout=0.05)
    with raising(UndeliveredRecords) as caught:
        async with open_send_producer(settings) as producer:
            await producer.send(record())
            broker.pause()
            producer.enqueue_nowait(record())
    assert caught.value.errors[0].persistence is Persistence.POSSIBLY_PERSISTED
    with pytest.raises(kafka.errors.IllegalStateError):
        made.send("t", b"v")
    await until(lambda: not client_threads())


async def test_the_owner_closes_the_client_during_the_block(broker: EmbeddedBroker) -> None:
    made = await anyio.to_thread.run_sync(_bare, broker)
    async with open_send_producer(with_client(made)) as producer:
        await producer.send(record())
        broker.pause()
        under_way = producer.enqueue_nowait(record())
        await until(lambda: producer.statistics().hand_overs == 2)
        await producer.partitions_for("t")  # the thread has finished with it
        made.flush = nothing
        made.close(0)
        with pytest.raises(DeliveryError, match=r"not acknowledged: .*closed") as caught:
            await under_way.wait()
        assert caught.value.persistence is Persistence.POSSIBLY_PERSISTED
        with pytest.raises(DeliveryError, match="already closed") as caught:
            await producer.send(record())
        assert caught.value.persistence is Persistence.NOT_PERSISTED
        await until(lambda: not any("network" in name for name in client_threads()))
        with pytest.raises(SendProducerError, match="no metadata for topic 'new'"):
            await producer.partitions_for("new")


# --- a client with settings of its own -----------------------------------------------------------


class Exclaiming(Serializer):  # type: ignore[misc]
    def serialize(self, _topic: str, _headers: Any, data: bytes) -> bytes:
        return data + b"!"


class Last(Partitioner):  # type: ignore[misc]
    """Sends everything to partition 3."""

    def partition(self, *_: object) -> int:
        return 3


@pytest.mark.parametrize("acks", [0, 1])
async def test_two_producers_share_a_client_with_its_own_settings(
    broker: EmbeddedBroker, acks: int
) -> None:
    def make() -> Any:
        return BareProducer(
            bootstrap_servers=broker.bootstrap_servers,
            acks=acks,
            enable_idempotence=False,
            partitioner=Last(),
            value_serializer=Exclaiming(),
        )

    made = await anyio.to_thread.run_sync(make)
    texts = ProducerSettings(producer=made, value_serializer=str.encode)
    async with open_send_producer(texts) as one:
        async with open_send_producer(with_client(made)) as other:
            found = [
                await one.send(ProducerRecord("t", "text")),
                await other.send(ProducerRecord("t", b"bytes")),
            ]
        # The producer that left did not close the client.
        found.append(await one.send(ProducerRecord("t", "text", b"key")))
    assert [metadata.partition for metadata in found] == [3, 3, 3]
    assert [metadata.offset for metadata in found] == ([0, 1, 2] if acks else [None] * 3)
    # The output of the settings' serializer is passed to the client's own.
    assert [metadata.serialized_value_size for metadata in found] == [5, 6, 5]


def test_a_producer_on_an_external_client_has_no_transactions() -> None:
    with pytest.raises(
        SettingsError, match="producer: the client has a transactional_id; use a producer_"
    ):
        ExternalClientDriver(with_client(FakeClient(transactional_id="tx")))
    driver: Any = ExternalClientDriver(with_client(FakeClient()))
    for call in (
        driver.begin_transaction,
        lambda: driver.send_offsets([], None, None),
        lambda: driver.end_transaction(True, None),
    ):
        with pytest.raises(TransactionError, match="cannot send in transactions"):
            call()
    assert (driver.last_error(), driver.is_disconnected()) == (None, False)
    driver.close(0)
    driver.close(0)


# --- a factory -----------------------------------------------------------------------------------


class Counting(BareProducer):  # type: ignore[misc]
    """A client with an attribute of its own."""

    sends = 0

    def send(self, *args: Any, **options: Any) -> Any:
        self.sends += 1
        return BareProducer.send(self, *args, **options)


async def test_a_factory_makes_the_client(broker: EmbeddedBroker) -> None:
    made: list[Counting] = []

    def factory(configs: dict[str, Any]) -> Counting:
        assert threading.current_thread().name.startswith("anyio-sendproducer")
        made.append(Counting(**configs))
        return made[-1]

    settings = ProducerSettings(
        bootstrap_servers=broker.bootstrap_servers, client_id="mine"
    ).with_producer_factory(factory)
    before = open_sockets()
    async with open_send_producer(settings) as producer:
        assert (await producer.send(record())).offset == 0
        producer.enqueue_nowait(record())
    assert made[0].config["client_id"] == "mine"
    assert made[0].sends == 2
    assert open_sockets() == before
    with pytest.raises(kafka.errors.IllegalStateError):
        made[0].send("t", b"v")


def gives_nothing(_: dict[str, Any]) -> None:
    return None


def leaves_out(configs: dict[str, Any]) -> Any:
    return BareProducer(bootstrap_servers=configs["bootstrap_servers"])


def raises(_: dict[str, Any]) -> Any:
    raise LookupError("no such plug-in")


def misspells(configs: dict[str, Any]) -> Any:
    return BareProducer(**configs, lingerms=1)


@pytest.mark.parametrize(
    ("factory", "kind", "says"),
    [
        (
            gives_nothing,
            SettingsError,
            "producer_factory must return a KafkaProducer, not NoneType",
        ),
        (leaves_out, SettingsError, "producer_factory must pass on the whole configuration"),
        (raises, ProducerStartError, "no such plug-in"),
        (misspells, SettingsError, "lingerms"),
    ],
)
async def test_a_wrong_factory_fails_the_start(
    broker: EmbeddedBroker, factory: Any, kind: type[SendProducerError], says: str
) -> None:
    settings = ProducerSettings(
        bootstrap_servers=broker.bootstrap_servers, producer_factory=factory
    )
    before = open_sockets()
    with raising(kind, match=says):
        async with open_send_producer(settings):
            pass
    await until(lambda: open_sockets() == before)


async def test_a_start_ends_in_time_while_its_client_is_still_at_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The abandoned thread is not the producer's thread, so the end is immediate."""
    monkeypatch.setattr("anyio_sendproducer._bridge.GRACE_SECONDS", PATIENCE)
    gate = threading.Event()

    def block(_: dict[str, Any]) -> Any:
        gate.wait()

    settings = ProducerSettings(
        bootstrap_servers="127.0.0.1:1", producer_factory=block, start_timeout=0.05
    )
    says = r"no producer for 127\.0\.0\.1:1 within 0\.05 s \(start_timeout\): the client is"
    with raising(ProducerStartError, match=says):
        async with open_send_producer(settings):
            pass
    assert "hangs in the client library" not in caplog.text
    gate.set()
    await until(lambda: not _threads())


async def test_a_start_ends_in_time_while_a_large_answer_is_decoded(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster: Any = importlib.import_module("kafka.cluster").ClusterMetadata
    update, gate = cluster.update_metadata, threading.Event()

    def decode(self: Any, answer: Any) -> Any:
        gate.wait()
        return update(self, answer)

    monkeypatch.setattr(cluster, "update_metadata", decode)
    settings = ProducerSettings(bootstrap_servers=broker.bootstrap_servers, start_timeout=0.5)
    before = open_sockets()
    with raising(ProducerStartError, match=r"within 0\.5 s \(start_timeout\)"):
        async with open_send_producer(settings):
            pass
    gate.set()
    await until(lambda: not _threads() and open_sockets() == before)


@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit])
async def test_any_exception_of_a_factory_fails_the_start(
    kind: type[BaseException],
) -> None:
    def leave(_: dict[str, Any]) -> Any:
        raise kind

    settings = ProducerSettings(bootstrap_servers="127.0.0.1:1", producer_factory=leave)
    with raising(ProducerStartError) as caught:
        async with open_send_producer(settings):
            pass
    assert type(caught.value.__cause__) is kind


def test_a_start_that_is_closed_does_not_wait_for_its_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_kafka_python, "_JOIN_SECONDS", 0.01)
    gate, blocks = threading.Event(), threading.Event()

    def block(_: dict[str, Any]) -> Any:
        blocks.set()
        gate.wait()

    driver = _kafka_python.KafkaPythonDriver(
        ProducerSettings(bootstrap_servers="127.0.0.1:1", producer_factory=block)
    )

    def close() -> None:
        blocks.wait(PATIENCE)
        driver.close(0)

    closing = threading.Thread(target=close)
    closing.start()
    with pytest.raises(ProducerStartError, match="closed while it was starting"):
        driver.open(Recorder())
    closing.join()
    gate.set()
    blocking_until(lambda: not [one for one in threading.enumerate() if "-open" in one.name])


def test_a_start_that_finds_no_thread_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    driver = _kafka_python.KafkaPythonDriver(ProducerSettings(bootstrap_servers="127.0.0.1:1"))
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ProducerStartError, match="can't start new thread"):
        driver.open(Recorder())


def _threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("anyio-sendproducer")]


# --- what is refused -----------------------------------------------------------------------------

FAKE = FakeClient()
BAD: list[tuple[dict[str, Any], str]] = [
    *(
        (
            {"producer": FAKE, field: value},
            f"{field} and producer cannot be combined: the producer is already configured",
        )
        for field, value in (
            ("bootstrap_servers", "a:1"),
            ("service_name", "kafka"),
            ("properties", {"acks": 1}),
            ("enrich", print),
            ("producer_factory", print),
            ("transactional_id", "tx"),
        )
    ),
    (
        {"bootstrap_servers": "a:1", "close_producer_on_exit": "no"},
        "close_producer_on_exit must be True or False, not 'no'",
    ),
]


@pytest.mark.parametrize(
    ("fields", "says"),
    [pytest.param(*case, id=f"{number}-{[*case[0]][-1]}") for number, case in enumerate(BAD)],
)
def test_a_bad_setting_is_refused_by_name(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        ProducerSettings(**fields)
    assert str(caught.value) == says


@pytest.mark.parametrize("driver", ["other", FakeDriver()])
def test_a_driver_and_a_producer_can_not_be_combined(driver: Any) -> None:
    with pytest.raises(SettingsError, match="driver and producer: set only one, because"):
        drivers.make_driver(driver, with_client(FakeClient()))


def test_a_factory_is_shown_by_its_name() -> None:
    settings = ProducerSettings(bootstrap_servers="a:1", producer_factory=raises)
    assert repr(settings).endswith(", producer_factory=raises)")
