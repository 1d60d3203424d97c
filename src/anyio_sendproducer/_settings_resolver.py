"""Completes the settings for a client: ``enrich`` changes them, and a resolver finds addresses.

This runs on the event loop, except :meth:`SettingsResolver.for_client`: the driver thread calls it.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeVar, cast

import anyio
import anyio.lowlevel

from . import discovery
from ._exceptions import DiscoveryError, ProducerStartError, SettingsError
from ._settings import ProducerSettings, SettingsFields
from ._shown import listed, one_line
from .discovery import Lookup, Resolver, Target
from .telemetry._logging import error_type

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["SettingsResolver"]

T = TypeVar("T")

_log = logging.getLogger("anyio_sendproducer")

#: The number of targets of one look-up that are used. librdkafka starts a thread for each address,
#: and each broker names all brokers. One DNS answer may have 2,500 SRV records.
MOST_TARGETS: Final = 100
#: The shortest ``start_timeout`` that is left for the first client; seconds.
_LEAST: Final = 0.001

#: Seconds between two attempts in the background to complete the settings, until one succeeds.
_REPEAT_SECONDS: Final = 1.0


class _HookCancelledError(Exception):
    """``enrich`` or a resolver raised asyncio's CancelledError, although nobody cancelled it."""


async def _without_own_cancellation(call: Awaitable[T]) -> T:
    """Await a hook for a task of the producer, which the CancelledError of a hook would end."""
    try:
        return await call
    except anyio.get_cancelled_exc_class() as error:
        await anyio.lowlevel.checkpoint_if_cancelled()  # the producer is being closed
        raise _HookCancelledError("enrich or the look-up raised CancelledError") from error


