"""Calls with several records: ``send_many``, and ``send_envelope`` with a MultiMessage.

Such a call enters as many records as there is room for, and waits for room for the next one. It
waits once for all outcomes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import anyio
import anyio.lowlevel

from ._admission import AdmissionLike, cancel_entries, wait_for_room
from ._deadlines import CallDeadline
from ._delivery import DeliveryState, Entry, Group
from ._engine import Engine
from ._exceptions import DeliveryError, ProducerBroken, ProducerClosed, RecordRejected
from ._failures import not_sent, not_tried
from ._records import ProducerRecord, RecordMetadata
from ._validation import check_is_record

__all__ = ["send_group"]

#: How many records of one call are entered before other tasks run: about a millisecond's work.
_RECORDS_BETWEEN_YIELDS = 500


async def send_group(
    engine: Engine,
    admission: AdmissionLike,
    records: Sequence[ProducerRecord[Any, Any]],
    deadline: CallDeadline | None,
    *,
    stop_on_error: bool = False,
) -> list[RecordMetadata | DeliveryError]:
    """Send the records of one call, and wait for all outcomes.

    Args:
        engine: the producer's engine.
        admission: enters the records.
        records: the records.
        deadline: the deadline of the call; None if it has only the ``delivery_timeout``.
        stop_on_error: see :meth:`Sender.send_many`.

    Returns:
        The outcome of each record, in the order of ``records``.

    Raises:
        ProducerClosed, ProducerBroken, ProducerMisused: see :meth:`Sender.send`. No record was
            accepted.
        TransactionError: see :meth:`Sender.send`. If the transaction ended during the call, earlier
            records may have been accepted.
        TypeError: one of ``records`` is not a ProducerRecord. No record was accepted.

    Cancellation: as with :meth:`Sender.send`, for each record on its own.
    """
    for record in records:
        check_is_record(record)
    observation = engine.observation
    if observation is None or not records:
        return await _send_checked(engine, admission, records, deadline, stop_on_error)
    return await observation.observe_call(
        records, partial(_send_checked, engine, admission, records, deadline, stop_on_error)
    )


async def _send_checked(
    engine: Engine,
    admission: AdmissionLike,
    records: Sequence[ProducerRecord[Any, Any]],
    deadline: CallDeadline | None,
    stop_on_error: bool,  # noqa: FBT001
) -> list[RecordMetadata | DeliveryError]:
    engine.affinity.check()
    if not records:
        await anyio.lowlevel.checkpoint()
        return []
    await anyio.lowlevel.checkpoint_if_cancelled()
    waiter = engine.loop.new_waiter()
    # One more than there are records, so that the last outcome does not wake this task before all
    # records are entered.
    group = Group(len(records) + 1, waiter, stop_on_error=stop_on_error)
    call = _GroupCall(engine, admission, records, group, deadline)
    try:
        await call.enter_all()
        group.remaining -= 1
        if group.remaining:
            await waiter
        else:
            await anyio.lowlevel.checkpoint()
    except BaseException:
        group.waiter = None
        cancel_entries(engine, *(item for item in call.entered if isinstance(item, Entry)))
        raise
    outcomes = [item.outcome if type(item) is Entry else item for item in call.entered]
    return cast("list[RecordMetadata | DeliveryError]", outcomes)


class _GroupCall:
    """Enters the records of one call.

    Args:
        engine: the producer's engine.
        admission: enters the records.
        records: the records.
        group: the group of their entries.
        deadline: the deadline of the call, if it has a timeout.
    """

    def __init__(
        self,
        engine: Engine,
        admission: AdmissionLike,
        records: Sequence[ProducerRecord[Any, Any]],
        group: Group,
        deadline: CallDeadline | None,
    ) -> None:
        self._engine = engine
        self._admission = admission
        self._records = records
        self._group = group
        self._deadline = deadline
        #: For each record so far: its entry, or its error if it was not entered.
        self.entered: list[Entry | DeliveryError] = []

    async def enter_all(self) -> None:
        """Enter the records in order, each as soon as there is room for it.

        Raises:
            ProducerClosed, ProducerBroken: no record was entered.
            TransactionError: the transaction has ended; earlier records may have been entered.
        """
        records, group, entered = self._records, self._group, self.entered
        next_yield = _RECORDS_BETWEEN_YIELDS
        while (done := len(entered)) < len(records):
            if done >= next_yield:
                next_yield = done + _RECORDS_BETWEEN_YIELDS
                await anyio.lowlevel.checkpoint()
            if not group.stopped:
                portion = records[done : done + _RECORDS_BETWEEN_YIELDS]
                entries = self._admission.enter_many(portion, group, self._deadline)
                if entries:
                    entered += entries
                    if group.stop_on_error:
                        group.members += entries
                    continue
            item = self._enter_one(records[done])
            entered.append(item)
            if isinstance(item, DeliveryError):
                group.remaining -= 1
            elif item.state is DeliveryState.WAITING:
                await wait_for_room(self._engine, item)

    def _enter_one(self, record: ProducerRecord[Any, Any]) -> Entry | DeliveryError:
        """Enter one record.

        Returns:
            The entry, or the error of a record that can't be entered.

        Raises:
            ProducerClosed, ProducerBroken: no record was entered before this one.
            TransactionError: the transaction has ended.
        """
        group = self._group
        if group.stopped:
            return not_tried(record)
        try:
            entry = self._admission.enter(record, deadline=self._deadline)
        except RecordRejected as error:
            engine = self._engine
            with engine.step:
                engine.wake_and_notify(engine.ledger.stop_group(group))
            # The frames in its traceback refer to the list that will hold it: a reference cycle.
            return error.with_traceback(None)
        except (ProducerClosed, ProducerBroken) as error:
            if not any(isinstance(item, Entry) for item in self.entered):
                raise
            cause = error.with_traceback(None)  # as above
            return not_sent(record, f"the record was not sent: {cause}", cause)
        entry.group = group
        if group.stop_on_error:
            group.members.append(entry)
        return entry
