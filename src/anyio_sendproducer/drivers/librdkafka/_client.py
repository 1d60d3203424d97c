"""The librdkafka client of one driver: how it is made, kept open, ended, and left after a fork."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Generator, Sequence
from typing import Any, Final

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException

from ..._exceptions import ProducerClosed
from .._protocols import Outcome, Sink
from . import _waits as waits
from ._log_relay import LogRelay

__all__ = ["NO_TOPIC", "ClientHandle", "NoSink", "is_answered", "look_up", "new_client"]

#: A name that no topic can have, because of its spaces and its colon. librdkafka requests the
#: metadata of all topics or of one topic, never of the brokers alone. For this name each cluster,
#: however large, sends its brokers and one error.
NO_TOPIC: Final = "anyio-sendproducer: no topic"

#: The client's own class, which is written in C. A tracing agent replaces ``Producer`` by a
#: subclass, whose ``produce`` may block on a request for metadata, reject the arguments, or drop
#: headers of the same name. The event loop calls ``produce``, so the base class is used. To make
#: spans, users pass an observer.
_Producer: Final[Any] = confluent_kafka.Producer.__mro__[-2]

_handles: weakref.WeakSet[ClientHandle] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for handle in list(_handles):
        handle.disown()


if hasattr(os, "register_at_fork"):  # pragma: no branch  # Windows has none, and does not fork
    os.register_at_fork(after_in_child=_after_fork_in_child)


def new_client(config: dict[str, Any], log: LogRelay) -> Any:
    """Make a client of librdkafka.

    Raises:
        KafkaException: librdkafka refuses the configuration, or the first token.
        TypeError: confluent-kafka refuses the configuration.
        ValueError: likewise.
    """
    return _Producer(config, logger=log)


def look_up(client: Any, topic: str, seconds: float) -> Any:
    """Request the metadata of the cluster and of one topic.

    confluent-kafka 2.16 raises SystemError and UnicodeDecodeError for answers that it cannot turn
    into Python objects, and returns an answer even if it lacks the topic.

    Raises:
        KafkaException: no answer came in time, or the answer is malformed.
    """
    problem = ""
    try:
        found = client.list_topics(topic, timeout=seconds)
        if topic == NO_TOPIC or topic in found.topics:
            return found
        problem = "the answer with metadata has nothing about the requested topic"
    except KafkaException:
        raise
    except Exception as error:  # noqa: BLE001  # see above
        problem = f"the answer with metadata is malformed: {type(error).__name__}"
    raise KafkaException(KafkaError(KafkaError._BAD_MSG, problem))


def is_answered(client: Any, seconds: float) -> bool:
    """Return whether a broker answers a client within some seconds.

    librdkafka connects for this, if necessary. While a client has no record, librdkafka would
    connect for nothing else.
    """
    try:
        look_up(client, NO_TOPIC, seconds)
    except KafkaException:
        return False
    return True


class NoSink:
    """A sink that ignores all reports, for a driver that is not open or sends no records."""

    def completed(self, submissions: Sequence[Any], outcomes: Sequence[Outcome], /) -> None:
        """Ignore it."""

    def metadata_changed(self) -> None:
        """Ignore it."""

    def broken(self, error: BaseException, /) -> None:
        """Ignore it."""

    def ready(self) -> None:
        """Ignore it."""


class ClientHandle:
    """The client of one driver, the sink of its reports, and the locks that keep it open.

    Args:
        log: the client's logger.
        is_transactional: whether the client has a transactional id.
    """

    def __init__(self, log: LogRelay, *, is_transactional: bool) -> None:
        #: The client's logger.
        self.log = log
        self._is_transactional = is_transactional
        #: The client; None before it is made and after it has ended. No frame may keep a reference
        #: to a transactional client, see :meth:`end`.
        self.client: Any = None
        self.sink: Sink = NoSink()
        #: Whether the client takes records.
        self.is_usable = False
        #: Set to make all calls return soon.
        self.closing = threading.Event()
        #: Held by a thread that needs the client to stay open for one short call, such as a poll
        #: that does not wait. The loop takes it as well. So a thread that holds it never waits, and
        #: runs no user code: the client's log is passed on by another thread, and librdkafka calls
        #: the token provider on a thread of its own.
        #: ``tests/broker/test_confluent_driver.py::test_no_poll_calls_the_token_provider``
        #: notices a change.
        self.using = threading.RLock()
        #: Held during a call of the client that may wait, with three exceptions. The polling thread
        #: does not hold it: the client ends after that thread. While the driver opens, nothing else
        #: ends the client. The thread that sends consumed offsets may stay in its call after the
        #: driver has stopped waiting for it; then it refers to the client.
        self.calling = threading.Lock()

    def make(self, config: dict[str, Any]) -> None:
        """Make the client; see :func:`new_client`."""
        self.client = new_client(config, self.log)
        _handles.add(self)

    def end(self) -> None:
        """End the client. No other thread may be in a call that needs it; see ``calling``."""
        client, self.client = self.client, None
        _handles.discard(self)
        if not self._is_transactional:
            # It raises its fatal error again, or an error about a line of its log.
            with contextlib.suppress(KafkaException, UnicodeDecodeError):
                client.close()
        # In a transactional client, close() would abort the open transaction, and wait for that
        # forever. Without close(), the client ends with the last reference to it. Exceptions keep
        # the frames that they pass through, and users keep exceptions: so no frame may keep it.
        del client
        self.log.join(waits.FINISH_SECONDS)

    def disown(self) -> None:
        """Close this handle in a forked child, and leave the client as it is.

        The client's threads exist only in the parent. Ending the client would wait for them
        forever. So it is never ended, not even when the child's interpreter ends.
        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.client))
        self.client = None
        self.is_usable = False
        # A thread of the parent may have held the lock, or the event's lock.
        self.using = threading.RLock()
        self.closing = threading.Event()
        self.closing.set()

    @contextlib.contextmanager
    def call(self) -> Generator[None]:
        """Keep the client open during one call of it that may wait.

        Raises:
            ProducerClosed: the driver is closed.
        """
        self.check_open()
        with self.calling:
            self.check_open()
            yield

    def check_open(self) -> None:
        """Check that the driver is not closed.

        Raises:
            ProducerClosed: it is.
        """
        if self.client is None or self.closing.is_set():
            raise ProducerClosed("the producer is closed")
