"""The processes of a cluster, and their settings.

Only ``kafka_cluster.py`` uses this module, except for :class:`Listener`.
"""

from __future__ import annotations

import base64
import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.kafka_home import KafkaHome
from tests.support.ports import HOST, reserve_port

__all__ = [
    "INTERNAL",
    "KafkaClusterError",
    "Listener",
    "Node",
    "guard",
    "make_id",
    "make_nodes",
    "text",
]

INTERNAL = "INTERNAL"
_CONTROLLER = "CONTROLLER"
#: The id of a controller that is a process of its own. The brokers are 1, 2, ...
_CONTROLLER_ID = 100

#: The range of the ports, below the ports that systems use for outgoing connections.
_PORTS = range(15_000, 32_000)

#: The number of bytes of a node's output in an error message.
_TAIL = 6_000

_JAVA_OPTIONS = (
    "-Xmx256m",
    "-XX:+UseSerialGC",
    # Nodes live for seconds, so the second compiler would not pay off.
    "-XX:TieredStopAtLevel=1",
    "-Djava.awt.headless=true",
)

_LOG4J = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %-5p %c{1}: %m%n
rootLogger.level = INFO
rootLogger.appenderRef.out.ref = out
# It prints each of some five hundred settings.
logger.settings.name = org.apache.kafka.common.config.AbstractConfig
logger.settings.level = WARN
"""

#: The program of a process that ends the nodes and deletes their files, even if the process that
#: started them was killed and ran no cleanup. It reads the nodes' process ids from its standard
#: input, which ends with that process. Linux's PR_SET_PDEATHSIG depends on the thread that started
#: the child, which may be short-lived here.
_GUARD = """
import os, shutil, signal, sys, time
nodes = set()
for line in sys.stdin:
    (nodes.add if line[0] == "+" else nodes.discard)(int(line[1:]))
for node in nodes:
    try:
        os.kill(node, signal.SIGKILL)
    except ProcessLookupError:
        pass
for _ in range(100):
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    if not os.path.exists(sys.argv[1]):
        break
    time.sleep(0.05)
"""


class KafkaClusterError(RuntimeError):
    """A node did not start, ended by itself, or did not carry out a request.

    If one node caused the error, the message has the end of its log.
    """


class Listener(NamedTuple):
    """An additional listener of each broker."""

    name: str
    """The name in upper case. ``cluster.bootstrap(name)`` returns the addresses."""
    protocol: str = "PLAINTEXT"
    """PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL."""
    properties: Mapping[str, object] = {}
    """The broker's properties for it, without their prefix ``listener.name.NAME.``"""
    advertised: Callable[[int, int], str] | None = None
    """Returns the advertised address ``"host:port"`` for a broker and its port, for example of a
    proxy. None for the broker's own address."""


