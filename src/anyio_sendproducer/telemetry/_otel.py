"""Events as OpenTelemetry's spans and metrics, by its semantic conventions for messaging.

The names are those of version 1.44.0 of the conventions, the newest that OpenTelemetry's packages
for Python have; they are still in development. They are written out here, since those packages keep
them in a module that may change with every release. All that is made names its schema, by which a
collector translates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from .._exceptions import SettingsError
from .._records import ProducerRecord
from ._events import (
    Accepted,
    Batch,
    BatchEnded,
    Delivered,
    Event,
    Failed,
    GenerationEnded,
    GenerationOpened,
    Given,
    Refused,
    Withdrawn,
)
from ._logging import describe, error_type

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.propagators.textmap import TextMapPropagator
    from opentelemetry.trace import Span, SpanContext, TracerProvider

__all__ = ["SCHEMA_URL", "OpenTelemetryObserver"]

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"

#: The conventions' buckets for durations in seconds.
_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)

_NAME: Final = __name__.partition(".")[0]

#: What becomes of a caller that was cancelled, as an ``error.type``.
_CANCELLED: Final = "cancelled"

_ABANDONED: Final = {"anyio_sendproducer.abandoned": True}

_END_WITHDRAWN: Final = (
    "withdrawn: its caller was cancelled before the client had it; it is never written"
)
_END_REFUSED: Final = "withdrawn: its caller was cancelled while it waited for room; not sent"
_END_BATCH: Final = "the caller was cancelled"


class OpenTelemetryObserver:
    """An :class:`Injector` that makes spans and metrics of what becomes of records. It needs the
    extra ``otel``, and what exports them: OpenTelemetry's SDK, say.

    Each record has a span, whose parent is the span that is current where the record is given, and
    whose context goes into the record's headers, so that its consumer can go on with the trace. The
    span ends with the record's outcome. Records of one ``send_many`` or ``MultiMessage`` have a
    span for their call as well, which links to theirs. Where a record has a trace context in its
    headers already, as one that is passed on, its headers stay as they are, and the span links to
    that.

    The reference has the names of all spans, attributes and metrics. One observer may serve any
    number of producers.

    Args:
        tracer_provider: makes the spans; None: the global one.
        meter_provider: makes the metrics; None: the global one.
        propagator: writes a context into headers; None: the global one, which writes
            ``traceparent``, ``tracestate`` and ``baggage``.
        message_keys: whether spans have the keys of records that are text. Keys often are what
            persons are known by, so it is for you to say that these may leave.

    Raises:
        SettingsError: OpenTelemetry is not installed.
    """

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        propagator: TextMapPropagator | None = None,
        message_keys: bool = False,
    ) -> None:
        try:
            from opentelemetry import metrics, propagate, trace
            from opentelemetry.context import Context
        except ImportError as error:
            raise SettingsError(
                "OpenTelemetryObserver needs OpenTelemetry: pip install 'anyio-sendproducer[otel]'"
            ) from error
        # It brings the parser of e-mail along.
        import importlib.metadata

        version = importlib.metadata.version("anyio-sendproducer")
        self._trace = trace
        self._tracer = trace.get_tracer(_NAME, version, tracer_provider, SCHEMA_URL)
        self._nowhere = Context()
        # Any: pyright and OpenTelemetry's own types do not agree on what a carrier is.
        self._propagator: Callable[[], Any] = (
            propagate.get_global_textmap if propagator is None else lambda: propagator
        )
        self._message_keys = message_keys
        meter = metrics.get_meter(_NAME, version, meter_provider, SCHEMA_URL)
        self._metrics = _Metrics(meter)
        #: By the numbers of records and of batches.
        self._spans: dict[int, Span] = {}
        self._batches: dict[int, Span] = {}
        self._handlers: dict[type, Callable[[Any], None]] = {
            Delivered: self._delivered,
            Failed: self._failed,
            Withdrawn: self._withdrawn,
            Refused: self._refused,
            BatchEnded: self._batch_ended,
        }

    # --- where a record is given -------------------------------------------------------------

    def inject(self, given: Given, /) -> Iterable[tuple[str, bytes]]:
        """Begin the record's span, and give it to whoever reads the record."""
        record, batch = given.record, given.batch
        propagator = self._propagator()
        carried = _carried(record, propagator.fields)
        creation = self._creation_context(carried, propagator)
        call = None if batch is None else self._call(batch, given.client_id)
        if creation is not None and call is not None:
            # The conventions have no second context of creation for it.
            call.add_link(creation)
            return ()
        operation = "send" if batch is None else "create"
        kind, links = self._trace.SpanKind.PRODUCER, []
        if creation is not None:
            kind, links = self._trace.SpanKind.CLIENT, [self._trace.Link(creation)]
        span = self._tracer.start_span(
            f"{operation} {record.topic}",
            kind=kind,
            attributes=self._attributes(given, operation),
            links=links,
        )
        self._spans[given.number] = span
        if call is not None:
            call.add_link(span.get_span_context())
        if creation is not None:
            return ()
        written: dict[str, str] = {}
        propagator.inject(written, self._trace.set_span_in_context(span))
        return [
            (name, content.encode()) for name, content in written.items() if name not in carried
        ]

    def _creation_context(self, carried: Mapping[str, str], propagator: Any) -> SpanContext | None:
        """That of which the record's headers tell already."""
        if not carried:
            return None
        context: Context = propagator.extract(carried, self._nowhere)
        found = self._trace.get_current_span(context).get_span_context()
        return found if found.is_valid else None

    def _call(self, batch: Batch, client_id: str) -> Span:
        """The span of a call that sends several records; it begins with the first of them."""
        span = self._batches.get(batch.number)
        if span is None:
            attributes: dict[str, str | int] = {
                "messaging.system": "kafka",
                "messaging.operation.name": "send",
                "messaging.operation.type": "send",
                "messaging.client.id": client_id,
                "messaging.batch.message_count": batch.count,
            }
            name = "send"
            if batch.topic is not None:
                attributes["messaging.destination.name"] = batch.topic
                name = f"send {batch.topic}"
            # Its own context goes into no record, so it is no PRODUCER.
            span = self._tracer.start_span(
                name, kind=self._trace.SpanKind.CLIENT, attributes=attributes
            )
            self._batches[batch.number] = span
        return span

    def _attributes(self, given: Given, operation: str) -> dict[str, str | bool]:
        """What is known before anything has happened, so that samplers can decide by it."""
        record = given.record
        attributes: dict[str, str | bool] = {
            "messaging.system": "kafka",
            "messaging.operation.name": operation,
            "messaging.operation.type": operation,
            "messaging.destination.name": record.topic,
            "messaging.client.id": given.client_id,
        }
        if record.partition is not None:
            attributes["messaging.destination.partition.id"] = str(record.partition)
        if record.value is None:
            attributes["messaging.kafka.message.tombstone"] = True
        if self._message_keys:
            key = _text(record.key)
            if key is not None:
                attributes["messaging.kafka.message.key"] = key
        return attributes

    # --- what became of it -------------------------------------------------------------------

    def observe(self, events: Sequence[Event], /) -> None:
        """End spans, and count."""
        failure: Exception | None = None
        try:
            # Before the spans end: a duration that is measured has its span for an example.
            self._metrics.observe(events, self._context)
        except Exception as error:  # noqa: BLE001  # the spans are to end all the same
            failure = error
        for event in events:
            handler = self._handlers.get(type(event))
            if handler is not None:
                try:
                    handler(event)
                except Exception as error:  # noqa: BLE001  # and so are the others
                    failure = failure or error
        if failure is not None:
            raise failure

    def _context(self, number: int) -> Context | None:
        span = self._spans.get(number)
        return None if span is None else self._trace.set_span_in_context(span, self._nowhere)

    def _delivered(self, event: Delivered) -> None:
        span = self._spans.pop(event.number, None)
        if span is not None:
            metadata = event.metadata
            span.set_attribute("messaging.destination.partition.id", str(metadata.partition))
            if metadata.offset is not None:
                span.set_attribute("messaging.kafka.offset", metadata.offset)
            if event.abandoned:
                span.set_attributes(_ABANDONED)
            span.end()

    def _failed(self, event: Failed) -> None:
        span = self._spans.pop(event.number, None)
        if span is not None:
            error = event.error
            span.set_attribute("anyio_sendproducer.persistence", error.persistence.value)
            if event.abandoned:
                span.set_attributes(_ABANDONED)
            self._end_badly(span, error_type(error), describe(error))

    def _withdrawn(self, event: Withdrawn) -> None:
        span = self._spans.pop(event.number, None)
        if span is not None:
            self._end_badly(span, _CANCELLED, _END_WITHDRAWN)

    def _refused(self, event: Refused) -> None:
        span = self._spans.pop(event.number, None)
        if span is not None:
            if event.error is None:
                self._end_badly(span, _CANCELLED, _END_REFUSED)
            else:
                self._end_badly(span, error_type(event.error), describe(event.error))

    def _batch_ended(self, event: BatchEnded) -> None:
        span = self._batches.pop(event.batch.number, None)
        if span is None:
            return
        if event.cancelled:
            self._end_badly(span, _CANCELLED, _END_BATCH)
        elif event.error is not None:
            self._end_badly(span, error_type(event.error), describe(event.error))
        elif event.failed:
            said = f"{event.failed} of {event.batch.count} records were not delivered"
            self._end_badly(span, f"{_NAME}.MultiDeliveryError", said)
        else:
            span.end()

    def _end_badly(self, span: Span, kind: str, said: str) -> None:
        span.set_attribute("error.type", kind)
        span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, said))
        span.end()


