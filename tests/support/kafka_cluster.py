"""Runs Apache Kafka in separate processes: one or several brokers, in KRaft mode, on 127.0.0.1.

One broker is its own controller. Several brokers have a controller in one more process, so a test
can kill and restart each broker, or all at once. Besides the listeners of a test, each broker has
two listeners without any security. ``PLAINTEXT`` is for clients. The other is for this module and
between the brokers, and no test uses it.

All functions block: a test calls them in a worker thread, and a fixture directly.
"""

from __future__ import annotations

import contextlib
import importlib
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import kafka_wire
from tests.support.kafka_home import KafkaHome, kafka_home, one_at_a_time
from tests.support.kafka_nodes import (
    INTERNAL,
    KafkaClusterError,
    Listener,
    Node,
    guard,
    make_id,
    make_nodes,
    text,
)
from tests.support.ports import HOST

__all__ = ["KafkaCluster", "KafkaClusterError", "Listener", "kafka_cluster"]

#: It has no types.
admin: Any = importlib.import_module("confluent_kafka.admin")

#: Seconds until a change of the cluster, such as a new leader, is visible. It takes seconds, and
#: ten times as long on a busy machine.
PATIENCE = 120.0

#: Seconds between two checks.
_POLL_INTERVAL = 0.02


class KafkaCluster:
    """A running cluster, made by :func:`kafka_cluster`. Its brokers are 1, 2, ..."""

    def __init__(self, version: str, nodes: Sequence[Node]) -> None:
        self._nodes = {node.number: node for node in nodes}
        self.version = version
        self.brokers = tuple(node.number for node in nodes if node.is_broker)

    # --- addresses ------------------------------------------------------------------------------

    @property
    def bootstrap_servers(self) -> str:
        """The addresses for clients without security."""
        return self.bootstrap()

    def bootstrap(self, listener: str = "PLAINTEXT") -> str:
        """The addresses of a listener of all brokers, running or not."""
        return ",".join(self.address(broker, listener) for broker in self.brokers)

    def address(self, broker: int, listener: str = "PLAINTEXT") -> str:
        """The address on which one broker listens."""
        return f"{HOST}:{self._nodes[broker].ports[listener]}"

    def pid(self, broker: int) -> int:
        """The id of a broker's process, or of its last one."""
        process = self._nodes[broker].process
        assert process is not None
        return process.pid

    def pids(self) -> list[int]:
        """The ids of all running processes, including the controller's."""
        nodes = self._nodes.values()
        return [node.process.pid for node in nodes if node.process is not None and node.running]

    def running(self, broker: int) -> bool:
        """Whether a broker's process is alive. A paused one is alive."""
        return self._nodes[broker].running

    def log(self, broker: int) -> str:
        """The end of a broker's log."""
        return self._nodes[broker].log()

    # --- brokers that come and go ---------------------------------------------------------------

    def kill(self, broker: int) -> None:
        """End a broker at once, like a crash. Data that it had not flushed stays in the system's
        cache, so it loses no written data."""
        self._nodes[broker].end(signal.SIGKILL, PATIENCE)

    def move(self, broker: int, listener: str, address: str) -> None:
        """Restart a broker that advertises another address of a listener."""
        self.kill(broker)
        self._nodes[broker].advertise(listener, address)
        self.start(broker)

    def stop(self, broker: int) -> None:
        """Have a broker shut down in order: its partitions get other leaders first."""
        self._nodes[broker].end(signal.SIGTERM, PATIENCE)

    def fill_disk(self, broker: int) -> None:
        """Let a broker's disk be full, and wait until the broker has ended because of that. A
        client must write to it. After a restart there is room."""
        self._nodes[broker].fill_disk(PATIENCE)

    def pause(self, broker: int) -> None:
        """Freeze a broker: its connections stay open and nothing answers. After some seconds the
        controller takes it for dead."""
        node = self._nodes[broker]
        node.pause()
        self._wait(node.frozen, f"{node} to freeze")

    def resume(self, broker: int) -> None:
        """Let a paused broker go on."""
        self._nodes[broker].resume()

    def start(self, broker: int, *, wait: bool = True) -> None:
        """Start a broker again, with its ports and data, and wait until it is ready."""
        self._nodes[broker].start()
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self, timeout: float = PATIENCE) -> None:
        """Wait until each running broker answers, and knows all other running brokers."""
        brokers = [node for node in self._nodes.values() if node.is_broker and node.answers]
        expected = {node.number for node in brokers}

        def ready() -> bool:
            return all(self._knows(node, expected) for node in brokers)

        self._wait(ready, f"brokers {sorted(expected)} to be ready", timeout)

    def heal(self) -> None:
        """Resume paused brokers, start ended ones, and wait until all are ready."""
        for node in self._nodes.values():
            if not node.running:
                node.start()
            elif not node.answers:
                node.resume()
        self.wait_until_ready()

    # --- topics ---------------------------------------------------------------------------------

    def create_topic(
        self,
        name: str | None = None,
        partitions: int = 1,
        replication_factor: int | None = None,
        configs: Mapping[str, object] | None = None,
        *,
        replicas: Sequence[Sequence[int]] | None = None,
    ) -> str:
        """Create a topic, wait until every broker knows its leaders, and return its name.

        Args:
            name: None for a unique name.
            partitions: the number of partitions.
            replication_factor: the number of brokers with a copy; None for all.
            configs: such as ``{"min.insync.replicas": 2}``.
            replicas: instead of the two numbers, the brokers of each partition; the first leads.
        """
        name = name or f"topic-{uuid.uuid4().hex}"
        if replicas is None:
            factor = replication_factor or len(self.brokers)
            placed: dict[str, Any] = {"num_partitions": partitions, "replication_factor": factor}
        else:
            partitions = len(replicas)
            placed = {
                "num_partitions": partitions,
                "replica_assignment": [list(r) for r in replicas],
            }
        topic = admin.NewTopic(
            name, config={key: text(value) for key, value in (configs or {}).items()}, **placed
        )
        self._ask("create_topics", [topic])

        def known() -> bool:
            return all(
                len(found.partitions) == partitions
                and all(one.error == 0 for one in found.partitions.values())
                for found in self._views(name)
            )

        self._wait(known, f"topic {name!r} to have leaders")
        return name

    def delete_topic(self, name: str) -> None:
        """Delete a topic, and wait until no broker knows it."""
        self._ask("delete_topics", [name])
        self._wait(
            lambda: all(not found.partitions for found in self._views(name)),
            f"topic {name!r} to be gone",
        )

    def add_partitions(self, name: str, total: int) -> None:
        """Add partitions to a topic, and wait until every broker knows them."""
        self._ask("create_partitions", [admin.NewPartitions(name, total)])
        self._wait(
            lambda: all(len(found.partitions) == total for found in self._views(name)),
            f"topic {name!r} to have {total} partitions",
        )

    def alter_topic(self, name: str, configs: Mapping[str, object]) -> None:
        """Change settings of a topic; None for the default."""
        self._alter(admin.ConfigResource.Type.TOPIC, name, configs)

    def alter_broker(self, broker: int, configs: Mapping[str, object]) -> None:
        """Change settings of a running broker."""
        self._alter(admin.ConfigResource.Type.BROKER, str(broker), configs)

    def leader_of(self, topic: str, partition: int = 0) -> int | None:
        """The leader of a partition, according to the brokers that answer; None if there is
        none."""
        leader = self._partition(topic, partition).leader
        return None if leader < 0 else leader

    def in_sync(self, topic: str, partition: int = 0) -> frozenset[int]:
        """The in-sync replicas of a partition, as far as known."""
        return frozenset(self._partition(topic, partition).in_sync)

    def wait_for_leader(
        self, topic: str, partition: int = 0, *, other_than: int | None = None
    ) -> int:
        """Wait until all brokers that answer agree on the leader of a partition, and return it.

        Args:
            topic: its name.
            partition: its number.
            other_than: the previous leader, which does not count.
        """
        leaders: set[int] = set()

        def led() -> bool:
            leaders.clear()
            for found in self._views(topic):
                leaders.add(found.partition(partition).leader)
            return len(leaders) == 1 and not leaders & {-1, other_than}

        self._wait(led, f"a leader of {topic}/{partition} other than {other_than}")
        return leaders.pop()

    def wait_until_in_sync(self, topic: str) -> None:
        """Wait until each partition of a topic is complete on all of its brokers."""

        def complete() -> bool:
            return all(
                set(one.in_sync) == set(one.replicas)
                for found in self._views(topic)
                for one in found.partitions.values()
            )

        self._wait(complete, f"the replicas of {topic!r} to be in sync")

    def move_leader(self, topic: str, partition: int, broker: int) -> None:
        """Have a broker lead a partition, and wait until every broker knows. If that broker has no
        replica of the partition, it replaces the last replica."""
        replicas = self._partition(topic, partition).replicas
        others = [replica for replica in replicas if replica != broker]
        wanted = (broker, *others[: len(replicas) - 1])
        if replicas != wanted:
            kafka_wire.reassign(self._port(), topic, partition, wanted)
            self._wait(
                lambda: all(
                    found.partition(partition).replicas == wanted
                    and broker in found.partition(partition).in_sync
                    for found in self._views(topic)
                ),
                f"{topic}/{partition} to be on {wanted}",
            )
        try:
            kafka_wire.elect_preferred_leader(self._port(), topic, partition)
        except kafka_wire.WireError as error:
            if error.code != kafka_wire.ELECTION_NOT_NEEDED:
                raise
        self._wait(
            lambda: all(
                found.partition(partition).leader == broker for found in self._views(topic)
            ),
            f"{broker} to lead {topic}/{partition}",
        )

    # --- permissions ----------------------------------------------------------------------------

    def set_quota(
        self,
        *,
        client_id: str | None = None,
        user: str | None = None,
        producer_byte_rate: float | None,
    ) -> None:
        """Limit the bytes per second that a client or a user may send to each broker; None removes
        the limit."""
        entity = {"client-id": client_id, "user": user}
        kafka_wire.alter_client_quotas(
            self._port(),
            {kind: name for kind, name in entity.items() if name is not None},
            {"producer_byte_rate": producer_byte_rate},
        )

    def create_user(self, name: str, password: str, mechanism: str = "SCRAM-SHA-256") -> None:
        """Set a user's password for SCRAM-SHA-256 or SCRAM-SHA-512."""
        kind = admin.ScramMechanism[mechanism.replace("-", "_")]
        # The lowest number of iterations that Kafka accepts.
        credential = admin.UserScramCredentialUpsertion(
            name, admin.ScramCredentialInfo(kind, 4096), password.encode()
        )
        self._ask("alter_user_scram_credentials", [credential])

    def delete_user(self, name: str, mechanism: str = "SCRAM-SHA-256") -> None:
        """Delete a user's password. Open connections stay open."""
        kind = admin.ScramMechanism[mechanism.replace("-", "_")]
        deletion = admin.UserScramCredentialDeletion(name, kind)
        self._ask("alter_user_scram_credentials", [deletion])

    def add_acl(
        self,
        principal: str,
        operation: str,
        resource: str = "*",
        *,
        kind: str = "topic",
        allow: bool = True,
    ) -> None:
        """Allow or deny an operation to a principal, such as ``"User:alice"`` and ``"write"``.

        Args:
            principal: the user.
            operation: one word, as AclOperation names it: write, describe, idempotent_write, ...
            resource: the name of the topic or other resource, or ``"*"`` for all.
            kind: topic, group, transactional_id, or broker for the cluster itself.
            allow: False to deny.
        """
        self._ask("create_acls", [_binding(principal, operation, resource, kind, allow)])

    def remove_acl(
        self,
        principal: str,
        operation: str,
        resource: str = "*",
        *,
        kind: str = "topic",
        allow: bool = True,
    ) -> None:
        """Remove an ACL of add_acl().

        Raises:
            KafkaClusterError: there was no such ACL.
        """
        acl = _binding(principal, operation, resource, kind, allow)
        pattern = admin.AclBindingFilter(
            acl.restype,
            acl.name,
            acl.resource_pattern_type,
            acl.principal,
            acl.host,
            acl.operation,
            acl.permission_type,
        )
        (removed,) = self._ask("delete_acls", [pattern])
        if not removed:
            raise KafkaClusterError(f"there was no {acl}")

    # --- internals ------------------------------------------------------------------------------

    def _ended_by_itself(self) -> Node | None:
        return next((node for node in self._nodes.values() if node.ended_by_itself), None)

    def _wait(self, condition: Callable[[], bool], what: str, timeout: float = PATIENCE) -> None:
        deadline = time.monotonic() + timeout
        while True:
            ended = self._ended_by_itself()
            if ended is not None:
                raise ended.error("ended by itself")
            with contextlib.suppress(OSError):  # a broker that starts or shuts down
                if condition():
                    return
            if time.monotonic() > deadline:
                logs = "\n".join(f"{node}:\n{node.log()}" for node in self._nodes.values())
                raise KafkaClusterError(f"waited {timeout} s for {what}; the ends of logs:\n{logs}")
            time.sleep(_POLL_INTERVAL)

    def _knows(self, node: Node, brokers: set[int]) -> bool:
        return brokers <= kafka_wire.metadata(node.ports[INTERNAL]).brokers

    def _answering(self) -> list[Node]:
        found = [node for node in self._nodes.values() if node.is_broker and node.answers]
        if not found:
            raise KafkaClusterError("no broker runs")
        return found

    def _port(self) -> int:
        return self._answering()[0].ports[INTERNAL]

    def _views(self, topic: str) -> list[kafka_wire.Metadata]:
        """The metadata of a topic from each broker that answers."""
        return [kafka_wire.metadata(node.ports[INTERNAL], topic) for node in self._answering()]

    def _partition(self, topic: str, partition: int) -> kafka_wire.Partition:
        return kafka_wire.metadata(self._port(), topic).partition(partition)

    def _ask(self, request: str, *arguments: Any) -> list[Any]:
        """Call a new AdminClient, which has no earlier metadata."""
        addresses = [f"{HOST}:{node.ports[INTERNAL]}" for node in self._answering()]
        client: Any = admin.AdminClient(
            # It would report each lost connection on stderr.
            {"bootstrap.servers": ",".join(addresses), "log_level": 0}
        )
        # The client has to live until every answer has arrived.
        futures: Mapping[Any, Any] = getattr(client, request)(*arguments)
        return [future.result(PATIENCE) for future in futures.values()]

    def _alter(self, kind: Any, name: str, configs: Mapping[str, object]) -> None:
        operation = admin.AlterConfigOpType
        entries = [
            admin.ConfigEntry(
                key,
                "" if value is None else text(value),
                incremental_operation=operation.DELETE if value is None else operation.SET,
            )
            for key, value in configs.items()
        ]
        resource = admin.ConfigResource(kind, name, incremental_configs=entries)
        self._ask("incremental_alter_configs", [resource])


