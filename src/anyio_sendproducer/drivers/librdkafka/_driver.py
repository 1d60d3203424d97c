"""A driver on librdkafka, by way of confluent-kafka's ``Producer``.

``produce`` does not wait, so the event loop calls it, unless there are serializers or there is a
partitioner. The loop also calls ``poll``, which runs the callbacks of deliveries on the thread that
calls it. While there are few of them, the polling thread waits in ``poll`` instead
(:mod:`._poll_thread`).

The driver owns one object for each job, each in its own module. This module makes these objects,
opens and closes the client, and passes each call of the protocol to the object whose job it is.

The workarounds in this package were written from the source of confluent-kafka 2.16.1, and tested
with it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from confluent_kafka import KafkaException

from ..._exceptions import ProducerStartError, SettingsError
from ..._records import ConsumerGroupMetadata
from ..._settings import ProducerSettings
from ..._shown import listed
from .._properties import TRANSACTION_TIMEOUT_MS
from .._protocols import (
    HOW_FAR,
    ClusterDescription,
    ConsumedOffset,
    Deadline,
    Outcome,
    Sink,
    Submission,
    Submitted,
)
from . import _waits as waits
from ._bootstrap import WITHOUT_REBOOTSTRAP, BootstrapSearch
from ._client import NO_TOPIC, ClientHandle, look_up
from ._config import librdkafka_config
from ._errors import (
    LoginRefused,
    NotReached,
    harmless_failure,
    is_out_of_resources,
    not_taken,
    text_of_failure,
)
from ._health import Health
from ._log_relay import LogRelay, logger
from ._metadata import TopicMetadata
from ._outcomes import Outcomes
from ._poll_thread import WATCH_LIMIT, PollThread
from ._reports import Reports
from ._statistics import ClientStatistics
from ._submitter import Submitter
from ._threads import NO_THREAD
from ._tokens import ClientTokens
from ._transaction_state import TransactionState
from ._transactions import Transactions

__all__ = ["ConfluentDriver"]

#: The longest wait for one answer while the driver opens.
_MAX_SLICE_SECONDS: Final = 1.0
#: How long to wait at least for the answers to requests in flight when a broken client is closed.
_IN_FLIGHT_SECONDS: Final = 1.0


class ConfluentDriver:
    """A :class:`~anyio_sendproducer.drivers.PolledDriver` on librdkafka.

    Args:
        settings: checked here, as far as that needs no broker.

    Raises:
        SettingsError: see :func:`librdkafka_config`.
    """

    def __init__(self, settings: ProducerSettings) -> None:
        self._settings = settings
        made = librdkafka_config(settings)
        config = self._config = made.config
        self._is_transactional = settings.transactional_id is not None
        handle = self._handle = ClientHandle(LogRelay(), is_transactional=self._is_transactional)
        state = TransactionState(
            settings.transactional_id, config.get("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS)
        )
        health = self._health = Health(handle, state)
        reports = self._reports = Reports(handle, health, state)
        self._metadata = TopicMetadata(handle, health, settings, config)
        outcomes = Outcomes(settings, config, state, health, self._metadata)
        self._submitter = Submitter(
            settings,
            handle,
            health=health,
            reports=reports,
            metadata=self._metadata,
            outcomes=outcomes,
        )
        self._transactions = Transactions(settings, handle, state, health, reports)
        self._statistics = ClientStatistics()
        self._tokens = None if made.tokens is None else ClientTokens(made.tokens, settings, handle)
        bootstrap = BootstrapSearch(settings, config, handle, health, self._tokens)
        self._thread = PollThread(config, handle, health, reports, bootstrap)
        self.direct = self._submitter.direct
        self.lingers = self._thread.lingers

    # --- opening and closing -----------------------------------------------------------------

    def open(self, sink: Sink, /) -> None:
        """Connect; see :meth:`anyio_sendproducer.drivers.Driver.open`."""
        addresses = listed(self._settings.addresses)
        try:
            self.connect(sink)
        except LoginRefused as refused:
            raise ProducerStartError(f"no producer for {addresses}: {refused}") from refused
        except NotReached as error:
            raise ProducerStartError(
                f"no producer for {addresses} within {self._settings.start_timeout:g} s "
                f"(start_timeout): {error}{HOW_FAR}"
            ) from error.__cause__

    def connect(self, sink: Sink) -> None:
        """Connect, as :meth:`open` does.

        Raises:
            SettingsError: librdkafka refuses the settings.
            LoginRefused: a broker refused the login.
            NotReached: no broker answered within ``start_timeout``.
            ProducerFenced: another producer with this ``transactional_id`` started later.
            ProducerStartError: the client could not start for another reason.
        """
        deadline = time.monotonic() + self._settings.start_timeout
        handle = self._handle
        handle.sink = sink
        config: dict[str, Any] = {
            **(WITHOUT_REBOOTSTRAP if self._is_transactional else {}),
            **self._config,
            "error_cb": self._health.on_error,
            "stats_cb": self._statistics.update,
        }
        if self._tokens is not None:
            config["oauth_cb"] = self._tokens.wait_for_callback(deadline)
        try:
            handle.make(config)
        except (KafkaException, TypeError, ValueError) as error:
            text = text_of_failure(error)
            if is_out_of_resources(error):
                raise ProducerStartError(f"no producer: {text}") from harmless_failure(error)
            message = f"librdkafka refuses the settings: {text}"
            raise SettingsError(message) from harmless_failure(error)
        try:
            self._connect(deadline)
            if self._is_transactional:
                self._transactions.start(deadline)
        except BaseException:
            handle.end()
            raise
        with handle.using:
            # If close() came before this, it did not end the client.
            is_closed = handle.closing.is_set()
            is_open = handle.is_usable = not is_closed and self._thread.start()
        if not is_open:
            handle.end()
            raise ProducerStartError(
                "the producer was closed while it was starting"
                if is_closed
                else f"no producer: {NO_THREAD}"
            )
        self._thread.is_prepared.wait(waits.SLICE_SECONDS)

    def _connect(self, deadline: float) -> None:
        """Wait until a broker answers.

        Raises:
            LoginRefused: a broker refused the login.
            NotReached: no broker answered in time.
            ProducerStartError: the driver was closed.
        """
        health, closing = self._health, self._handle.closing
        slice_ = waits.SLICE_SECONDS
        while True:
            remaining = deadline - time.monotonic()
            if closing.is_set():
                raise ProducerStartError("the producer was closed while it was starting")
            failure = health.failure
            if isinstance(failure, LoginRefused) and health.is_disconnected:
                raise failure
            if remaining <= 0:
                reasons = listed(health.reasons(self._settings.addresses), separator="; ")
                why = "" if failure is None else f": {reasons or failure}"
                raise NotReached(f"no broker answered{why}") from failure
            seconds = max(0.001, min(slice_, remaining))
            asks_again = time.monotonic() + seconds
            try:
                look_up(self._handle.client, NO_TOPIC, seconds)
            except KafkaException as error:
                self._reports.poll(0)
                if health.failure is None:  # an error that the client reported says more
                    health.note(error.args[0])
                # A malformed answer comes at once, and so would the next one.
                closing.wait(max(0.0, asks_again - time.monotonic()))
                # An answer that takes longer than one slice comes within one of the next slices.
                slice_ = min(slice_ * 2, _MAX_SLICE_SECONDS)
            else:
                health.note_connection()
                return

    def close(self, timeout: float, /) -> None:
        """Close; see :meth:`anyio_sendproducer.drivers.Driver.close`."""
        handle = self._handle
        handle.closing.set()
        with handle.using:
            if not handle.is_usable:
                return
            handle.is_usable = False
        self._thread.bell.set()
        self._metadata.join(waits.FINISH_SECONDS)
        # A call in progress notices that the driver is closing, and later calls are refused.
        is_free = handle.calling.acquire(timeout=waits.FINISH_SECONDS)
        try:
            if not self._finish(timeout) or not is_free:
                logger.warning(
                    "librdkafka did not release its records, so its client is not closed"
                )
                return
            handle.end()
        finally:
            if is_free:
                handle.calling.release()

    def _finish(self, seconds: float) -> bool:
        """Wait until the client has reported all of its records; after ``seconds``, purge the rest.

        Returns:
            Whether the client has no more records, and no thread polls it.
        """
        client = self._handle.client
        if self._health.is_broken and not self._is_transactional:
            # It must send nothing more. The answers to its requests say which records are written.
            client.purge(in_flight=False, blocking=False)
            seconds = max(seconds, _IN_FLIGHT_SECONDS)
        self._drain(client, seconds)
        if len(client):
            client.purge(blocking=False)
            self._drain(client, waits.FINISH_SECONDS)
        return self._thread.join(waits.FINISH_SECONDS) and not len(client)

    def _drain(self, client: Any, seconds: float) -> None:
        """Poll until the client has no more records, for at most ``seconds``."""
        reports = self._reports
        deadline = time.monotonic() + seconds
        while len(client) and (remaining := deadline - time.monotonic()) > 0:
            reports.poll(min(remaining, waits.SLICE_SECONDS))
            reports.report()
        reports.poll(0)
        reports.report()

    # --- records -----------------------------------------------------------------------------

    def submit(self, batch: Sequence[Submission], /) -> Submitted:
        """Submit a batch; see :meth:`anyio_sendproducer.drivers.Driver.submit`."""
        answer = Submitted()
        failed: list[Any] = []
        failures: list[Outcome] = []
        handle = self._handle
        # Serializers run without the lock, because they may take long or wait for the loop, and
        # the loop waits for the lock. Then the submitter takes the lock for each record.
        with handle.using if self.direct else contextlib.nullcontext():
            if handle.is_usable:
                self._submitter.submit(batch, answer, failed, failures)
            else:
                failed += batch
                failures += [not_taken(one.record) for one in batch]
        if self._thread.hurries:
            self._thread.bell.set()
        if failed:
            handle.sink.completed(failed, failures)
        return answer

    def hurry(self, on: bool, /) -> None:  # noqa: FBT001
        """Linger or not; see :meth:`anyio_sendproducer.drivers.LingeringDriver.hurry`."""
        self._thread.hurries = on
        self._thread.bell.set()

    def poll(self, limit: int, /) -> int:
        """Report outcomes; see :meth:`anyio_sendproducer.drivers.PolledDriver.poll`."""
        handle, reports = self._handle, self._reports
        with handle.using:
            if not handle.is_usable:
                return 0
            self._thread.stop_watching()
            reports.limit = 2 * limit
            reports.poll(0)
            reports.limit = WATCH_LIMIT
            in_flight = len(handle.client)
        reports.report()
        return in_flight

    def watch(self) -> None:
        """Watch for outcomes; see :meth:`anyio_sendproducer.drivers.PolledDriver.watch`."""
        self._thread.watch()

    # --- the state of the client -------------------------------------------------------------

    def last_error(self) -> Exception | None:
        """The last failure to connect; see :meth:`anyio_sendproducer.drivers.Driver.last_error`."""
        return self._health.last_error()

    def is_disconnected(self) -> bool:
        """See :meth:`anyio_sendproducer.drivers.Driver.is_disconnected`."""
        return self._health.is_disconnected

    def metrics(self) -> Mapping[str, Any]:
        """The client's statistics; see :meth:`anyio_sendproducer.drivers.Driver.metrics`."""
        return self._statistics.values()

    # --- topics ------------------------------------------------------------------------------

    def partitions_for(self, topic: str, /) -> frozenset[int] | None:
        """A topic's partitions; see :meth:`anyio_sendproducer.drivers.Driver.partitions_for`."""
        return self._metadata.partitions_for(topic)

    def describe_from_client(self) -> ClusterDescription:
        """Describe the cluster, over the connections of this client.

        Raises:
            SendProducerError: the cluster does not answer.
        """
        return self._metadata.describe()

    # --- transactions ------------------------------------------------------------------------

    def begin_transaction(self) -> None:
        """Begin; see :meth:`anyio_sendproducer.drivers.Driver.begin_transaction`."""
        self._transactions.begin()

    def send_offsets(
        self,
        offsets: Sequence[ConsumedOffset],
        group: ConsumerGroupMetadata,
        deadline: Deadline,
        /,
    ) -> None:
        """Send offsets; see :meth:`anyio_sendproducer.drivers.Driver.send_offsets`."""
        self._transactions.send_offsets(offsets, group, deadline)

    def end_transaction(self, commit: bool, deadline: Deadline, /) -> None:  # noqa: FBT001
        """Commit or abort; see :meth:`anyio_sendproducer.drivers.Driver.end_transaction`."""
        self._transactions.end(deadline, commit=commit)
