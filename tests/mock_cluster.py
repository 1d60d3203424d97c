"""librdkafka's mock cluster, in this process: brokers that refuse and dawdle when told to.

It is a C library inside the ``confluent_kafka`` wheel, reached through ctypes; its threads are not
Python's. It answers newer ApiVersions requests in a way that kafka-python can't read, so clients
are given ``api_version=(2, 3)``.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import confluent_kafka
import confluent_kafka.cimpl

__all__ = [
    "FOR_MOCK",
    "INIT_PRODUCER_ID",
    "METADATA",
    "PRODUCE",
    "MockCluster",
    "mock_cluster",
    "properties_table",
]

#: The numbers of Kafka's requests.
PRODUCE = 0
METADATA = 3
INIT_PRODUCER_ID = 22

#: rd_kafka_resp_err_t's RD_KAFKA_RESP_ERR__TRANSPORT.
_TRANSPORT = -195

#: rd_kafka_type_t's RD_KAFKA_PRODUCER.
_PRODUCER = 0


#: The mock cluster's answers to newer requests for the API's versions can't be read.
FOR_MOCK = {"api_version": (2, 3)}


@functools.cache
def _library() -> Any:
    package = Path(str(confluent_kafka.__file__)).parent
    bundled = sorted((package.parent / "confluent_kafka.libs").glob("librdkafka*"))
    library: Any = ctypes.CDLL(str(bundled[0] if bundled else confluent_kafka.cimpl.__file__))
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
        # What follows are pairs of an error and a round-trip time, as many as `size` says.
        ("rd_kafka_mock_broker_push_request_error_rtts", number, [pointer, number, short, size]),
    ):
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


def properties_table(path: Path) -> str:
    """What librdkafka says of its own settings, which it writes to a file: the tables of its
    CONFIGURATION.md."""
    system = ctypes.CDLL(None)
    system.fopen.restype = ctypes.c_void_p
    file = ctypes.c_void_p(system.fopen(str(path).encode(), b"w"))
    _library().rd_kafka_conf_properties_show(file)
    system.fclose(file)
    return path.read_text()


class MockCluster:
    """The cluster, as the one who tells it what to do sees it. Its brokers are 1, 2, ..."""

    def __init__(self, handle: int) -> None:
        self._library = _library()
        self._handle = handle
        self._slow: set[int] = set()
        self.bootstrap_servers: str = self._library.rd_kafka_mock_cluster_bootstraps(
            handle
        ).decode()

    def create_topic(self, topic: str, leaders: list[int]) -> str:
        """A topic with one partition for each of these brokers, which leads it."""
        self._call("topic_create", topic.encode(), len(leaders), 1)
        for partition, broker in enumerate(leaders):
            self._call("partition_set_leader", topic.encode(), partition, broker)
        return topic

    def set_topic_error(self, topic: str, error: int) -> None:
        """Answer requests for this topic's metadata with an error; 0: no longer."""
        self._library.rd_kafka_mock_topic_set_error(self._handle, topic.encode(), error)

    def answer_next(self, broker: int, error: int, *, api: int = PRODUCE, rtt_ms: int = 0) -> None:
        """Answer the next request of this kind to this broker with an error."""
        self._call("broker_push_request_error_rtts", broker, api, 1, error, rtt_ms)

    def set_rtt(self, broker: int, milliseconds: int) -> None:
        """How long each answer of this broker takes from now on."""
        self._slow.add(broker)
        self._call("broker_set_rtt", broker, milliseconds)

    def answer_any(self, error: int, times: int = 1, *, api: int = PRODUCE) -> None:
        """Answer so many requests of this kind, to whichever broker, with an error."""
        errors = (ctypes.c_int * times)(*[error] * times)
        self._library.rd_kafka_mock_push_request_errors_array(self._handle, api, times, errors)

    def close_on(self, times: int = 1, *, api: int = PRODUCE) -> None:
        """Close the connection on which a request of this kind comes, so many times."""
        self.answer_any(_TRANSPORT, times, api=api)

    def forget_answers(self, api: int = PRODUCE) -> None:
        """Forget what is left of `answer_any` and `close_on`."""
        self._library.rd_kafka_mock_clear_request_errors(self._handle, api)

    def move(self, topic: str, partition: int, broker: int) -> None:
        """Have another broker lead a partition."""
        self._call("partition_set_leader", topic.encode(), partition, broker)

    def set_down(self, broker: int) -> None:
        """Close a broker's connections, and refuse others."""
        self._call("broker_set_down", broker)

    def set_up(self, broker: int) -> None:
        """Let a broker that is down listen again."""
        self._call("broker_set_up", broker)

    def behave(self) -> None:
        """Forget what it was told to do to requests."""
        for broker in self._slow:
            self._call("broker_set_rtt", broker, 0)
        self._slow.clear()

    def _call(self, name: str, *arguments: Any) -> None:
        error = getattr(self._library, f"rd_kafka_mock_{name}")(self._handle, *arguments)
        if error:
            raise RuntimeError(f"rd_kafka_mock_{name}{arguments} answered {error}")


@contextmanager
def mock_cluster(brokers: int) -> Generator[MockCluster, None, None]:
    """Run a mock cluster of so many brokers."""
    library = _library()
    said = ctypes.create_string_buffer(512)
    configuration = library.rd_kafka_conf_new()
    # It would complain on stderr that it has no brokers to connect to.
    library.rd_kafka_conf_set(configuration, b"log_level", b"0", said, len(said))
    client = library.rd_kafka_new(_PRODUCER, configuration, said, len(said))
    if not client:
        raise RuntimeError(said.value.decode())
    handle = library.rd_kafka_mock_cluster_new(client, brokers)
    try:
        yield MockCluster(handle)
    finally:
        library.rd_kafka_mock_cluster_destroy(handle)
        library.rd_kafka_destroy(client)
