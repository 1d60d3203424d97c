"""Asks the cluster to describe itself, with a second client or with a user's own driver."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Final

import anyio
import anyio.lowlevel
import anyio.to_thread

from ._bridge import Bridge
from ._exceptions import SendProducerError
from ._settings_resolver import SettingsResolver
from ._shown import listed
from .drivers import DescribingDriver, DriverFactory, DriverName
from .drivers._describe import describe_cluster
from .drivers._protocols import ClusterDescription

__all__ = ["ClusterProbe"]

#: Seconds beyond the caller's timeout after which the client library is left behind in its thread.
_GRACE_SECONDS: Final = 1.0


class ClusterProbe:
    """Asks the cluster of one producer to describe itself.

    Args:
        resolver: has the addresses of the cluster.
        chosen: the driver that the user chose.
        bridge: has the driver that a factory of the user made.
    """

    def __init__(
        self,
        resolver: SettingsResolver,
        chosen: DriverName | DriverFactory | None,
        bridge: Bridge,
    ) -> None:
        self._resolver = resolver
        self._chosen = chosen
        self._bridge = bridge
        # Held while a thread asks, also if that thread was left behind.
        self._asking = threading.Lock()

    async def ask(self, seconds: float) -> ClusterDescription:
        """Ask; see :meth:`anyio_sendproducer.SendProducer.check`."""
        describe = self._function(seconds)
        if self._bridge.is_threadless:
            await anyio.lowlevel.checkpoint()
            return describe()

        def describe_alone() -> ClusterDescription | None:
            if not self._asking.acquire(timeout=seconds):
                return None
            try:
                return describe()
            finally:
                self._asking.release()

        with anyio.move_on_after(seconds + _GRACE_SECONDS):
            found = await anyio.to_thread.run_sync(
                describe_alone, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
            )
            if found is not None:
                return found
        raise SendProducerError(
            f"{listed(self._resolver.settings.addresses)}: no answer within {seconds:g} s (timeout)"
        )

    def _function(self, seconds: float) -> Callable[[], ClusterDescription]:
        if not self._resolver.is_complete:
            raise SendProducerError("check: the addresses of the cluster are not known yet")
        settings = self._resolver.settings
        if callable(self._chosen):
            driver = self._bridge.driver
            if driver is None:
                raise SendProducerError(
                    "check: the producer has no driver at the moment, because it makes a new one"
                )
            if not isinstance(driver, DescribingDriver):
                raise SendProducerError(
                    "check: the driver has no method describe(), so it cannot ask the cluster"
                )
            return partial(driver.describe, seconds)
        if settings.producer is not None:
            raise SendProducerError(
                "check: the settings have an existing producer instead of the cluster's addresses; "
                "check that producer itself"
            )
        # A second client with the transactional_id would fence the producer's own.
        probe = settings.evolve(start_timeout=seconds, transactional_id=None)
        return partial(describe_cluster, self._chosen, probe, versions=False)
