"""Gives a client up and has the next one opened, and finds out when a service has moved.

The engine decides when a client is given up. A transactional producer also fails the records that
were queued for the transaction of the old client.
"""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import anyio.abc

from ._bridge import Bridge
from ._ledger import Ledger
from ._observing import Observation
from ._settings_resolver import SettingsResolver
from ._shown import listed

__all__ = ["WATCH_SECONDS", "Replacement"]

#: Seconds between two checks whether any broker is reached. After two checks in a row that found
#: none, the service is looked up again.
WATCH_SECONDS: Final = 5.0


class Replacement:
    """Replaces the clients of one producer.

    Create it in the task that opens the producer. Look-ups run in a copy of that task's context.

    Args:
        resolver: resolves the settings.
        ledger: tracks the producer's deliveries.
        bridge: connects the event loop to the driver.
        observation: informs the producer's observers; None if there are none.
    """

    def __init__(
        self,
        resolver: SettingsResolver,
        ledger: Ledger,
        bridge: Bridge,
        observation: Observation | None,
    ) -> None:
        self._resolver = resolver
        self._ledger = ledger
        self._bridge = bridge
        self._observation = observation
        self._context = contextvars.copy_context()
        # The number of records that had been accepted when the last client was given up.
        self._accepted_before = 0
        # The number of records that had been delivered then; -1 before the first time, and after a
        # transaction has ended.
        self._delivered_before = -1
        # How many clients in a row were given up before they delivered a record or ended a
        # transaction; the first client does not count.
        self._fruitless = 0
        #: The number of the client that was opened last. The first is 1.
        self.generation = 1
        #: Set when the look-up before a replacement has ended. None if there is no such look-up.
        self.looked_up: anyio.Event | None = None

    def last_error(self) -> BaseException | None:
        """Return the reason why no broker is reached, if the driver knows it, or why no first
        client can be opened yet."""
        return self._bridge.last_error() or self._resolver.open_error

    def opened(self, generation: int) -> None:
        """Note that the client of this number was opened."""
        self.generation = generation
        if self._observation is not None:
            self._observation.client_opened(generation)

    def ended_transaction(self) -> None:
        """Note that the client ended a transaction, so that it could be used, although it may not
        have delivered a record."""
        self._delivered_before = -1

    def begin(self, error: BaseException, tasks: anyio.abc.TaskGroup) -> None:
        """Have the driver thread give the client up and open the next one.

        Args:
            error: why the client is given up.
            tasks: runs the look-up, if the settings must be completed again before.
        """
        self._accepted_before = self._ledger.accepted
        delivered = self._ledger.delivered
        self._fruitless = self._fruitless + 1 if delivered == self._delivered_before else 0
        self._delivered_before = delivered
        if self._resolver.asks:
            self.looked_up = anyio.Event()
            # A transaction's task may call this.
            context = self._context.copy()
            context.run(tasks.start_soon, self._find_and_reopen, error, self.looked_up)
        else:
            self._reopen(error)

    async def _find_and_reopen(self, error: BaseException, looked_up: anyio.Event) -> None:
        try:
            await self._resolver.find_again()
            with self._bridge.step:
                self._reopen(error)
        finally:
            self.looked_up = None
            looked_up.set()

    def _reopen(self, error: BaseException) -> None:
        self._bridge.reopen(error, self._ledger.in_flight_bytes, self._fruitless)

    def is_given_up(self, generation: int) -> bool:
        """Whether the client of this number was given up. Calls may still reach it until the
        look-up before its replacement has ended."""
        return self.looked_up is not None or self._bridge.generation != generation

    def end_generation(self, error: BaseException) -> list[object]:
        """Fail the records of a client that is closed. Returns: the waiters to wake.

        Args:
            error: why the client was given up.
        """
        to_wake = self._ledger.end_generation(error)
        if self._resolver.settings.transactional_id is not None:
            # Records that were queued for the open transaction must not get into the next one.
            to_wake += self._ledger.fail_unsubmitted(
                f"the record was not sent: the client was given up: {error}",
                error,
                until=self._accepted_before,
            )
        if self._observation is not None:
            self._observation.client_ended(error)
        return to_wake

    async def watch_addresses(
        self,
        sleep: Callable[[float], Awaitable[None]],
        is_reopening: Callable[[], bool],
        replace: Callable[[BaseException], None],
    ) -> None:
        """Find the addresses for the first client, if it is opened in the background. Then look the
        service up again while no broker is reached, and replace the client at a new address.

        Args:
            sleep: waits for so many seconds.
            is_reopening: whether a client is being opened.
            replace: gives the client up for this reason.
        """
        await self._resolver.find_until_found(sleep)
        self._bridge.allow_open()
        was_disconnected = False
        while True:
            await sleep(WATCH_SECONDS)
            is_disconnected = is_reopening() or self._bridge.is_disconnected()
            if is_disconnected and was_disconnected and await self._resolver.moved():
                addresses = listed(self._resolver.settings.addresses)
                error = ConnectionError(
                    f"no broker is reached, and the service now has the addresses {addresses}"
                )
                error.__cause__ = self._bridge.last_error()
                replace(error)
            was_disconnected = is_disconnected
