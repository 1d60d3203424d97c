"""An observer that makes OpenTelemetry's spans and metrics, by its conventions for messaging.

The names come from version 1.44.0 of the semantic conventions, the newest version that
OpenTelemetry's packages for Python support. The conventions are still in development. The names are
constants here, because those packages have them in a module that may change with every release.
Spans and metrics have the URL of their schema, so that a collector can translate them.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from .._exceptions import SettingsError
from .._records import ProducerRecord
from ._event_batch import Bulk, EventBatch
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

#: The ``error.type`` of a call that was cancelled.
_CANCELLED: Final = "cancelled"

#: The events that end spans, and those that the metrics count.
_TRACED: Final[frozenset[type[Event]]] = frozenset(
    {Delivered, Failed, Withdrawn, Refused, BatchEnded}
)
_MEASURED: Final[frozenset[type[Event]]] = frozenset(
    {Accepted, Delivered, Failed, Withdrawn, Refused, GenerationOpened, GenerationEnded}
)
_NONE: Final[frozenset[type[Event]]] = frozenset()

#: How many different sets of attributes are kept for later records and batches of events.
_KEPT_ATTRIBUTES: Final = 1024

_ABANDONED: Final = {"anyio_sendproducer.abandoned": True}

_END_WITHDRAWN: Final = (
    "withdrawn: the caller was cancelled before the client had the record, which is never written"
)
_END_REFUSED: Final = "withdrawn: the caller was cancelled while the record waited for room"
_END_BATCH: Final = "the caller was cancelled"


class OpenTelemetryObserver:
    """An :class:`Injector` that creates spans and metrics for records.

    The observer needs the extra ``otel``, and a package that exports spans and metrics, such as
    OpenTelemetry's SDK.

    A record usually has a span, whose parent is the current span of the caller. The observer adds
    the context of the span to the record's headers, so that a consumer can continue the trace. The
    span ends with the record's outcome. A call of ``send_many``, or of ``send_envelope`` with a
    ``MultiMessage``, also has a span, which links to the spans of the records.

    The headers of a record may already contain a trace context, for example because the record is
    forwarded. The observer then does not change the headers, and the record's span links to that
    context. In a call with several records, such a record has no span: the span of the call links
    to that context instead.

    The page "Telemetry" of the documentation lists all spans, attributes and metrics. One observer
    may be used for any number of producers.

    With ``traces=False``, the observer creates only metrics, adds no headers, and needs about a
    fifth of the CPU time that spans need.

    Args:
        tracer_provider: creates the spans. None stands for the global provider.
        meter_provider: creates the metrics. None stands for the global provider.
        propagator: writes trace contexts to headers, and reads trace contexts from headers. None
            stands for the global propagator, which by default writes ``traceparent``,
            ``tracestate`` and ``baggage``.
        message_keys: whether spans contain the keys of records, if the keys are text. The default
            is False, because keys often identify people.
        traces: whether to create spans and add headers.
        metrics: whether to create metrics.

    Raises:
        SettingsError: OpenTelemetry is not installed, or ``traces`` and ``metrics`` are both False.
    """

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        propagator: TextMapPropagator | None = None,
        message_keys: bool = False,
        traces: bool = True,
        metrics: bool = True,
    ) -> None:
        if not traces and not metrics:
            raise SettingsError("OpenTelemetryObserver: traces and metrics must not both be False")
        try:
            from opentelemetry import metrics as metrics_api
            from opentelemetry import propagate, trace
            from opentelemetry.context import Context
        except ImportError as error:
            raise SettingsError(
                'OpenTelemetryObserver needs OpenTelemetry: pip install ".[otel]" in a checkout of '
                "anyio-sendproducer"
            ) from error
        # Not at the top: importlib.metadata imports the parser of e-mail, which takes time.
        import importlib.metadata

        version = ""
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # not installed by pip
            version = importlib.metadata.version("anyio-sendproducer")
        self._trace = trace
        self._tracer = trace.get_tracer(_NAME, version, tracer_provider, SCHEMA_URL)
        #: Whether the observer adds headers; see :class:`Injector`.
        self.injects: Final = traces
        #: The events that the observer wants; see :class:`Observer`.
        self.event_types: Final = (_TRACED if traces else _NONE) | (_MEASURED if metrics else _NONE)
        self._nowhere = Context()
        # A context for durations without a span. The SDK replaces an empty context by the current
        # one. That would be the context of the task that opened the producer, and not the caller's.
        self._no_span = trace.set_span_in_context(trace.INVALID_SPAN, self._nowhere)
        # Any, because pyright does not accept a dict as the carrier of a TextMapPropagator.
        self._propagator: Callable[[], Any] = (
            propagate.get_global_textmap if propagator is None else lambda: propagator
        )
        self._message_keys = message_keys
        self._metrics: _Metrics | None = None
        if metrics:
            meter = metrics_api.get_meter(_NAME, version, meter_provider, SCHEMA_URL)
            self._metrics = _Metrics(meter)
        #: The open spans, by the numbers of records and of calls. A record's span is not among them
        #: if it is not sampled.
        self._spans: dict[int, Span] = {}
        self._batches: dict[int, Span] = {}
        self._handlers: dict[type, Callable[[Any], None]] = {
            Delivered: self._delivered,
            Failed: self._failed,
            Withdrawn: self._withdrawn,
            Refused: self._refused,
            BatchEnded: self._batch_ended,
        }

    # --- on the caller's task ----------------------------------------------------------------

    def inject(self, given: Given, /) -> Iterable[tuple[str, bytes]]:
        """Start the record's span, and return headers with its context; none if the record's
        headers already have a context."""
        record, batch = given.record, given.batch
        propagator = self._propagator()
        carried = _carried(record, propagator.fields)
        creation = self._creation_context(carried, propagator)
        call = None if batch is None else self._call(batch, given.client_id)
        if creation is not None and call is not None:
            # The conventions allow one creation context for a message, and the record has one.
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
        if span.is_recording():
            self._spans[given.number] = span
        if call is not None and call.is_recording():
            call.add_link(span.get_span_context())
        if creation is not None:
            return ()
        written: dict[str, str] = {}
        propagator.inject(written, self._trace.set_span_in_context(span))
        return [
            (name, content.encode()) for name, content in written.items() if name not in carried
        ]

    def _creation_context(self, carried: Mapping[str, str], propagator: Any) -> SpanContext | None:
        """Return the trace context in the record's headers, if any."""
        if not carried:
            return None
        context: Context = propagator.extract(carried, self._nowhere)
        found = self._trace.get_current_span(context).get_span_context()
        return found if found.is_valid else None

    def _call(self, batch: Batch, client_id: str) -> Span:
        """Return the span of a call with several records. Its first record starts the span."""
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
            # CLIENT and not PRODUCER, because no record has the context of this span.
            span = self._tracer.start_span(
                name, kind=self._trace.SpanKind.CLIENT, attributes=attributes
            )
            self._batches[batch.number] = span
        return span

    def _attributes(self, given: Given, operation: str) -> Mapping[str, str | bool]:
        """Return the attributes that are known at the start, for samplers."""
        record = given.record
        attributes = _attributes_at_start(
            operation, record.topic, record.partition, record.value is None, given.client_id
        )
        if self._message_keys:
            key = _text(record.key)
            if key is not None:
                return {**attributes, "messaging.kafka.message.key": key}
        return attributes

    # --- at the end of the pump's turn -------------------------------------------------------

    def observe(self, events: Sequence[Event], /) -> None:
        """End the spans of the events, and update the metrics.

        Raises:
            Exception: the first error of a metric or a span, after the other metrics were updated
                and the spans of all events were ended.
        """
        failure: Exception | None = None
        if self._metrics is not None:
            try:
                # Before the spans end, so that measured durations can refer to them (exemplars).
                self._metrics.observe(events, self._context)
            except Exception as error:  # noqa: BLE001  # the spans must end nevertheless
                failure = error
        for event in events if self.injects else ():
            handler = self._handlers.get(type(event))
            if handler is not None:
                try:
                    handler(event)
                except Exception as error:  # noqa: BLE001  # so must the other spans
                    failure = failure or error
        if failure is not None:
            raise failure

    def _context(self, number: int) -> Context:
        span = self._spans.get(number)
        if span is None:
            return self._no_span
        return self._trace.set_span_in_context(span, self._nowhere)

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
        if span is None or not span.is_recording():
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
    """The instruments. Counters are updated once for each batch of events."""

    def __init__(self, meter: Any) -> None:
        self._sent = meter.create_counter(
            "messaging.client.sent.messages",
            "{message}",
            "Records that were passed to the driver, by outcome",
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
            f"{_NAME}.in_flight.size", "By", "Keys, values and headers of these records"
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
        #: The sizes of records when they were accepted, by their numbers.
        self._sizes: dict[int, int] = {}
        #: The first error of an instrument while events are counted.
        self._failure: Exception | None = None

    def observe(self, events: Sequence[Event], context: Callable[[int], Context]) -> None:
        """Update the metrics.

        Args:
            events: the events.
            context: takes the number of a record, and returns the context of the record's span.

        Raises:
            Exception: the first error of an instrument, after the others were updated.
        """
        topics = _Topics()
        # The sums by instrument, topic and kind of error. Those of `topics` are added at the end.
        sums: Counter[tuple[Any, str, str]] = Counter()
        for event in events.parts if isinstance(events, EventBatch) else events:
            if isinstance(event, Bulk):
                if event.kind is Accepted:
                    self._count_accepted(event.fields(), topics)
                elif event.kind is Delivered:
                    self._count_delivered(event.fields(), topics, context)
            elif isinstance(event, Accepted):
                self._count_accepted([(event.number, event.record, event.at, event.size)], topics)
            elif isinstance(event, Delivered):
                self._count_delivered(
                    [
                        (
                            event.number,
                            event.record,
                            event.at,
                            event.duration,
                            event.size,
                            event.metadata,
                            event.abandoned,
                        )
                    ],
                    topics,
                    context,
                )
            elif isinstance(event, (Failed, Withdrawn)):
                name = event.record.topic
                self._count_ended(event.number, topics[name])
                if isinstance(event, Withdrawn):
                    sums[self._withdrawn, name, ""] += 1
                    continue
                kind = error_type(event.error)
                if event.handed_over:
                    sums[self._sent, name, kind] += 1
                attributes = _operation(name, kind)
                self._try(self._duration.record, event.duration, attributes, context(event.number))
            elif isinstance(event, Refused):
                kind = _CANCELLED if event.error is None else error_type(event.error)
                # Without the topic, which may be what is invalid, and may be any object.
                sums[self._refused, "", kind] += 1
            elif isinstance(event, GenerationOpened):
                sums[self._opened, "", ""] += 1
                sums[self._open, "", ""] += 1
            elif isinstance(event, GenerationEnded):
                sums[self._open, "", ""] -= 1
        for name, topic in topics.items():
            sums[self._in_flight, name, ""] = topic.in_flight
            sums[self._in_flight_size, name, ""] = topic.in_flight_size
            sums[self._sent, name, ""] = topic.sent
            sums[self._sent_size, name, ""] = topic.sent_size
        for (instrument, name, kind), amount in sums.items():
            if not amount:
                continue
            make = _operation if instrument is self._sent else _labels
            self._try(instrument.add, amount, make(name, kind))
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _try(self, update: Callable[..., None], *arguments: Any) -> None:
        """Update an instrument. If it raises, the sums of the other events are still added:
        otherwise the number of records in flight would be wrong for good."""
        try:
            update(*arguments)
        except Exception as error:  # noqa: BLE001  # raised when all instruments were updated
            self._failure = self._failure or error

    def _count_accepted(
        self, events: Iterable[tuple[Any, ...]], topics: Mapping[str, _Topic]
    ) -> None:
        sizes = self._sizes
        for number, record, _at, size in events:
            sizes[number] = size
            topic = topics[record.topic]
            topic.in_flight += 1
            topic.in_flight_size += size

    def _count_delivered(
        self,
        events: Iterable[tuple[Any, ...]],
        topics: Mapping[str, _Topic],
        context: Callable[[int], Context],
    ) -> None:
        record_duration = self._duration.record
        for number, record, _at, duration, size, _metadata, _abandoned in events:
            topic = topics[record.topic]
            self._count_ended(number, topic)
            topic.sent += 1
            topic.sent_size += size
            try:  # _try(), written out: this runs for each record
                record_duration(duration, topic.attributes, context(number))
            except Exception as error:  # noqa: BLE001
                self._failure = self._failure or error

    def _count_ended(self, number: int, topic: _Topic) -> None:
        topic.in_flight -= 1
        topic.in_flight_size -= self._sizes.pop(number, 0)


class _Topic:
    """The amounts that one batch of events adds to the counters of a topic."""

    __slots__ = ("attributes", "in_flight", "in_flight_size", "sent", "sent_size")

    def __init__(self, name: str) -> None:
        #: The attributes of the duration of a delivered record.
        self.attributes = _operation(name, "")
        self.in_flight = self.in_flight_size = self.sent = self.sent_size = 0


class _Topics(dict[str, _Topic]):
    """The topics of one batch of events, by name. A topic is added when it is first looked up."""

    def __missing__(self, name: str) -> _Topic:
        topic = self[name] = _Topic(name)
        return topic


@lru_cache(_KEPT_ATTRIBUTES)
def _attributes_at_start(
    operation: str,
    topic: str,
    partition: int | None,
    is_tombstone: bool,  # noqa: FBT001  # a keyword costs time for each record
    client_id: str,
) -> Mapping[str, str | bool]:
    # Read-only, because spans share it.
    attributes: dict[str, str | bool] = {
        "messaging.system": "kafka",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": topic,
        "messaging.client.id": client_id,
    }
    if partition is not None:
        attributes["messaging.destination.partition.id"] = str(partition)
    if is_tombstone:
        attributes["messaging.kafka.message.tombstone"] = True
    return MappingProxyType(attributes)


# Plain dicts, which the SDK reads faster than read-only ones. Nothing changes them.


@lru_cache(_KEPT_ATTRIBUTES)
def _labels(topic: str, kind: str) -> dict[str, str]:
    labels = {"messaging.system": "kafka"}
    if topic:
        labels["messaging.destination.name"] = topic
    if kind:
        labels["error.type"] = kind
    return labels


@lru_cache(_KEPT_ATTRIBUTES)
def _operation(topic: str, kind: str) -> dict[str, str]:
    return {
        **_labels(topic, kind),
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
    }


def _carried(record: ProducerRecord[Any, Any], fields: Iterable[str]) -> dict[str, str]:
    """Return the headers of a record that a propagator reads, as text."""
    if not record.headers:
        return {}
    return {
        name: content.decode("utf-8", "replace")
        for name, content in record.headers
        if name in fields
    }


def _text(key: object) -> str | None:
    """Return a key as text; None if it is not printable text."""
    if isinstance(key, bytes):
        try:
            key = key.decode()
        except UnicodeDecodeError:
            return None
    if isinstance(key, str) and key.isprintable():
        return key
    return None
