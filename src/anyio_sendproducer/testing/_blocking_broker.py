"""The embedded broker for code without an event loop, or with a new event loop for each test.

A broker belongs to the event loop that started it, and a test's event loop ends with the test. Here
the broker has its own event loop, on a thread. So one broker can serve tests on asyncio and on
Trio, and synchronous tests.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from datetime import timedelta
from typing import NoReturn

from anyio.from_thread import BlockingPortal, start_blocking_portal

from ._broker import EmbeddedBroker, embedded_broker

__all__ = ["BlockingEmbeddedBroker", "blocking_embedded_broker"]


class BlockingEmbeddedBroker:
    """A running broker. :func:`blocking_embedded_broker` creates it. ``str()`` returns the address
    of the broker.

    Each method usually blocks for a few milliseconds. Any thread may call the methods. After the
    ``with`` block, the methods and :attr:`running` raise :exc:`RuntimeError`.
    """

    _broker: EmbeddedBroker
    _portal: BlockingPortal

    def __init__(self, *_: NoReturn, **__: NoReturn) -> None:
        raise TypeError(
            "BlockingEmbeddedBroker is made by `with blocking_embedded_broker() as broker:`"
        )

    @classmethod
    def _create(cls, broker: EmbeddedBroker, portal: BlockingPortal) -> BlockingEmbeddedBroker:
        self = object.__new__(cls)
        self._broker = broker
        self._portal = portal
        return self

    def __str__(self) -> str:
        return self.bootstrap_servers

    def __repr__(self) -> str:
        return f"BlockingEmbeddedBroker(port={self.port}, pid={self.pid})"

    @property
    def bootstrap_servers(self) -> str:
        """The address, as ``"host:port"``."""
        return self._broker.bootstrap_servers

    @property
    def port(self) -> int:
        """The broker's port on 127.0.0.1."""
        return self._broker.port

    @property
    def pid(self) -> int:
        """The broker's process id."""
        return self._broker.pid

    @property
    def running(self) -> bool:
        """Whether the broker's process is alive; a paused process is alive."""
        return self._portal.call(lambda: self._broker.running)

    def kill(self) -> None:
        """End the process at once, as :meth:`EmbeddedBroker.kill` does."""
        self._portal.call(self._broker.kill)

    def pause(self) -> None:
        """Pause the process, as :meth:`EmbeddedBroker.pause` does.

        Raises:
            EmbeddedBrokerError: the broker has ended.
        """
        self._portal.call(self._broker.pause)

    def resume(self) -> None:
        """Resume a paused process, as :meth:`EmbeddedBroker.resume` does.

        Raises:
            EmbeddedBrokerError: the broker has ended.
        """
        self._portal.call(self._broker.resume)

    def output(self) -> str:
        """Return the last 4,000 bytes that the broker printed."""
        return self._portal.call(self._broker.output)


@contextlib.contextmanager
def blocking_embedded_broker(
    *, port: int | None = None, start_timeout: float | timedelta = 10.0
) -> Generator[BlockingEmbeddedBroker, None, None]:
    """Run a Kafka broker as :func:`embedded_broker` does, for a ``with`` block in blocking code.

    ::

        with blocking_embedded_broker() as broker:
            settings = ProducerSettings(bootstrap_servers=broker.bootstrap_servers)

    Args:
        port: as for :func:`embedded_broker`.
        start_timeout: as for :func:`embedded_broker`.

    Yields:
        The broker.

    Raises:
        ValueError, EmbeddedBrokerError: as for :func:`embedded_broker`.
    """
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(
            embedded_broker(port=port, start_timeout=start_timeout)
        ) as broker,
    ):
        yield BlockingEmbeddedBroker._create(broker, portal)  # pyright: ignore[reportPrivateUsage]