@contextmanager
def kafka_cluster(
    brokers: int = 1,
    *,
    listeners: Sequence[Listener] = (),
    properties: Mapping[str, object] | None = None,
    start_timeout: float = PATIENCE,
) -> Generator[KafkaCluster, None, None]:
    """Run a Kafka cluster, then end it and delete its data.

    Args:
        brokers: the number of brokers.
        listeners: additional listeners of each broker.
        properties: settings of all nodes, which override those of ``kafka_nodes.py``.
        start_timeout: the limit in seconds until all brokers answer.

    Yields:
        The cluster, ready for use.

    Raises:
        KafkaMissing: Kafka or Java is missing.
        KafkaClusterError: a node did not start, with the end of its log; or the block ended without
            an error, and a node had ended by itself.
    """
    home = kafka_home()
    with one_at_a_time():
        if not (home.archive.exists() and home.formatted.exists()):
            _prepare(home)
    shared = f"-XX:SharedArchiveFile={home.archive}"
    with _run(
        home,
        shared,
        brokers=brokers,
        listeners=listeners,
        properties=properties,
        start_timeout=start_timeout,
    ) as cluster:
        yield cluster


def _prepare(home: KafkaHome) -> None:
    """Prepare faster starts once: make Java's archive of the classes that Kafka loads, and a copy
    of a directory that Kafka has formatted."""
    with tempfile.TemporaryDirectory(dir=home.archive.parent, prefix="archive-") as directory:
        archive = Path(directory, home.archive.name)
        with _run(home, f"-XX:ArchiveClassesAtExit={archive}", formats=True) as cluster:
            cluster.stop(1)
        archive.rename(home.archive)


