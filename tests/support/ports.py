"""A port for a server that stops and starts again."""

from __future__ import annotations

import secrets
import socket

__all__ = ["lasting_port"]


def lasting_port() -> int:
    """A free port that stays free while nobody listens on it.

    It lies below the range from which systems choose ports by themselves: no connection, and no
    server that asks for any port, gets it meanwhile.
    """
    while True:
        port = 20_000 + secrets.randbelow(10_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