class SettingsResolver:
    """Completes the settings for each client of one producer.

    Args:
        given: the caller's settings.

    Attributes:
        settings: the current settings. :meth:`find` completes them, and :meth:`find_again` and
            :meth:`moved` update the fields that belong to the client.
    """

    def __init__(self, given: ProducerSettings) -> None:
        self._given = given
        # The rest of start_timeout after enrich and the look-up. find() sets it before the driver
        # thread starts; the driver thread takes it.
        self._left: float | None = None
        # The service of the last settings that enrich returned, the resolver that looks it up, and
        # the time for one look-up; None if those settings have only addresses.
        self._service: tuple[Lookup, Resolver, float] | None = None
        # Why the last call of find_again() failed, without its traceback, which refers to this
        # object.
        self._failure: Exception | None = None
        self.settings = given
        #: Whether the settings are complete.
        self.is_complete = not self.asks

    @property
    def asks(self) -> bool:
        """Whether ``enrich`` or a resolver must be called before a client is constructed."""
        return self._given.enrich is not None or bool(self._given.service_name)

    @property
    def open_error(self) -> Exception | None:
        """Why no first client can be opened yet: the last error of ``enrich`` or the look-up. None
        if the settings are complete, or if no attempt has failed."""
        return None if self.is_complete else self._failure

    def for_client(self) -> ProducerSettings:
        """The settings for the next client. With ``wait_for_cluster``, the first client's
        ``start_timeout`` is shorter by the time that ``enrich`` and the look-up took."""
        left, self._left = self._left, None
        if left is None:
            return self.settings
        # A long timedelta causes no warning.
        return self.settings.evolve(start_timeout=timedelta(seconds=left))

    async def find(self) -> None:
        """Complete the settings for the first client.

        Raises:
            DiscoveryError: the service was not found.
            ProducerStartError: ``enrich`` and the look-up did not finish within ``start_timeout``.
            SettingsError: ``enrich`` is not async, it returned no ``ProducerSettings``, or its
                settings have neither addresses nor a ``service_name``.
            Exception: an exception of ``enrich``.

        Cancellation leaves nothing behind.
        """
        if not self.is_complete:
            began = anyio.current_time()
            self.settings = await self._complete()
            left = self._given.start_timeout - (anyio.current_time() - began)
            self._left = round(max(left, _LEAST), 3)
            self.is_complete = True

    async def find_until_found(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        """Complete the settings, and try again until that succeeds. Only the fields of the client
        change.

        Args:
            sleep: waits for so many seconds.
        """
        while not self.is_complete:
            if await self.find_again():
                self.is_complete = True
            else:
                await sleep(_REPEAT_SECONDS)

    async def find_again(self) -> bool:
        """Complete the settings again, for the next client.

        Returns:
            Whether that succeeded. A failure is logged, and the settings stay as they are.
        """
        try:
            found = await _without_own_cancellation(self._complete())
            # The other fields belong to the producer, which continues with them.
            self._take(
                bootstrap_servers=found.bootstrap_servers,
                client_id=found.client_id,
                properties=found.properties,
                service_name="",
                enrich=None,
            )
        except Exception as error:  # noqa: BLE001  # the producer continues with what it has
            self._failure = error.with_traceback(None)
            with suppress(Exception):  # a log handler may raise
                _log.warning(
                    "the client's settings stay as they were: %s",
                    error,
                    extra={"error.type": error_type(error)},
                )
            return False
        return True

    async def moved(self) -> bool:
        """Look the service up again, if there is one.

        Returns:
            Whether its addresses have changed. A failure is logged, and the addresses stay as they
            are. They also stay if :meth:`find_again` asked for a service or addresses meanwhile.
        """
        service = self._service
        if service is None:
            return False
        before = set(self.settings.addresses)
        try:
            found = await _without_own_cancellation(self._look_up(service))
        except (DiscoveryError, _HookCancelledError) as error:
            with suppress(Exception):  # a log handler may raise
                _log.warning(
                    "the addresses stay as they were: %s",
                    error,
                    extra={"error.type": error_type(error)},
                )
            return False
        if service is not self._service:
            return False
        self._take(bootstrap_servers=found)
        return set(self.settings.addresses) != before

    def _take(self, **changes: Unpack[SettingsFields]) -> None:
        before = self.settings
        self.settings = before.evolve(**changes)
        if self.settings.addresses != before.addresses:
            addresses = listed(self.settings.addresses)
            with suppress(Exception):  # a log handler may raise
                _log.info(
                    "the brokers' addresses are %s now",
                    addresses,
                    extra={"anyio_sendproducer.addresses": addresses},
                )

    async def _complete(self) -> ProducerSettings:
        """Call ``enrich`` and the resolver, within ``start_timeout``; see :meth:`find`."""
        seconds = self.settings.start_timeout
        waiting_for = "enrich"
        with anyio.move_on_after(seconds):
            enriched = await self.enriched()
            waiting_for = f"the look-up of {enriched.service_name}"
            return await self._with_addresses(enriched)
        raise ProducerStartError(
            f"{waiting_for} did not finish within {seconds:g} s (start_timeout)"
        )

    async def enriched(self) -> ProducerSettings:
        """Return what ``enrich`` makes of the caller's settings; without it, these settings.

        Raises:
            SettingsError: ``enrich`` is not async, or it returned no ``ProducerSettings``.
            Exception: an exception of ``enrich``.
        """
        given = self._given
        if given.enrich is None:
            return given
        answer = cast("object", given.enrich(given))
        if not isinstance(answer, Awaitable):
            raise SettingsError(
                f"enrich must be an async callable: it returned {type(answer).__name__}"
            )
        enriched = await cast("Awaitable[ProducerSettings]", answer)
        if not isinstance(cast("object", enriched), ProducerSettings):
            raise SettingsError(
                f"enrich must return ProducerSettings, not {type(enriched).__name__}"
            )
        return enriched

    async def _with_addresses(self, settings: ProducerSettings) -> ProducerSettings:
        # enrich=None makes evolve() check that there is an address.
        if not settings.service_name:
            completed = settings.evolve(enrich=None)
            self._service = None
            return completed
        method = settings.discovery_method
        resolver = discovery.dns() if method == "dns" else discovery.as_resolver(method)
        lookup = Lookup.parse(settings.service_name)
        service = self._service = (lookup, resolver, settings.resolve_timeout)
        found = await self._look_up(service)
        return settings.evolve(bootstrap_servers=found, service_name="", enrich=None)

    @staticmethod
    async def _look_up(service: tuple[Lookup, Resolver, float]) -> list[str]:
        """Return the addresses of a service.

        Raises:
            DiscoveryError: the service was not found in time.
        """
        lookup, resolver, seconds = service
        what = f"service_name {str(lookup)!r:.100}, looked up with {one_line(repr(resolver))}"
        targets: list[Target] = []
        is_late = False
        with anyio.move_on_after(seconds) as scope:
            try:
                answer = cast("object", await resolver.resolve(lookup))
                if not isinstance(answer, Iterable):
                    raise TypeError(f"targets were expected, not {type(answer).__name__}")
                # A generator may be slow or endless, and it runs on the event loop.
                for target in itertools.islice(cast("Iterable[Target]", answer), MOST_TARGETS + 1):
                    targets.append(target)
                    if anyio.current_time() >= scope.deadline:
                        is_late = True
                        break
            except Exception as error:
                said = one_line(error) or type(error).__name__
                raise DiscoveryError(f"{what}: {said}") from error
        if is_late or scope.cancelled_caught:
            raise DiscoveryError(f"{what}: no answer within {seconds:g} s (resolve_timeout)")
        if len(targets) > MOST_TARGETS:
            with suppress(Exception):  # a log handler may raise
                _log.warning(
                    "%s: more than %d targets were found; the first %d are used",
                    what,
                    MOST_TARGETS,
                    MOST_TARGETS,
                )
        found: list[str] = []
        for target in targets[:MOST_TARGETS]:
            if not isinstance(cast("object", target), Target):
                raise DiscoveryError(f"{what}: a Target was expected, not {type(target).__name__}")
            if target.port is None:
                raise DiscoveryError(
                    f"{what}: {target.host:.100} was found without a port; use the name of SRV "
                    "records, such as '_port._tcp.name', or pass the port to the resolver"
                )
            found.append(str(target))
        if not found:
            raise DiscoveryError(f"{what}: nothing was found")
        return found
