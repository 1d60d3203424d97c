"""A driver on librdkafka, by way of confluent-kafka's ``Producer``: faster by far than the default.

The only module of the drivers that imports ``confluent_kafka``, and the one seam at which its
errors are translated. What it works around was read in and run against confluent-kafka 2.16.1.

``produce`` does not wait, so the loop calls it, and it calls ``poll``, which runs the callbacks of
deliveries on whoever calls it. The driver's one thread sits in ``poll`` only while the loop has
nothing better to do than to wait: the first callback there makes it ring and stop, and the others
are left to the loop. A thread that went on would take the interpreter from the loop for each of
them.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import ctypes
import functools
import json
import logging
import math
import os
import re
import threading
import time
import types
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Final, cast

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from ..._exceptions import (
    DeliveryError,
    Persistence,
    ProducerClosed,
    ProducerFenced,
    ProducerStartError,
    RecordRejected,
    SendProducerError,
    SettingsError,
    TransactionAborted,
    TransactionError,
    TransactionOutcomeUnknown,
)
from ..._failures import delivery_error, not_sent, timed_out
from ..._records import ConsumerGroupMetadata, ProducerRecord, RecordMetadata
from ..._settings import ProducerSettings
from ..._shown import harmless, listed, one_line, printable
from .._protocols import (
    HOW_FAR,
    BrokerDescription,
    ClusterDescription,
    ConsumedOffset,
    Deadline,
    Outcome,
    Sink,
    Submission,
    Submitted,
)
from .._serializing import parts_of, serialize_with, size_of
from ..security._settings import NoToken, TokenSource, encodes, expires_at
from ._config import librdkafka_config
from ._group_metadata import group_to_bytes

__all__ = ["ConfluentDriver", "describe"]

#: Answers of a broker, or of the client before it asked one, to a record that is not written, but
#: where an earlier attempt was: librdkafka knows, and its Python client does not pass it on.
_REFUSALS: Final = frozenset(
    {
        KafkaError._INVALID_ARG,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_REQUIRED_ACKS,
        KafkaError.INVALID_TIMESTAMP,
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.POLICY_VIOLATION,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNSUPPORTED_COMPRESSION_TYPE,
        KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT,
        KafkaError.UNSUPPORTED_VERSION,
    }
)

#: Of these, what is said of a topic that is not there. A broker that says so to what was sent is
#: asked again; in the end it is what the metadata say.
_OF_NO_TOPIC: Final = frozenset(
    {
        KafkaError._UNKNOWN_PARTITION,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
    }
)

#: What records of a topic that is gone end with; with the last ones, if a request is in flight.
_OF_GONE_TOPIC: Final = _OF_NO_TOPIC | {KafkaError._DESTROY, KafkaError._DESTROY_BROKER}

#: Of these the client gave them up because it was told to, or because something else has failed.
_PURGED: Final = frozenset({KafkaError._PURGE_INFLIGHT, KafkaError._PURGE_QUEUE})

#: By these a broker says that another producer took over.
_FENCED: Final = frozenset(
    {KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.PRODUCER_FENCED}
)

#: What is in the way of reaching a broker.
_UNREACHED: Final = frozenset(
    {
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._AUTHENTICATION,
        KafkaError._BAD_MSG,  # such as one that is longer than receive.message.max.bytes
        KafkaError._RESOLVE,
        KafkaError._SSL,
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError.SASL_AUTHENTICATION_FAILED,
    }
)

#: Of these, what does not go away by trying again.
_NOT_LET_IN: Final = frozenset(
    {KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError.SASL_AUTHENTICATION_FAILED}
)

#: How soon librdkafka sends again what it sent: its retry.backoff.ms, where nobody set it, and what
#: chance takes off.
_BACKOFF_MS: Final = 100.0
_BACKOFF_MAX_MS: Final = 1000.0
_LEAST_BACKOFF: Final = 0.8

#: A name that no topic can have, since it has spaces and a colon. librdkafka requests the metadata
#: of all topics or of one, never of the brokers alone. For this name every cluster, however large,
#: sends its brokers and one error.
_NO_TOPIC: Final = "anyio-sendproducer: no topic"

#: How long one call of the client waits where it could go on for longer.
_SLICE_SECONDS: Final = 0.1
#: How many such calls may prepare a client for its first record. They hold up the driver's thread.
_PREPARING_CALLS: Final = 10
#: How soon the thread notices that it is to flush.
_HURRY_SECONDS: Final = 0.01
#: Before a call that did not get anywhere is made again.
_PAUSE_SECONDS: Final = 0.005
#: How often the client is asked while nothing is under way, for its errors, its log, and to have it
#: ask for tokens.
_IDLE_SECONDS: Final = 1.0
#: How long it may take until all that is given up has been reported, and until a thread has ended.
_LAST_SECONDS: Final = 2.0
#: How long the answers to requests in flight may take when the client is broken.
_ANSWERS_SECONDS: Final = 1.0
#: How long offsets may take. When the coordinator of their group is gone, librdkafka 2.16 waits for
#: a sign of one of its connections, which may never come: nobody looks at ``creq_ts_timeout`` in
#: ``rdkafka_coord.c``. Another client finds the next coordinator.
_OFFSETS_SECONDS: Final = 20.0
#: The lifetimes that librdkafka is told of for a token: it asks for another one after 0.8 of that.
#: There is no way to have it ask when a login was refused, so it asks often. It refuses a token
#: that has expired, and then waits for ten seconds.
_MAX_TOKEN_SECONDS: Final = 30.0
_MIN_TOKEN_SECONDS: Final = 1.0

#: How often the metadata are requested of a topic whose records wait for a partition.
_REFRESH_SECONDS: Final = 0.1
#: How long metadata are believed that do not have a partition.
_FRESH_SECONDS: Final = 1.0
#: For how long it is remembered that records have waited for it long enough.
_MISSING_SECONDS: Final = 60.0

#: How often the bootstrap addresses are asked, while no broker is reached, where the brokers are.
_LOOK_SECONDS: Final = 5.0
#: How long a transaction waits for what comes of that before it is begun.
_OTHERS_SECONDS: Final = 10.0

#: librdkafka repeats an error of a broker that it can't reach every 30 s. What is older is over, if
#: records are delivered.
_REPEATED_SECONDS: Final = 31.0

#: What librdkafka calls the lines about one broker, and how each line begins.
_OF_BROKERS: Final = frozenset({("FAIL",), ("REQTMOUT",)})
_THREAD: Final = re.compile(r"^\[thrd:[^\]]*\]: ")

#: How many lines of its log wait for a slow handler.
_MAX_LINES: Final = 10_000
#: How often one and the same line is passed on, and how many different lines are remembered.
_REPEAT_SECONDS: Final = 30.0
_MAX_REPEATED: Final = 256
#: What differs from one failure to connect to the next.
_DURATION: Final = re.compile(r"\b\d+ms\b")
#: Lines that have these words are left out: that a setting is experimental, and that a refusal is a
#: fatal error. The producer says why it replaces a client.
_NOT_LOGGED: Final = ("enable.gapless.guarantee", "gap-less guarantee")

#: For clients with transactions. When librdkafka 2.16 has lost its last broker, it would connect to
#: the bootstrap addresses again. Then it may never answer a request for a coordinator that it knew
#: before, and one of its threads uses a whole core. Such a client is replaced instead, see
#: :meth:`ConfluentDriver._look_elsewhere`.
_TRANSACTIONAL: Final[Mapping[str, Any]] = (
    {"metadata.recovery.strategy": "none"}
    if confluent_kafka.libversion()[1] >= 0x020A0000  # the first that has it
    else {}
)

_log = logging.getLogger("anyio_sendproducer.confluent")

#: Makes a RecordMetadata at half the price of calling the class, whose __new__ is Python code.
_new_tuple: Final[Callable[[Any, Any], RecordMetadata]] = cast("Any", tuple).__new__

_clients: weakref.WeakSet[ConfluentDriver] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # The client's threads stayed behind, and to end it is to wait for them, for ever. So it is
    # never ended here, not even when the child's interpreter is.
    for driver in list(_clients):
        driver.disown()


if hasattr(os, "register_at_fork"):  # pragma: no branch  # Windows has none, and does not fork
    os.register_at_fork(after_in_child=_after_fork_in_child)


#: The client's own class, which is written in C. A tracing agent puts a subclass in its place whose
#: `produce` may ask a broker for metadata, reject the arguments, or drop headers of the same name,
#: and the loop calls it. An observer makes spans instead.
_Producer: Final[Any] = confluent_kafka.Producer.__mro__[-2]


#: A token, when it expires in seconds since 1970, the principal, and the SASL extensions.
ClientToken = tuple[str, float, str, dict[str, str]]
TokenCallback = Callable[[str], ClientToken]
_NO_THREAD: Final = "the process, or its container, can start no more threads"


class _NoAnswer(Exception):
    """There was no answer in time, and what waits for it is left to itself."""


class _Enough(Exception):
    """Raised by a callback, to have the client's ``poll`` come back before it is through."""


