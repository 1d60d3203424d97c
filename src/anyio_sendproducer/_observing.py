"""Makes the events for a producer's observers, and passes them on.

Only a producer with observers uses this module. Its ledger is an :class:`ObservedLedger`, and an
:class:`~anyio_sendproducer._admission.ObservedAdmission` enters its records. Both add events to an
:class:`Observation`, which passes them to the observers at the end of each turn of the pump.
"""

# An observed ledger overrides private steps of the ledger by design.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any, Final, TypeVar, cast

from ._clock import Clock
from ._delivery import DeliveryState, Entry
from ._exceptions import DeliveryError
from ._ledger import Ledger
from ._records import ProducerRecord, RecordMetadata
from .telemetry import (
    Accepted,
    Batch,
    BatchEnded,
    Closing,
    Delivered,
    Event,
    Failed,
    GenerationEnded,
    GenerationOpened,
    Given,
    HandedOver,
    Injector,
    Observer,
    Refused,
    Withdrawn,
)
from .telemetry._logging import error_type

__all__ = ["Observation", "ObservedLedger", "check_observers"]

_log = logging.getLogger("anyio_sendproducer.telemetry")

#: Seconds until the same kind of error of an observer is logged again.
_LOG_SECONDS: Final = 60.0

T = TypeVar("T")

_records = itertools.count(1)
_batches = itertools.count(1)

#: The call with several records that the current task makes, if any.
_batch: ContextVar[Batch | None] = ContextVar("anyio_sendproducer.batch", default=None)


def fast_constructor(cls: T) -> T:
    """Make a fast constructor of a frozen dataclass, for events that occur for each record.

    The constructor that dataclasses generates sets each field with ``object.__setattr__``, which
    takes three times as long. This one sets the fields of an instance of a class with the same
    fields that is not frozen, and then changes its ``__class__``.
    """
    frozen: Any = cls
    twin = _twin(frozen)

    def make(*values: object) -> Any:
        made = twin(*values)
        made.__class__ = frozen
        return made

    return cast("T", make)


@functools.cache
def _twin(frozen: type[Any]) -> type[Any]:
    fields = [(field.name, field.type) for field in dataclasses.fields(frozen)]
    return dataclasses.make_dataclass(frozen.__name__, fields, slots=True)


def check_observers(observers: Iterable[Observer]) -> tuple[Observer, ...]:
    """Check the argument ``observers``.

    Raises:
        TypeError: it is not an iterable of observers.
    """
    if not isinstance(cast("object", observers), Iterable):
        raise TypeError(f"observers must be a list of observers, not {type(observers).__name__}")
    checked = tuple(observers)
    for position, observer in enumerate(checked):
        if not callable(getattr(observer, "observe", None)):
            raise TypeError(
                f"observers[{position}] must have a method observe(events), "
                f"but {type(observer).__name__} has none"
            )
    return checked


