"""librdkafka's mock cluster in its own process, so that it uses no processor time of the client.

As a script, this module prints its bootstrap addresses and serves until its standard input closes.
kafka-python cannot parse the mock cluster's answers to newer ApiVersions requests, so kafka-python
gets ``api_version=(2, 3)``.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

TOPIC = "bench"


def _library() -> ctypes.CDLL:
    import confluent_kafka
    import confluent_kafka.cimpl  # loads librdkafka into this process

    packages = Path(confluent_kafka.__file__).parent.parent
    bundled = [*packages.glob("confluent_kafka.libs/librdkafka*")]
    return ctypes.CDLL(str(bundled[0]) if bundled else confluent_kafka.cimpl.__file__)


def serve(partitions: int, rtt_ms: int) -> None:
    """Serve one broker with one topic until standard input closes."""
    lib = _library()
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    lib.rd_kafka_conf_new.restype = pointer
    lib.rd_kafka_new.restype = pointer
    lib.rd_kafka_new.argtypes = [ctypes.c_int, pointer, text, ctypes.c_size_t]
    lib.rd_kafka_mock_cluster_new.restype = pointer
    lib.rd_kafka_mock_cluster_new.argtypes = [pointer, ctypes.c_int]
    lib.rd_kafka_mock_cluster_bootstraps.restype = text
    lib.rd_kafka_mock_cluster_bootstraps.argtypes = [pointer]
    lib.rd_kafka_mock_topic_create.argtypes = [pointer, text, ctypes.c_int, ctypes.c_int]
    handle = lib.rd_kafka_new(0, lib.rd_kafka_conf_new(), ctypes.create_string_buffer(512), 512)
    cluster = lib.rd_kafka_mock_cluster_new(handle, 1)
    lib.rd_kafka_mock_topic_create(cluster, TOPIC.encode(), partitions, 1)
    if rtt_ms:
        lib.rd_kafka_mock_broker_set_rtt.argtypes = [pointer, ctypes.c_int32, ctypes.c_int]
        lib.rd_kafka_mock_broker_set_rtt(cluster, 1, rtt_ms)
    print(lib.rd_kafka_mock_cluster_bootstraps(cluster).decode(), flush=True)
    sys.stdin.read()


@contextmanager
def mock_cluster(partitions: int, rtt_ms: int = 0) -> Iterator[str]:
    """Run the mock cluster in another process, and yield its bootstrap addresses."""
    process = subprocess.Popen(  # noqa: S603  # this very file
        [sys.executable, str(Path(__file__).resolve()), str(partitions), str(rtt_ms)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:  # closes the standard input, which ends the process
        yield cast("IO[str]", process.stdout).readline().strip()


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
