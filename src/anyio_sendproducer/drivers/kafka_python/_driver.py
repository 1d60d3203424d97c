"""The default driver: kafka-python's ``KafkaProducer``, used without blocking the event loop.

The driver owns its collaborators: ``TopicMetadata``, ``Transactions``, ``Outcomes`` and
``StalledPartitions``. Only ``_connection``, ``_network`` and ``_patches`` use private attributes of
kafka-python 3.0.12. The other modules also use objects that these find, such as a batch.
"""

# kafka-python has no annotations. Values of unknown types are cast where they leave the module.
# mypy: disable-error-code="misc"
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

import kafka.errors as kafka_errors
from kafka import KafkaProducer, codec
from kafka.net.sasl.oauth import AbstractTokenProvider
from kafka.structs import TopicPartition

from ..._exceptions import (
    DeliveryError,
    ProducerStartError,
    SendProducerError,
    SettingsError,
)
from ..._hooks import serialize_with
from ..._records import ConsumerGroupMetadata
from ..._settings import ProducerSettings
from ..._shown import harmless, listed, one_line
from .._partitioning import choose_partition
from .._protocols import (
    HOW_FAR,
    ConsumedOffset,
    Deadline,
    Outcome,
    Sink,
    Submission,
    Submitted,
)
from .._serializing import parts_of, size_of
from ..security._settings import TokenSource
from ._batches import RUN_BYTES, PartitionRun, TopicBatch, TopicPartitions
from ._config import CODECS, client_config
from ._connection import ClosingSocket
from ._errors import (
    ClosedWhileOpening,
    LoginRefused,
    NotReached,
    is_metadata_missing,
    not_taken,
    rejected,
    translated,
)
from ._log_redaction import RedactingFilter
from ._metadata import TopicMetadata
from ._network import NetClient
from ._outcomes import Outcomes
from ._partitioning import NoPartition, UsersPartitioner, hash_of_key
from ._patches import (
    Append,
    QuietProducer,
    find_direct_append,
    find_hurry,
    patch_isolate_rejections,
    skip_flush,
    transaction_manager_of,
)
from ._stalled import StalledPartitions
from ._transactions import Transactions

__all__ = ["KafkaPythonDriver", "config_of"]

#: A late start usually ends by itself within this many seconds. Otherwise it is left behind.
_LATE_SECONDS: Final = 2.0

#: Seconds to wait for the client's thread after the client was closed.
_JOIN_SECONDS: Final = 2.0

#: The bytes that a record may have besides its key, value and headers.
_OVERHEAD: Final = 256

_log = logging.getLogger("anyio_sendproducer.kafka_python")
# All loggers of kafka-python exist now.
RedactingFilter.watch("kafka")
# This logger writes the whole configuration, with passwords.
logging.getLogger("kafka.admin.client").addFilter(
    lambda record: "configuration" not in str(record.msg)
)
# 3.0.12 checks that a token provider is an instance of its class when it connects.
AbstractTokenProvider.register(TokenSource)


@dataclasses.dataclass(frozen=True, slots=True)
class _Opened:
    """The client and the collaborators of a driver that is open."""

    producer: QuietProducer
    #: Queues a record; None if each record goes through the client's ``send``.
    append: Append | None
    #: Ends the client's lingering; None if it does not linger.
    hurry: Callable[[bool], None] | None
    client: NetClient
    sink: Sink
    outcomes: Outcomes
    #: None if the settings have no transactional_id.
    transactions: Transactions | None


def config_of(settings: ProducerSettings) -> dict[str, Any]:
    """Make kafka-python's configuration, and check it as far as that needs no broker.

    Raises:
        SettingsError: see :func:`client_config`.
    """
    # kafka-python would look for a codec after it has connected, and report a failed start.
    missing = [name for name in CODECS if not getattr(codec, f"has_{name}")()]
    config = client_config(settings, KafkaProducer.DEFAULT_CONFIG, missing)
    if "partitioner" in config:
        config["partitioner"] = UsersPartitioner(config["partitioner"])
    if not config.get("proxy_url") and not config.get("socks5_proxy"):
        config["proxy_url"] = f"{ClosingSocket.SCHEMES[0]}://"
    return config


