"""How a record becomes an entry of the ledger.

An admission checks the record, enters it in the ledger and notifies the pump. This module has four
implementations: one for a producer without observers, one for a producer with observers, one for
observers that add headers, and one that refuses the records of a transactional producer outside its
transactions. A fifth, in ``_transaction.py``, enters the records of one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

from anyio import WouldBlock

from ._deadlines import CallDeadline
from ._delivery import DeliveryState, Entry, Group, ProducerState
from ._engine import Engine
from ._engine_states import PumpState
from ._exceptions import ProducerMisused, RecordRejected, TransactionError
from ._observing import Observation
from ._records import ProducerRecord
from ._validation import check_is_record, check_record

__all__ = [
    "Admission",
    "AdmissionLike",
    "InjectingAdmission",
    "ObservedAdmission",
    "RefusingAdmission",
    "admission_for",
    "cancel_entries",
    "wait_for_room",
]

#: An injector may send a record of its own, for which it is called, too. Without an end, a
#: RecursionError would come anywhere in the producer's code.
_MOST_NESTED = 10

# A global is read faster than an attribute of the enum's class; these are read for each record.
_IDLE = PumpState.IDLE
_QUEUED = DeliveryState.QUEUED


class AdmissionLike(Protocol):
    """The interface of an admission."""

    def enter(
        self,
        record: ProducerRecord[Any, Any],
        *,
        wait: bool = True,
        deadline: CallDeadline | None = None,
    ) -> Entry:
        """Enter one record.

        Args:
            record: the record.
            wait: whether the record may wait for room.
            deadline: the deadline of the call; None if it has only the ``delivery_timeout``.

        Returns:
            The entry. Its state is WAITING if there is no room yet.

        Raises:
            anyio.WouldBlock: there is no room, and ``wait`` is False.
            RecordRejected: the record is invalid.
            ProducerClosed, ProducerBroken: the producer does not accept records any more.
            ProducerMisused: the call interrupts the producer's own code.
            TransactionError: the producer has a ``transactional_id``, and this is not the admission
                of a transaction; or the transaction has ended, or its client was given up.
            TypeError: ``record`` is not a ProducerRecord.
        """
        ...

    def enter_many(
        self,
        records: Iterable[ProducerRecord[Any, Any]],
        group: Group,
        deadline: CallDeadline | None = None,
    ) -> list[Entry]:
        """Enter records of a group in order, and stop before one that is invalid or has no room.

        Returns:
            The entries; none if the implementation enters records only one by one. If there are
            none, the caller must pass the next record to :meth:`enter`.
        """
        ...


class Admission:
    """Enters records of a producer without observers.

    Args:
        engine: the producer's engine.
    """

    def __init__(self, engine: Engine) -> None:
        settings = engine.settings
        self._engine = engine
        # Attributes, because they are used for each record.
        self._step = engine.step
        self._ledger = engine.ledger
        self._now = engine.clock.now
        self._timer = engine.timer
        self._key_serialized = settings.key_serializer is not None
        self._value_serialized = settings.value_serializer is not None
        self._topics: set[str] = set()

    def enter(
        self,
        record: ProducerRecord[Any, Any],
        *,
        wait: bool = True,
        deadline: CallDeadline | None = None,
    ) -> Entry:
        """See :meth:`AdmissionLike.enter`."""
        if type(record) is not ProducerRecord:
            check_is_record(record)
        checked, size = check_record(
            record, self._topics, self._key_serialized, self._value_serialized
        )
        step = self._step
        if step.depth:
            raise self._engine.affinity.reentered()
        # `with step:`, written out: this runs for each record.
        step.depth = 1
        try:
            entry = self._ledger.enter(checked, size, self._now(), wait)
            if deadline is not None:
                self._limit((entry,), deadline)
            engine = self._engine
            if engine.pump is _IDLE:
                engine.notify()
        finally:
            step.depth = 0
        return entry

    def enter_many(
        self,
        records: Iterable[ProducerRecord[Any, Any]],
        group: Group,
        deadline: CallDeadline | None = None,
    ) -> list[Entry]:
        """See :meth:`AdmissionLike.enter_many`."""
        with self._step:
            now = self._now()
            entries = self._ledger.enter_many(self._checked(records), now, group)
            self._note_entered(entries, now)
            if deadline is not None:
                self._limit(entries, deadline)
            if entries:
                self._engine.notify()
        return entries

    def _note_entered(self, entries: Sequence[Entry], now: float) -> None:
        """Note that several records were entered at this time."""

    def _limit(self, entries: Iterable[Entry], deadline: CallDeadline) -> None:
        self._ledger.limit(entries, deadline)
        self._timer.add(deadline.at)

    def _checked(
        self, records: Iterable[ProducerRecord[Any, Any]]
    ) -> Iterator[tuple[ProducerRecord[Any, Any], int]]:
        """Check records up to the first that is invalid, and return them with their sizes."""
        topics, key_serialized, value_serialized = (
            self._topics,
            self._key_serialized,
            self._value_serialized,
        )
        for record in records:
            try:
                checked = check_record(record, topics, key_serialized, value_serialized)
            except RecordRejected:
                return
            yield checked


class ObservedAdmission(Admission):
    """Enters records of a producer that has observers, none of which adds headers.

    Args:
        engine: the producer's engine.
        observation: informs the observers.
    """

    def __init__(self, engine: Engine, observation: Observation) -> None:
        super().__init__(engine)
        self._observation = observation
        self._numbers = observation.numbers

    def enter(
        self,
        record: ProducerRecord[Any, Any],
        *,
        wait: bool = True,
        deadline: CallDeadline | None = None,
    ) -> Entry:
        """See :meth:`AdmissionLike.enter`."""
        checked, size = self._check(record)
        step = self._step
        if step.depth:
            raise self._engine.affinity.reentered()
        # `with step:`, written out: this runs for each record.
        step.depth = 1
        try:
            now = self._now()
            try:
                entry = self._ledger.enter(checked, size, now, wait)
            except RecordRejected as error:
                self._observation.add_refused(next(self._numbers), checked, now, error)
                raise
            entry.given = given = (next(self._numbers), checked, now, size)
            if entry.state is _QUEUED:
                # Observation.add_accepted(), written out.
                accepted = self._observation.accepted
                if accepted is None:
                    accepted = self._observation.open_accepted()
                accepted.append(given)
            if deadline is not None:
                self._limit((entry,), deadline)
            engine = self._engine
            if engine.pump is _IDLE:
                engine.notify()
        finally:
            step.depth = 0
        return entry

    def _note_entered(self, entries: Sequence[Entry], now: float) -> None:
        for entry in entries:
            entry.given = (next(self._numbers), entry.record, now, entry.size)
        self._observation.add_accepted(entries, now)

    def _check(self, record: ProducerRecord[Any, Any]) -> tuple[ProducerRecord[Any, Any], int]:
        """Check a record. Returns: the record and its size."""
        if type(record) is not ProducerRecord:
            check_is_record(record)
        try:
            return check_record(record, self._topics, self._key_serialized, self._value_serialized)
        except RecordRejected as error:
            if self._ledger.state is not ProducerState.OPEN:
                raise self._ledger.refusal() from None
            now = self._now()
            self._observation.add_refused(next(self._numbers), record, now, error)
            raise


class InjectingAdmission(ObservedAdmission):
    """Enters records of a producer that has observers, some of which add headers."""

    #: How many calls of injectors are in progress, each in the one before.
    _nested = 0

    def enter(
        self,
        record: ProducerRecord[Any, Any],
        *,
        wait: bool = True,
        deadline: CallDeadline | None = None,
    ) -> Entry:
        """See :meth:`AdmissionLike.enter`."""
        checked, size = self._check(record)
        if self._ledger.state is not ProducerState.OPEN:
            raise self._ledger.refusal()
        entry = self._enter_checked(checked, size, deadline, wait=wait)
        with self._step:
            self._engine.notify()
        return entry

    def enter_many(
        self,
        records: Iterable[ProducerRecord[Any, Any]],
        group: Group,
        deadline: CallDeadline | None = None,
    ) -> list[Entry]:
        """See :meth:`AdmissionLike.enter_many`."""
        ledger = self._ledger
        entries: list[Entry] = []
        for checked, size in self._checked(records):
            if ledger.state is not ProducerState.OPEN or not ledger.has_room(size):
                break
            entry = self._enter_checked(checked, size, deadline)
            entry.group = group
            entries.append(entry)
        with self._step:
            if entries:
                self._engine.notify()
        return entries

    def _enter_checked(
        self,
        record: ProducerRecord[Any, Any],
        size: int,
        deadline: CallDeadline | None,
        *,
        wait: bool = True,
    ) -> Entry:
        ledger, observation = self._ledger, self._observation
        if self._step.depth:
            raise self._engine.affinity.reentered()
        if self._nested >= _MOST_NESTED:
            raise ProducerMisused(
                "the inject() of an observer sends a record for each record that it gets, also for "
                "those that it sends itself"
            )
        now = self._now()
        given = observation.make_given(record, now)
        number = given.number
        sent = record
        # Call no injector for a record that is refused at once, because the injector may take the
        # call as a sign that the record is sent.
        if size <= ledger.max_bytes and (wait or ledger.has_room(size)):
            self._nested += 1
            try:
                sent, size = observation.add_headers(given, size, ledger.max_bytes)
            finally:
                self._nested -= 1
        with self._step:
            try:
                entry = ledger.enter(sent, size, now, wait)
            except RecordRejected as error:
                observation.add_refused(number, record, now, error)
                raise
            except WouldBlock as error:
                if sent is not record:  # an injector took the record for one that is sent
                    observation.add_refused(number, record, now, error)
                raise
            entry.given = (number, record, now, size)
            if entry.state is _QUEUED:
                observation.add_accepted((entry,), observation.now())
            if deadline is not None:
                self._limit((entry,), deadline)
        return entry


class RefusingAdmission:
    """Refuses every record. A transactional producer uses it outside its transactions.

    Args:
        engine: the producer's engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def enter(
        self,
        record: ProducerRecord[Any, Any],  # noqa: ARG002
        *,
        wait: bool = True,  # noqa: ARG002
        deadline: CallDeadline | None = None,  # noqa: ARG002
    ) -> Entry:
        """Refuse a record; see :meth:`AdmissionLike.enter`."""
        self._engine.check_usable()
        raise TransactionError(
            "this producer has a transactional_id: use `async with producer.transaction() as tx:`, "
            "and send with tx.send()"
        )

    def enter_many(
        self,
        records: Iterable[ProducerRecord[Any, Any]],  # noqa: ARG002
        group: Group,  # noqa: ARG002
        deadline: CallDeadline | None = None,  # noqa: ARG002
    ) -> list[Entry]:
        """Enter no record, so that the caller passes the first one to :meth:`enter`."""
        return []


def admission_for(engine: Engine) -> Admission:
    """Choose the implementation once, so that the hot path has no branch."""
    observation = engine.observation
    if observation is None:
        return Admission(engine)
    admission = InjectingAdmission if observation.injectors else ObservedAdmission
    return admission(engine, observation)


async def wait_for_room(engine: Engine, entry: Entry) -> None:
    """Wait until a WAITING record is accepted or fails.

    Cancellation: the record is withdrawn. asyncio's own ``task.cancel()`` may come after the record
    was accepted and submitted, and before the task runs again. Then the record is abandoned.
    """
    waiter = entry.room_waiter = engine.loop.new_waiter()
    try:
        await waiter
    except BaseException:
        cancel_entries(engine, entry)
        raise


def cancel_entries(engine: Engine, *entries: Entry) -> None:
    """Cancel the deliveries of a call that was cancelled; see :meth:`Ledger.cancel`."""
    engine.run_or_schedule(partial(_cancel_now, engine, entries))


def _cancel_now(engine: Engine, entries: Iterable[Entry]) -> None:
    to_wake: list[object] = []
    for entry in entries:
        to_wake += engine.ledger.cancel(entry)
    engine.wake_and_notify(to_wake)
