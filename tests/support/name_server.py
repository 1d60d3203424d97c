"""Name servers on 127.0.0.1: a real one, dnsmasq, and one with scripted answers.

The real one comes with Debian's package ``dnsmasq-base``. Where it is missing, the tests that need
it are skipped; with ``CI`` set they fail.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import pytest

from tests.support.ports import lasting_port

__all__ = ["LyingServer", "NameServer", "lying_server", "require_name_server"]

#: Seconds for a server to start or to end.
_PATIENCE = 60.0


def require_name_server() -> str:
    """The path of dnsmasq."""
    found = shutil.which("dnsmasq", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if found is None:
        missing = "dnsmasq is missing: apt-get install dnsmasq-base"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return found


def _both() -> tuple[socket.socket, socket.socket]:
    """Open sockets for UDP and TCP at the same port."""
    while True:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        try:
            return udp, socket.create_server(udp.getsockname())
        except OSError:  # the port is in use
            udp.close()


class NameServer:
    """A dnsmasq on a port of its own, which answers with the records of the last :meth:`answer`.

    Args:
        directory: the directory for its files.
    """

    def __init__(self, directory: Path) -> None:
        self._program = require_name_server()
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.port: int = lasting_port()

    @property
    def address(self) -> str:
        """Its address, with the port."""
        return f"127.0.0.1:{self.port}"

    def answer(
        self, *, srv: Iterable[tuple[str, str, int]] = (), hosts: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Answer with only these records from now on.

        Args:
            srv: name, target and port of SRV records.
            hosts: name and address of A and AAAA records.
        """
        self.stop()
        lines = [
            "keep-in-foreground",
            "no-resolv",
            "no-hosts",
            "bind-interfaces",
            "listen-address=127.0.0.1",
            f"port={self.port}",
            "local=/test/",
            "user=",
            "pid-file=",
            *(f"srv-host={name},{target},{port}" for name, target, port in srv),
            *(f"host-record={name},{address}" for name, address in hosts),
        ]
        configuration = self._directory / f"dnsmasq-{self.port}.conf"
        configuration.write_text("\n".join(lines), encoding="ascii")
        command = [self._program, f"--conf-file={configuration}"]
        give_up = time.monotonic() + _PATIENCE
        query = dns.message.make_query("up.test", "A")
        while True:
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(command)
            try:
                dns.query.udp(query, "127.0.0.1", timeout=0.2, port=self.port)
            except (OSError, dns.exception.DNSException):
                assert time.monotonic() < give_up, "dnsmasq does not answer"
                time.sleep(0.01)
            else:
                return

    def stop(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait(_PATIENCE)


Answer = Callable[[dns.message.Message], "dns.message.Message | bytes | None"]


class LyingServer:
    """Answers each question with the result of a function: any bytes, or nothing."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[str] = []
        """The questions, each with its transport: ``"udp SRV _a._b.c."``."""
        self._udp, self._tcp = _both()
        self.port: int = self._udp.getsockname()[1]
        self._threads = [
            threading.Thread(target=serve, daemon=True) for serve in (self._by_udp, self._by_tcp)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def address(self) -> str:
        """Its address, with the port."""
        return f"127.0.0.1:{self.port}"

    def _said(self, how: str, question: bytes) -> bytes | None:
        message = dns.message.from_wire(question)
        asked = message.question[0]
        self.asked.append(f"{how} {asked.rdtype.name} {asked.name}")
        answer = self.answer(message)
        if not isinstance(answer, dns.message.Message):
            return answer
        return answer.to_wire()

    def _by_udp(self) -> None:
        while True:
            question, asker = self._udp.recvfrom(65_535)
            if not question:
                return
            answer = self._said("udp", question)
            if answer is not None:
                self._udp.sendto(answer, asker)

    def _by_tcp(self) -> None:
        while True:
            connection, _ = self._tcp.accept()
            with connection, connection.makefile("rb") as incoming:
                head = incoming.read(2)
                if len(head) < 2:
                    return
                answer = self._said("tcp", incoming.read(struct.unpack(">H", head)[0]))
                if answer is not None:
                    connection.sendall(struct.pack(">H", len(answer)) + answer)

    def close(self) -> None:
        """End it."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.sendto(b"", ("127.0.0.1", self.port))
        socket.create_connection(("127.0.0.1", self.port)).close()
        for thread in self._threads:
            thread.join(_PATIENCE)
        self._udp.close()
        self._tcp.close()


@contextmanager
def lying_server(answer: Answer) -> Generator[LyingServer, None, None]:
    """Run a :class:`LyingServer` during a block."""
    server = LyingServer(answer)
    try:
        yield server
    finally:
        server.close()