#: The only one: where Python is older than 3.12, confluent-kafka keeps for ever what a callback
#: raised, and all that is in its traceback.
_ENOUGH: Final = _Enough()


class _LogRelay:
    """The logger of one client: it passes each line to ``_log`` on another thread.

    librdkafka logs from within ``poll``, which the event loop calls, and a handler may block. The
    thread runs only while there are lines. A line that repeats an earlier one is dropped, and
    counted: while a broker is down, librdkafka says so ten times a second for each address.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        #: When a line was last passed on, and how often it has come since.
        self._passed: dict[tuple[str, ...], tuple[float, int]] = {}
        #: Why the last transaction has failed. librdkafka says so only in its log, and then fails
        #: the transaction's records as purged.
        self.transaction_error = ""
        #: What was wrong with a broker that did not answer, and when. librdkafka reports to no
        #: callback what it logs as a mere warning.
        self.broker_error: tuple[str, float] = ("", -math.inf)
        # If a handler is slower than librdkafka, the oldest lines are dropped.
        self._lines: collections.deque[tuple[Any, ...]] = collections.deque(maxlen=_MAX_LINES)
        self._thread: threading.Thread | None = None
        #: Handlers run in the context of the task that opened the producer.
        self._context = contextvars.copy_context()
        # Held to add or take a line, together with the decision to start or end the thread.
        self._moving = threading.Lock()

    def log(self, level: int, message: str, *args: Any) -> None:
        """Called by the client, as :meth:`logging.Logger.log`, with a kind, its name and a text."""
        if args[:1] == ("TXNERR",):
            self.transaction_error = one_line(_THREAD.sub("", str(args[-1])))
        if args[:1] in _OF_BROKERS and level == logging.WARNING:
            said = _THREAD.sub("", str(args[-1]))
            self.broker_error = (one_line(said), self._monotonic())
        if not _log.isEnabledFor(level):
            return
        if any(words in str(arg) for arg in args for words in _NOT_LOGGED):
            return
        with self._moving:
            dropped = self._dropped(message, args) if level > logging.DEBUG else 0
            if dropped is None:
                return
            if dropped:
                message += f" ({dropped} identical lines before)"
            self._lines.append((level, message, *args))
            if self._thread is None:
                self._thread = _started(
                    self._context.copy().run, self._pass_on, name="librdkafka-log"
                )  # without a thread, the next line tries again

    def _dropped(self, message: str, args: tuple[Any, ...]) -> int | None:
        """How many lines like this one were dropped before it; None if it is to be dropped too."""
        line = tuple(_DURATION.sub("", str(part)) for part in (message, *args))
        now = self._monotonic()
        passed_at, dropped = self._passed.get(line, (-math.inf, 0))
        if now - passed_at < _REPEAT_SECONDS:
            self._passed[line] = (passed_at, dropped + 1)
            return None
        if len(self._passed) >= _MAX_REPEATED:
            self._passed.clear()
        self._passed[line] = (now, 0)
        return dropped

    def _pass_on(self) -> None:
        while True:
            with self._moving:
                if not self._lines:
                    self._thread = None
                    return
                line = self._lines.popleft()
            with contextlib.suppress(Exception):  # a filter's
                _log.log(*line)

    def join(self, seconds: float) -> None:
        """Wait until all lines were passed on, for so many seconds at most."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)


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
        self._config = made.config
        self._lines = _LogRelay()
        self._tokens = made.tokens
        self._key = serialize_with(settings.key_serializer)
        self._value = serialize_with(settings.value_serializer)
        #: Serializers are not to run on the loop.
        self.direct = self._key is None and self._value is None
        self.lingers = self._config["linger.ms"] > 0
        #: Whether the client is to hold nothing back. The loop sets it, the thread reads it.
        self._hurries = False
        self._client: Any = None
        self._sink: Sink | None = None
        self._closing = threading.Event()
        #: Held by a thread that needs the client to stay open, for one short call. The loop takes
        #: it too, so a thread that holds it waits for nothing and runs no code of the user's.
        self._using = threading.RLock()
        #: Held by the one thread that calls the client and may wait in it, while it does.
        self._calling = threading.Lock()
        #: That thread, while it ends a transaction: no callback is to stop that half-way.
        self._ending: int | None = None
        self._is_usable = False
        self._closed = False
        self._thread: threading.Thread | None = None
        self._bell = threading.Event()
        #: Set by the driver's thread when it no longer prepares for the first record.
        self._is_prepared = threading.Event()
        self._is_watching = False
        # Submissions and their outcomes, in turn, that were not passed on yet; and how long that
        # may become until a poll ends.
        self._said: list[Any] = []
        self._most: float = math.inf
        #: A record that the client had for less was sent once, if at all.
        self._sent_once_seconds = 0.0
        self._reporting = threading.Lock()
        # What a broker knows as a repetition it may confirm without an offset, by -1, from where
        # librdkafka counts on. Up to where the offsets of a topic's partition may be such.
        self._unplaced: dict[tuple[str, int], int] = {}
        #: Topics that something was written to. One may be taken for gone, for a moment.
        self._known: set[str] = set()
        self._trouble: SendProducerError | None = None
        self._noted_at = 0.0
        self._is_cut_off = False
        self._is_broken = False
        #: Whether a record that fails leaves a gap, after which the client must not go on.
        self._may_leave_no_gap = (
            self._config["enable.idempotence"] and settings.transactional_id is None
        )
        #: Whether a refusal is a fatal error.
        self._is_gapless = self._config.get("enable.gapless.guarantee", False)
        self._statistics = ""
        self._read: tuple[str, Mapping[str, Any]] = ("", {})
        self._asked: dict[str, float] = {}
        #: Since when records wait for a partition that the metadata do not have; -1 for the topic.
        self._missing: dict[tuple[str, int], float] = {}
        #: When the metadata of such a topic last came, and how many partitions it had.
        self._told: dict[str, tuple[float, int]] = {}
        #: The topics of records that were given back, and the thread that requests their metadata
        #: for as long as there are any. Both change under _using.
        self._wanted: set[str] = set()
        self._refresher: threading.Thread | None = None
        self._in_transaction = False
        #: Whether the brokers know of the transaction: they have written something of it.
        self._is_known_to_brokers = False
        #: Why the client gives up its records.
        self._why_purged = ""
        #: When the bootstrap addresses may be asked again where the brokers are.
        self._looks_at = 0.0
        self._delivered = self._callback()
        self._began = 0.0

    # --- opening and closing -----------------------------------------------------------------

    def open(self, sink: Sink, /) -> None:
        """Connect; see :meth:`anyio_sendproducer.drivers.Driver.open`."""
        deadline = time.monotonic() + self._settings.start_timeout
        self._sink = sink
        config: dict[str, Any] = {
            **(_TRANSACTIONAL if self._settings.transactional_id is not None else {}),
            **self._config,
            "error_cb": self._failed,
            "stats_cb": self._counted,
        }
        if self._tokens is not None:
            config["oauth_cb"] = self._await_token(deadline)
        try:
            self._client = _Producer(config, logger=self._lines)
        except (KafkaException, TypeError, ValueError) as error:
            said = f"librdkafka refuses the settings: {_words_of(error)}"
            raise SettingsError(said) from _harmless(error)
        _clients.add(self)
        # Numbers, as the client took them.
        backoff_ms = min(
            float(self._config.get("retry.backoff.ms", _BACKOFF_MS)),
            float(self._config.get("retry.backoff.max.ms", _BACKOFF_MAX_MS)),
        )
        self._sent_once_seconds = backoff_ms / 1000 * _LEAST_BACKOFF
        try:
            self._connect(deadline)
            if self._settings.transactional_id is not None:
                self._init_transactions(deadline)
        except BaseException:
            self._end_client()
            raise
        self._is_usable = True
        # Callbacks run the user's hooks, in the context of the task that opened the producer.
        self._thread = _started(
            contextvars.copy_context().run,
            self._attend,
            name=f"{threading.current_thread().name}-poll",
        )
        if self._thread is None:
            self._is_usable = False
            self._end_client()
            raise ProducerStartError(f"no producer: {_NO_THREAD}")
        self._is_prepared.wait(_SLICE_SECONDS)

    def _await_token(self, deadline: float) -> TokenCallback:
        """Wait until there is a token for a new client.

        The client waits 10 s for its first token while it is made, and nothing can end that.
        """
        pause = _SLICE_SECONDS
        while True:
            try:
                return self._token_callback()
            except NoToken as error:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise ProducerStartError(
                        f"no producer for {listed(self._settings.addresses)} within "
                        f"{self._settings.start_timeout:g} s (start_timeout): {one_line(error)}"
                    ) from error
                if self._closing.wait(min(pause, remaining)):
                    raise ProducerStartError(
                        "the producer was closed while it was starting"
                    ) from error
                pause = min(pause * 2, 1.0)

    def _connect(self, deadline: float) -> None:
        addresses = listed(self._settings.addresses)
        slice_ = _SLICE_SECONDS
        while True:
            remaining = deadline - time.monotonic()
            if self._closing.is_set():
                raise ProducerStartError("the producer was closed while it was starting")
            failure = self._trouble
            if isinstance(failure, _NotLetIn) and self._is_cut_off:
                raise ProducerStartError(f"no producer for {addresses}: {failure}") from failure
            if remaining <= 0:
                said = "no broker answered" if failure is None else str(failure)
                raise ProducerStartError(
                    f"no producer for {addresses} within {self._settings.start_timeout:g} s "
                    f"(start_timeout): {said}{HOW_FAR}"
                ) from failure
            seconds = max(0.001, min(slice_, remaining))
            asks_again = time.monotonic() + seconds
            try:
                _look_up(self._client, _NO_TOPIC, seconds)
            except KafkaException as error:
                self._poll(0)
                if self._trouble is None:  # this says less than what it was told
                    self._note(error.args[0])
                # A malformed answer comes at once, and so would the next one.
                self._closing.wait(max(0.0, asks_again - time.monotonic()))
                # An answer that takes longer than one slice comes within one of the next.
                slice_ = min(slice_ * 2, 1.0)
            else:
                self._trouble = None
                self._is_cut_off = False
                return

    def close(self, timeout: float, /) -> None:
        """Close; see :meth:`anyio_sendproducer.drivers.Driver.close`."""
        self._closing.set()
        with self._using:
            if self._closed or not self._is_usable:
                return
            self._closed = True
            self._is_usable = False
        self._bell.set()
        refresher = self._refresher
        if refresher is not None:
            refresher.join(_LAST_SECONDS)
        # A call that is under way notices, and those that come find it closed.
        is_free = self._calling.acquire(timeout=_LAST_SECONDS)
        try:
            if not self._gives_up(timeout) or not is_free:
                _log.warning("librdkafka did not give up its records, and is left as it is")
                return
            self._end_client()
        finally:
            if is_free:
                self._calling.release()

    def _gives_up(self, seconds: float) -> bool:
        """Whether the client is through with its records, after so many seconds by force, and
        nobody asks it any more."""
        client = self._client
        if self._is_broken and self._settings.transactional_id is None:
            # It is to send nothing more, but the answers to what it sent tell what is written.
            client.purge(in_flight=False, blocking=False)
            seconds = max(seconds, _ANSWERS_SECONDS)
        self._empty(client, seconds)
        if len(client):
            client.purge(blocking=False)
            self._empty(client, _LAST_SECONDS)
        thread = cast("threading.Thread", self._thread)
        thread.join(_LAST_SECONDS)
        return not thread.is_alive() and not len(client)

    def _empty(self, client: Any, seconds: float) -> None:
        """Ask until nothing is under way, for so many seconds at most."""
        deadline = time.monotonic() + seconds
        while len(client) and (remaining := deadline - time.monotonic()) > 0:
            self._poll(min(remaining, _SLICE_SECONDS))
            self._report()
        self._poll(0)
        self._report()

    def _end_client(self) -> None:
        client, self._client = self._client, None
        _clients.discard(self)
        if self._settings.transactional_id is None:
            # Its fatal error, once more, or a line of its log.
            with contextlib.suppress(KafkaException, UnicodeDecodeError):
                client.close()
        # Where there are transactions its close() would abort the one that is open, and wait for
        # that for ever. Without, it ends with the last reference; so no frame has one, for the
        # exceptions that are raised through frames are kept by whoever likes.
        del client
        self._lines.join(_LAST_SECONDS)

    def disown(self) -> None:
        """Leave the client as it is, for as long as the process lives, and be closed."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._client))
        self._client = None
        self._is_usable = False
        self._closed = True
        # Whoever holds its lock, or is about to set it, stayed behind as well.
        self._using = threading.RLock()
        self._closing = threading.Event()
        self._closing.set()

    @contextlib.contextmanager
    def _call(self) -> Generator[None]:
        """One call of the client, which is there for as long as it takes."""
        self._check_open()
        with self._calling:
            self._check_open()
            yield

    def _check_open(self) -> None:
        if self._client is None or self._closing.is_set():
            raise ProducerClosed("the producer is closed")

    # --- what the client says ----------------------------------------------------------------

    def _poll(self, seconds: float, *, flushes: bool = False) -> None:
        """Let the client run its callbacks, and with ``flushes`` send what lingers."""
        if self._client is None:
            return
        while True:
            try:
                if flushes:
                    self._client.flush(seconds)
                else:
                    self._client.poll(seconds)
            except UnicodeDecodeError:
                # The binding makes a str of each line before it calls the logger. The words of a
                # broker may be in it, such as the name of a host. Behind it there are callbacks.
                said = "a line of librdkafka's log is lost: it is not UTF-8"
                self._lines.log(logging.WARNING, said)
                seconds = 0
                continue
            except _Enough as enough:
                enough.__traceback__ = None
            except KafkaException as error:
                # Its fatal error is raised here, and told to no callback.
                self._break(error.args[0])
            return

    def _break(self, error: Any) -> None:
        if not self._is_broken:
            self._give_up(self._fenced(error) if self._is_fenced(error) else _translated(error))

    def _give_up(self, failure: SendProducerError) -> None:
        if not self._is_broken and not self._closing.is_set():
            self._is_broken = True
            self._why_purged = f"the client can't send any more: {failure}"
            cast("Sink", self._sink).broken(failure)

    def _failed(self, error: Any) -> None:
        """Called by the client, with what is no record's own."""
        if error.fatal():
            self._break(error)
        else:
            self._note(error)

    def _note(self, error: Any) -> None:
        code = error.code()
        if code == KafkaError._ALL_BROKERS_DOWN:
            self._is_cut_off = True
            if self._trouble is not None:
                return  # it says less than what went before
        if code in _UNREACHED:
            kind = _NotLetIn if code in _NOT_LET_IN else SendProducerError
            self._trouble = kind(_words(error))
            self._noted_at = time.monotonic()

    def _counted(self, statistics: str) -> None:
        """Called by the client every ``statistics.interval.ms``."""
        self._statistics = statistics

    def _token_callback(self) -> TokenCallback:
        """Fetch a token. Returns: what the client calls when it needs a token.

        Raises:
            NoToken: there is none now. When the client calls it takes this for a failure.
        """
        first = [self._new_token()]
        return lambda _: first.pop() if first else self._new_token()

    def _new_token(self) -> ClientToken:
        tokens = cast("TokenSource", self._tokens)
        token = tokens.token()
        now = time.time()
        remaining = (expires_at(token) or math.inf) - now
        lifetime = max(_MIN_TOKEN_SECONDS, min(remaining, _MAX_TOKEN_SECONDS))
        return token, now + lifetime, "", tokens.extensions()

    def last_error(self) -> Exception | None:
        """The last failure to connect; see :meth:`anyio_sendproducer.drivers.Driver.last_error`."""
        said, at = self._lines.broker_error
        if self._trouble is None and time.monotonic() - at < _REPEATED_SECONDS:
            return SendProducerError(said)
        return self._trouble

    def is_disconnected(self) -> bool:
        """See :meth:`anyio_sendproducer.drivers.Driver.is_disconnected`."""
        return self._is_cut_off

    def metrics(self) -> Mapping[str, Any]:
        """Its statistics; see :meth:`anyio_sendproducer.drivers.Driver.metrics`."""
        text = self._statistics
        if text and text is not self._read[0]:
            try:
                self._read = (text, json.loads(printable(text, "\N{REPLACEMENT CHARACTER}")))
            except ValueError:
                # librdkafka escapes nothing in the name of a broker.
                self._read = (text, self._read[1])
        return self._read[1]

    # --- records -----------------------------------------------------------------------------

    def submit(self, batch: Sequence[Submission], /) -> Submitted:
        """Hand over a batch; see :meth:`anyio_sendproducer.drivers.Driver.submit`."""
        answer = Submitted()
        failed: list[Any] = []
        failures: list[Outcome] = []
        # Serializers run without the lock, since the loop waits for it. They may take long, or wait
        # for the loop themselves. Each record then takes the lock in _produce_one().
        with self._using if self.direct else contextlib.nullcontext():
            if self._is_usable:
                self._produce(batch, answer, failed, failures)
            else:
                failed += batch
                failures += [_not_taken(one.record) for one in batch]
        if self._hurries:
            self._bell.set()
        if failed:
            cast("Sink", self._sink).completed(failed, failures)
        return answer

    def hurry(self, on: bool, /) -> None:  # noqa: FBT001
        """Linger or not; see :meth:`anyio_sendproducer.drivers.LingeringDriver.hurry`."""
        self._hurries = on
        self._bell.set()

    def _produce(
        self,
        batch: Sequence[Submission],
        answer: Submitted,
        failed: list[Any],
        failures: list[Outcome],
    ) -> None:
        direct = self.direct
        # Without the lock, another thread may close the client. This frame must not keep it then.
        produce = self._client.produce if direct else None
        delivered = self._delivered
        bind = types.MethodType
        held_topics: set[str] | None = None  # made where one is needed
        for place, submission in enumerate(batch):
            record = submission.record
            if held_topics is not None and record.topic in held_topics:
                answer.held.append(submission)
                continue
            partition = record.partition
            if partition is None:
                partition = -1
            try:
                if produce is not None and record.timestamp_ms is None and not record.headers:
                    produce(
                        record.topic,
                        record.value,
                        record.key,
                        partition,
                        bind(delivered, submission),
                    )
                else:
                    self._produce_one(submission, partition, answer)
            except DeliveryError as error:
                failed.append(submission)
                # In this frame there is a reference to the client.
                failures.append(error.with_traceback(None))
            except BufferError:
                # Its own bound is above ours; whatever takes it up is on its way out.
                answer.held += batch[place:]
                return
            except KafkaException as error:
                if error.args[0].code() == KafkaError._FATAL:
                    # It takes no more. They are for the next client.
                    with self._using:
                        if self._is_usable:
                            self._poll(0)  # which knows why
                    self._break(error.args[0])
                    answer.held += batch[place:]
                    return
                if error.args[0].code() in _OF_NO_TOPIC and self._is_awaited(
                    record.topic, partition
                ):
                    held_topics = {record.topic, *(held_topics or ())}
                    answer.held.append(submission)
                    continue
                failed.append(submission)
                failures.append(self._refused(record, error.args[0], partition))
            except Exception as error:  # noqa: BLE001  # becomes this record's outcome
                failed.append(submission)
                failures.append(
                    _rejected(
                        record,
                        f"confluent-kafka refused the record: {one_line(error)}",
                        _harmless(error.with_traceback(None)),  # as above
                    )
                )

    def _produce_one(self, submission: Submission, partition: int, answer: Submitted) -> None:
        """Serialize a record and hand it over with all that it can have."""
        record = submission.record
        key, value, headers = record.key, record.value, [*record.headers]
        if not self.direct:
            key, value = parts_of(record, self._key, self._value, headers)
            answer.sizes.append((submission, size_of(key, value, headers)))
        for name, _ in headers:
            # confluent-kafka ends the process at a name that has no encoding, and cuts one short
            # at a NUL.
            if "\0" in name or not encodes(name):
                raise _rejected(
                    record, f"librdkafka can't send a header with the name {name!r:.80}"
                )
        if record.timestamp_ms == 0:
            raise _rejected(
                record,
                "timestamp_ms=0 can't be sent by librdkafka, which takes it for none given",
            )
        self._hand_over(submission, key, value, partition, headers)

    def _hand_over(
        self,
        submission: Submission,
        key: Any,
        value: Any,
        partition: int,
        headers: list[tuple[str, bytes]],
    ) -> None:
        record = submission.record
        with self._using:
            if not self._is_usable:
                raise _not_taken(record)
            self._client.produce(
                record.topic,
                value,
                key,
                partition,
                functools.partial(self._delivered_or_again, submission, headers),
                None,
                record.timestamp_ms or 0,
                headers,
            )

    def _delivered_or_again(
        self, submission: Submission, headers: list[tuple[str, bytes]], error: Any, message: Any
    ) -> None:
        """Called by the client, as :meth:`_callback` has it, for records that may have headers. The
        client itself forgets them."""
        if error is None or not self._is_sent_again(submission, headers, error, message):
            self._delivered(submission, error, message)

    def _is_sent_again(
        self,
        submission: Submission,
        headers: list[tuple[str, bytes]],
        error: Any,
        message: Any,
    ) -> bool:
        """Hand a record over again, if librdkafka chose a partition that is not there any more, and
        it is not written. Its topic was created anew, with fewer partitions."""
        if (
            error.code() != KafkaError._UNKNOWN_PARTITION
            or submission.record.partition is not None
            or not self._is_sent_once(message)
        ):
            return False
        try:
            self._hand_over(submission, message.key(), message.value(), -1, headers)
        except (DeliveryError, KafkaException, BufferError):
            return False
        return True

    def _callback(self) -> Callable[[Any, Any, Any], None]:
        """What the client calls for each record that it is through with, whoever polls."""
        said = self._said
        extend = said.extend
        new = _new_tuple
        direct = self.direct
        unplaced = self._unplaced
        known = self._known

        def delivered(submission: Any, error: Any, message: Any) -> None:
            record = submission.record
            if error is None:
                offset = message.offset()
                timestamp_ms = message.timestamp()[1]
                if (offset is None or unplaced) and not self._is_placed(message, offset):
                    offset = timestamp_ms = None
                if direct:
                    key, value = record.key, record.value
                else:
                    key, value = message.key(), message.value()
                outcome: Outcome = new(
                    RecordMetadata,
                    (
                        record.topic,
                        message.partition(),
                        offset,
                        timestamp_ms,
                        None if key is None else len(key),
                        None if value is None else len(value),
                    ),
                )
                if record.topic not in known:
                    known.add(record.topic)
                if self._trouble is not None:
                    # It may be another broker's that delivered this record.
                    if time.monotonic() - self._noted_at >= _REPEATED_SECONDS:
                        self._trouble = None
                    self._is_cut_off = False
            elif (
                direct
                and record.timestamp_ms is None
                and not record.headers
                and self._is_sent_again(submission, [], error, message)
            ):
                return
            else:
                outcome = self._failure(record, error, message)
            # In one step, since another thread may be taking what is there.
            extend((submission, outcome))
            if len(said) >= self._most and threading.get_ident() != self._ending:
                raise _ENOUGH

        return delivered

    def _report(self) -> None:
        """Pass on what the callbacks made of it."""
        with self._reporting:
            said = self._said[:]
            del self._said[: len(said)]
        if self._in_transaction and not self._is_known_to_brokers:
            self._is_known_to_brokers = any(isinstance(one, RecordMetadata) for one in said[1::2])
        if said:
            cast("Sink", self._sink).completed(said[::2], said[1::2])

    def _is_placed(self, message: Any, offset: int | None) -> bool:
        """Whether this is the record's offset, and not counted on from -1."""
        where = (message.topic(), message.partition())
        if offset is None:
            self._unplaced.setdefault(where, 0)
            return False
        # What was sent once is no repetition.
        if offset > self._unplaced.get(where, -1) or self._is_sent_once(message):
            return True
        self._unplaced[where] = offset + 1
        return False

    def _is_sent_once(self, message: Any) -> bool:
        """Whether there was no time to send it again; otherwise nobody knows."""
        seconds = message.latency()
        return seconds is not None and seconds < self._sent_once_seconds

    def _failure(self, record: ProducerRecord[Any, Any], error: Any, message: Any) -> DeliveryError:
        """What an error of the client says of a record that it had."""
        code = error.code()
        if error.fatal() or self._is_fenced(error):
            self._break(error)
        is_known = record.topic in self._known
        never_written = code in _OF_NO_TOPIC and not is_known
        is_refused = code in _REFUSALS and self._is_sent_once(message)
        if is_known and self._may_leave_no_gap and code in _OF_GONE_TOPIC:
            # If the topic comes back, its next sequence number is out of order, and the client
            # would take a new epoch.
            self._break(error)
        if is_known and self._is_gapless and code == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            # librdkafka gives this error to all records of the topic that it holds. Some of them
            # may be written: they wait to be sent again, because their answers were lost. Its fatal
            # error names the partition whose batch a broker refused.
            refused = f" for {record.topic} [{message.partition()}] with "
            is_refused = is_refused and (
                self._settings.transactional_id is not None or refused in self._why_purged
            )
        if never_written or is_refused:
            by = "the broker" if code > 0 else "librdkafka"
            return self._refused(record, error, message.partition(), by=by)
        if code == KafkaError._INVALID_DIFFERENT_RECORD and self._is_sent_once(message):
            # To send it once more would put it behind what was sent after it.
            return _not_written(record, "another record of its batch was refused", error)
        cause: Exception = self._fenced(error) if self._is_fenced(error) else _translated(error)
        if code == KafkaError._MSG_TIMED_OUT:
            last_error = self.last_error()
            late = timed_out(
                record,
                "no broker acknowledged the record",
                self._settings.delivery_timeout,
                last_error,
                was_sent=True,
            )
            late.__cause__ = last_error or cause
            return late
        said = _words(error)
        if code in _PURGED:
            said = (
                self._why_purged
                or self._lines.transaction_error
                or "the client was closed before a broker had answered"
            )
        return delivery_error(
            DeliveryError,
            f"the record was not acknowledged: {said}",
            record,
            Persistence.POSSIBLY_PERSISTED,
            cause,
        )

    def _refused(
        self,
        record: ProducerRecord[Any, Any],
        error: Any,
        partition: int,
        *,
        by: str = "librdkafka",
    ) -> DeliveryError:
        """The record was not taken, or a broker refused it: either way it is not written."""
        code = error.code()
        if code not in _REFUSALS:
            return _not_written(record, f"librdkafka did not take it: {_words(error)}", error)
        said = f"{by} refused the record for topic {record.topic!r}: {_words(error)}"
        if code == KafkaError._UNKNOWN_PARTITION:
            said = f"topic {record.topic!r} has no partition {partition}"
            if record.partition is None:
                said += ", which librdkafka chose"
            elif record.topic in self._told:
                said += f"; it has {self._told[record.topic][1]}"
        elif code in _OF_NO_TOPIC:
            said = (
                f"the cluster does not know topic {record.topic!r} and did not create it within "
                f"{self._settings.unknown_topic_timeout:g} s (unknown_topic_timeout)"
            )
        elif code == KafkaError.MSG_SIZE_TOO_LARGE and by == "librdkafka":
            said = "the record is larger than message.max.bytes, which is Kafka's max.request.size"
        return _rejected(record, said, _exception(error))

    # --- asking ------------------------------------------------------------------------------

    def poll(self, most: int, /) -> int:
        """Report; see :meth:`anyio_sendproducer.drivers.PolledDriver.poll`."""
        with self._using:
            if not self._is_usable:
                return 0
            self._most = 2 * most
            self._poll(0)
            under_way = len(self._client)
        self._report()
        return under_way

    def watch(self) -> None:
        """Ring; see :meth:`anyio_sendproducer.drivers.PolledDriver.watch`."""
        if not self._is_watching:
            self._is_watching = True
            self._most = 1
            self._bell.set()

    def _attend(self) -> None:
        """The thread: waits for the client to say something, when the loop does not."""
        self._prepare()
        has_transactions = self._settings.transactional_id is not None
        # Nothing ends a wait in the client early, so one that may have to flush waits in slices.
        slice_ = _HURRY_SECONDS if self.lingers else _SLICE_SECONDS
        # Only the loop sets _is_watching, and only this thread clears it.
        while not self._closing.is_set():
            if has_transactions and self._is_cut_off and not self._is_broken:
                self._look_elsewhere()
            if self._is_watching and self._said:
                # A callback ran in a poll below, perhaps before the loop called watch(). In this
                # order: once it was rung for, the loop may call watch() again.
                self._is_watching = False
                cast("Sink", self._sink).ready()
            elif self._hurries and len(self._client):
                self._poll(slice_, flushes=True)
            elif self._is_watching:
                self._poll(slice_)
            elif not self._bell.wait(_IDLE_SECONDS):
                self._poll(0)
            else:
                self._bell.clear()

    def _prepare(self) -> None:
        """Have librdkafka request its producer id.

        It does so for each answer about metadata. When the first one comes, it has no connection
        yet: it leaves the bootstrap address for the brokers that the answer names. Its next attempt
        would be half a second later. Another answer comes over one of the new connections.
        """
        is_without_id = (
            self._config["enable.idempotence"] and self._settings.transactional_id is None
        )
        for _ in range(_PREPARING_CALLS if is_without_id else 0):
            if self._closing.is_set():
                break
            with contextlib.suppress(KafkaException):
                _look_up(self._client, _NO_TOPIC, _SLICE_SECONDS)
                break
        self._is_prepared.set()

    def _look_elsewhere(self) -> None:
        """Look for the brokers of a client that reaches none of those that it knows. Where the
        bootstrap addresses lead to others, the client is given up for a new one."""
        if self._reaches_brokers(self._client):
            self._trouble = None
            self._is_cut_off = False
            return
        if self._closing.is_set() or time.monotonic() < self._looks_at:
            return
        self._looks_at = time.monotonic() + _LOOK_SECONDS
        config = {
            **self._config,
            "enable.idempotence": False,
            # What it would log, the client itself has logged.
            "log_level": 0,
        }
        del config["transactional.id"]
        if self._tokens is not None:
            try:
                config["oauth_cb"] = self._token_callback()
            except NoToken:
                return
        try:
            other = _Producer(config, logger=self._lines)
        except KafkaException:  # it refuses the token
            return
        is_answered = self._reaches_brokers(other)
        other.close()
        # If these are the same brokers, the client connects to them as well, after its back-off.
        seconds = 2 + math.ceil(self._config["reconnect.backoff.max.ms"] / 1000)
        if is_answered and not any(self._reaches_brokers(self._client) for _ in range(seconds)):
            addresses = listed(self._settings.addresses)
            failure = SendProducerError(
                f"no broker that the client knows can be reached, and {addresses} leads to others"
            )
            failure.__cause__ = self._trouble
            self._give_up(failure)

    def _reaches_brokers(self, client: Any) -> bool:
        """Whether a broker answers a client within a second."""
        if self._closing.is_set():
            return False
        try:
            _look_up(client, _NO_TOPIC, _IDLE_SECONDS)
        except KafkaException:
            return False
        return True

    # --- topics ------------------------------------------------------------------------------

    def _is_awaited(self, topic: str, partition: int) -> bool:
        """Whether a record is to wait for a partition that the metadata do not have.

        The partition may be newer than the metadata, which are requested again. They are believed
        when they come after unknown_topic_timeout, for a second.
        """
        now = time.monotonic()
        patience = self._settings.unknown_topic_timeout
        since = self._missing.get((topic, partition), -math.inf)
        if now - since > patience + _MISSING_SECONDS:
            since = self._missing[topic, partition] = now
        came, _ = self._told.get(topic, (-math.inf, 0))
        if came - since >= patience and now - came < _FRESH_SECONDS:
            return False
        with self._using:
            self._wanted.add(topic)
            if self._refresher is None:
                # Without a thread the record is given back, and the next attempt tries again.
                self._refresher = _started(self._refresh_wanted, name="librdkafka-topics")
        return True

    def _refresh_wanted(self) -> None:
        """A thread: request the metadata of topics, until their records need not wait any more."""
        while True:
            with self._using:
                wanted = [] if self._closing.is_set() else [*self._wanted]
                if not wanted:
                    self._refresher = None
                    return
            for topic in wanted:
                if self._is_decided(topic):
                    with self._using:
                        self._wanted.discard(topic)
                    cast("Sink", self._sink).metadata_changed()
            self._closing.wait(_REFRESH_SECONDS)

    def _is_decided(self, topic: str) -> bool:
        """Request a topic's metadata; whether a record that waits for a partition can go on, or be
        refused."""
        try:
            with self._call():
                found = _look_up(self._client, topic, _IDLE_SECONDS).topics[topic]
        except (KafkaException, ProducerClosed):
            return False
        now = time.monotonic()
        self._told[topic] = now, len(found.partitions)
        is_decided = False
        for (name, partition), since in [*self._missing.items()]:
            if name == topic and (found.partitions and partition < len(found.partitions)):
                del self._missing[name, partition]
                is_decided = True
            elif name == topic and now - since >= self._settings.unknown_topic_timeout:
                is_decided = True
        return is_decided

    def partitions_for(self, topic: str, /) -> frozenset[int] | None:
        """A topic's partitions; see :meth:`anyio_sendproducer.drivers.Driver.partitions_for`."""
        since = self._asked.setdefault(topic, time.monotonic())
        try:
            with self._call():
                found = _look_up(self._client, topic, _IDLE_SECONDS).topics[topic]
        except KafkaException as error:
            if self._trouble is None:  # this says less than what it was told
                self._note(error.args[0])
            return None
        said = found.error
        if said is None and found.partitions:
            del self._asked[topic]
            return frozenset(found.partitions)
        patience = self._settings.unknown_topic_timeout
        missing = said is None or said.code() in {
            KafkaError.LEADER_NOT_AVAILABLE,
            KafkaError.UNKNOWN_TOPIC_OR_PART,
        }
        if missing and time.monotonic() - since < patience:
            return None
        del self._asked[topic]
        failure = SendProducerError(
            f"the cluster does not know topic {topic!r} and did not create it within "
            f"{patience:g} s (unknown_topic_timeout)"
            if missing
            else f"this client may not use topic {topic!r}: {_words(said)}"
        )
        failure.__cause__ = None if said is None else _exception(said)
        raise failure

    def describe(self) -> ClusterDescription:
        """What the cluster says of itself.

        Raises:
            SendProducerError: it does not answer.
        """
        try:
            with self._call():
                found = _look_up(self._client, _NO_TOPIC, self._settings.start_timeout)
        except KafkaException as error:
            raise SendProducerError(
                f"the cluster does not say what it is: {_words_of(error)}"
            ) from _harmless(error)
        return ClusterDescription(
            one_line(found.cluster_id or "") or None,
            None if found.controller_id < 0 else found.controller_id,
            tuple(
                BrokerDescription(number, one_line(broker.host), broker.port, None)
                for number, broker in sorted(found.brokers.items())
            ),
        )

    # --- transactions ------------------------------------------------------------------------

    def _init_transactions(self, deadline: float) -> None:
        """End what an earlier producer of this name has left open, and fence it off."""
        name = self._settings.transactional_id
        while True:
            try:
                self._client.init_transactions(_SLICE_SECONDS)
            except KafkaException as failure:
                error = failure.args[0]
                if error.code() in _FENCED:
                    raise self._fenced(error) from _harmless(failure)
                if not error.retriable():
                    raise ProducerStartError(
                        f"no transactions for transactional_id {name!r}: {_words(error)}"
                    ) from _harmless(failure)
                if time.monotonic() >= deadline:
                    raise ProducerStartError(
                        f"no transactions for transactional_id {name!r} within "
                        f"{self._settings.start_timeout:g} s (start_timeout): {_words(error)}"
                    ) from _harmless(failure)
                if self._closing.wait(0.005):
                    raise ProducerStartError(
                        "the producer was closed while it was starting"
                    ) from _harmless(failure)
            else:
                return

    def begin_transaction(self) -> None:
        """Begin; see :meth:`anyio_sendproducer.drivers.Driver.begin_transaction`."""
        if not self._in_transaction:
            self._await_others()
            try:
                with self._call():
                    self._client.begin_transaction()
            except KafkaException as failure:
                raise self._transaction_error(
                    failure, "the transaction could not be begun"
                ) from _harmless(failure)
            self._in_transaction = True
            self._is_known_to_brokers = False
            self._why_purged = self._lines.transaction_error = ""
            self._began = time.monotonic()

    def _await_others(self) -> None:
        """Wait while this client reaches no broker, since it may be given up for another one: what
        is begun then is lost."""
        patience = Deadline(_OTHERS_SECONDS)
        while self._is_cut_off and not self._is_broken and not patience.is_over:
            if self._closing.wait(_SLICE_SECONDS):
                return
        if self._is_broken:
            # The loop must hear of that before it hears that the transaction was begun.
            self._closing.wait(_SLICE_SECONDS)

    def send_offsets(
        self,
        offsets: Sequence[ConsumedOffset],
        group: ConsumerGroupMetadata,
        deadline: Deadline,
        /,
    ) -> None:
        """Send them; see :meth:`anyio_sendproducer.drivers.Driver.send_offsets`."""
        what = f"the offsets of group {group.group_id!r} could not be sent"
        partitions = [
            TopicPartition(one.topic, one.partition, one.offset, one.metadata, one.leader_epoch)
            for one in offsets
        ]
        metadata = group_to_bytes(group)

        def send(_: float) -> None:
            # Cut into slices it would fail the transaction at the end of one, if a broker wants to
            # be asked again by then.
            remaining = max(_SLICE_SECONDS, deadline.at - time.monotonic())
            seconds = min(remaining, _OFFSETS_SECONDS)

            def call() -> None:
                self._client.send_offsets_to_transaction(partitions, metadata, seconds)

            self._beside(call, seconds + _LAST_SECONDS, deadline)

        if not self._persist(send, deadline, what):
            self._check_open()
            if deadline.is_over:
                raise TransactionError(f"{what}: there was no answer")
            raise TransactionAborted(f"{what}: librdkafka does not get to the group's coordinator")
        self._is_known_to_brokers = True

    def end_transaction(self, commit: bool, deadline: Deadline, /) -> None:  # noqa: FBT001
        """End it; see :meth:`anyio_sendproducer.drivers.Driver.end_transaction`."""
        what = f"the transaction could not be {'committed' if commit else 'aborted'}"

        def end(seconds: float) -> None:
            if commit:
                self._client.commit_transaction(seconds)
            else:
                self._client.abort_transaction(seconds)

        self._ending = threading.get_ident()
        try:
            if not commit:
                self._await_brokers(deadline)
                self._why_purged = self._lines.transaction_error or "its transaction was aborted"
            answered = self._persist(end, deadline, what)
        except TransactionError as error:
            if commit and type(error) is TransactionError:
                raise TransactionOutcomeUnknown(f"the commit was asked for, and {error}") from error
            raise
        finally:
            self._ending = None
            self._report()
        if not answered:
            if commit:
                raise TransactionOutcomeUnknown(
                    "the commit was asked for, and no broker said whether it was done"
                )
            raise TransactionError(f"{what}: there was no answer")
        self._in_transaction = False

    def _await_brokers(self, deadline: Deadline) -> None:
        """Wait until the brokers know of a transaction that has records.

        A coordinator that is still ending the transaction before has librdkafka ask again. To an
        abort that overtakes that request it answers INVALID_TXN_STATE, which ends the client.
        """
        patience = Deadline(_LAST_SECONDS)
        while (
            not self._is_known_to_brokers
            and not self._lines.transaction_error
            and not self._closing.is_set()
            and not deadline.is_over
            and not patience.is_over
            and len(self._client)
        ):
            self._poll(_PAUSE_SECONDS)
            self._report()

    def _persist(self, call: Callable[[float], object], deadline: Deadline, what: str) -> bool:
        """Call, again for as long as the client says so; whether there was an answer by then."""
        while True:
            try:
                with self._call():
                    call(_SLICE_SECONDS)
            except KafkaException as failure:
                if not failure.args[0].retriable() or self._closing.is_set():
                    raise self._transaction_error(failure, what) from _harmless(failure)
            except _NoAnswer:
                return False
            else:
                return True
            if deadline.is_over:
                return False
            # It says so at once where another of its calls is under way. And what it has to say of
            # one that it gave up would be taken for the next one's, if that came right behind.
            self._closing.wait(_PAUSE_SECONDS)

    def _beside(self, call: Callable[[], object], seconds: float, deadline: Deadline) -> None:
        """Call what waits in the client for an answer, however long that takes.

        Raises:
            _NoAnswer: it took so many seconds, the deadline has come, or the driver is being
                closed; the call is left to itself on its thread.
        """
        patience = Deadline(seconds)
        ended = threading.Event()
        failures: list[BaseException] = []

        def run() -> None:
            try:
                call()
            except BaseException as failure:  # noqa: BLE001  # raised again by who waits
                failures.append(failure)
            finally:
                ended.set()

        # Where it is left it is librdkafka's, and ends when that finds a way to.
        if _started(run, name="librdkafka-offsets") is None:
            raise TransactionError(f"the offsets were not sent: {_NO_THREAD}")
        while not ended.wait(_SLICE_SECONDS):
            if deadline.is_over or patience.is_over or self._closing.is_set():
                raise _NoAnswer
        if failures:
            raise failures[0]

    def _transaction_error(self, failure: KafkaException, what: str) -> SendProducerError:
        error = failure.args[0]
        if self._closing.is_set():
            return ProducerClosed("the producer is closed")
        if error.code() in _FENCED:
            return self._fenced(error)
        if error.txn_requires_abort():
            return TransactionAborted(f"{what}: {_words(error)}")
        return TransactionError(f"{what}: {_words(error)}")

    def _is_fenced(self, error: Any) -> bool:
        # Without a name nobody can take over: a broker merely forgot, or mixed up, who this is.
        return self._settings.transactional_id is not None and error.code() in _FENCED

    def _fenced(self, error: Any) -> ProducerFenced:
        said = f"another producer took over transactional_id {self._settings.transactional_id!r}"
        # The brokers say the same in either case, and librdkafka does not find out which it is.
        limit = self._config.get("transaction.timeout.ms", 60_000)
        if self._in_transaction and time.monotonic() - self._began > limit / 1000:
            said += f", or its transaction took longer than transaction.timeout.ms={limit}"
        fenced = ProducerFenced(said)
        fenced.__cause__ = _exception(error)
        return fenced


