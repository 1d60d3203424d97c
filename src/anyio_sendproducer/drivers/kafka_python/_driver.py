"""The default driver: kafka-python's ``KafkaProducer``, off the loop and kept from hanging.

What it works around in kafka-python 3.0.12 is in ``_network`` and ``_patches``, and its exceptions
are translated in ``_errors``.
"""

# kafka-python has no annotations. Its values have unknown types, and are cast where they leave.
# mypy: disable-error-code="misc"
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

import kafka.errors as kafka_errors
from kafka import KafkaProducer, codec, structs
from kafka.net.sasl.oauth import AbstractTokenProvider
from kafka.structs import OffsetAndMetadata, TopicPartition

from ..._exceptions import (
    DeliveryError,
    ProducerClosed,
    ProducerFenced,
    ProducerStartError,
    SendProducerError,
    SettingsError,
    TransactionAborted,
    TransactionError,
    TransactionOutcomeUnknown,
)
from ..._records import ConsumerGroupMetadata
from ..._settings import ProducerSettings
from ..._shown import harmless, listed, one_line
from .._protocols import (
    HOW_FAR,
    ConsumedOffset,
    Deadline,
    Outcome,
    Sink,
    Submission,
    Submitted,
)
from .._serializing import parts_of, serialize_with, size_of
from ..security._settings import TokenSource
from ._batches import RUN_BYTES, PartitionRun, TopicBatch, TopicPartitions
from ._config import CODECS, client_config
from ._errors import (
    CONNECTION,
    FENCED,
    RECOVERED,
    REFUSALS,
    ClosedWhileOpening,
    LastErrorHandler,
    LoginRefused,
    given_up,
    no_metadata,
    not_acknowledged,
    not_taken,
    rejected,
    translated,
)
from ._freshness import MissingPartitions, Refreshes
from ._log_redaction import RedactingFilter
from ._network import ClosingSocket, NetClient, client_words
from ._partitioning import NoPartition, UsersPartitioner, hash_of_key
from ._patches import (
    Append,
    QuietProducer,
    find_direct_append,
    find_hurry,
    flush_nothing,
    patch_cache_metadata,
    patch_isolate_rejections,
    patch_request_promptly,
)
from ._stalled import GivenUp, StalledPartitions

__all__ = ["KafkaPythonDriver", "config_of"]

#: For how long after the last look at it an unknown topic is asked for.
_UNKNOWN_SECONDS: Final = 30.0

#: Between two requests for the metadata of topics that this client may not use.
_ASK_AGAIN_SECONDS: Final = 0.5

#: How long after start_timeout a start is left behind that has not ended by itself.
_LATE_SECONDS: Final = 2.0

#: How long the client's thread may take to end once it was told to.
_JOIN_SECONDS: Final = 2.0

#: How soon a wait for the transaction's coordinator notices that it is over.
_SLICE_MS: Final = 50

_log = logging.getLogger("anyio_sendproducer.kafka_python")
# All of its loggers are there by now.
RedactingFilter.watch("kafka")
# This one writes down its whole configuration, passwords and all.
logging.getLogger("kafka.admin.client").addFilter(
    lambda record: "configuration" not in str(record.msg)
)
# 3.0.12 looks whether it is one, when it connects.
AbstractTokenProvider.register(TokenSource)


@dataclasses.dataclass(frozen=True, slots=True)
class _Opened:
    producer: QuietProducer
    append: Append | None
    is_broken: Callable[[], bool] | None
    hurry: Callable[[bool], None] | None
    client: NetClient
    stalled: StalledPartitions
    sink: Sink
    #: The client's own account of its transactions, for 3.0.12 has no public way to end one within
    #: bounds, or to tell why it can't be ended; None where there are none.
    transactions: Any


