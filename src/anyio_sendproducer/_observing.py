"""What observers are told, and when: the producer's side of telemetry.

A producer without observers has none of this. What it is made of is decided when it is made: with
observers its ledger is an :class:`ObservedLedger`, and the calls that send are those of
:class:`ObservedSender`. What happened gathers in an :class:`Observation`, until the pump has
observers told, once a turn.
"""

# The ledger's own steps are what is observed.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any, Final, TypeVar, cast

from ._clock import Clock
from ._delivery import DeliveryState, Entry
from ._exceptions import DeliveryError
from ._ledger import Ledger
from ._records import ProducerRecord, RecordMetadata
from ._sending import Sender
from ._validation import check_is_record
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

__all__ = ["Observation", "ObservedLedger", "ObservedSender", "check_observers"]

_log = logging.getLogger("anyio_sendproducer.telemetry")

#: How often at most, in seconds, it is logged that an observer raised the same kind of error.
_COMPLAINT_SECONDS: Final = 60.0

T = TypeVar("T")

_records = itertools.count(1)
_batches = itertools.count(1)

#: Which call the records are a part of that a task is giving.
_batch: ContextVar[Batch | None] = ContextVar("anyio_sendproducer.batch", default=None)


def _made_fast(cls: T) -> T:
    """A frozen dataclass's constructor, for those of which there is one for each record.

    What dataclasses generate sets each field by ``object.__setattr__``, which takes three times as
    long. Here an instance of a twin that is not frozen is filled, and becomes one of the class.
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
    """The observers, once it is sure that they are some.

    Raises:
        TypeError: one of them is none.
    """
    if not isinstance(cast("object", observers), Iterable):
        raise TypeError(f"observers must be a list of observers, not {type(observers).__name__}")
    checked = tuple(observers)
    for position, observer in enumerate(checked):
        if not callable(getattr(observer, "observe", None)):
            raise TypeError(
                f"observers[{position}] must have a method observe(events), "
                f"which {type(observer).__name__} has not"
            )
    return checked


class Observation:
    """What happened and was not told yet, and those who are to be told.

    Args:
        observers: those.
        client_id: that of the producer's settings.
        clock: the producer's clock.
        ring: has the pump come by soon, which calls :meth:`tell` at the end of its turn.
    """

    def __init__(
        self,
        observers: Sequence[Observer],
        *,
        client_id: str,
        clock: Clock,
        ring: Callable[[], None],
    ) -> None:
        self._observers = observers
        self._injectors = [one for one in observers if isinstance(one, Injector)]
        self._client_id = client_id
        self._ring = ring
        self.now = clock.now
        # Here and not for the module: to generate a class takes a millisecond.
        self._given = _made_fast(Given)
        self._accepted = _made_fast(Accepted)
        #: These two are the ledger's.
        self.handed_over = _made_fast(HandedOver)
        self.delivered = _made_fast(Delivered)
        self._events: list[Event] = []
        self._is_turn = False
        self._generation = 0
        #: When each kind of error was last logged, and how many there were since.
        self._complaints: dict[tuple[int, str, str], tuple[float, int]] = {}

    # --- telling -----------------------------------------------------------------------------

    def add(self, event: Event) -> None:
        """This happened."""
        if not self._events and not self._is_turn:
            self._ring()
        self._events.append(event)

    def begin_turn(self) -> None:
        """The pump has its turn, and is going to :meth:`tell` at the end of it."""
        self._is_turn = True

    def tell(self) -> None:
        """Have observers told what happened since the last time."""
        self._is_turn = False
        if not self._events:
            return
        # All observers get one tuple, which none of them can change. A finalizer may add an event
        # at each point here: it goes into one of the two lists.
        happened = self._events
        self._events = []
        events = tuple(happened)
        for observer in self._observers:
            try:
                observer.observe(events)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # noqa: BLE001  # theirs, and no record's
                self._complain(observer, "observe", error)

    def _complain(self, observer: Observer, method: str, error: BaseException) -> None:
        kind = (id(observer), method, error_type(error))
        now = self.now()
        last, more = self._complaints.get(kind, (now - _COMPLAINT_SECONDS, 0))
        if now - last < _COMPLAINT_SECONDS:
            self._complaints[kind] = (last, more + 1)
            return
        self._complaints[kind] = (now, 0)
        _log.error(
            "%s.%s() raised; no record was harmed (it raised so %d more times since the last line)",
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

    # --- records that are given --------------------------------------------------------------

    def give(self, record: ProducerRecord[Any, Any], now: float) -> Given:
        """A record was given."""
        return self._given(next(_records), record, now, self._client_id, _batch.get())

    def enrich(self, given: Given, size: int, most: int) -> tuple[ProducerRecord[Any, Any], int]:
        """The record with the headers that observers add, and its size with these; as it is where
        it would be larger than ``most``."""
        record = given.record
        headers: list[tuple[str, bytes]] = []
        larger = size
        for injector in self._injectors:
            try:
                added = [*injector.inject(given)]
                more = sum(map(_size_of_header, added))
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # noqa: BLE001  # theirs, and no record's
                self._complain(injector, "inject", error)
            else:
                headers += added
                larger += more
        if not headers or larger > most:
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

    def refuse(self, given: Given, error: Exception | None) -> None:
        """It was not accepted."""
        now = self.now()
        self.add(Refused(given.number, given.record, now, now - given.at, error))

    def accept(self, entry: Entry) -> None:
        """It was accepted."""
        given = entry.given
        self.add(self._accepted(given.number, given.record, self.now(), entry.size))

    # --- calls with several records ----------------------------------------------------------

    def begin_batch(self, records: Sequence[ProducerRecord[Any, Any]]) -> Batch:
        """A call gives these."""
        topic = records[0].topic
        is_theirs = all(record.topic == topic for record in records)
        return Batch(next(_batches), len(records), topic if is_theirs else None)

    def end_batch(
        self,
        batch: Batch,
        outcomes: Iterable[RecordMetadata | DeliveryError] = (),
        error: BaseException | None = None,
    ) -> None:
        """It has these outcomes, or this error."""
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

    def opened(self, generation: int) -> None:
        """A client is open."""
        self._generation = generation
        self.add(GenerationOpened(generation, self.now()))

    def ended(self, error: BaseException | None) -> None:
        """The client that was open, if any, is closed."""
        if self._generation:
            self.add(GenerationEnded(self._generation, self.now(), error))
            self._generation = 0


def _size_of_header(header: tuple[str, bytes]) -> int:
    name, content = header
    if type(content) is not bytes or not isinstance(cast("object", header), tuple):
        raise TypeError(f"a header is a (str, bytes) tuple, not {type(header).__name__}")
    return len(name.encode()) + len(content)


class ObservedLedger(Ledger):
    """A ledger that says what happens in it.

    Args:
        observation: to be told.
        bounds: as for :class:`Ledger`.
    """

    def __init__(self, observation: Observation, **bounds: Any) -> None:
        super().__init__(**bounds)
        self._observation = observation
        self._is_closing = False

    def _admit(self, entry: Entry) -> None:
        super()._admit(entry)
        self._observation.accept(entry)

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
        # What a driver reports of a record for the second time is none of its outcome.
        candidates = dict.fromkeys(
            entry for entry in entries if entry.state is DeliveryState.SUBMITTED
        )
        woken = super().settle(entries, outcomes)
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
        return woken

    def _fail(self, entry: Entry, error: DeliveryError, woken: list[object]) -> None:
        given = entry.given
        # A driver knows the record with its added headers alone.
        error.record = given.record
        was_waiting = entry.state is DeliveryState.WAITING
        abandoned = entry.abandoned
        super()._fail(entry, error, woken)
        observation = self._observation
        if was_waiting:
            observation.refuse(given, error)
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
        woken = super().cancel(entry)
        if was_waiting:
            self._observation.refuse(entry.given, None)
        return woken

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


class ObservedSender(Sender):
    """What sends records under observation."""

    _observing: Observation

    async def _send_group(
        self, records: Sequence[ProducerRecord[Any, Any]], *, stops: bool = False
    ) -> list[RecordMetadata | DeliveryError]:
        for record in records:
            check_is_record(record)
        if not records:
            return await super()._send_group(records, stops=stops)
        observing = self._observing
        batch = observing.begin_batch(records)
        token = _batch.set(batch)
        try:
            outcomes = await super()._send_group(records, stops=stops)
        except BaseException as error:
            observing.end_batch(batch, error=error)
            raise
        finally:
            _batch.reset(token)
        observing.end_batch(batch, outcomes)
        return outcomes
