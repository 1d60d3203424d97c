"""Reserves ports for a test, also while the server on them is down."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Generator
from typing import Final

__all__ = ["HOST", "lasting_port", "reserve_port", "reserved_ports"]

#: All servers of the tests listen here.
HOST: Final = "127.0.0.1"


def reserve_port(port: int = 0) -> socket.socket:
    """Reserve a port for as long as the returned socket is open; 0: any free one.

    The socket is bound and does not listen, so that connections are refused. A server that sets
    SO_REUSEADDR, as most do on Unix, can listen on the port, any number of times. The system does
    not choose the port for any other process, and another reservation of it fails.

    Raises:
        OSError: the port is in use.
    """
    reserved = socket.socket()
    try:
        # Bound without the option, so that this fails if the port is in use. With the option set
        # later, the server can share the port.
        reserved.bind((HOST, port))
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except BaseException:
        reserved.close()
        raise
    return reserved


@contextlib.contextmanager
def reserved_ports(count: int) -> Generator[list[int]]:
    """Reserve ports on which no server listens."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(reserve_port()) for _ in range(count)]
        yield [one.getsockname()[1] for one in sockets]


def lasting_port() -> int:
    """Find a free port that stays free while no server listens on it.

    It is below the range from which systems choose ports. So neither a connection nor a server that
    asks for any port gets it.
    """
    while True:
        port = 20_000 + secrets.randbelow(10_000)
        try:
            reserve_port(port).close()
        except OSError:
            continue
        return port