class _Metrics:
    """The instruments, each of which is moved once a batch where it can be."""

    def __init__(self, meter: Any) -> None:
        self._sent = meter.create_counter(
            "messaging.client.sent.messages",
            "{message}",
            "Records that were handed to the client, by what became of them",
        )
        self._duration = meter.create_histogram(
            "messaging.client.operation.duration",
            "s",
            "From the call that sends a record to its outcome",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )
        self._in_flight = meter.create_up_down_counter(
            f"{_NAME}.in_flight.records", "{record}", "Accepted records without an outcome"
        )
        self._in_flight_size = meter.create_up_down_counter(
            f"{_NAME}.in_flight.size", "By", "The keys, values and headers of these"
        )
        self._sent_size = meter.create_counter(
            f"{_NAME}.delivered.size", "By", "Keys, values and headers of delivered records"
        )
        self._withdrawn = meter.create_counter(
            f"{_NAME}.withdrawn.records",
            "{record}",
            "Records whose caller was cancelled before the client had them",
        )
        self._refused = meter.create_counter(
            f"{_NAME}.refused.records", "{record}", "Records that were not accepted"
        )
        self._opened = meter.create_counter(
            f"{_NAME}.generations", "{client}", "Clients that were opened"
        )
        self._open = meter.create_up_down_counter(
            f"{_NAME}.generations.open", "{client}", "Clients that are open"
        )
        #: How large records were when they were accepted, by their numbers.
        self._sizes: dict[int, int] = {}

    def observe(self, events: Sequence[Event], context: Callable[[int], Context | None]) -> None:
        """Take the events into account.

        Args:
            events: what happened.
            context: that of a record's span, by the record's number.
        """
        sizes = self._sizes
        # By the instrument, the topic and the kind of error.
        sums: Counter[tuple[Any, str, str]] = Counter()
        for event in events:
            if isinstance(event, Accepted):
                topic = event.record.topic
                sizes[event.number] = event.size
                sums[self._in_flight, topic, ""] += 1
                sums[self._in_flight_size, topic, ""] += event.size
            elif isinstance(event, (Delivered, Failed, Withdrawn)):
                topic = event.record.topic
                sums[self._in_flight, topic, ""] -= 1
                sums[self._in_flight_size, topic, ""] -= sizes.pop(event.number, 0)
                if isinstance(event, Withdrawn):
                    sums[self._withdrawn, topic, ""] += 1
                    continue
                kind = ""
                if isinstance(event, Delivered):
                    sums[self._sent_size, topic, ""] += event.size
                else:
                    kind = error_type(event.error)
                if isinstance(event, Delivered) or event.handed_over:
                    sums[self._sent, topic, kind] += 1
                self._duration.record(
                    event.duration, _operation(topic, kind), context(event.number)
                )
            elif isinstance(event, Refused):
                kind = _CANCELLED if event.error is None else error_type(event.error)
                # Not the topic: it may be what is wrong, and anything at all.
                sums[self._refused, "", kind] += 1
            elif isinstance(event, GenerationOpened):
                sums[self._opened, "", ""] += 1
                sums[self._open, "", ""] += 1
            elif isinstance(event, GenerationEnded):
                sums[self._open, "", ""] -= 1
        for (instrument, topic, kind), amount in sums.items():
            if not amount:
                continue
            if instrument is self._sent:
                instrument.add(amount, _operation(topic, kind))
            else:
                instrument.add(amount, _labels(topic, kind))


def _labels(topic: str, kind: str) -> dict[str, str]:
    labels = {"messaging.system": "kafka"}
    if topic:
        labels["messaging.destination.name"] = topic
    if kind:
        labels["error.type"] = kind
    return labels


def _operation(topic: str, kind: str) -> dict[str, str]:
    return {
        **_labels(topic, kind),
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
    }


def _carried(record: ProducerRecord[Any, Any], fields: Iterable[str]) -> dict[str, str]:
    """The headers of a record that are a propagator's."""
    if not record.headers:
        return {}
    return {
        name: content.decode("utf-8", "replace")
        for name, content in record.headers
        if name in fields
    }


def _text(key: object) -> str | None:
    """A key as text, where it is some; None where it has no text of its own."""
    if isinstance(key, bytes):
        try:
            key = key.decode()
        except UnicodeDecodeError:
            return None
    if isinstance(key, str) and key.isprintable():
        return key
    return None