class KafkaPythonDriver:
    """A :class:`~anyio_sendproducer.drivers.DirectDriver` on kafka-python 3.0.

    Args:
        settings: checked here, as far as that needs no broker.

    Raises:
        SettingsError: see :func:`client_config`.
    """

    def __init__(self, settings: ProducerSettings) -> None:
        self._settings = settings
        self._config = config_of(settings)
        self._key = serialize_with(settings.key_serializer)
        self._value = serialize_with(settings.value_serializer)
        #: Whether the driver chooses partitions; otherwise a partitioner of kafka-python's does.
        self.chooses = "partitioner" not in self._config
        self.answered = self._config.get("acks") != 0
        # Both are set when the driver is open.
        self.direct = False
        self.lingers = False
        self._closing = threading.Event()
        self._opened_or_closed = threading.Event()
        self._close_lock = threading.Lock()
        self._closed = False
        self._opened: _Opened | None = None
        self._client: NetClient | None = None
        self._largest = 0
        self._metadata = TopicMetadata(settings.unknown_topic_timeout)

    # --- opening and closing -----------------------------------------------------------------

    def open(self, sink: Sink, /) -> None:
        """Connect; see :meth:`anyio_sendproducer.drivers.Driver.open`.

        A thread of its own connects, and is left behind if it does not end. Nothing can stop it
        while it decodes an answer, which takes seconds for some megabytes, or while it runs a
        producer_factory. After that it finds the driver closed, and ends.
        """
        seconds = self._settings.start_timeout
        addresses = listed(self._settings.addresses)
        failures: list[BaseException] = []

        def run() -> None:
            try:
                self._open(sink, time.monotonic() + seconds)
            except BaseException as error:  # noqa: BLE001  # raised again below
                failures.append(error)
            finally:
                self._opened_or_closed.set()

        thread = threading.Thread(
            target=contextvars.copy_context().run,
            args=(run,),
            name=f"{threading.current_thread().name}-open",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError as error:
            raise ProducerStartError(f"no producer for {addresses}: {error}") from error
        # A start that is late usually ends by itself, and says why. The extra time is split into 20
        # waits, of which a standstill of the process uses up only one.
        waits = (seconds, *[_LATE_SECONDS / 20] * 20)
        is_late = not any(self._opened_or_closed.wait(one) for one in waits)
        if is_late:
            self._closing.set()
        thread.join(0 if is_late else _JOIN_SECONDS)
        if failures:
            raise failures.pop()
        if is_late:
            raise ProducerStartError(
                f"no producer for {addresses} within {seconds:g} s (start_timeout): the client is "
                "still busy with a very large answer of a broker, or in a producer_factory"
            )
        if thread.is_alive():
            raise ProducerStartError("the producer was closed while it was starting")

    def _open(self, sink: Sink, deadline: float) -> None:
        producer = self._connect_producer(sink, deadline)
        client = cast("NetClient", self._client)
        transactions: Transactions | None = None
        if self._settings.transactional_id is not None:
            transactions = Transactions(
                self._settings,
                producer,
                transaction_manager_of(producer),
                client,
                self._closing,
            )
        producer.flush = skip_flush
        stalled = StalledPartitions(
            producer,
            client.manager,
            client.unwritten,
            delivery_timeout=self._settings.delivery_timeout,
            unknown_topic_timeout=self._settings.unknown_topic_timeout,
        )
        self._metadata.use(producer, stalled.holds)
        opened = self._opened = _Opened(
            producer=producer,
            append=find_direct_append(producer),
            hurry=find_hurry(producer),
            client=client,
            sink=sink,
            outcomes=Outcomes(
                sink,
                client.refused,
                patch_isolate_rejections(producer, client.refused),
                self._closing.is_set,
                transactions,
                is_idempotent=bool(producer.config["enable_idempotence"]),
                recovers=producer.config["api_version"] >= (2, 5),
            ),
            transactions=transactions,
        )
        hooks = (self._key, self._value, self._settings.partitioner)
        runs_hooks = not self.chooses or any(hook is not None for hook in hooks)
        self.direct = opened.append is not None and not runs_hooks
        self.lingers = opened.hurry is not None
        self._largest = producer.config["max_request_size"] - _OVERHEAD
        if transactions is not None:
            try:
                transactions.start(deadline)
            except SendProducerError:
                self._close_client(opened, 0)
                raise
        if self._closing.is_set():
            self._close_client(opened, 0)

    def _connect_producer(self, sink: Sink, deadline: float) -> QuietProducer:
        """Make the client, which connects.

        Raises:
            SettingsError: the client or the producer_factory refused the settings, or the factory
                did not return a KafkaProducer with this configuration.
            ProducerStartError: the client did not connect, or the producer_factory raised.
        """
        addresses = listed(self._settings.addresses)
        start_timeout = f"{self._settings.start_timeout:g} s (start_timeout)"
        try:
            return self._make(
                **self._config, kafka_client=functools.partial(self._connect, sink, deadline)
            )
        except ClosedWhileOpening:
            self._discard_client()
            raise ProducerStartError("the producer was closed while it was starting") from None
        except SettingsError:
            self._discard_client()
            raise
        except LoginRefused as refused:
            self._discard_client()
            raise ProducerStartError(
                f"no producer for {addresses}: {refused}"
            ) from refused.__cause__
        except NotReached as error:
            self._discard_client()
            raise ProducerStartError(
                f"no producer for {addresses} within {start_timeout}: {error.args[0]}{HOW_FAR}"
            ) from error
        except (
            kafka_errors.KafkaConfigurationError,
            AssertionError,
            TypeError,
            ValueError,
        ) as error:
            self._discard_client()
            raise SettingsError(f"kafka-python refuses the settings: {error}") from harmless(error)
        except BaseException as error:  # a producer_factory may raise anything
            self._discard_client()
            harmless(error)
            raise ProducerStartError(
                f"no producer for {addresses} within {start_timeout}: {one_line(error)}{HOW_FAR}"
            ) from error

    def _make(self, **configs: Any) -> QuietProducer:
        """Make a KafkaProducer, by the user's producer_factory if there is one."""
        factory = self._settings.producer_factory
        if factory is None:
            return QuietProducer(**configs)
        client = configs["kafka_client"]
        made: Any = factory(configs)
        if not isinstance(made, KafkaProducer):
            raise SettingsError(
                f"producer_factory must return a KafkaProducer, not {type(made).__name__}"
            )
        if self._client is None or made.config["kafka_client"] is not client:
            made.close(1)
            raise SettingsError(
                "producer_factory must pass on the whole configuration, as "
                "KafkaProducer(**configs) does"
            )
        return cast("QuietProducer", made)

    def _connect(self, sink: Sink, deadline: float, **configs: Any) -> NetClient:
        """Make the network client and connect it, before the constructor of KafkaProducer does.

        The constructor does not connect a client that is already connected. If the constructor
        connected it, nothing could stop the attempt before ``bootstrap_timeout_ms`` has passed.
        """
        self._client = client = NetClient(**configs)
        cluster: Any = client.cluster
        # 3.0.12 accepts these settings, but does not pass them to ClusterMetadata, which uses them.
        for name in ("allow_auto_create_topics", "retry_backoff_ms"):
            cluster.config[name] = configs[name]
        self._metadata.attach(client, sink)
        client.bootstrap(deadline, self._closing)
        return client

    def _discard_client(self) -> None:
        if self._client is not None:
            with contextlib.suppress(Exception):
                self._client.close()

    def close(self, timeout: float, /) -> None:
        """Close; see :meth:`anyio_sendproducer.drivers.Driver.close`."""
        self._closing.set()
        self._opened_or_closed.set()
        if self._opened is not None:
            self._close_client(self._opened, timeout)

    def _close_client(self, opened: _Opened, timeout: float) -> None:
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
        client = opened.client
        try:
            client.is_closing = timeout <= 0
            opened.producer.close(timeout)
        finally:
            client.is_closing = True
            if client.is_closed.wait(_JOIN_SECONDS) and client.closed_by is not None:
                client.closed_by.join(_JOIN_SECONDS)
            else:
                _log.warning("the thread of kafka-python did not end within %s s", _JOIN_SECONDS)

    def _ready(self) -> _Opened:
        if self._opened is None:
            raise SendProducerError("the driver is not open")
        return self._opened

    # --- state of the client -----------------------------------------------------------------

    def last_error(self) -> Exception | None:
        """Return why a broker is not reached, why no address has answered so far, or that another
        producer may have taken over; see :meth:`anyio_sendproducer.drivers.Driver.last_error`."""
        opened, client = self._opened, self._client
        if opened is None:
            if client is not None and not self._opened_or_closed.is_set():
                return client.manager.bootstrap_error()
            return None
        if opened.transactions is not None and (doubt := opened.transactions.doubt()) is not None:
            return doubt
        last_error = opened.client.manager.last_error()
        return None if last_error is None else translated(last_error[1], last_error[0])

    def is_disconnected(self) -> bool:
        """See :meth:`anyio_sendproducer.drivers.Driver.is_disconnected`."""
        opened = self._opened
        return opened is not None and opened.client.manager.is_disconnected()

    def metrics(self) -> Mapping[str, Any]:
        """Return the client's metrics; see :meth:`anyio_sendproducer.drivers.Driver.metrics`."""
        opened = self._opened
        metrics: Any = None if opened is None else opened.producer.metrics()
        return metrics or {}

    def hurry(self, on: bool, /) -> None:  # noqa: FBT001
        """Linger or not; see :meth:`anyio_sendproducer.drivers.LingeringDriver.hurry`."""
        hurry = self._ready().hurry
        if hurry is not None:  # pragma: no branch  # otherwise the producer does not call this
            hurry(on)

    def partitions_for(self, topic: str, /) -> frozenset[int] | None:
        """Return a topic's partitions.

        See :meth:`anyio_sendproducer.drivers.Driver.partitions_for`.
        """
        self._ready()
        return self._metadata.current_partitions(topic)

    # --- records -----------------------------------------------------------------------------

    def submit(self, batch: Sequence[Submission], /) -> Submitted:
        """Hand records over; see :meth:`anyio_sendproducer.drivers.Driver.submit`."""
        opened = self._ready()
        send = opened.producer.send
        append = opened.append
        outcomes = opened.outcomes
        recovers = outcomes.recovers
        metadata = self._metadata
        largest = self._largest
        wakes = False
        answer = Submitted()
        failed: list[Any] = []
        failures: list[Outcome] = []
        topic_batches: dict[str, TopicBatch] = {}
        missing: set[tuple[str, int]] = set()
        serialized = self._key is not None or self._value is not None
        chooses = self.chooses
        partitioner = self._settings.partitioner
        now_ms = int(time.time() * 1000)
        topics = metadata.topics
        for submission in batch:
            if topics is not metadata.topics:  # an answer with metadata came meanwhile
                topics = metadata.topics
                for topic_batch in topic_batches.values():
                    # If a record is held, later records of its topic must be held as well.
                    if type(topic_batch.partitions) is TopicPartitions:
                        topic_batch.partitions = metadata.partitions_of(topic_batch.topic)
            record = submission.record
            topic = record.topic
            try:
                topic_batch = topic_batches[topic]
            except KeyError:
                topic_batch = TopicBatch(self, topic, metadata.partitions_of(topic))
                topic_batches[topic] = topic_batch
            known = topic_batch.partitions
            if type(known) is not TopicPartitions:
                if known is None:
                    answer.held.append(submission)
                else:
                    failed.append(submission)
                    failures.append(rejected(record, str(known), cast("SendProducerError", known)))
                continue
            partition = record.partition
            if partition is not None and (missing or partition not in known.numbers):
                refusal = metadata.refusal(topic, partition, known, missing)
                if refusal is None:
                    answer.held.append(submission)
                    continue
                if refusal:
                    failed.append(submission)
                    failures.append(rejected(record, refusal))
                    continue
            key = record.key
            value = record.value
            headers = [*record.headers] if record.headers else None
            timestamp_ms = record.timestamp_ms
            try:
                if serialized:
                    headers = headers or []
                    key, value = parts_of(record, self._key, self._value, headers)
                    answer.sizes.append((submission, size_of(key, value, headers)))
                if partition is not None:
                    run = topic_batch.run_to(partition)
                elif partitioner is not None:
                    run = topic_batch.run_to(
                        choose_partition(partitioner, record, key, known.numbers)
                    )
                elif key is None or not chooses:
                    run = topic_batch.keyless or topic_batch.run_without_key()
                else:
                    numbers = known.numbers
                    run = topic_batch.run_to(numbers[hash_of_key(key) % len(numbers)])
                if partition is None and missing and (topic, run.partition) in missing:
                    # The metadata came meanwhile, and an earlier record for the partition is held.
                    answer.held.append(submission)
                    continue
                if timestamp_ms is None:
                    timestamp_ms = now_ms
                if (
                    append is not None
                    and value is not None
                    and run.target is not None
                    and (len(value) if key is None else len(value) + len(key))
                    + (_max_bytes(headers) if headers else 0)
                    <= largest
                ):
                    future, is_full, is_new, _ = append(
                        run.target, timestamp_ms, key, value, headers or []
                    )
                    if is_new or is_full:
                        wakes = True
                else:
                    # By keyword: a tracing agent that replaces `send` adds headers by keyword.
                    future = send(
                        topic,
                        value=value,
                        key=key,
                        headers=headers,
                        partition=run.partition,
                        timestamp_ms=timestamp_ms,
                    )
                    is_new = True  # perhaps
                if is_new and not recovers:
                    # Later records of the run may never complete, and then the run is not reported.
                    future.add_errback(outcomes.check_client)
            except DeliveryError as error:
                failed.append(submission)
                failures.append(error)
                continue
            except NoPartition as error:
                failed.append(submission)
                failures.append(error.rejection(record))
                continue
            # The `send` of a user's own class may raise anything.
            except BaseException as error:  # noqa: BLE001  # becomes this record's outcome
                if is_metadata_missing(error):  # an answer dropped the topic just now
                    topic_batch.partitions = None
                    metadata.await_dropped(topic, opened.sink)
                    answer.held.append(submission)
                else:
                    failed.append(submission)
                    failures.append(not_taken(record, error))
                continue
            if run.partition is None:
                future.add_errback(functools.partial(outcomes.note_failure, submission))
            run.submissions.append(submission)
            run.futures.append(future)
            run.size += submission.size
            if run.partition is None:
                # The client chose the partition, and may choose another for the next record.
                topic_batch.end_run(run)
            elif run.size >= RUN_BYTES:
                topic_batch.end_run(run)
                opened.client.wakeup()
        if wakes:
            opened.client.wakeup()
        for topic_batch in topic_batches.values():
            topic_batch.end()
        if failed:
            self.report(failed, failures)
        return answer

    def report(self, submissions: Sequence[Any], outcomes: Sequence[Outcome]) -> None:
        """Pass outcomes to the sink."""
        self._ready().sink.completed(submissions, outcomes)

    def failure(self, submission: Submission, error: Exception, run: PartitionRun) -> DeliveryError:
        """Translate the client's error for one record."""
        return self._ready().outcomes.failure(submission, error, run)

    def target(self, topic: str, partition: int) -> Any:
        """Return the client's own value for a partition."""
        return TopicPartition(topic, partition)

    # --- transactions ------------------------------------------------------------------------

    def begin_transaction(self) -> None:
        """Begin; see :meth:`anyio_sendproducer.drivers.Driver.begin_transaction`."""
        self._transactions().begin()

    def send_offsets(
        self,
        offsets: Sequence[ConsumedOffset],
        group: ConsumerGroupMetadata,
        deadline: Deadline,
        /,
    ) -> None:
        """Send offsets; see :meth:`anyio_sendproducer.drivers.Driver.send_offsets`."""
        self._transactions().send_offsets(offsets, group, deadline)

    def end_transaction(self, commit: bool, deadline: Deadline, /) -> None:  # noqa: FBT001
        """End it; see :meth:`anyio_sendproducer.drivers.Driver.end_transaction`."""
        self._transactions().end(deadline, commit=commit)

    def _transactions(self) -> Transactions:
        # The producer calls these methods only if the settings have a transactional_id.
        return cast("Transactions", self._ready().transactions)


def _max_bytes(headers: Sequence[tuple[str, bytes]]) -> int:
    """Return an upper bound of the size of headers in bytes. A character has at most 4 bytes."""
    return sum(4 * len(name) + len(content) + 16 for name, content in headers)