class Observation:
    """Gathers events, and passes them to the observers.

    Args:
        observers: the observers.
        client_id: the setting ``client_id``.
        clock: the producer's clock.
        wake_pump: has the pump take a turn soon, at the end of which it calls :meth:`inform`.
    """

    def __init__(
        self,
        observers: Sequence[Observer],
        *,
        client_id: str,
        clock: Clock,
        wake_pump: Callable[[], None],
    ) -> None:
        self._observers = observers
        self._injectors = [one for one in observers if isinstance(one, Injector)]
        self._client_id = client_id
        self._wake_pump = wake_pump
        self.now = clock.now
        # Made here and not for the module, because generating a class takes a millisecond.
        self._given = fast_constructor(Given)
        self._accepted = fast_constructor(Accepted)
        #: The ledger uses these two.
        self.handed_over = fast_constructor(HandedOver)
        self.delivered = fast_constructor(Delivered)
        self._events: list[Event] = []
        self._is_turn = False
        self._generation = 0
        #: For each kind of error: when it was last logged, and how many occurred since then.
        self._logged_errors: dict[tuple[int, str, str], tuple[float, int]] = {}

    # --- events ------------------------------------------------------------------------------

    def add(self, event: Event) -> None:
        """Add an event."""
        if not self._events and not self._is_turn:
            self._wake_pump()
        self._events.append(event)

    def start_turn(self) -> None:
        """Note that the pump starts a turn, at the end of which it calls :meth:`inform`."""
        self._is_turn = True

    def inform(self) -> None:
        """Pass the events since the last call to the observers."""
        self._is_turn = False
        if not self._events:
            return
        # All observers get the same tuple, which none of them can change. If a finalizer adds an
        # event between two of these lines, the event is in the old list or in the new one.
        gathered = self._events
        self._events = []
        events = tuple(gathered)
        for observer in self._observers:
            try:
                observer.observe(events)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # noqa: BLE001  # an observer's error must not fail a record
                self._log_error(observer, "observe", error)

    def _log_error(self, observer: Observer, method: str, error: BaseException) -> None:
        kind = (id(observer), method, error_type(error))
        now = self.now()
        last, more = self._logged_errors.get(kind, (now - _LOG_SECONDS, 0))
        if now - last < _LOG_SECONDS:
            self._logged_errors[kind] = (last, more + 1)
            return
        self._logged_errors[kind] = (now, 0)
        _log.error(
            "%s.%s() raised; records are not affected (%d more such errors were not logged)",
            type(observer).__name__,
            method,
            more,
            exc_info=error,
            extra={
                "error.type": kind[2],
                "anyio_sendproducer.observer": type(observer).__qualname__,
                "anyio_sendproducer.count": more,
            },
        )

    # --- records -----------------------------------------------------------------------------

    def make_given(self, record: ProducerRecord[Any, Any], now: float) -> Given:
        """Make the :class:`Given` of a record that a caller sends."""
        return self._given(next(_records), record, now, self._client_id, _batch.get())

    def add_headers(
        self, given: Given, size: int, limit: int
    ) -> tuple[ProducerRecord[Any, Any], int]:
        """Add the headers of observers to a record.

        Returns:
            The record with the headers, and its size; or the unchanged record, if it would be
            larger than ``limit`` bytes.
        """
        record = given.record
        headers: list[tuple[str, bytes]] = []
        larger = size
        for injector in self._injectors:
            try:
                added = [*injector.inject(given)]
                more = sum(map(_size_of_header, added))
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # noqa: BLE001  # an observer's error must not fail a record
                self._log_error(injector, "inject", error)
            else:
                headers += added
                larger += more
        if not headers or larger > limit:
            return record, size
        enriched = ProducerRecord(
            record.topic,
            record.value,
            record.key,
            partition=record.partition,
            timestamp_ms=record.timestamp_ms,
            headers=(*record.headers, *headers),
        )
        return enriched, larger

    def add_refused(self, given: Given, error: Exception | None) -> None:
        """Add the event of a record that was not accepted."""
        now = self.now()
        self.add(Refused(given.number, given.record, now, now - given.at, error))

    def add_accepted(self, entry: Entry) -> None:
        """Add the event of a record that was accepted."""
        given = entry.given
        self.add(self._accepted(given.number, given.record, self.now(), entry.size))

    # --- calls with several records ----------------------------------------------------------

    async def observe_call(
        self,
        records: Sequence[ProducerRecord[Any, Any]],
        send: Callable[[], Awaitable[list[RecordMetadata | DeliveryError]]],
    ) -> list[RecordMetadata | DeliveryError]:
        """Send the records of one call, and add an event when all have their outcomes.

        Args:
            records: the records; at least one.
            send: the function that sends them.

        Raises:
            BaseException: the exception of ``send``. The event has it, too.
        """
        batch = self._begin_batch(records)
        token = _batch.set(batch)
        try:
            outcomes = await send()
        except BaseException as error:
            self._end_batch(batch, error=error)
            raise
        finally:
            _batch.reset(token)
        self._end_batch(batch, outcomes)
        return outcomes

    def _begin_batch(self, records: Sequence[ProducerRecord[Any, Any]]) -> Batch:
        topic = records[0].topic
        is_common = all(record.topic == topic for record in records)
        return Batch(next(_batches), len(records), topic if is_common else None)

    def _end_batch(
        self,
        batch: Batch,
        outcomes: Iterable[RecordMetadata | DeliveryError] = (),
        error: BaseException | None = None,
    ) -> None:
        self.add(
            BatchEnded(
                batch,
                self.now(),
                sum(isinstance(outcome, DeliveryError) for outcome in outcomes),
                error if isinstance(error, Exception) else None,
                error is not None and not isinstance(error, Exception),
            )
        )

    # --- clients -----------------------------------------------------------------------------

    def client_opened(self, generation: int) -> None:
        """Add the event of a client that was opened."""
        self._generation = generation
        self.add(GenerationOpened(generation, self.now()))

    def client_ended(self, error: BaseException | None) -> None:
        """Add the event of a client that was closed, if one was open."""
        if self._generation:
            self.add(GenerationEnded(self._generation, self.now(), error))
            self._generation = 0


