"""librdkafka's mock cluster, in this process: its brokers refuse, delay and stop on command.

The embedded broker serves every request. Tests with protocol errors, slow answers, or leaders that
move need this cluster. It is part of the C library in the ``confluent_kafka`` wheel, which has no
Python interface for it, so this module uses ctypes. Its threads are not Python's, so it answers
while the interpreter is busy. Its brokers listen on this machine's loopback interface.

The functions of the cluster come from ``rdkafka_mock.h``. librdkafka says that they may change. All
releases that the extra ``confluent`` allows have had these functions so far.

``confluent_kafka`` (extra ``confluent``) is imported when a cluster is started.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NoReturn, cast

from .. import ProducerSettings
from ._checks import check_count
from ._kafka_names import error_code, request_key

__all__ = ["MockCluster", "MockClusterError", "librdkafka", "mock_cluster"]

#: rd_kafka_resp_err_t's RD_KAFKA_RESP_ERR__TRANSPORT: the mock closes the connection.
_TRANSPORT: Final = -195

_TOPIC_NAME: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_MAX_INT32: Final = 2**31 - 1

#: rd_kafka_type_t's RD_KAFKA_PRODUCER.
_PRODUCER: Final = 0

#: The properties that each driver needs.
_PROPERTIES: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        # kafka-python cannot read the mock's answers to newer ApiVersions requests.
        "kafka-python": MappingProxyType({"api_version": (2, 3)}),
        # With more, the mock writes a batch whose predecessor was refused, which a broker would
        # refuse; librdkafka then takes the answer for an answer to both.
        "confluent": MappingProxyType({"max.in.flight.requests.per.connection": 1}),
    }
)


class MockClusterError(RuntimeError):
    """The mock cluster is not installed, did not start, or refused a command."""


@functools.cache
def librdkafka() -> Any:
    """Load the library that ``confluent_kafka`` uses, with ctypes.

    Raises:
        MockClusterError: ``confluent-kafka`` is not installed.
    """
    import ctypes

    try:
        import confluent_kafka
        import confluent_kafka.cimpl
    except ImportError as error:
        raise MockClusterError(
            "the mock cluster needs confluent-kafka: "
            f'pip install ".[confluent]" in a checkout of anyio-sendproducer ({error})'
        ) from error
    package = Path(str(confluent_kafka.__file__)).parent
    # If the wheel has no directory for the library, the extension module contains or loads it.
    bundled = sorted((package.parent / "confluent_kafka.libs").glob("librdkafka*"))
    library: Any = ctypes.CDLL(str([*bundled, Path(str(confluent_kafka.cimpl.__file__))][0]))
    pointer, text, number, short = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int16
    size = ctypes.c_size_t
    for name, result, arguments in (
        ("rd_kafka_conf_new", pointer, []),
        ("rd_kafka_conf_set", number, [pointer, text, text, text, size]),
        ("rd_kafka_conf_properties_show", None, [pointer]),
        ("rd_kafka_new", pointer, [number, pointer, text, size]),
        ("rd_kafka_destroy", None, [pointer]),
        ("rd_kafka_mock_cluster_new", pointer, [pointer, number]),
        ("rd_kafka_mock_cluster_destroy", None, [pointer]),
        ("rd_kafka_mock_cluster_bootstraps", text, [pointer]),
        ("rd_kafka_mock_topic_create", number, [pointer, text, number, number]),
        ("rd_kafka_mock_topic_set_error", None, [pointer, text, number]),
        ("rd_kafka_mock_partition_set_leader", number, [pointer, text, number, number]),
        ("rd_kafka_mock_broker_set_rtt", number, [pointer, number, number]),
        ("rd_kafka_mock_broker_set_down", number, [pointer, number]),
        ("rd_kafka_mock_broker_set_up", number, [pointer, number]),
        ("rd_kafka_mock_clear_request_errors", None, [pointer, short]),
        (
            "rd_kafka_mock_push_request_errors_array",
            None,
            [pointer, short, size, ctypes.POINTER(ctypes.c_int)],
        ),
        # Variadic: `size` pairs of an error and a round-trip time follow. The third argument is an
        # int16_t in C. It is declared as an int, because newer releases of libffi accept no type
        # below int in a variadic call, and the C ABIs pass both in the same way.
        ("rd_kafka_mock_broker_push_request_error_rtts", number, [pointer, number, number, size]),
    ):
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


class MockCluster:
    """A running mock cluster. :func:`mock_cluster` creates it. ``str()`` returns the addresses of
    the brokers.

    The brokers have the ids 1, 2, and so on. The cluster creates a topic when a client first
    requests its metadata. Such a topic has four partitions with random leaders. To name an error or
    a request, use its name in Kafka's protocol, such as ``"NOT_LEADER_OR_FOLLOWER"`` or
    ``"Produce"``, or its number. The names of some errors and requests are unknown; use their
    numbers. The cluster also supports transactions, and stores the offsets of consumer groups.

    If the cluster answers a request with an error, it does not write the records of the request.
    Consumers see the records of a transaction before its commit. The cluster does not authenticate
    clients. It drops the oldest records of a partition that has more than 5 MiB or 100,000 batches.
    After the ``with`` block, the methods that change the cluster raise :exc:`MockClusterError`.

    Attributes:
        brokers: the number of brokers.
        bootstrap_servers: the addresses of the brokers, as ``"host:port"``, joined by commas.
    """

    brokers: int
    bootstrap_servers: str
    _library: Any
    _handle: int
    _slow: set[int]
    _down: set[int]
    _failing_topics: set[str]
    _answered: set[int]
    _has_ended: bool

    def __init__(self, *_: NoReturn, **__: NoReturn) -> None:
        raise TypeError("MockCluster is made by `with mock_cluster() as cluster:`")

    @classmethod
    def _create(cls, handle: int, brokers: int) -> MockCluster:
        self = object.__new__(cls)
        self._library = librdkafka()
        self._handle = handle
        self._slow = set()
        self._down = set()
        self._failing_topics = set()
        self._answered = set()
        self._has_ended = False
        self.brokers = brokers
        self.bootstrap_servers = self._library.rd_kafka_mock_cluster_bootstraps(handle).decode()
        return self

    def __str__(self) -> str:
        return self.bootstrap_servers

    def __repr__(self) -> str:
        return f"<MockCluster {self.bootstrap_servers}>"

    def settings(self, driver: str = "kafka-python", **fields: Any) -> ProducerSettings:
        """Return settings for a producer that sends to this cluster.

        Args:
            driver: the producer's driver, ``"kafka-python"`` or ``"confluent"``. The settings
                contain properties that this driver needs only with a mock cluster.
            **fields: further fields of :class:`~anyio_sendproducer.ProducerSettings`.

        Raises:
            SettingsError: a field is wrong.
            ValueError: there is no such driver.
        """
        if driver not in _PROPERTIES:
            names = " or ".join(map(repr, _PROPERTIES))
            raise ValueError(f"driver must be {names}, not {driver!r}")
        properties = {**_PROPERTIES[driver], **fields.pop("properties", {})}
        return ProducerSettings(
            bootstrap_servers=self.bootstrap_servers, properties=properties, **fields
        )

    # --- topics ------------------------------------------------------------------------------

    def create_topic(self, topic: str, leaders: Iterable[int] = (1,)) -> str:
        """Create a topic.

        Args:
            topic: the topic's name.
            leaders: the id of the leader of each partition, in the order of the partitions; at
                least one.

        Returns:
            The topic's name.

        Raises:
            ValueError: ``topic`` is not a valid topic name, or ``leaders`` is empty.
            MockClusterError: there is no such broker, or the topic exists.
        """
        brokers = [*leaders]
        if not brokers:
            raise ValueError("leaders must have the id of a broker for each partition: it is empty")
        for broker in brokers:
            self._check_broker(broker)
        self._call("topic_create", _encoded(topic), len(brokers), 1)
        for partition, broker in enumerate(brokers):
            self.move(topic, partition, broker)
        return topic

    def move(self, topic: str, partition: int, broker: int) -> None:
        """Make another broker the leader of a partition. If there is no such topic, the cluster
        creates it, and this partition is its last.

        Raises:
            ValueError: ``topic`` is not a valid topic name, or ``partition`` is not an int from 0
                to 2,147,483,647.
            MockClusterError: there is no such broker, or the topic has no such partition.
        """
        # The cluster does not notice a negative one. ctypes would take 2**32 as 0.
        check_count("partition", partition, 0, _MAX_INT32)
        self._check_broker(broker)
        self._call("partition_set_leader", _encoded(topic), partition, broker)

    def set_topic_error(self, topic: str, error: str | int) -> None:
        """Answer requests for a topic's metadata, and requests to add the topic to a transaction,
        with an error from now on. The error ``"NONE"`` restores the usual answer. If there is no
        such topic, the cluster creates it.

        Raises:
            ValueError: the name of the error is unknown, or ``topic`` is not a valid topic name.
        """
        code = error_code(error)
        self._run("topic_set_error", _encoded(topic), code)
        (self._failing_topics.add if code else self._failing_topics.discard)(topic)

    # --- answers -----------------------------------------------------------------------------

    def answer_next(
        self, broker: int, error: str | int, *, api: str | int = "Produce", rtt_ms: int = 0
    ) -> None:
        """Answer the next request of a kind to one broker with an error. Each further call applies
        to one later request. A call can't be undone. After a call, :meth:`answer_any` and
        :meth:`close_on` no longer affect requests of this kind to this broker.

        Args:
            broker: the broker's id.
            error: the name or number of the error; with ``"NONE"``, the usual answer.
            api: the kind of request.
            rtt_ms: delay of the answer, in milliseconds.

        Raises:
            ValueError: the name of the error or of the request is unknown, or ``rtt_ms`` is not an
                int from 0 to 2,147,483,647.
            MockClusterError: there is no such broker.
        """
        check_count("rtt_ms", rtt_ms, 0, _MAX_INT32)
        self._call_broker(
            "broker_push_request_error_rtts",
            broker,
            request_key(api),
            1,
            error_code(error),
            rtt_ms,
        )

    def answer_any(self, error: str | int, times: int = 1, *, api: str | int = "Produce") -> None:
        """Answer the next requests of a kind to any broker with an error. Brokers for which
        :meth:`answer_next` was called with this ``api`` are not affected.

        Args:
            error: the name or number of the error.
            times: how many requests.
            api: the kind of request.

        Raises:
            ValueError: the name of the error or of the request is unknown, or ``times`` is not an
                int of 1 or more.
        """
        self._push(error_code(error), times, api)

    def close_on(self, times: int = 1, *, api: str | int = "Produce") -> None:
        """Close the connections of the next requests of a kind, instead of answering them. Brokers
        for which :meth:`answer_next` was called with this ``api`` are not affected.

        Args:
            times: how many requests.
            api: the kind of request.

        Raises:
            ValueError: the name of the request is unknown, or ``times`` is not an int of 1 or more.
        """
        self._push(_TRANSPORT, times, api)

    def _push(self, code: int, times: int, api: str | int) -> None:
        import ctypes

        check_count("times", times)
        key = request_key(api)
        errors = (ctypes.c_int * times)(*[code] * times)
        self._run("push_request_errors_array", key, times, errors)
        self._answered.add(key)

    def forget_answers(self, api: str | int = "Produce") -> None:
        """Cancel the remaining answers of :meth:`answer_any` and :meth:`close_on` to requests of a
        kind.

        Raises:
            ValueError: the name of the request is unknown.
        """
        key = request_key(api)
        self._run("clear_request_errors", key)
        self._answered.discard(key)

    # --- brokers -----------------------------------------------------------------------------

    def set_rtt(self, broker: int, milliseconds: int) -> None:
        """Delay each answer of a broker by a number of milliseconds. 0 ends the delay.

        Raises:
            ValueError: ``milliseconds`` is not an int from 0 to 2,147,483,647.
            MockClusterError: there is no such broker.
        """
        check_count("milliseconds", milliseconds, 0, _MAX_INT32)
        self._call_broker("broker_set_rtt", broker, milliseconds)
        self._slow.add(broker)

    def set_down(self, broker: int) -> None:
        """Close a broker's connections, and refuse new ones.

        Raises:
            MockClusterError: there is no such broker.
        """
        self._call_broker("broker_set_down", broker)
        self._down.add(broker)

    def set_up(self, broker: int) -> None:
        """Let a broker accept connections again.

        Raises:
            MockClusterError: there is no such broker.
        """
        self._call_broker("broker_set_up", broker)
        self._down.discard(broker)

    def behave(self) -> None:
        """Start all brokers, and answer as usual. The remaining answers of :meth:`answer_next`
        stay, and the leaders of partitions do not change."""
        for broker in [*self._down]:
            self.set_up(broker)
        for broker in self._slow:
            self._call_broker("broker_set_rtt", broker, 0)
        self._slow.clear()
        for topic in [*self._failing_topics]:
            self.set_topic_error(topic, "NONE")
        for api in [*self._answered]:
            self.forget_answers(api)

    def _check_broker(self, broker: int) -> None:
        # librdkafka understands -1 as all brokers, or as no leader.
        if type(broker) is not int or not 1 <= broker <= self.brokers:
            raise MockClusterError(
                f"the mock cluster of {self.brokers} broker(s) has no broker {broker!r}"
            )

    def _call_broker(self, name: str, broker: int, *arguments: Any) -> None:
        self._check_broker(broker)
        self._call(name, broker, *arguments)

    def _call(self, name: str, *arguments: Any) -> None:
        error = self._run(name, *arguments)
        if error:
            said = ", ".join(
                one.decode() if isinstance(one, bytes) else repr(one) for one in arguments
            )
            raise MockClusterError(
                f"the mock cluster of {self.brokers} broker(s) refused {name}({said}): "
                f"librdkafka's error {error}"
            )

    def _run(self, name: str, *arguments: Any) -> Any:
        if self._has_ended:  # its memory is freed, so librdkafka would crash the process
            raise MockClusterError("the mock cluster has ended with its `with` block")
        return getattr(self._library, f"rd_kafka_mock_{name}")(self._handle, *arguments)


def _encoded(topic: str) -> bytes:
    """Check and encode the name of a topic. In C, it would end at a NUL."""
    if not isinstance(cast("object", topic), str) or not _TOPIC_NAME.fullmatch(topic):
        raise ValueError(f"topic must have 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-': {topic!r}")
    return topic.encode()


@contextmanager
def mock_cluster(brokers: int = 1) -> Generator[MockCluster, None, None]:
    """Run a mock cluster in this process, for the length of a ``with`` block.

    ::

        with mock_cluster() as cluster:
            cluster.answer_any("NOT_LEADER_OR_FOLLOWER", times=2)
            async with open_send_producer(cluster.settings()) as producer:
                await producer.send(ProducerRecord("orders", b"two tins"))

    The cluster needs no event loop. The cluster's methods and the end of the block can block the
    calling thread for about a second, and :meth:`MockCluster.behave` for longer.

    Args:
        brokers: the number of brokers. If the process reaches its limit of open files,
            librdkafka ends the process.

    Yields:
        The cluster.

    Raises:
        ValueError: ``brokers`` is not an int of 1 or more.
        MockClusterError: ``confluent-kafka`` is not installed, or the cluster did not start.
    """
    check_count("brokers", brokers)
    library = librdkafka()
    import ctypes

    said = ctypes.create_string_buffer(512)
    configuration = library.rd_kafka_conf_new()
    # Otherwise the client logs to stderr that it has no brokers to connect to.
    library.rd_kafka_conf_set(configuration, b"log_level", b"0", said, len(said))
    client = library.rd_kafka_new(_PRODUCER, configuration, said, len(said))
    if not client:  # pragma: no cover  # threads or memory ran out
        raise MockClusterError(f"the mock cluster did not start: {said.value.decode()}")
    try:
        handle = library.rd_kafka_mock_cluster_new(client, brokers)
        if not handle:
            raise MockClusterError("the mock cluster did not start: librdkafka gives no reason")
        cluster = MockCluster._create(handle, brokers)  # pyright: ignore[reportPrivateUsage]
        try:
            yield cluster
        finally:
            cluster._has_ended = True  # pyright: ignore[reportPrivateUsage]
            library.rd_kafka_mock_cluster_destroy(handle)
    finally:
        library.rd_kafka_destroy(client)
