"""Constants and helpers for librdkafka and its mock cluster that the test kit does not have."""

from __future__ import annotations

import ctypes
from pathlib import Path

from anyio_sendproducer.testing import MockCluster
from anyio_sendproducer.testing._kafka_names import request_key
from anyio_sendproducer.testing._mock_cluster import librdkafka

__all__ = [
    "FOR_MOCK",
    "INIT_PRODUCER_ID",
    "METADATA",
    "count_requests",
    "properties_table",
    "track_requests",
]

#: The API keys of Kafka's requests.
METADATA = 3
INIT_PRODUCER_ID = 22

#: The mock cluster's answers to newer requests for the API's versions can't be read.
FOR_MOCK = {"api_version": (2, 3)}


def properties_table(path: Path) -> str:
    """The tables of CONFIGURATION.md, in which librdkafka describes its settings. It writes them to
    a file."""
    system = ctypes.CDLL(None)
    system.fopen.restype = ctypes.c_void_p
    file = ctypes.c_void_p(system.fopen(str(path).encode(), b"w"))
    librdkafka().rd_kafka_conf_properties_show(file)
    system.fclose(file)
    return path.read_text()


def track_requests(cluster: MockCluster) -> None:
    """Have a mock cluster note each request from now on, for :func:`count_requests`."""
    librdkafka().rd_kafka_mock_start_request_tracking(ctypes.c_void_p(cluster._handle))


def count_requests(cluster: MockCluster, broker: int, api: str) -> int:
    """Count the requests of a kind that a broker has received, with any answer or none."""
    library = librdkafka()
    library.rd_kafka_mock_get_requests.restype = ctypes.POINTER(ctypes.c_void_p)
    count = ctypes.c_size_t()
    found = library.rd_kafka_mock_get_requests(
        ctypes.c_void_p(cluster._handle), ctypes.byref(count)
    )
    requests = [ctypes.c_void_p(found[number]) for number in range(count.value)]
    wanted: int = sum(
        library.rd_kafka_mock_request_id(one) == broker
        and library.rd_kafka_mock_request_api_key(one) == request_key(api)
        for one in requests
    )
    for one in requests:
        library.rd_kafka_mock_request_destroy(one)
    return wanted
