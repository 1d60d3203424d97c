"""Constants and helpers for librdkafka and its mock cluster that the test kit does not have."""

from __future__ import annotations

import ctypes
from pathlib import Path

from anyio_sendproducer.testing._mock_cluster import librdkafka

__all__ = ["FOR_MOCK", "INIT_PRODUCER_ID", "METADATA", "properties_table"]

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
