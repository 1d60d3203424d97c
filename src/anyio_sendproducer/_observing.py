"""Makes the events for a producer's observers, and passes them on.

Only a producer with observers uses this module, except :func:`check_observers`. Its ledger is an
:class:`ObservedLedger`, and an :class:`~anyio_sendproducer._admission.ObservedAdmission` enters its
records. Both add events to an :class:`Observation`, which passes them to the observers at the end
of each turn of the pump.

Events that occur for each record are not made one by one. The observation gathers the facts of many
records, and an :class:`EventBatch` makes the events when an observer reads them. It collects no
facts for kinds of events that no observer wants.
"""

# An observed ledger overrides private steps of the ledger by design.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextvars import ContextVar
from threading import get_ident
from typing import Any, Final, TypeVar, cast, get_args

from ._clock import Clock
from ._delivery import DeliveryState, Entry, RecordFacts
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
from .telemetry._event_batch import Bulk, EventBatch
from .telemetry._logging import error_type

__all__ = ["Observation", "ObservedLedger", "check_observers"]

_log = logging.getLogger("anyio_sendproducer.telemetry")

#: Seconds until the same kind of error of an observer is logged again.
_LOG_SECONDS: Final = 60.0

#: All kinds of events.
_EVENT_TYPES: Final[frozenset[type[Event]]] = frozenset(get_args(Event))

# A global is read faster than an attribute of an enum's class; these are read for each record.
_SUBMITTED: Final = DeliveryState.SUBMITTED
_DELIVERED: Final = DeliveryState.DELIVERED

T = TypeVar("T")

_records = itertools.count(1)
_batches = itertools.count(1)

#: The call with several records that the current task makes, if any.
_batch: ContextVar[Batch | None] = ContextVar("anyio_sendproducer.batch", default=None)


