"""Spans and metrics, as OpenTelemetry's SDK records them."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import re
import subprocess
import sys
import uuid
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import confluent_kafka
import kafka
import pytest
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, SamplingResult
from opentelemetry.semconv.schemas import Schemas
from opentelemetry.trace import SpanKind, StatusCode

from anyio_sendproducer import (
    DeliveryError,
    Message,
    MultiDeliveryError,
    MultiMessage,
    ProducerClosed,
    ProducerRecord,
    ProducerSettings,
    RecordMetadata,
    RecordRejected,
    SettingsError,
    TransactionError,
    open_send_producer,
)
from anyio_sendproducer.drivers import DriverName
from anyio_sendproducer.telemetry import (
    Accepted,
    Batch,
    BatchEnded,
    Delivered,
    Failed,
    HandedOver,
    OpenTelemetryObserver,
    Refused,
    Withdrawn,
    _otel,
)
from anyio_sendproducer.telemetry._event_batch import Bulk, EventBatch
from anyio_sendproducer.testing import FakeDriver
from tests.support.calls import (
    Call,
    at_gate,
    generation,
    quiet,
    raising,
    record,
    refuse,
    taken,
    task_group,
)
from tests.support.waiting import until


class Telemetry:
    """The real SDK, which keeps all spans and metrics in memory."""

    def __init__(self, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider(shutdown_on_exit=False, **options)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.tracer = self.tracers.get_tracer("the caller's")

    def observer(self, **options: Any) -> OpenTelemetryObserver:
        return OpenTelemetryObserver(
            tracer_provider=self.tracers, meter_provider=self.meters, **options
        )

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans of records and of calls, in the order in which they ended."""
        return [
            span
            for span in self.exporter.get_finished_spans()
            if span.instrumentation_scope is not None
            and span.instrumentation_scope.name == "anyio_sendproducer"
        ]

    def points(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        """The attributes and the value of each point of a metric."""
        data = self.reader.get_metrics_data()
        if data is None:
            return []
        return [
            (dict(point.attributes or {}), getattr(point, "value", point))
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def sums(self, name: str) -> int:
        """The total of a counter."""
        return sum(value for _, value in self.points(name))


@pytest.fixture
def telemetry() -> Iterable[Telemetry]:
    made = Telemetry()
    yield made
    made.tracers.shutdown()
    made.meters.shutdown()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def span_id(span: Any) -> int:
    found: int = span.get_span_context().span_id
    return found


def parent_id(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def trace_id(span: Any) -> int:
    found: int = span.get_span_context().trace_id
    return found


def carried(headers: Sequence[tuple[str, bytes]]) -> trace.SpanContext:
    """The context that a consumer extracts from headers."""
    carrier = {name: content.decode() for name, content in headers}
    extracted = propagate.extract(carrier, context.Context())
    return trace.get_current_span(extracted).get_span_context()


# --- a span for each record ----------------------------------------------------------------------


async def test_a_span_follows_the_conventions(
    settings: ProducerSettings, fake: FakeDriver, telemetry: Telemetry
) -> None:
    observers = [telemetry.observer()]
    settings = settings.with_client_id("shop")
    async with open_send_producer(settings, driver=fake, observers=observers) as producer:
        with telemetry.tracer.start_as_current_span("the caller") as caller:
            await producer.send(ProducerRecord("orders", b"v", b"42", partition=2))
    (span,) = telemetry.spans
    assert span.name == "send orders"
    assert span.kind is SpanKind.PRODUCER
    assert span.status.status_code is StatusCode.UNSET
    assert parent_id(span) == span_id(caller)
    assert trace_id(span) == trace_id(caller)
    assert span.links == ()
    assert attributes(span) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "orders",
        "messaging.destination.partition.id": "2",
        "messaging.client.id": "shop",
        "messaging.kafka.offset": 0,
    }
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.schema_url == _otel.SCHEMA_URL
    (written,) = fake.written["orders", 2]
    found = carried(written.headers)
    assert (found.trace_id, found.span_id) == (trace_id(span), span_id(span))
    assert found.trace_flags.sampled


async def test_without_a_span_of_the_caller_a_span_starts_a_trace(
    settings: ProducerSettings, fake: FakeDriver, telemetry: Telemetry
) -> None:
    async with open_send_producer(
        settings, driver=fake, observers=[telemetry.observer()]
    ) as producer:
        await producer.send(ProducerRecord("t", None, b"key"))
    (span,) = telemetry.spans
    assert span.parent is None
    assert attributes(span)["messaging.kafka.message.tombstone"] is True
    assert attributes(span)["messaging.destination.partition.id"] in {"0", "1", "2", "3"}


@pytest.mark.parametrize("driver", ["kafka-python", "confluent"])
async def test_the_consumer_continues_the_callers_trace(
    shared_broker: str, driver: DriverName, telemetry: Telemetry
) -> None:
    topic = f"topic-{uuid.uuid4().hex}"
    settings = ProducerSettings(bootstrap_servers=shared_broker)
    callers: list[Any] = []
    async with open_send_producer(
        settings, driver=driver, observers=[telemetry.observer()]
    ) as producer:

        async def call(number: int) -> None:
            with telemetry.tracer.start_as_current_span("the caller") as caller:
                callers.append(caller)
                await producer.send(
                    ProducerRecord(topic, b"%d" % number, headers=[("mine", b"kept")])
                )

        async with task_group() as tasks:
            for number in range(10):
                tasks.start_soon(call, number)
    for read in (read_with_librdkafka, read_with_kafka_python):
        records = await anyio.to_thread.run_sync(read, shared_broker, topic, 10)
        assert sorted(value for value, _ in records) == [b"%d" % number for number in range(10)]
        for _, headers in records:
            assert headers[0] == ("mine", b"kept")
            found = propagate.extract({name: content.decode() for name, content in headers})
            with telemetry.tracer.start_as_current_span(
                "the consumer", context=found, kind=SpanKind.CONSUMER
            ) as consumer:
                pass
            (sent,) = [span for span in telemetry.spans if span_id(span) == parent_id(of(consumer))]
            (caller,) = [caller for caller in callers if span_id(caller) == parent_id(sent)]
            assert trace_id(caller) == trace_id(sent) == trace_id(consumer)
    assert len({trace_id(span) for span in telemetry.spans}) == 10
    for span in telemetry.spans:
        assert attributes(span)["messaging.kafka.offset"] in range(10)


def of(span: Any) -> ReadableSpan:
    assert isinstance(span, ReadableSpan)
    return span


Read = tuple[bytes, list[tuple[str, bytes]]]


def read_with_librdkafka(address: str, topic: str, count: int) -> list[Read]:
    consumer: Any = confluent_kafka.Consumer(
        {"bootstrap.servers": address, "group.id": "none", "enable.auto.commit": False}
    )
    found: list[Read] = []
    try:
        consumer.assign([confluent_kafka.TopicPartition(topic, number, 0) for number in range(4)])
        while len(found) < count:
            found += [
                (message.value(), message.headers())
                for message in consumer.consume(count, 0.1)
                if message.error() is None
            ]
    finally:
        consumer.close()
    return found


def read_with_kafka_python(address: str, topic: str, count: int) -> list[Read]:
    library: Any = kafka
    consumer = library.KafkaConsumer(bootstrap_servers=address)
    found: list[Read] = []
    try:
        partitions = [library.TopicPartition(topic, number) for number in range(4)]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        while len(found) < count:
            for records in consumer.poll(100).values():
                found += [(record.value, [*record.headers]) for record in records]
    finally:
        consumer.close()
    return found


# --- how it ends ---------------------------------------------------------------------------------


async def test_a_record_that_fails(
    settings: ProducerSettings, fake: FakeDriver, telemetry: Telemetry
) -> None:
    fake.judge = refuse
    async with open_send_producer(
        settings, driver=fake, observers=[telemetry.observer()]
    ) as producer:
        with raising(DeliveryError):
            await producer.send(record())
    (span,) = telemetry.spans
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "refused"
    assert attributes(span)["error.type"] == "anyio_sendproducer.DeliveryError"
    assert attributes(span)["anyio_sendproducer.persistence"] == "not persisted"
    assert "messaging.kafka.offset" not in attributes(span)


@pytest.mark.parametrize("where", ["queued", "waiting"])
async def test_a_record_whose_caller_is_cancelled(
    settings: ProducerSettings, telemetry: Telemetry, where: str
) -> None:
    fake = FakeDriver(manual=True)
    if where == "waiting":
        settings = settings.with_max_in_flight(1)
    async with open_send_producer(
        settings, driver=fake, observers=[telemetry.observer()]
    ) as producer:
        fake.on_submit.shut()
        async with task_group() as tasks:
            first = Call(tasks, producer.send, record(b"1"))
            await at_gate(fake.on_submit)
            second = Call(tasks, producer.send, record(b"2"))
            await quiet()
            await second.cancel()
            await until(lambda: len(telemetry.spans) == 1)
            fake.on_submit.open()
            await taken(fake, 1)
            fake.acknowledge()
            await first.wait()
    span = telemetry.spans[0]
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description is not None
    assert "withdrawn" in span.status.description
    assert attributes(span)["error.type"] == "cancelled"
    assert len(telemetry.spans) == 2


async def test_a_record_that_is_abandoned(settings: ProducerSettings, telemetry: Telemetry) -> None:
    fake = FakeDriver(manual=True)
    async with (
        open_send_producer(settings, driver=fake, observers=[telemetry.observer()]) as producer,
        task_group() as tasks,
    ):
        calls = [Call(tasks, producer.send, record()) for _ in range(2)]
        await taken(fake, 2)
        for call in calls:
            await call.cancel()
        fake.acknowledge(1)
        fake.fail(refuse)
        await until(lambda: len(telemetry.spans) == 2)
        producer._engine.ledger.take_undelivered()
    well, badly = telemetry.spans
    assert attributes(well)["anyio_sendproducer.abandoned"] is True
    assert well.status.status_code is StatusCode.UNSET
    assert attributes(badly)["anyio_sendproducer.abandoned"] is True
    assert badly.status.status_code is StatusCode.ERROR


async def test_without_an_offset_of_the_broker_the_span_has_none(
    settings: ProducerSettings, telemetry: Telemetry
) -> None:
    class Silent(FakeDriver):
        def _write(self, record: ProducerRecord[Any, Any]) -> Any:
            written: Any = super()._write(record)
            return written._replace(offset=None)

    async with open_send_producer(
        settings, driver=Silent(), observers=[telemetry.observer()]
    ) as producer:
        await producer.send(record())
    assert "messaging.kafka.offset" not in attributes(telemetry.spans[0])


async def test_a_record_that_is_refused_at_once_has_no_span(
    settings: ProducerSettings, fake: FakeDriver, telemetry: Telemetry
) -> None:
    async with open_send_producer(
        settings, driver=fake, observers=[telemetry.observer()]
    ) as producer:
        with raising(RecordRejected):
            await producer.send(ProducerRecord("no such topic", b"v"))
    with raising(ProducerClosed):
        await producer.send(record())
    assert telemetry.spans == []
    assert telemetry.points("anyio_sendproducer.refused.records") == [
        ({"messaging.system": "kafka", "error.type": "anyio_sendproducer.RecordRejected"}, 1)
    ]


async def test_if_its_headers_exceed_the_room_the_span_ends(
    settings: ProducerSettings, telemetry: Telemetry
) -> None:
    fake = FakeDriver(manual=True)
    settings = settings.with_max_buffered_bytes(300)
    async with open_send_producer(
        settings, driver=fake, observers=[telemetry.observer()]
    ) as producer:
        first = producer.enqueue_nowait(record(b"v" * 100))
        room = 300 - producer.statistics().in_flight_bytes
        assert room < 200
        with raising(anyio.WouldBlock):
            producer.enqueue_nowait(record(b"v" * room))
        await taken(fake, 1)
        fake.acknowledge()
        await first.wait()
    assert [attributes(span).get("error.type") for span in telemetry.spans] == [
        "anyio.WouldBlock",
        None,
    ]


# --- contexts ------------------------------------------------------------------------------------


async def test_records_that_another_thread_sends_belong_to_its_span(
    settings: ProducerSettings, fake: FakeDriver, telemetry: Telemetry
) -> None:
    async with open_send_producer(
        settings, driver=fake, observers=[telemetry.observer()]
    ) as producer:

        def work(number: int) -> int:
            with telemetry.tracer.start_as_current_span("on a thread") as caller:
                anyio.from_thread.run(producer.send, record(b"%d" % number))
                return span_id(caller)

        async def on_thread(number: int) -> None:
            callers[number] = await anyio.to_thread.run_sync(work, number)

        callers: dict[int, int] = {}
        async with task_group() as tasks:
            for number in range(5):
                tasks.start_soon(on_thread, number)
    sent = {
        carried(written.headers).span_id: int(written.value) for written in fake.written["t", 0]
    }
    assert len(telemetry.spans) == 5
    for span in telemetry.spans:
        assert parent_id(span) == callers[sent[span_id(span)]]


async def test_tasks_do_not_share_spans(
    settings: ProducerSettings, fake: FakeDriver, telemetry: Telemetry
) -> None:
    parents: dict[bytes, int] = {}
    async with open_send_producer(
        settings, driver=fake, observers=[telemetry.observer()]
    ) as producer:

        async def work(number: int) -> None:
            for turn in range(3):
                with telemetry.tracer.start_as_current_span("a task's") as caller:
                    value = b"%d.%d" % (number, turn)
                    parents[value] = span_id(caller)
                    if turn == 1:
                        delivery = await producer.enqueue(record(value))
                        # The outcome arrives while another span is current.
                        with telemetry.tracer.start_as_current_span("another"):
                            await delivery.wait()
                    else:
                        await producer.send(record(value))

        async with task_group() as tasks:
            for number in range(10):
                tasks.start_soon(work, number)
    by_id = {span_id(span): span for span in telemetry.spans}
    assert len(by_id) == 30
    for written in fake.written["t", 0]:
        span = by_id[carried(written.headers).span_id]
        assert parent_id(span) == parents[written.value]


async def test_a_forwarded_record_keeps_its_context(
    settings: ProducerSettings, fake: FakeDriver, telemetry: Telemetry
) -> None:
    with telemetry.tracer.start_as_current_span("elsewhere") as origin:
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
    headers = [(name, content.encode()) for name, content in carrier.items()]
    passed_on = ProducerRecord("t", b"v", partition=0, headers=headers)
    async with open_send_producer(
        settings, driver=fake, observers=[telemetry.observer()]
    ) as producer:
        await producer.send(passed_on)
        await producer.send_many([passed_on, record()])
    first, second, _ = fake.written["t", 0]
    assert first.headers == second.headers == passed_on.headers
    sent, created, call = telemetry.spans
    assert sent.kind is SpanKind.CLIENT
    assert [link.context for link in sent.links] == [carried(headers)]
    assert carried(headers).span_id == span_id(origin)
    # In a batch the call links to it, and there is no second context of creation.
    assert created.name == "create t"
    assert {link.context.span_id for link in call.links} == {span_id(origin), span_id(created)}


async def test_headers_with_an_invalid_context(
    settings: ProducerSettings, fake: FakeDriver, telemetry: Telemetry
) -> None:
    odd = ProducerRecord("t", b"v", partition=0, headers=[("traceparent", b"\xff")])
    async with open_send_producer(
        settings, driver=fake, observers=[telemetry.observer()]
    ) as producer:
        await producer.send(odd)
    (written,) = fake.written["t", 0]
    assert written.headers == odd.headers
    (span,) = telemetry.spans
    assert span.kind is SpanKind.PRODUCER
    assert span.links == ()


async def test_baggage_is_propagated(
    settings: ProducerSettings, fake: FakeDriver, telemetry: Telemetry
) -> None:
    token = context.attach(baggage.set_baggage("shop", "north"))
    try:
        async with open_send_producer(
            settings, driver=fake, observers=[telemetry.observer()]
        ) as producer:
            await producer.send(record())
    finally:
        context.detach(token)
    (written,) = fake.written["t", 0]
    assert dict(written.headers)["baggage"] == b"shop=north"


async def test_a_custom_propagator(
    settings: ProducerSettings, fake: FakeDriver, telemetry: Telemetry
) -> None:
    class Own(TextMapPropagator):
        @property
        def fields(self) -> set[str]:
            return {"own"}

        def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Any:
            raise AssertionError

        def inject(self, carrier: Any, context: Any = None, setter: Any = None) -> None:
            carrier["own"] = str(trace.get_current_span(context).get_span_context().span_id)

    async with open_send_producer(
        settings, driver=fake, observers=[telemetry.observer(propagator=Own())]
    ) as producer:
        await producer.send(record())
    (written,) = fake.written["t", 0]
    assert written.headers == (("own", str(span_id(telemetry.spans[0])).encode()),)


async def test_a_record_that_is_not_sampled_propagates_its_context(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    telemetry = Telemetry(sampler=ALWAYS_OFF)
    async with open_send_producer(
        settings, driver=fake, observers=[telemetry.observer()]
    ) as producer:
        await producer.send(record())
        await producer.send_many([record()])
    assert telemetry.spans == []
    for written in fake.written["t", 0]:
        found = carried(written.headers)
        assert found.is_valid
        assert not found.trace_flags.sampled
    assert telemetry.sums("messaging.client.sent.messages") == 2


async def test_without_an_sdk_nothing_is_added(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(
        settings,
        driver=fake,
        observers=[
            OpenTelemetryObserver(
                tracer_provider=trace.NoOpTracerProvider(), meter_provider=NoOpMeterProvider()
            )
        ],
    ) as producer:
        await producer.send(record())
    assert fake.written["t", 0] == [record()]


# --- calls with several records ------------------------------------------------------------------


@pytest.mark.parametrize("how", ["send_many", "MultiMessage"])
async def test_a_call_has_a_span_that_links_to_its_records(
    settings: ProducerSettings, fake: FakeDriver, telemetry: Telemetry, how: str
) -> None:
    records = [record(b"%d" % number) for number in range(3)]
    async with open_send_producer(
        settings, driver=fake, observers=[telemetry.observer()]
    ) as producer:
        with telemetry.tracer.start_as_current_span("the caller") as caller:
            if how == "send_many":
                await producer.send_many(records)
            else:
                await producer.send_envelope(MultiMessage(records))
    *created, call = telemetry.spans
    assert (call.name, call.kind) == ("send t", SpanKind.CLIENT)
    assert attributes(call) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "t",
        "messaging.client.id": settings.client_id,
        "messaging.batch.message_count": 3,
    }
    assert [link.context.span_id for link in call.links] == [
        carried(written.headers).span_id for written in fake.written["t", 0]
    ]
    for span in created:
        assert (span.name, span.kind) == ("create t", SpanKind.PRODUCER)
        assert attributes(span)["messaging.operation.type"] == "create"
        assert attributes(span)["messaging.kafka.offset"] in range(3)
        assert "messaging.batch.message_count" not in attributes(span)
    assert {parent_id(span) for span in telemetry.spans} == {span_id(caller)}


async def test_a_call_to_several_topics(
    settings: ProducerSettings, fake: FakeDriver, telemetry: Telemetry
) -> None:
    async with open_send_producer(
        settings, driver=fake, observers=[telemetry.observer()]
    ) as producer:
        await producer.send_many([record(topic="one"), record(topic="other")])
    call = telemetry.spans[-1]
    assert call.name == "send"
    assert "messaging.destination.name" not in attributes(call)


async def test_a_call_with_a_failed_record(
    settings: ProducerSettings, fake: FakeDriver, telemetry: Telemetry
) -> None:
    fake.judge = lambda what: refuse(what) if what.value == b"1" else None
    async with open_send_producer(
        settings, driver=fake, observers=[telemetry.observer()]
    ) as producer:
        with raising(MultiDeliveryError):
            await producer.send_many([record(b"0"), record(b"1")])
    call = telemetry.spans[-1]
    assert call.status.description == "1 of 2 records were not delivered"
    assert attributes(call)["error.type"] == "anyio_sendproducer.MultiDeliveryError"


async def test_a_call_that_is_cancelled(settings: ProducerSettings, telemetry: Telemetry) -> None:
    fake = FakeDriver(manual=True)
    async with (
        open_send_producer(settings, driver=fake, observers=[telemetry.observer()]) as producer,
        task_group() as tasks,
    ):
        call = Call(tasks, producer.send_many, [record(), record()])
        await taken(fake, 2)
        await call.cancel()
        await until(lambda: len(telemetry.spans) == 1)
        fake.acknowledge()
    (span, *others) = telemetry.spans
    assert span.name == "send t"
    assert attributes(span)["error.type"] == "cancelled"
    assert [attributes(other)["anyio_sendproducer.abandoned"] for other in others] == [True, True]


async def test_a_call_that_is_refused_halfway(
    settings: ProducerSettings, telemetry: Telemetry
) -> None:
    fake = FakeDriver(manual=True)
    settings = settings.with_transactional_id("id").with_max_in_flight(1)
    async with (
        open_send_producer(settings, driver=fake, observers=[telemetry.observer()]) as producer,
        task_group() as tasks,
        producer.transaction() as tx,
    ):

        async def end() -> None:
            with raising(TransactionError):
                await tx.send_many([record(b"1"), record(b"2"), record(b"3")])

        call = Call(tasks, end)
        await taken(fake, 1)
        vars(tx._admission)["check_open"] = partial(raise_, TransactionError("it is over"))
        fake.manual = False
        fake.acknowledge()
        await call.wait()
    (span,) = [span for span in telemetry.spans if span.name == "send t"]
    assert attributes(span)["error.type"] == "anyio_sendproducer.TransactionError"
    assert span.status.description == "it is over"


def raise_(error: Exception) -> None:
    raise error


# --- keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        (b"customer-7", "customer-7"),
        ("ключ".encode(), "ключ"),
        (b"\xff\x00", None),
        (b"two\nlines", None),
        (None, None),
    ],
)
async def test_text_keys_are_recorded_on_request(
    settings: ProducerSettings,
    fake: FakeDriver,
    telemetry: Telemetry,
    key: bytes | None,
    shown: str | None,
) -> None:
    async with open_send_producer(
        settings, driver=fake, observers=[telemetry.observer(message_keys=True)]
    ) as producer:
        await producer.send(record(key=key))
    assert attributes(telemetry.spans[0]).get("messaging.kafka.message.key") == shown


async def test_serialized_keys(
    settings: ProducerSettings, fake: FakeDriver, telemetry: Telemetry
) -> None:
    settings = settings.with_key_serializer(lambda key: str(key).encode())
    fake.judge = refuse  # it does not know the sizes
    async with open_send_producer(
        settings, driver=fake, observers=[telemetry.observer(message_keys=True)]
    ) as producer:
        for key in ("text", 7):
            with raising(DeliveryError):
                await producer.send(ProducerRecord("t", b"v", key))
    shown = [attributes(span).get("messaging.kafka.message.key") for span in telemetry.spans]
    assert shown == ["text", None]


# --- metrics -------------------------------------------------------------------------------------


async def test_metrics(settings: ProducerSettings, fake: FakeDriver, telemetry: Telemetry) -> None:
    fake.judge = lambda what: refuse(what) if what.value == b"bad" else None
    async with open_send_producer(
        settings, driver=fake, observers=[telemetry.observer()]
    ) as producer:
        for _ in range(3):
            await producer.send(record(b"good"))
        with raising(DeliveryError):
            await producer.send(record(b"bad"))
        assert telemetry.sums("anyio_sendproducer.generations.open") == 1
    operation = {
        "messaging.system": "kafka",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "t",
    }
    failed = {**operation, "error.type": "anyio_sendproducer.DeliveryError"}
    assert sorted(telemetry.points("messaging.client.sent.messages"), key=str) == sorted(
        [(operation, 3), (failed, 1)], key=str
    )
    durations = telemetry.points("messaging.client.operation.duration")
    assert sorted([(labels, point.count) for labels, point in durations], key=str) == sorted(
        [(operation, 3), (failed, 1)], key=str
    )
    for _, point in durations:
        assert tuple(point.explicit_bounds) == _otel._BUCKETS
    assert telemetry.sums("anyio_sendproducer.in_flight.records") == 0
    assert telemetry.sums("anyio_sendproducer.in_flight.size") == 0
    written = fake.written["t", 0]
    assert telemetry.sums("anyio_sendproducer.delivered.size") == sum(
        len(one.value) + sum(len(name) + len(content) for name, content in one.headers)
        for one in written
    )
    assert telemetry.sums("anyio_sendproducer.generations") == 1
    assert telemetry.sums("anyio_sendproducer.generations.open") == 0


async def test_the_metric_of_records_in_flight(
    settings: ProducerSettings, telemetry: Telemetry
) -> None:
    fake = FakeDriver(manual=True)
    async with open_send_producer(
        settings, driver=fake, observers=[telemetry.observer()]
    ) as producer:
        for _ in range(5):
            producer.enqueue_nowait(record())
        await taken(fake, 5)
        await quiet()
        figures = producer.statistics()
        assert telemetry.sums("anyio_sendproducer.in_flight.records") == 5
        assert telemetry.sums("anyio_sendproducer.in_flight.size") == figures.in_flight_bytes
        fake.break_client()
        await until(generation(producer, 2))
        await quiet()
        assert telemetry.sums("anyio_sendproducer.in_flight.records") == 0
        assert telemetry.sums("anyio_sendproducer.generations") == 2
        assert telemetry.sums("anyio_sendproducer.generations.open") == 1
        producer._engine.ledger.take_undelivered()


async def test_a_record_that_was_never_submitted_is_not_counted_as_sent(
    settings: ProducerSettings, telemetry: Telemetry
) -> None:
    fake = FakeDriver(manual=True)
    fake.on_submit.shut()
    settings = settings.with_close_timeout(0.05)
    observers = [telemetry.observer()]
    async with (
        open_send_producer(settings, driver=fake, observers=observers) as producer,
        task_group() as tasks,
    ):
        first = Call(tasks, producer.send, record(b"1"))
        await at_gate(fake.on_submit)
        second = Call(tasks, producer.send, record(b"2"))
        third = Call(tasks, producer.send, record(b"3"))
        await quiet()
        await third.cancel()
        await producer.aclose()
        await first.wait()
        await second.wait()
    assert telemetry.sums("messaging.client.sent.messages") == 1
    durations = telemetry.points("messaging.client.operation.duration")
    assert sum(point.count for _, point in durations) == 2
    assert telemetry.sums("anyio_sendproducer.withdrawn.records") == 1
    assert telemetry.sums("anyio_sendproducer.in_flight.records") == 0


async def test_a_duration_has_its_span_as_an_exemplar(
    settings: ProducerSettings, fake: FakeDriver, telemetry: Telemetry
) -> None:
    async with open_send_producer(
        settings, driver=fake, observers=[telemetry.observer()]
    ) as producer:
        await producer.send(record())
    ((_, point),) = telemetry.points("messaging.client.operation.duration")
    (exemplar,) = point.exemplars
    assert exemplar.span_id == span_id(telemetry.spans[0])


# --- one without the other -----------------------------------------------------------------------


def metrics_of(telemetry: Telemetry) -> dict[str, Any]:
    """All metrics, with their points as values that can be compared."""
    data = telemetry.reader.get_metrics_data()
    assert data is not None
    found: dict[str, Any] = {}
    for resource in data.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                points = [
                    (
                        sorted((point.attributes or {}).items()),
                        getattr(point, "value", None),
                        getattr(point, "count", None),
                        getattr(point, "sum", None),
                        tuple(getattr(point, "bucket_counts", ())),
                    )
                    for point in metric.data.data_points
                ]
                found[metric.name] = (metric.unit, type(metric.data), sorted(points, key=str))
    return found


async def test_metrics_without_spans_are_the_same(
    settings: ProducerSettings, telemetry: Telemetry
) -> None:
    alone = Telemetry()
    observers = [telemetry.observer(), alone.observer(traces=False)]
    fake = FakeDriver(manual=True)
    settings = settings.with_max_in_flight(5)
    fake.on_submit.shut()
    async with (
        open_send_producer(settings, driver=fake, observers=observers) as producer,
        task_group() as tasks,
    ):
        with raising(RecordRejected):
            await producer.send(ProducerRecord("no such topic", b"v"))
        first = Call(tasks, producer.send, record())
        await at_gate(fake.on_submit)
        others = [Call(tasks, producer.send, record(topic="other")) for _ in range(4)]
        await quiet()
        waiting = Call(tasks, producer.send, record())
        await quiet()
        for call in (others.pop(), waiting):
            await call.cancel()
        fake.on_submit.open()
        await taken(fake, 4)
        fake.acknowledge(2)
        fake.fail(refuse)
        for call in (first, *others):
            await call.wait()
        fake.manual = False
        await producer.send_many([record(b"v" * 100)] * 10)
    assert len(telemetry.spans) == 17
    assert alone.spans == []
    metrics = metrics_of(telemetry)
    assert len(metrics) == 9
    assert metrics_of(alone) == metrics
    alone.tracers.shutdown()
    alone.meters.shutdown()


async def test_metrics_without_spans_add_no_headers(
    settings: ProducerSettings, fake: FakeDriver, telemetry: Telemetry
) -> None:
    observer = telemetry.observer(traces=False)
    with telemetry.tracer.start_as_current_span("the opener's"):
        async with open_send_producer(settings, driver=fake, observers=[observer]) as producer:
            with telemetry.tracer.start_as_current_span("the caller"):
                await producer.send(record())
    assert fake.written["t", 0] == [record()]
    assert telemetry.spans == []
    ((_, point),) = telemetry.points("messaging.client.operation.duration")
    # None of the spans is the record's: that of the opener is current in the producer's tasks.
    assert not point.exemplars


async def test_spans_without_metrics(
    settings: ProducerSettings, fake: FakeDriver, telemetry: Telemetry
) -> None:
    observer = telemetry.observer(metrics=False)
    async with open_send_producer(settings, driver=fake, observers=[observer]) as producer:
        await producer.send(record())
        await producer.send_many([record()])
    assert [span.name for span in telemetry.spans] == ["send t", "create t", "send t"]
    assert [carried(written.headers).span_id for written in fake.written["t", 0]] == [
        span_id(span) for span in telemetry.spans[:2]
    ]
    assert telemetry.reader.get_metrics_data() is None


def test_without_spans_and_metrics_it_raises(telemetry: Telemetry) -> None:
    with pytest.raises(SettingsError, match="must not both be False"):
        telemetry.observer(traces=False, metrics=False)


class Counting(Sampler):
    """Drops all spans, and keeps the attributes that it gets."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def should_sample(self, *arguments: Any, **_: Any) -> SamplingResult:
        _context, _trace_id, _name, _kind, attributes, *_others = arguments
        self.asked.append(attributes)
        return SamplingResult(Decision.DROP)

    def get_description(self) -> str:
        return "drops all"


async def test_spans_that_are_not_recorded_get_no_attributes(
    settings: ProducerSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for method in ("set_attribute", "set_attributes", "set_status", "add_link", "end"):
        monkeypatch.setattr(trace.NonRecordingSpan, method, None)
    counting = Counting()
    telemetry = Telemetry(sampler=counting)
    observer = telemetry.observer()
    fake = FakeDriver(manual=True)
    async with (
        open_send_producer(settings, driver=fake, observers=[observer]) as producer,
        task_group() as tasks,
    ):
        calls = [Call(tasks, producer.send, record(b"%d" % number)) for number in range(2)]
        await taken(fake, 2)
        assert observer._spans == {}
        fake.acknowledge(1)
        fake.fail(refuse)
        for call in calls:
            await call.wait()
        fake.manual = False
        await producer.send_many([record(), record()])
    assert caplog.records == []
    assert observer._batches == {}
    sent, again, call_of_both, created, created_again = counting.asked
    # The sampler gets them. They are created once for all equal records.
    assert sent is again
    assert created is created_again
    assert sent["messaging.operation.name"] == "send"
    assert created["messaging.operation.name"] == "create"
    assert call_of_both["messaging.batch.message_count"] == 2
    with pytest.raises(TypeError):
        sent["messaging.operation.name"] = "other"
    telemetry.tracers.shutdown()
    telemetry.meters.shutdown()


async def test_attributes_at_the_start_distinguish_records(
    settings: ProducerSettings, telemetry: Telemetry
) -> None:
    fake = FakeDriver()
    observer = telemetry.observer(message_keys=True)
    records: list[ProducerRecord[bytes | None, bytes | None]] = [
        ProducerRecord("one", b"v", b"k", partition=0),
        ProducerRecord("one", None, b"k", partition=0),
        ProducerRecord("one", b"v", b"other", partition=1),
        ProducerRecord("two", b"v", None, partition=1),
    ]
    async with open_send_producer(settings, driver=fake, observers=[observer]) as producer:
        for sent in records:
            await producer.send(sent)
    for sent, span in zip(records, telemetry.spans, strict=True):
        found = attributes(span)
        assert found["messaging.destination.name"] == sent.topic
        assert found["messaging.destination.partition.id"] == str(sent.partition)
        assert found.get("messaging.kafka.message.tombstone", False) is (sent.value is None)
        key = None if sent.key is None else sent.key.decode()
        assert found.get("messaging.kafka.message.key") == key


# --- the SDK, and who has none -------------------------------------------------------------------


async def test_a_processor_that_raises_keeps_no_span_from_ending(
    settings: ProducerSettings,
    fake: FakeDriver,
    telemetry: Telemetry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Faulty(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            raise ValueError("of the processor")

    # It runs after the exporting processor.
    telemetry.tracers.add_span_processor(Faulty())
    observer = telemetry.observer()
    async with open_send_producer(settings, driver=fake, observers=[observer]) as producer:
        await producer.send_many([record()] * 10)
    assert producer.statistics().delivered == 10
    assert len(telemetry.spans) == 11
    assert observer._spans == {}
    assert observer._batches == {}
    assert [line.name for line in caplog.records] == ["anyio_sendproducer.telemetry"]


async def test_an_instrument_that_raises_keeps_no_span_from_ending(
    settings: ProducerSettings,
    fake: FakeDriver,
    telemetry: Telemetry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    observer = telemetry.observer()
    monkeypatch.setattr(observer._metrics, "observe", None)
    async with open_send_producer(settings, driver=fake, observers=[observer]) as producer:
        await producer.send(record())
    assert len(telemetry.spans) == 1
    assert [line.name for line in caplog.records] == ["anyio_sendproducer.telemetry"]


class FaultyInstrument:
    """An instrument of a provider that raises."""

    def add(self, *_: object) -> None:
        raise ValueError("no disk")

    record = add


@pytest.mark.parametrize("broken", ["_duration", "_sent_size"])
def test_an_instrument_that_raises_spares_the_others(
    broken: str, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer = telemetry.observer()
    monkeypatch.setattr(observer._metrics, broken, FaultyInstrument())
    sent, metadata = record(), RecordMetadata("t", 0, 0, 0, 0, 1)
    observer.observe([Accepted(number, sent, 0.0, 5) for number in range(3)])
    with pytest.raises(ValueError, match="no disk"):
        observer.observe(
            [
                Failed(0, sent, 0.0, 0.5, refuse(sent), handed_over=True, abandoned=False),
                Delivered(1, sent, 0.0, 0.5, 5, metadata, abandoned=False),
                Delivered(2, sent, 0.0, 0.5, 5, metadata, abandoned=False),
            ]
        )
    assert telemetry.sums("anyio_sendproducer.in_flight.records") == 0
    assert telemetry.sums("anyio_sendproducer.in_flight.size") == 0
    assert telemetry.sums("messaging.client.sent.messages") == 3
    observer.observe([Accepted(3, sent, 0.0, 5)])  # the error was raised once
    assert telemetry.sums("anyio_sendproducer.in_flight.records") == 1


def test_a_record_accepted_without_the_observer_has_no_span(telemetry: Telemetry) -> None:
    sent = record()
    error = refuse(sent)
    telemetry.observer().observe(
        [
            Delivered(1, sent, 0.0, 0.5, 1, RecordMetadata("t", 0, 0, 0, 0, 1), abandoned=False),
            Failed(2, sent, 0.0, 0.5, error, handed_over=False, abandoned=False),
            Withdrawn(3, sent, 0.0, 0.5),
            Refused(4, sent, 0.0, 0.5, error),
            BatchEnded(Batch(5, 1, "t"), 0.0, 0, None, cancelled=False),
        ]
    )
    assert telemetry.spans == []
    assert telemetry.sums("messaging.client.sent.messages") == 1


def test_metrics_of_events_that_are_not_created(telemetry: Telemetry) -> None:
    sent = record()
    metadata = RecordMetadata("t", 0, 0, 0, 0, 1)
    facts = range(3)
    accepted = Bulk(Accepted, facts, partial(map, lambda n: (n, sent, 0.0, 5)), Accepted)
    handed_over = Bulk(HandedOver, facts, partial(map, lambda n: (n, sent, 0.0)), HandedOver)
    delivered = Bulk(
        Delivered,
        facts,
        partial(map, lambda n: (n, sent, 0.0, 0.5, 7, metadata, False)),
        Delivered,
    )
    batch = EventBatch([accepted, handed_over, delivered])
    alone = Telemetry()
    telemetry.observer(traces=False).observe(batch)
    alone.observer(traces=False).observe(tuple(batch))
    assert telemetry.sums("messaging.client.sent.messages") == 3
    assert telemetry.sums("anyio_sendproducer.delivered.size") == 21
    assert metrics_of(telemetry) == metrics_of(alone)
    alone.tracers.shutdown()
    alone.meters.shutdown()


async def test_one_observer_for_several_producers(
    settings: ProducerSettings, telemetry: Telemetry
) -> None:
    observers = [telemetry.observer()]
    first, second = FakeDriver(), FakeDriver()
    async with (
        open_send_producer(settings, driver=first, observers=observers) as one,
        open_send_producer(settings, driver=second, observers=observers) as other,
        task_group() as tasks,
    ):
        for producer in (one, other):
            for _ in range(10):
                tasks.start_soon(producer.send, record())
    assert len(telemetry.spans) == 20
    sent = [*first.written["t", 0], *second.written["t", 0]]
    assert {carried(written.headers).span_id for written in sent} == {
        span_id(span) for span in telemetry.spans
    }


async def test_the_global_providers_are_the_default(
    settings: ProducerSettings, fake: FakeDriver
) -> None:
    async with open_send_producer(
        settings, driver=fake, observers=[OpenTelemetryObserver()]
    ) as producer:
        await producer.send_envelope(Message(record()))
    # No SDK is set up in this process.
    assert fake.written["t", 0] == [record()]


def test_without_opentelemetry_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(SettingsError, match=r'pip install "\.\[otel\]"'):
        OpenTelemetryObserver()


def test_the_package_need_not_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files may be in another program's archive, without the metadata of a distribution."""
    version = importlib.metadata.version

    def not_installed(name: str) -> str:
        if name == "anyio-sendproducer":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", not_installed)
    assert OpenTelemetryObserver().injects


def test_the_names_agree_with_the_conventions() -> None:
    names: set[str] = set()
    for name in ("attributes.messaging_attributes", "metrics.messaging_metrics"):
        module = importlib.import_module(f"opentelemetry.semconv._incubating.{name}")
        names |= {value for value in vars(module).values() if type(value) is str}
    used = set(re.findall(r'"(messaging\.[a-z_.]+)"', inspect.getsource(_otel)))
    metrics = {"messaging.client.sent.messages", "messaging.client.operation.duration"}
    assert used > metrics
    assert used <= names
    assert _otel.SCHEMA_URL in {schema.value for schema in Schemas}


def test_importing_the_package_does_not_import_opentelemetry() -> None:
    script = (
        "import sys, anyio_sendproducer.telemetry as telemetry\n"
        "assert telemetry.OpenTelemetryObserver\n"
        "print('opentelemetry' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "False"