class _NotLetIn(SendProducerError):
    """A broker refuses what it is shown, and will do so again."""


def _started(function: Callable[..., object], *args: Any, name: str) -> threading.Thread | None:
    """A thread that runs the function; None if the system has none left."""
    thread = threading.Thread(target=function, args=args, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread


def _look_up(client: Any, topic: str, seconds: float) -> Any:
    """Request the metadata of the cluster and of one topic.

    2.16 raises SystemError and UnicodeDecodeError for answers from which it cannot make Python's
    objects, and passes on an answer without the topic.

    Raises:
        KafkaException: there was no answer in time, or it makes no sense.
    """
    problem = ""
    try:
        found = client.list_topics(topic, timeout=seconds)
        if topic == _NO_TOPIC or topic in found.topics:
            return found
        problem = "the answer with metadata has nothing about the topic that was asked for"
    except KafkaException:
        raise
    except Exception as error:  # noqa: BLE001  # see above
        problem = f"the answer with metadata makes no sense: {type(error).__name__}"
    raise KafkaException(KafkaError(KafkaError._BAD_MSG, problem))


def _words(error: Any) -> str:
    """What an error of the client says."""
    return one_line(error.str())


def _clean(error: Any) -> Any:
    """An error of the client whose text is one line."""
    if str(error).isprintable():
        return error
    return KafkaError(
        error.code(), _words(error), error.fatal(), error.retriable(), error.txn_requires_abort()
    )


def _exception(error: Any) -> KafkaException:
    return KafkaException(_clean(error))


def _harmless(failure: Exception) -> Exception:
    """What the client raises, with a text of one line, as :func:`harmless` has it."""
    if isinstance(failure, KafkaException):
        failure.args = tuple(map(_clean, failure.args))
    return harmless(failure)


def _words_of(error: Exception) -> str:
    """The same, of whatever the client raises."""
    first = error.args[0] if error.args else error
    return _words(first) if isinstance(first, KafkaError) else one_line(error)


def _translated(error: Any) -> SendProducerError:
    translated = SendProducerError(f"{error.name()}: {_words(error)}")
    translated.__cause__ = _exception(error)
    return translated


def _rejected(
    record: ProducerRecord[Any, Any], message: str, cause: BaseException | None = None
) -> RecordRejected:
    return delivery_error(RecordRejected, message, record, Persistence.NOT_PERSISTED, cause)


def _not_written(record: ProducerRecord[Any, Any], why: str, error: Any) -> DeliveryError:
    return not_sent(record, f"the record was not written: {why}", _exception(error))


def _not_taken(record: ProducerRecord[Any, Any]) -> DeliveryError:
    return not_sent(record, "the record was not sent: the client is closed")


class _Nobody:
    """Whoever is told, where there is nothing to tell."""

    def completed(self, submissions: Sequence[Any], outcomes: Sequence[Outcome], /) -> None:
        """There are no records."""

    def metadata_changed(self) -> None:
        """Nobody waits for them."""

    def broken(self, error: BaseException, /) -> None:
        """It is closed in any case."""

    def ready(self) -> None:
        """There is nothing to report."""


def describe(settings: ProducerSettings) -> ClusterDescription:
    """See :func:`anyio_sendproducer.drivers._describe.describe_cluster`."""
    driver = ConfluentDriver(settings)
    driver.open(_Nobody())
    try:
        return driver.describe()
    finally:
        driver.close(0)