class Node:
    """A broker, a controller, or both in one process. After a restart it is the same node.

    Its directory holds its settings, its log and its data.
    """

    def __init__(
        self,
        number: int,
        roles: str,
        *,
        ports: Mapping[str, int],
        directory: Path,
        java: Sequence[str],
        tell_guard: Callable[[str], None],
    ) -> None:
        self.number = number
        self.is_broker = "broker" in roles
        self.roles = roles
        self.ports = ports
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None
        self._java = java
        self._tell_guard = tell_guard
        self._log = directory / "output.log"
        self._settings = directory / "server.properties"
        self._configured: dict[str, object] = {}
        self._paused = False
        self._end_asked = False

    def __str__(self) -> str:
        return f"Kafka node {self.number} ({self.roles})"

    @property
    def running(self) -> bool:
        """Whether its process is alive. A paused one is alive."""
        return self.process is not None and self.process.poll() is None

    @property
    def answers(self) -> bool:
        """Whether it runs and is not paused."""
        return self.running and not self._paused

    @property
    def ended_by_itself(self) -> bool:
        return self.process is not None and not self.running and not self._end_asked

    def configure(self, settings: Mapping[str, object]) -> None:
        """Write its settings."""
        self._configured = dict(settings)
        lines = [f"{key}={_in_file(value)}\n" for key, value in settings.items()]
        self._settings.write_text("".join(lines))

    def advertise(self, listener: str, address: str) -> None:
        """Advertise another address of a listener from the next start on."""
        told = str(self._configured["advertised.listeners"]).split(",")
        told = [one for one in told if not one.startswith(f"{listener}://")]
        told.append(f"{listener}://{address}")
        self.configure({**self._configured, "advertised.listeners": ",".join(told)})

    @property
    def data(self) -> Path:
        """The directory for its data."""
        return self.directory / "data"

    def format(self, cluster_id: str, timeout: float) -> None:
        """Have Kafka format its directory, which takes as long as a start of Java."""
        arguments = ("format", "--cluster-id", cluster_id, "--config", str(self._settings))
        self._run("kafka.tools.StorageTool", *arguments)
        self._end_asked = True
        if self.wait(timeout) != 0:
            raise self.error("could not be formatted")

    def copy_formatted(self, cluster_id: str, formatted: Path) -> None:
        """Prepare its directory from a directory that Kafka has formatted for another node.

        Only the ids differ. A controller's directory also has the cluster's initial features.
        """
        if "controller" in self.roles:
            shutil.copytree(formatted, self.data)
        else:
            self.data.mkdir()
        ids = {"cluster.id": cluster_id, "node.id": self.number, "directory.id": make_id()}
        lines = [f"{key}={value}\n" for key, value in {"version": 1, **ids}.items()]
        (self.data / "meta.properties").write_text("".join(lines))

    def start(self) -> None:
        """Start it, and do not wait until it answers."""
        if self.running:
            raise KafkaClusterError(f"{self} runs already")
        self._run("kafka.Kafka", str(self._settings))
        self._end_asked = False

    def wait(self, timeout: float) -> int:
        """Wait until its process has ended, and return its return code."""
        assert self.process is not None
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise self.error(f"did not end in {timeout} s") from None
        self._tell_guard(f"-{self.process.pid}")
        return code

    def end(self, number: signal.Signals, timeout: float) -> None:
        """End it with a signal, and wait until it has ended."""
        self._end_asked = True
        self._signal(number)
        self.wait(timeout)

    def fill_disk(self, timeout: float) -> None:
        """Limit its files to 64 KiB, as if the disk were full, and wait until it has ended because
        of that. Kafka halts if it can't write to its last log directory."""
        assert self.process is not None
        self._end_asked = True
        resource.prlimit(
            self.process.pid, resource.RLIMIT_FSIZE, (64 * 1024, resource.RLIM_INFINITY)
        )
        self.wait(timeout)

    def pause(self) -> None:
        """Have the system freeze it. frozen() tells when it is frozen."""
        self._signal(signal.SIGSTOP)
        self._paused = True

    def frozen(self) -> bool:
        """Whether each of its threads has stopped. A thread may continue for a moment on another
        core."""
        assert self.process is not None
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*")
        # The state is the first word after the name in brackets.
        states = [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks]
        return set(states) == {"T"}

    def resume(self) -> None:
        """Resume it."""
        self._signal(signal.SIGCONT)
        self._paused = False

    def close(self) -> None:
        """End it if it runs, at once."""
        self._end_asked = True
        if self.process is not None and self.running:
            self.process.kill()
            self.wait(60)

    def error(self, what: str) -> KafkaClusterError:
        return KafkaClusterError(f"{self} {what}; the end of its log:\n{self.log()}")

    def log(self) -> str:
        """The end of its output."""
        with self._log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            return file.read().decode(errors="replace").strip()

    def _run(self, main: str, *arguments: str) -> None:
        with self._log.open("ab") as log:
            # In a session of its own, so that Ctrl-C ends the test first and the node afterwards.
            self.process = subprocess.Popen(
                [*self._java, main, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                start_new_session=True,
            )
        self._tell_guard(f"+{self.process.pid}")
        self._paused = False

    def _signal(self, number: signal.Signals) -> None:
        if self.process is None or not self.running:
            raise KafkaClusterError(f"{self} does not run")
        self.process.send_signal(number)


@contextmanager
def guard(directory: Path) -> Generator[Callable[[str], None], None, None]:
    command = [sys.executable, "-I", "-S", "-c", _GUARD, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
        pipe = process.stdin
        assert pipe is not None

        def tell(line: str) -> None:
            pipe.write(line.encode() + b"\n")
            pipe.flush()

        yield tell


def make_id() -> str:
    """Make an id of a cluster or a directory in Kafka's format."""
    # It must not start with a dash.
    return base64.urlsafe_b64encode(b"A" + uuid.uuid4().bytes[1:]).decode().rstrip("=")


def make_nodes(
    home: KafkaHome,
    directory: Path,
    tell_guard: Callable[[str], None],
    *,
    resources: contextlib.ExitStack,
    brokers: int,
    listeners: Sequence[Listener],
    properties: Mapping[str, object],
    java_options: Sequence[str],
) -> list[Node]:
    """Make the nodes, each with a directory that has its settings. None is started. Their ports are
    reserved until `resources` is closed."""
    names = [INTERNAL, "PLAINTEXT", *(listener.name for listener in listeners)]
    if len(set(names)) != len(names):
        raise ValueError(f"two listeners have one name: {names}")
    logging = directory / "log4j2.properties"
    logging.write_text(_LOG4J)
    java = [home.java, *_JAVA_OPTIONS, f"-Dlog4j2.configurationFile={logging}", *java_options]
    roles = {1: "broker,controller"}
    if brokers > 1:
        roles = {_CONTROLLER_ID: "controller", **dict.fromkeys(range(1, brokers + 1), "broker")}
    ports = _reserved_ports(resources)
    nodes: list[Node] = []
    for number, role in roles.items():
        own = names if "broker" in role else []
        own = [*own, _CONTROLLER] if "controller" in role else own
        place = directory / f"node-{number}"
        place.mkdir()
        nodes.append(
            Node(
                number,
                role,
                ports={name: next(ports) for name in own},
                directory=place,
                java=[*java, "-cp", home.class_path],
                tell_guard=tell_guard,
            )
        )
    controller = nodes[0]
    voters = f"{controller.number}@{HOST}:{controller.ports[_CONTROLLER]}"
    for node in nodes:
        settings = _properties(node, brokers, listeners)
        node.configure({**settings, "controller.quorum.voters": voters, **properties})
    return nodes


def _properties(node: Node, brokers: int, listeners: Sequence[Listener]) -> dict[str, object]:
    protocols = {INTERNAL: "PLAINTEXT", "PLAINTEXT": "PLAINTEXT", _CONTROLLER: "PLAINTEXT"}
    protocols |= {listener.name: listener.protocol for listener in listeners}
    settings: dict[str, object] = {
        "node.id": node.number,
        "process.roles": node.roles,
        "log.dirs": node.data,
        "listeners": ",".join(f"{name}://{HOST}:{port}" for name, port in node.ports.items()),
        "listener.security.protocol.map": ",".join(f"{k}:{v}" for k, v in protocols.items()),
        "controller.listener.names": _CONTROLLER,
        # A topic that was not created is an error.
        "auto.create.topics.enable": False,
        "default.replication.factor": brokers,
        # Kafka's internal topics have as few partitions as possible.
        "offsets.topic.num.partitions": 1,
        "offsets.topic.replication.factor": min(3, brokers),
        "transaction.state.log.num.partitions": 1,
        "transaction.state.log.replication.factor": min(3, brokers),
        "transaction.state.log.min.isr": min(2, brokers),
        # How often a coordinator checks for expired transactions; every ten seconds by default.
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": 500,
        "share.coordinator.state.topic.num.partitions": 1,
        "share.coordinator.state.topic.replication.factor": min(3, brokers),
        "share.coordinator.state.topic.min.isr": min(2, brokers),
        "group.initial.rebalance.delay.ms": 0,
        # Leaders stay on the brokers that a test chose.
        "auto.leader.rebalance.enable": False,
        # How long a killed broker counts as alive. It can't restart earlier. On a machine that
        # stalls for three seconds, a running broker must not count as dead.
        "broker.session.timeout.ms": 4_500,
        "broker.heartbeat.interval.ms": 300,
        # Some tests write records of 2009. A broker looks every five minutes for records that are
        # older than seven days, and deletes them.
        "log.retention.ms": -1,
        # The default, 128 MiB, is half of the heap.
        "log.cleaner.dedupe.buffer.size": 4 * 1024 * 1024,
        # Fewer threads, a quicker start.
        "num.network.threads": 2,
        "num.io.threads": 4,
    }
    if node.is_broker:
        settings["inter.broker.listener.name"] = INTERNAL
        advertised = {name: f"{HOST}:{port}" for name, port in node.ports.items()}
        advertised.pop(_CONTROLLER, None)
        for listener in listeners:
            if listener.advertised is not None:
                advertised[listener.name] = listener.advertised(
                    node.number, node.ports[listener.name]
                )
        settings["advertised.listeners"] = ",".join(f"{k}://{v}" for k, v in advertised.items())
        for listener in listeners:
            prefix = f"listener.name.{listener.name.lower()}."
            settings |= {prefix + key: value for key, value in listener.properties.items()}
    return settings


def _reserved_ports(resources: contextlib.ExitStack) -> Iterator[int]:
    """Reserve ports until `resources` is closed."""
    for port in random.sample(_PORTS, len(_PORTS)):
        with contextlib.suppress(OSError):
            resources.enter_context(reserve_port(port))
            yield port
    raise KafkaClusterError(f"no port in {_PORTS} is free")


def text(value: object) -> str:
    """Format a setting for Kafka."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _in_file(value: object) -> str:
    """Escape a setting for a properties file: its backslashes and line ends."""
    return text(value).replace("\\", "\\\\").replace("\n", "\\n")