def config_of(settings: ProducerSettings) -> dict[str, Any]:
    # kafka-python would look for them after it has connected, and report it as a failed start.
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
        # A partitioner of the user's own is left to choose; ours goes by runs.
        self.chooses = "partitioner" not in self._config
        self.answered = self._config.get("acks") != 0
        #: Set when it is open: where nothing of the user's runs, a record goes to the client's
        #: queue, and that is all.
        self.direct = False
        self.lingers = False
        self._closing = threading.Event()
        self._opened_or_closed = threading.Event()
        self._close_lock = threading.Lock()
        self._closed = False
        self._opened: _Opened | None = None
        self._client: NetClient | None = None
        self._routes: dict[str, TopicPartitions] = {}
        self._turns: dict[str, int] = {}
        #: Topics without metadata, and since when the cluster says that it does not know them.
        self._asked: dict[str, float | None] = {}
        #: When a record, or partitions_for(), last found such a topic unknown.
        self._looked: dict[str, float] = {}
        self._missing = MissingPartitions(settings.unknown_topic_timeout)
        self._refreshes = Refreshes()
        #: When the last metadata were requested, and those that came last.
        self._requesting = self._requested = -math.inf
        #: Forgets what was looked up in the answer before.
        self._forget: Callable[[], None] = dict[str, Any]().clear
        #: What the last request for metadata asked for.
        self._asked_for: set[str] = set()
        self._idempotent = False
        self._asked_again = 0.0
        self._recovers = False
        self._broken = False
        self._first_to_fail: Submission | None = None
        self._largest = 0
        self._in_transaction = False

    # --- opening and closing -----------------------------------------------------------------

    def open(self, sink: Sink, /) -> None:
        """Connect; see :meth:`anyio_sendproducer.drivers.Driver.open`.

        On a thread of its own, which is left behind if it gets nowhere. It cannot be stopped while
        it decodes an answer, which takes seconds if that has some megabytes, or while it runs a
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
        # As a rule it ends by itself then, and says why. While the machine stands still, only one
        # of the short waits passes.
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
                "still at work, on a very large answer of a broker, or in a producer_factory"
            )
        if thread.is_alive():
            raise ProducerStartError("the producer was closed while it was starting")

    def _open(self, sink: Sink, deadline: float) -> None:
        words = LastErrorHandler()
        client_log = logging.getLogger("kafka")
        client_log.addHandler(words)
        try:
            producer = self._make(
                **self._config, kafka_client=functools.partial(self._connect, sink, deadline, words)
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
                f"no producer for {listed(self._settings.addresses)}: {refused}"
            ) from refused.__cause__
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
            text = one_line(CONNECTION.sub("", words.text))
            said = f"; the client's last words: {text}" if text else ""
            raise ProducerStartError(
                f"no producer for {listed(self._settings.addresses)} within "
                f"{self._settings.start_timeout:g} s (start_timeout): {one_line(error)}{said}"
                f"{HOW_FAR}"
            ) from error
        finally:
            client_log.removeHandler(words)
        transactional = self._settings.transactional_id is not None
        self._idempotent = bool(producer.config["enable_idempotence"])
        self._recovers = producer.config["api_version"] >= (2, 5)
        producer.flush = flush_nothing
        client = cast("NetClient", self._client)
        self._opened = _Opened(
            producer=producer,
            append=find_direct_append(producer),
            is_broken=patch_isolate_rejections(producer, client.refused),
            hurry=find_hurry(producer),
            client=client,
            stalled=StalledPartitions(
                producer,
                client.manager,
                client.unwritten,
                delivery_timeout=self._settings.delivery_timeout,
                unknown_topic_timeout=self._settings.unknown_topic_timeout,
            ),
            sink=sink,
            transactions=producer._transaction_manager if transactional else None,
        )
        serializes = self._key is not None or self._value is not None
        self.direct = self._opened.append is not None and self.chooses and not serializes
        self.lingers = self._opened.hurry is not None
        # What a record adds to its key and value is less.
        self._largest = producer.config["max_request_size"] - 256
        if transactional:
            try:
                self._init_transactions(producer, deadline)
            except SendProducerError:
                self._close_client(self._opened, 0)
                raise
        if self._closing.is_set():
            self._close_client(self._opened, 0)

    def _make(self, **configs: Any) -> Any:
        factory = self._settings.producer_factory
        if factory is None:
            return QuietProducer(**configs)
        client = configs["kafka_client"]
        made = factory(configs)
        if not isinstance(made, KafkaProducer):
            raise SettingsError(
                f"producer_factory must return a KafkaProducer, not {type(made).__name__}"
            )
        if self._client is None or made.config["kafka_client"] is not client:
            made.close(1)
            raise SettingsError(
                "producer_factory must pass on all of the configuration, as by "
                "KafkaProducer(**configs)"
            )
        return made

    def _connect(
        self, sink: Sink, deadline: float, words: LastErrorHandler, **configs: Any
    ) -> NetClient:
        """Make the client and let it bootstrap, in slices, so that it can be told to stop.

        The constructor's own bootstrap takes as long as ``bootstrap_timeout_ms`` says, whatever
        happens; it leaves out what is done already.
        """
        self._client = client = NetClient(**configs)
        cluster: Any = client.cluster
        # 3.0.12 takes these settings and does not pass them on to the one who uses them.
        for name in ("allow_auto_create_topics", "retry_backoff_ms"):
            cluster.config[name] = configs[name]
        self._forget = patch_cache_metadata(cluster)
        request = patch_request_promptly(
            cluster,
            cluster.metadata_request,
            lambda: client.manager.connection_delay("metadata"),
        )
        cluster.metadata_request = functools.partial(self._asking, request)
        cluster.add_listener(functools.partial(self._metadata_changed, sink))
        updated = cluster.request_update()
        while True:
            if self._closing.is_set():
                raise ClosedWhileOpening
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                words.listens = False
                raise kafka_errors.KafkaTimeoutError("no broker answered")
            refusal = client.manager.refusal()
            if refusal is not None:
                raise LoginRefused(refusal[0]) from refusal[1]
            if updated.is_done:
                if updated.succeeded():
                    break
                updated = cluster.request_update()
            client.poll(timeout_ms=min(remaining * 1000, 50), future=updated)
        client.get_broker_version(timeout_ms=max(1, remaining * 1000))
        return client

    def last_error(self) -> Exception | None:
        """The last failure to connect; see :meth:`anyio_sendproducer.drivers.Driver.last_error`."""
        opened = self._opened
        last_error = None if opened is None else opened.client.manager.last_error()
        return None if last_error is None else translated(last_error[1], last_error[0])

    def is_disconnected(self) -> bool:
        """See :meth:`anyio_sendproducer.drivers.Driver.is_disconnected`."""
        opened = self._opened
        return opened is not None and opened.client.manager.is_disconnected()

    def metrics(self) -> Mapping[str, Any]:
        """Its metrics; see :meth:`anyio_sendproducer.drivers.Driver.metrics`."""
        opened = self._opened
        metrics: Any = None if opened is None else opened.producer.metrics()
        return metrics or {}

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
        try:
            opened.client.is_closing = timeout <= 0
            opened.producer.close(timeout)
        finally:
            client = opened.client
            client.is_closing = True
            if client.is_closed.wait(_JOIN_SECONDS) and client.closed_by is not None:
                client.closed_by.join(_JOIN_SECONDS)
            else:
                _log.warning("the thread of kafka-python did not end within %s s", _JOIN_SECONDS)

    def _ready(self) -> _Opened:
        if self._opened is None:
            raise SendProducerError("the driver is not open")
        return self._opened

    # --- records -----------------------------------------------------------------------------

    def submit(self, batch: Sequence[Submission], /) -> Submitted:
        """Hand over a batch; see :meth:`anyio_sendproducer.drivers.Driver.submit`."""
        opened = self._ready()
        send = opened.producer.send
        append = opened.append
        largest = self._largest
        wakes = False
        answer = Submitted()
        failed: list[Any] = []
        failures: list[Outcome] = []
        lines: dict[str, TopicBatch] = {}
        missing: set[tuple[str, int]] = set()
        serialized = self._key is not None or self._value is not None
        chooses = self.chooses
        recovers = self._recovers
        now_ms = int(time.time() * 1000)
        routes = self._routes
        for submission in batch:
            if routes is not self._routes:  # news of the topics came meanwhile
                routes = self._routes
                for line in lines.values():
                    # What is behind a record that is held must not go before it.
                    if type(line.route) is TopicPartitions:
                        line.route = self._route(line.topic)
            record = submission.record
            topic = record.topic
            try:
                line = lines[topic]
            except KeyError:
                line = lines[topic] = TopicBatch(self, topic, self._route(topic))
            route = line.route
            if type(route) is not TopicPartitions:
                if route is None:
                    answer.held.append(submission)
                else:
                    failed.append(submission)
                    failures.append(rejected(record, str(route), cast("SendProducerError", route)))
                continue
            partition = record.partition
            if partition is not None and (missing or partition not in route.partitions):
                refusal = self._no_partition(topic, partition, route, missing)
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
                    run = line.run_to(partition)
                elif key is None or not chooses:
                    run = line.keyless or line.run_without_key()
                else:
                    numbers = route.partitions
                    run = line.run_to(numbers[hash_of_key(key) % len(numbers)])
                if timestamp_ms is None:
                    timestamp_ms = now_ms
                if (
                    append is not None
                    and value is not None
                    and run.target is not None
                    and (len(value) if key is None else len(value) + len(key))
                    + (_most_bytes(headers) if headers else 0)
                    <= largest
                ):
                    future, is_full, is_new, _ = append(
                        run.target, timestamp_ms, key, value, headers or []
                    )
                    if is_new or is_full:
                        wakes = True
                else:
                    # By keyword: a tracing agent that replaces `send` adds headers so.
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
                    # What is behind it in the run may never be done, and the run not be looked at.
                    future.add_errback(self._tell_if_broken)
            except DeliveryError as error:
                failed.append(submission)
                failures.append(error)
                continue
            except kafka_errors.KafkaTimeoutError:
                # A refresh of the metadata dropped the topic just now.
                line.route = None
                self._looked[topic] = time.monotonic()
                self._asked.setdefault(topic, None)
                if opened.client.cluster.partitions_for_topic(topic) is None:
                    self._ask(opened.client.cluster)
                else:
                    # The answer came before it was known that anybody waits for it.
                    opened.sink.metadata_changed()
                answer.held.append(submission)
                continue
            except NoPartition as error:
                failed.append(submission)
                failures.append(rejected(record, str(error), error.__cause__))
                continue
            # The `send` of a user's own class may raise anything.
            except BaseException as error:  # noqa: BLE001  # becomes this record's outcome
                failed.append(submission)
                failures.append(not_taken(record, error))
                continue
            if run.partition is None:
                future.add_errback(functools.partial(self._failed_first, submission))
            run.submissions.append(submission)
            run.futures.append(future)
            run.size += submission.size
            if run.partition is None:
                # Where it went nobody knows, nor whether what follows it goes there too.
                line.end_run(run)
            elif run.size >= RUN_BYTES:
                line.end_run(run)
                opened.client.wakeup()
        if wakes:
            opened.client.wakeup()
        for line in lines.values():
            line.end()
        if failed:
            self.report(failed, failures)
        return answer

    def hurry(self, on: bool, /) -> None:  # noqa: FBT001
        """Linger or not; see :meth:`anyio_sendproducer.drivers.LingeringDriver.hurry`."""
        hurry = self._ready().hurry
        if hurry is not None:  # pragma: no branch  # otherwise nobody calls this
            hurry(on)

    def report(self, submissions: Sequence[Any], outcomes: Sequence[Outcome]) -> None:
        """Pass outcomes on to the sink."""
        self._ready().sink.completed(submissions, outcomes)

    def _failed_first(self, submission: Submission, error: Exception) -> None:
        # Where a partitioner of the user's own chooses, nobody says which partition it was: of the
        # first record to fail alone it is sure that it was refused.
        if self._first_to_fail is None and self._ends_with(error):
            self._first_to_fail = submission

    def _tell_if_broken(self, error: Exception) -> None:
        self._tell(error, ends=self._ends_with(error))

    def _tell(self, error: Exception, *, ends: bool) -> None:
        if ends and not self._broken and not self._closing.is_set():
            self._broken = True
            harmless(error)
            opened = self._ready()
            transactions = opened.transactions
            fenced = transactions is not None and isinstance(transactions.last_error, FENCED)
            opened.sink.broken(self._fenced(error) if fenced else error)

    def _ends_with(self, error: Exception) -> bool:
        """Whether a client to which this happened can't send any more."""
        if not self._idempotent:
            return False
        if isinstance(error, RECOVERED):
            return not self._recovers
        is_broken = self._ready().is_broken
        return is_broken is None or is_broken()

    def failure(self, submission: Submission, error: Exception, run: PartitionRun) -> DeliveryError:
        """What an error of the client says of a record, in our terms."""
        if isinstance(error, GivenUp):
            return given_up(submission.record, error)
        refused = isinstance(error, REFUSALS)
        opened = self._ready()
        ends = self._ends_with(error)
        if ends or opened.transactions is not None:
            # Seen in 3.0.12: what ends the idempotent client fails all that is under way with the
            # very same error, though it may have been written; and what ends a transaction, all of
            # that. What the broker's answer named was refused; behind it there nothing had been
            # sent.
            if run.partition is None:
                refused = refused and submission is self._first_to_fail
            else:
                refused = refused and (run.topic, run.partition) in opened.client.refused
            self._tell(error, ends=ends)
        if refused:
            said = f"the broker refused the record: {one_line(error)}"
            return rejected(submission.record, said, error)
        return not_acknowledged(submission.record, error)

    # --- transactions ------------------------------------------------------------------------

    def _init_transactions(self, producer: QuietProducer, deadline: float) -> None:
        """End what an earlier producer of this name has left open, and fence it off."""
        name = self._settings.transactional_id
        while True:
            try:
                producer.init_transactions()
            except kafka_errors.KafkaTimeoutError:
                # With max_block_ms=0 it never waits; another call goes on where this one ended.
                if time.monotonic() >= deadline:
                    raise ProducerStartError(
                        f"no transactions for transactional_id {name!r} within "
                        f"{self._settings.start_timeout:g} s (start_timeout)"
                    ) from None
                if self._closing.wait(0.005):
                    raise ProducerStartError("the producer was closed while it was starting") from (
                        None
                    )
            except FENCED as error:
                raise self._fenced(error) from harmless(error)
            except Exception as error:
                harmless(error)
                raise ProducerStartError(
                    f"no transactions for transactional_id {name!r}: {client_words(error)}"
                ) from error
            else:
                return

    def begin_transaction(self) -> None:
        """Begin; see :meth:`anyio_sendproducer.drivers.Driver.begin_transaction`."""
        if not self._in_transaction:
            try:
                self._ready().producer.begin_transaction()
            except Exception as error:
                raise self._transaction_error(
                    error, "the transaction could not be begun"
                ) from error
            self._in_transaction = True

    def send_offsets(
        self,
        offsets: Sequence[ConsumedOffset],
        group: ConsumerGroupMetadata,
        deadline: Deadline,
        /,
    ) -> None:
        """Send them; see :meth:`anyio_sendproducer.drivers.Driver.send_offsets`."""
        opened = self._ready()
        what = f"the offsets of group {group.group_id!r} could not be sent"
        try:
            result = opened.transactions.send_offsets_to_transaction(
                {
                    TopicPartition(one.topic, one.partition): OffsetAndMetadata(
                        one.offset, one.metadata, one.leader_epoch
                    )
                    for one in offsets
                },
                cast("Any", structs).ConsumerGroupMetadata(
                    group.group_id, group.generation_id, group.member_id, group.group_instance_id
                ),
            )
            opened.client.wakeup()
            answered = self._wait(result, deadline)
        except Exception as error:
            raise self._transaction_error(error, what) from error
        if not answered:
            raise TransactionError(f"{what}: there was no answer")

    def end_transaction(self, commit: bool, deadline: Deadline, /) -> None:  # noqa: FBT001
        """End it; see :meth:`anyio_sendproducer.drivers.Driver.end_transaction`."""
        opened = self._ready()
        manager = opened.transactions
        what = f"the transaction could not be {'committed' if commit else 'aborted'}"
        while manager.is_bumping_epoch():
            if deadline.is_over or self._closing.wait(0.005):
                raise TransactionError(f"{what}: the client is getting another producer epoch")
        try:
            result = manager.begin_commit() if commit else manager.begin_abort()
        except kafka_errors.KafkaError as error:
            if manager.has_error():
                raise self._transaction_error(error, what) from error
            # It had to get another epoch, and by that the brokers abort what was open.
            self._in_transaction = False
            if commit:
                raise TransactionAborted(f"{what}: the client lost its producer epoch") from error
            return
        opened.client.wakeup()
        try:
            answered = self._wait(result, deadline)
        except Exception as error:
            failure = self._transaction_error(error, what)
            if commit and type(failure) is TransactionError:
                answered = False
            else:
                raise failure from error
        if not answered:
            if commit:
                raise TransactionOutcomeUnknown(
                    "the commit was asked for, and no broker said whether it was done"
                )
            raise TransactionError(f"{what}: there was no answer")
        self._in_transaction = False

    def _wait(self, result: Any, deadline: Deadline) -> bool:
        """Whether there is an answer, which is raised where it is an error."""
        while not result.wait(_SLICE_MS):
            if deadline.is_over or self._closing.is_set():
                return False
        return True

    def _transaction_error(self, error: Exception, what: str) -> SendProducerError:
        opened = self._ready()
        manager = opened.transactions
        # What is raised may say no more than that there is an error.
        cause = manager.last_error or error
        harmless(error)
        if self._closing.is_set():
            return ProducerClosed("the producer is closed")
        if isinstance(cause, FENCED):
            return self._fenced(cause)
        if manager.has_abortable_error():
            return TransactionAborted(f"{what}: {client_words(cause)}")
        return TransactionError(f"{what}: {client_words(cause)}")

    def _fenced(self, error: Exception) -> ProducerFenced:
        fenced = ProducerFenced(
            f"another producer took over transactional_id {self._settings.transactional_id!r}"
        )
        fenced.__cause__ = harmless(error)
        return fenced

    def target(self, topic: str, partition: int) -> Any:
        """A partition, as the client knows it."""
        return TopicPartition(topic, partition)

    # --- topics ------------------------------------------------------------------------------

    def partitions_for(self, topic: str, /) -> frozenset[int] | None:
        """A topic's partitions; see :meth:`anyio_sendproducer.drivers.Driver.partitions_for`."""
        route = self._route(topic)
        if isinstance(route, SendProducerError):
            raise route
        if route is None:
            return None
        if self._refreshes.is_new(topic, time.monotonic(), self._requested):
            return frozenset(route.partitions)
        self._ask(self._ready().client.cluster)
        return None

    def _no_partition(
        self, topic: str, partition: int, route: TopicPartitions, missing: set[tuple[str, int]]
    ) -> str | None:
        """Why a record is refused whose partition is not in the metadata.

        Args:
            topic: of the record.
            partition: of the record.
            route: the partitions of the topic.
            missing: the partitions of records of the same batch that are held.

        Returns:
            The reason; empty if the partition is there. None if the record is to be held, because
            the metadata may be too old to have the partition, or behind another one that is held.
        """
        if (topic, partition) in missing:
            return None
        if partition in route.partitions:
            return ""
        if not self._missing.is_refused(topic, partition, time.monotonic(), self._requested):
            missing.add((topic, partition))
            self._ask(self._ready().client.cluster)
            return None
        return (
            f"topic {topic!r} has no partition {partition}; "
            f"it has {len(route.partitions)}, numbered from 0"
        )

    def _route(self, topic: str) -> TopicPartitions | SendProducerError | None:
        route = self._routes.get(topic)
        if route is not None:
            return route
        opened = self._ready()
        cluster = opened.client.cluster
        routes = self._routes
        # Before it is asked for: the answer may come at once, and is told to those who wait.
        self._looked[topic] = time.monotonic()
        self._asked.setdefault(topic, None)
        try:
            # With max_block_ms=0 this never waits: it raises, and asks in the background where the
            # topic is a new one.
            partitions = opened.producer.partitions_for(topic)
        except kafka_errors.KafkaTimeoutError:
            return self._unknown(topic, cluster)
        except kafka_errors.KafkaError as error:
            self._asked.pop(topic, None)
            return no_metadata(topic, error)
        self._asked.pop(topic, None)
        available = cluster.available_partitions_for_topic(topic) or set()
        turn = self._turns.get(topic, hash(topic) % 1024)
        self._turns[topic] = turn + 1
        route = routes[topic] = TopicPartitions(partitions, available, turn)
        return route

    def _unknown(self, topic: str, cluster: Any) -> SendProducerError | None:
        if topic in cluster.unauthorized_topics:
            # So that a later record finds it allowed, if it is by then; one answer will do for
            # many.
            if time.monotonic() - self._asked_again >= _ASK_AGAIN_SECONDS:
                self._asked_again = time.monotonic()
                cluster.request_update()
            self._asked.pop(topic, None)
            error = kafka_errors.TopicAuthorizationFailedError(topic)
            return translated(error, f"this client may not use topic {topic!r}: {error}")
        since = self._asked.get(topic)
        patience = self._settings.unknown_topic_timeout
        if since is None or time.monotonic() - since < patience:
            self._ask(cluster)
            return None
        del self._asked[topic]
        error = kafka_errors.UnknownTopicOrPartitionError(topic)
        return translated(
            error,
            f"the cluster does not know topic {topic!r} and did not create it within "
            f"{patience:g} s (unknown_topic_timeout)",
        )

    def _ask(self, cluster: Any) -> None:
        """Have the client ask for all its topics, unless it is going to. 3.0.12 does so by itself
        for a topic that is new, and not for one that was known and is not any more."""
        if not cluster.need_update:
            cluster.request_update()

    def _asking(self, make_request: Callable[[], Any]) -> Any:
        """Called by the client before it asks for metadata, which it does not twice at a time.

        3.0.12 never forgets a topic. Because it requests again 0.1 s after an answer that names an
        unknown topic, it would request for ever once a topic is deleted.
        """
        self._requesting = now = time.monotonic()
        for topic, looked in list(self._looked.items()):
            if topic not in self._asked or now - looked > _UNKNOWN_SECONDS:
                self._looked.pop(topic, None)
                self._asked.pop(topic, None)
        request = make_request()
        opened = self._opened
        if opened is not None and request.topics:
            request.topics = [one for one in request.topics if self._wants(one.name, opened)]
        self._asked_for = {topic.name for topic in request.topics or ()}
        return request

    def _wants(self, topic: str, opened: _Opened) -> bool:
        """Whether the metadata of a topic are needed: it exists, or there is something to send."""
        cluster: Any = opened.client.cluster
        return (
            topic in self._asked
            or cluster.partitions_for_topic(topic) is not None
            or topic in cluster.unauthorized_topics
            or opened.stalled.holds(topic)
        )

    def _metadata_changed(self, sink: Sink, cluster: Any) -> None:
        """Called by the client, on its thread, after each answer with metadata."""
        self._forget()
        self._routes = {}
        now = time.monotonic()
        for topic, since in list(self._asked.items()):
            # An answer says nothing of a topic that came up when the request was under way.
            if (
                since is None
                and topic in self._asked_for
                and cluster.partitions_for_topic(topic) is None
            ):
                self._asked[topic] = now
        self._requested = self._requesting
        self._missing.answer(self._asked_for, cluster.partitions_for_topic, now, self._requested)
        if self._asked or self._missing or self._refreshes:
            sink.metadata_changed()


def _most_bytes(headers: Sequence[tuple[str, bytes]]) -> int:
    """More than these headers take: four bytes for each character, and two lengths."""
    return sum(4 * len(name) + len(content) + 16 for name, content in headers)