def fast_constructor(cls: T) -> T:
    """Make a fast constructor of a frozen dataclass, for events that occur for each record.

    The constructor that ``dataclass`` generates sets each field with ``object.__setattr__``, which
    takes three times as long. This one makes an instance of a *twin* class, which has the same
    fields and is not frozen, and then changes the ``__class__`` of the instance.
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
        TypeError: it is not an iterable of observers, or the ``event_types`` of an observer are not
            classes of events.
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
        try:
            is_valid = _event_types(observer) <= _EVENT_TYPES
        except TypeError:
            is_valid = False
        if not is_valid:
            raise TypeError(
                f"observers[{position}].event_types must be a list of classes of events, such as "
                "[Delivered]"
            )
    return checked


def _event_types(observer: Observer) -> frozenset[type[Event]]:
    """Return the kinds of events that an observer wants.

    Raises:
        TypeError: they are no collection of hashable objects.
    """
    declared: Collection[type[Event]] | None = getattr(observer, "event_types", None)
    if declared is None:
        return _EVENT_TYPES
    if not isinstance(cast("object", declared), Collection):  # an iterator can be read only once
        raise TypeError(type(declared).__name__)
    return frozenset(declared)


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
        self._observers = [(one, _event_types(one)) for one in observers]
        #: The kinds of events that any observer wants. No other event needs to be made.
        self.wanted = frozenset[type[Event]]().union(*(kinds for _, kinds in self._observers))
        self.injectors = [
            one for one in observers if isinstance(one, Injector) and getattr(one, "injects", True)
        ]
        self._client_id = client_id
        self._wake_pump = wake_pump
        self.now = clock.now
        # Made here and not for the module, because generating a class takes a millisecond.
        self._make_given = fast_constructor(Given)
        self._make_accepted = fast_constructor(Accepted)
        self._make_handed_over = fast_constructor(HandedOver)
        self._make_delivered = fast_constructor(Delivered)
        #: Makes the numbers of records.
        self.numbers = _records
        self._parts: list[Bulk | Event] = []
        # The value of ``accepted`` while no list is open: None. If no observer wants Accepted, it
        # is a deque that drops what is appended, so that the callers need not ask.
        self._no_list: deque[RecordFacts] | None = (
            None if Accepted in self.wanted else deque(maxlen=0)
        )
        #: The facts of accepted records, if the last part is for them; see :meth:`open_accepted`.
        self.accepted: list[RecordFacts] | deque[RecordFacts] | None = self._no_list
        self._is_turn = False
        #: The thread of the event loop; None until the pump has ended.
        self._ended_on: int | None = None
        self._is_informing = False
        # The context of the opener, in which observers run.
        self._context = contextvars.copy_context()
        self._generation = 0
        #: For each kind of error: when it was last logged, and how many occurred since then.
        self._logged_errors: dict[tuple[int, str, str], tuple[float, int]] = {}

    # --- events ------------------------------------------------------------------------------

    def add(self, part: Event | Bulk) -> None:
        """Add an event, or several events of one kind."""
        if not self._parts and not self._is_turn:
            self._wake_pump()
        self._parts.append(part)
        self.accepted = self._no_list
        # If the garbage collector closes a coroutine, this may run on any thread, or interrupt an
        # observer. The next call then passes this event on, too.
        if self._ended_on == get_ident() and not self._is_informing:
            self._context.copy().run(self.inform)

    def open_accepted(self) -> list[RecordFacts]:
        """Open a list for the facts of accepted records, because :attr:`accepted` is None.

        Records that follow are appended to :attr:`accepted`, until another event is added.
        """
        accepted: list[RecordFacts] = []
        self.add(Bulk(Accepted, accepted, iter, self._make_accepted))
        self.accepted = accepted
        return accepted

    def add_accepted(self, entries: Iterable[Entry], now: float) -> None:
        """Add the events of records that were accepted."""
        for entry in entries:
            accepted = self.accepted
            if accepted is None:
                accepted = self.open_accepted()
            number, record, _, _ = entry.given
            accepted.append((number, record, now, entry.size))

    def add_handed_over(self, entries: Iterable[Entry]) -> None:
        """Add the events of records that were passed to the client."""
        now = self.now()

        def fields(entries: Iterable[Entry]) -> Iterable[tuple[Any, ...]]:
            for entry in entries:
                number, record, _, _ = entry.given
                yield number, record, now

        self.add(Bulk(HandedOver, tuple(entries), fields, self._make_handed_over))

    def add_delivered(self, entries: Sequence[Entry], abandoned: Collection[Entry]) -> None:
        """Add the events of records that were delivered.

        Args:
            entries: their entries. Of their attributes, only ``abandoned`` can still change.
            abandoned: the entries that were abandoned before.
        """
        now = self.now()

        def fields(entries: Iterable[Entry]) -> Iterable[tuple[Any, ...]]:
            for entry in entries:
                number, record, at, _ = entry.given
                yield number, record, now, now - at, entry.size, entry.outcome, entry in abandoned

        self.add(Bulk(Delivered, entries, fields, self._make_delivered))

    def start_turn(self) -> None:
        """Note that the pump starts a turn, at the end of which it calls :meth:`inform`."""
        self._is_turn = True

    def inform(self) -> None:
        """Pass to the observers the events that were added since the last call."""
        self._is_turn = False
        if not self._parts:
            return
        # All observers get the same events, which none of them can change. If a finalizer adds an
        # event between two of these lines, the event is in the old list or in the new one.
        parts = self._parts
        self._parts = []
        self.accepted = self._no_list
        self._is_informing = True
        try:
            self._pass_on(EventBatch(parts))
        finally:
            self._is_informing = False

    def _pass_on(self, everything: EventBatch) -> None:
        for observer, kinds in self._observers:
            events = everything
            if kinds is not _EVENT_TYPES:
                events = everything.only(kinds)
                if not events:
                    continue
            try:
                observer.observe(events)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # noqa: BLE001  # an observer's error must not fail a record
                self._log_error(observer, "observe", error)

    def end(self) -> None:
        """Pass the last events to the observers, because the pump has ended.

        A call with several records may end later, in its own task: that event is passed on at once.
        """
        self._ended_on = get_ident()
        self.inform()

    def _log_error(self, observer: Observer, method: str, error: BaseException) -> None:
        kind = (id(observer), method, error_type(error))
        now = self.now()
        last, more = self._logged_errors.get(kind, (now - _LOG_SECONDS, 0))
        if now - last < _LOG_SECONDS:
            self._logged_errors[kind] = (last, more + 1)
            return
        self._logged_errors[kind] = (now, 0)
        # A log handler may raise, too. An observer that logs may have failed for the same reason.
        with contextlib.suppress(Exception):
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
        return self._make_given(next(_records), record, now, self._client_id, _batch.get())

    def add_headers(
        self, given: Given, size: int, limit: int
    ) -> tuple[ProducerRecord[Any, Any], int]:
        """Add the headers of observers to a record.

        Returns:
            The record with the headers, and its size; or the unchanged record and its size, if the
            headers would make it larger than ``limit`` bytes.
        """
        record = given.record
        headers: list[tuple[str, bytes]] = []
        larger = size
        for injector in self.injectors:
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

    def add_refused(
        self, number: int, record: ProducerRecord[Any, Any], at: float, error: Exception | None
    ) -> None:
        """Add the event of a record that was not accepted."""
        if Refused in self.wanted:
            now = self.now()
            self.add(Refused(number, record, now, now - at, error))

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
            BaseException: the exception of ``send``. The event has it if it is an Exception.
                Otherwise the event says that the call was cancelled.
        """
        if BatchEnded not in self.wanted and not self.injectors:
            return await send()
        batch = self._begin_batch(records)
        token = _batch.set(batch)
        try:
            outcomes = await send()
        except BaseException as error:
            self._end_batch(batch, error=error)
            raise
        finally:
            # If the garbage collector closes the coroutine, this may run in another context.
            with contextlib.suppress(ValueError):
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
        if BatchEnded in self.wanted:
            failed = sum(isinstance(outcome, DeliveryError) for outcome in outcomes)
            reason = error if isinstance(error, Exception) else None
            cancelled = error is not reason
            self.add(BatchEnded(batch, self.now(), failed, reason, cancelled))

    # --- clients -----------------------------------------------------------------------------

    def client_opened(self, generation: int) -> None:
        """Add the event of a client that was opened."""
        self._generation = generation
        if GenerationOpened in self.wanted:
            self.add(GenerationOpened(generation, self.now()))

    def client_ended(self, error: BaseException | None) -> None:
        """Add the event of a client that was closed, if one was open."""
        if self._generation and GenerationEnded in self.wanted:
            self.add(GenerationEnded(self._generation, self.now(), error))
        self._generation = 0