@contextmanager
def _run(
    home: KafkaHome,
    java_option: str,
    *,
    formats: bool = False,
    brokers: int = 1,
    listeners: Sequence[Listener] = (),
    properties: Mapping[str, object] | None = None,
    start_timeout: float = PATIENCE,
) -> Generator[KafkaCluster, None, None]:
    directory = Path(tempfile.mkdtemp(prefix="kafka-cluster-"))
    with guard(directory) as tell_guard, contextlib.ExitStack() as running:
        nodes = make_nodes(
            home,
            directory,
            tell_guard,
            resources=running,
            brokers=brokers,
            listeners=listeners,
            properties=properties or {},
            java_options=[java_option],
        )
        for node in nodes:
            running.callback(node.close)
        cluster_id = make_id()
        if formats:
            nodes[0].format(cluster_id, start_timeout)
            shutil.rmtree(home.formatted, ignore_errors=True)
            shutil.copytree(nodes[0].data, home.formatted)
        else:
            for node in nodes:
                node.copy_formatted(cluster_id, home.formatted)
        for node in nodes:
            node.start()
        cluster = KafkaCluster(home.version, nodes)
        cluster.wait_until_ready(start_timeout)
        try:
            yield cluster
        except BaseException as error:
            # Like add_note(), which Python 3.10 does not have. There the note is not shown.
            notes: list[str] = error.__dict__.setdefault("__notes__", [])
            notes += [f"{node} had ended by itself." for node in nodes if node.ended_by_itself]
            raise
        for node in nodes:
            if node.ended_by_itself:
                raise node.error("ended by itself")


def _binding(principal: str, operation: str, resource: str, kind: str, allow: bool) -> Any:
    return admin.AclBinding(
        admin.ResourceType[kind.upper()],
        "kafka-cluster" if kind == "broker" else resource,
        admin.ResourcePatternType.LITERAL,
        principal,
        "*",
        admin.AclOperation[operation.upper()],
        admin.AclPermissionType.ALLOW if allow else admin.AclPermissionType.DENY,
    )