def _size_of_header(header: tuple[str, bytes]) -> int:
    name, content = header
    if type(content) is not bytes or not isinstance(cast("object", header), tuple):
        raise TypeError(f"a header must be a (str, bytes) tuple, not {type(header).__name__}")
    return len(name.encode()) + len(content)


class ObservedLedger(Ledger):
    """A ledger that adds an event for each state change of a delivery.

    Args:
        observation: to which the events are added.
        bounds: the arguments of :class:`Ledger`.
    """

    def __init__(self, observation: Observation, **bounds: Any) -> None:
        super().__init__(**bounds)
        self._observation = observation
        self._is_closing = False

    def _admit(self, entry: Entry) -> None:
        super()._admit(entry)
        self._observation.add_accepted(entry)

    def take(self, limit: int | None = None) -> list[Entry]:
        batch = super().take(limit)
        observation = self._observation
        now = observation.now()
        for entry in batch:
            given = entry.given
            observation.add(observation.handed_over(given.number, given.record, now))
        return batch

    def settle(
        self, entries: Sequence[Entry], outcomes: Sequence[RecordMetadata | DeliveryError]
    ) -> list[object]:
        # A driver may report a record twice. Only the first report is an event.
        candidates = dict.fromkeys(
            entry for entry in entries if entry.state is DeliveryState.SUBMITTED
        )
        to_wake = super().settle(entries, outcomes)
        observation = self._observation
        now = observation.now()
        for entry in candidates:
            if entry.state is DeliveryState.DELIVERED:
                given = entry.given
                observation.add(
                    observation.delivered(
                        given.number,
                        given.record,
                        now,
                        now - given.at,
                        entry.size,
                        cast("RecordMetadata", entry.outcome),
                        entry.abandoned,
                    )
                )
        return to_wake

    def _fail(self, entry: Entry, error: DeliveryError, to_wake: list[object]) -> None:
        given = entry.given
        # The driver's error has the record with the headers of observers.
        error.record = given.record
        was_waiting = entry.state is DeliveryState.WAITING
        abandoned = entry.abandoned
        super()._fail(entry, error, to_wake)
        observation = self._observation
        if was_waiting:
            observation.add_refused(given, error)
            return
        now = observation.now()
        observation.add(
            Failed(
                given.number,
                given.record,
                now,
                now - given.at,
                error,
                entry.was_submitted,
                abandoned,
            )
        )

    def cancel(self, entry: Entry) -> list[object]:
        was_waiting = entry.state is DeliveryState.WAITING
        to_wake = super().cancel(entry)
        if was_waiting:
            self._observation.add_refused(entry.given, None)
        return to_wake

    def _withdraw(self, entry: Entry, event: str) -> None:
        super()._withdraw(entry, event)
        given = entry.given
        now = self._observation.now()
        self._observation.add(Withdrawn(given.number, given.record, now, now - given.at))

    def drain(self) -> list[object]:
        if not self._is_closing:
            self._is_closing = True
            self._observation.add(Closing(self._observation.now(), self.pending))
        return super().drain()