def _size_of_header(header: tuple[str, bytes]) -> int:
    name, content = header
    if type(content) is not bytes or not isinstance(cast("object", header), tuple):
        raise TypeError(f"a header must be a (str, bytes) tuple, not {type(header).__name__}")
    return len(name.encode()) + len(content)


class ObservedLedger(Ledger):
    """A ledger that adds events of its deliveries.

    It adds none when a record that the driver gave back is held. The admission adds the event of a
    record that is accepted at once.

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
        self._observation.add_accepted((entry,), self._observation.now())

    def take(self, limit: int | None = None) -> list[Entry]:
        batch = super().take(limit)
        if batch and HandedOver in self._observation.wanted:
            self._observation.add_handed_over(batch)
        return batch

    def settle(
        self, entries: Sequence[Entry], outcomes: Sequence[RecordMetadata | DeliveryError]
    ) -> list[object]:
        if Delivered not in self._observation.wanted:
            return super().settle(entries, outcomes)
        candidates = [entry for entry in entries if entry.state is _SUBMITTED]
        counts = self._counts
        before = counts.delivered
        to_wake = super().settle(entries, outcomes)
        count = counts.delivered - before
        if count:
            if count < len(candidates):
                # Some failed, or the driver reported a record twice, which is one event.
                candidates = [e for e in dict.fromkeys(candidates) if e.state is _DELIVERED]
            abandoned = [e for e in candidates if e.abandoned] if counts.abandoned else ()
            self._observation.add_delivered(candidates, frozenset(abandoned))
        return to_wake

    def _fail(self, entry: Entry, error: DeliveryError, to_wake: list[object]) -> None:
        number, record, at, _ = entry.given
        # The driver's error has the record with the headers of observers.
        error.record = record
        was_waiting = entry.state is DeliveryState.WAITING
        abandoned = entry.abandoned
        super()._fail(entry, error, to_wake)
        observation = self._observation
        if was_waiting:
            observation.add_refused(number, record, at, error)
        elif Failed in observation.wanted:
            now = observation.now()
            observation.add(
                Failed(number, record, now, now - at, error, entry.was_submitted, abandoned)
            )

    def cancel(self, entry: Entry) -> list[object]:
        was_waiting = entry.state is DeliveryState.WAITING
        to_wake = super().cancel(entry)
        if was_waiting:
            number, record, at, _ = entry.given
            self._observation.add_refused(number, record, at, None)
        return to_wake

    def _withdraw(self, entry: Entry, event: str) -> None:
        super()._withdraw(entry, event)
        if Withdrawn in self._observation.wanted:
            number, record, at, _ = entry.given
            now = self._observation.now()
            self._observation.add(Withdrawn(number, record, now, now - at))

    def drain(self) -> list[object]:
        if not self._is_closing and Closing in self._observation.wanted:
            self._observation.add(Closing(self._observation.now(), self.pending))
        self._is_closing = True
        return super().drain()
