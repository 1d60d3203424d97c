"""Compares the reported outcomes of records with the contents of the log.

A program notes its records and outcomes in a `History` while it sends. Afterwards `read_topic`
reads the whole topic with one of two clients, and `check` compares. `check` is a pure function, so
tests can call it with made-up histories.

The rule of order: the records of one `line` in one partition are in the order of their numbers.
Numbers are given in the order of the calls. The calls of all tasks on one loop form one line, and
the calls of several producers form several.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import itertools
import json
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, cast

import confluent_kafka

from anyio_sendproducer import DeliveryError, Persistence, ProducerRecord, RecordMetadata
from anyio_sendproducer.cli._reading import ClusterError, end_of

__all__ = [
    "ABANDONED",
    "NEVER_ACCEPTED",
    "WITHDRAWN",
    "Acknowledged",
    "Ended",
    "Failed",
    "Fault",
    "FaultKind",
    "History",
    "Isolation",
    "Logged",
    "Outcome",
    "Plain",
    "ReadError",
    "Reader",
    "Report",
    "Sent",
    "check",
    "read_topic",
]

Isolation = Literal["read_committed", "read_uncommitted"]
Reader = Literal["confluent-kafka", "kafka-python"]

#: Seconds by which an outcome may exceed `delivery_timeout` on a busy machine.
GRACE: Final = 15.0


# --- reported outcomes -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Acknowledged:
    """The broker has it at this position. `offset` is None if the broker reported none."""

    partition: int
    offset: int | None


@dataclasses.dataclass(frozen=True)
class Failed:
    """It was not delivered: the exception's class, and whether the record may be in the log."""

    error: str
    persistence: Persistence


@dataclasses.dataclass(frozen=True)
class Plain:
    """An outcome that has no data."""

    name: str


#: Cancelled before the client had it: it is never written.
WITHDRAWN: Final = Plain("withdrawn")
#: Cancelled after the client had it: no caller waits for it, and it may be written.
ABANDONED: Final = Plain("abandoned")
#: It was refused, or cancelled, before it was accepted: it is never written.
NEVER_ACCEPTED: Final = Plain("never accepted")

Outcome = Acknowledged | Failed | Plain


@dataclasses.dataclass(frozen=True)
class Sent:
    """A record that was passed to the producer."""

    id: str
    number: int
    """Its position in the order of the calls."""
    at: float
    """The time of the call in seconds of `time.monotonic`."""
    topic: str
    partition: int | None
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    line: str = ""
    """The order is checked within one line only."""
    transaction: str | None = None

    @property
    def content(self) -> tuple[bytes | None, bytes | None, tuple[tuple[str, bytes], ...]]:
        return self.key, self.value, self.headers


@dataclasses.dataclass(frozen=True)
class Ended:
    """The outcome of a record, and its time."""

    at: float
    outcome: Outcome


class History:
    """The records that were sent and their reported outcomes, in chronological order.

    Args:
        journal: a file to which each step is written at once, so that it survives a kill of the
            process; `History.load` reads it.
        keep: False to forget each record when its outcome is in the journal, so that a process may
            send for long.
    """

    def __init__(self, journal: Path | None = None, *, keep: bool = True) -> None:
        self._keep = keep
        self._count = 0
        self.sent: dict[str, Sent] = {}
        self.ended: dict[str, list[Ended]] = defaultdict(list)
        #: True: committed; False: aborted; None: unknown.
        self.transactions: dict[str, bool | None] = {}
        self._journal = None if journal is None else journal.open("ab", buffering=0)

    def close(self) -> None:
        """Close the journal."""
        if self._journal is not None:
            self._journal.close()

    def sending(
        self,
        id: str,  # noqa: A002
        record: ProducerRecord[Any, Any],
        *,
        line: str = "",
        transaction: str | None = None,
    ) -> Sent:
        """Note a record. Call this in the same step as the producer, before it."""
        sent = Sent(
            id,
            self._count,
            time.monotonic(),
            record.topic,
            record.partition,
            record.key,
            record.value,
            tuple(record.headers),
            line,
            transaction,
        )
        self.add(sent)
        return sent

    def add(self, sent: Sent) -> None:
        """Note a record with all its fields."""
        if sent.id in self.sent:
            raise ValueError(f"there are two records {sent.id!r}")
        self.sent[sent.id] = sent
        self._count += 1
        if self._journal is not None:
            self._write("sent", _sent_to_json(sent))

    def ending(self, id: str, outcome: RecordMetadata | DeliveryError | Outcome) -> None:  # noqa: A002
        """Note the outcome of a record when it is reported."""
        if isinstance(outcome, RecordMetadata):
            outcome = Acknowledged(outcome.partition, outcome.offset)
        elif isinstance(outcome, DeliveryError):
            outcome = Failed(type(outcome).__name__, outcome.persistence)
        ended = Ended(time.monotonic(), outcome)
        if self._keep:
            self.ended[id].append(ended)
        else:
            del self.sent[id]
        if self._journal is not None:
            self._write("ended", [id, ended.at, _outcome_to_json(outcome)])

    def transaction(self, name: str, committed: bool | None) -> None:
        """Note the outcome of a transaction; None if it is unknown."""
        self.transactions[name] = committed
        if self._journal is not None:
            self._write("transaction", [name, committed])

    def outcome(self, id: str) -> Outcome | None:  # noqa: A002
        """The first outcome of a record."""
        found = self.ended.get(id)
        return found[0].outcome if found else None

    @classmethod
    def load(cls, journal: Path) -> History:
        """Read a journal, also of a killed process. An incomplete last line is left out."""
        history = cls()
        for line in journal.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            kind, content = json.loads(line)
            if kind == "sent":
                history.add(_sent_from_json(content))
            elif kind == "ended":
                id_, at, outcome = content
                history.ended[id_].append(Ended(at, _outcome_from_json(outcome)))
            else:
                history.transactions[content[0]] = content[1]
        return history

    def _write(self, kind: str, content: Any) -> None:
        assert self._journal is not None
        self._journal.write(json.dumps([kind, content]).encode() + b"\n")


def _text(content: bytes | None) -> str | None:
    return None if content is None else content.decode("latin-1")


def _bytes(content: str | None) -> bytes | None:
    return None if content is None else content.encode("latin-1")


def _sent_to_json(sent: Sent) -> Any:
    return {
        **{field.name: getattr(sent, field.name) for field in dataclasses.fields(sent)},
        "key": _text(sent.key),
        "value": _text(sent.value),
        "headers": [[name, _text(content)] for name, content in sent.headers],
    }


def _sent_from_json(content: Any) -> Sent:
    headers = tuple((name, value.encode("latin-1")) for name, value in content["headers"])
    changes: dict[str, Any] = {
        "key": _bytes(content["key"]),
        "value": _bytes(content["value"]),
        "headers": headers,
    }
    return Sent(**{**content, **changes})


def _outcome_to_json(outcome: Outcome) -> Any:
    match outcome:
        case Acknowledged(partition, offset):
            return ["acknowledged", partition, offset]
        case Failed(error, persistence):
            return ["failed", error, persistence.name]
        case Plain(name):
            return [name]


def _outcome_from_json(content: Any) -> Outcome:
    match content:
        case ["acknowledged", partition, offset]:
            return Acknowledged(partition, offset)
        case ["failed", error, persistence]:
            return Failed(error, Persistence[persistence])
        case [name]:
            return Plain(name)
        case _:
            raise ValueError(content)


# --- contents of the log -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Logged:
    """A record as it was read."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    sequence: tuple[int, int, int] | None = None
    """The producer id, the epoch and the sequence number, by which a broker recognizes a
    repetition. None if the record has none, or if the reader does not report them."""

    @property
    def content(self) -> tuple[bytes | None, bytes | None, tuple[tuple[str, bytes], ...]]:
        return self.key, self.value, self.headers


class ReadError(Exception):
    """A topic could not be read to its end."""


def read_topic(
    bootstrap_servers: str,
    topic: str,
    *,
    reader: Reader = "confluent-kafka",
    isolation: Isolation = "read_uncommitted",
    timeout: float = 60.0,
    config: Mapping[str, Any] | None = None,
) -> list[Logged]:
    """Read every partition of a topic from its beginning to its end. Blocks.

    Args:
        bootstrap_servers: the cluster's addresses.
        topic: the topic's name.
        reader: the client that reads. kafka-python also reports each record's `sequence`.
        isolation: whether records of transactions that did not commit are read.
        timeout: the time limit in seconds.
        config: further settings of that client, by the client's own names.

    Raises:
        ReadError: the topic could not be read, or not in time.
    """
    deadline = time.monotonic() + timeout
    read = _read_with_confluent if reader == "confluent-kafka" else _read_with_kafka_python
    return read(bootstrap_servers, topic, isolation, deadline, config or {})


def _read_with_confluent(
    bootstrap_servers: str,
    topic: str,
    isolation: Isolation,
    deadline: float,
    config: Mapping[str, Any],
) -> list[Logged]:
    consumer: Any = confluent_kafka.Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "nobody",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": isolation,
            "auto.offset.reset": "error",
            "fetch.wait.max.ms": 20,
            "check.crcs": True,
            "log_level": 0,
            **config,
        }
    )
    found: list[Logged] = []
    try:
        unfinished: set[int] = set()
        while not unfinished:
            metadata = consumer.list_topics(topic, timeout=max(0.1, deadline - time.monotonic()))
            unfinished = set(metadata.topics[topic].partitions)
            _check_time(deadline, topic, "its partitions are not known")
            if not unfinished:
                time.sleep(0.02)  # the topic is not created yet
        ends = {partition: end_of(consumer, topic, partition, deadline) for partition in unfinished}
        consumer.assign(
            [
                confluent_kafka.TopicPartition(topic, partition, confluent_kafka.OFFSET_BEGINNING)
                for partition in sorted(unfinished)
            ]
        )
        while unfinished:
            _check_time(deadline, topic, f"the ends of {sorted(unfinished)} were not reached")
            for message in consumer.consume(5_000, 0.1):
                error = message.error()
                if error is None:
                    found.append(
                        Logged(
                            topic,
                            message.partition(),
                            message.offset(),
                            message.key(),
                            message.value(),
                            tuple(message.headers() or ()),
                        )
                    )
                elif error.code() == confluent_kafka.KafkaError._PARTITION_EOF:
                    # A new leader may report a lower end at first. While a transaction is open, a
                    # reader of committed records stops before the end.
                    is_end = message.offset() >= ends[message.partition()]
                    if is_end or isolation == "read_committed":
                        unfinished.discard(message.partition())
                elif not error.retriable() and error.code() > 0:
                    raise ReadError(f"{topic}: {error}")
    except (confluent_kafka.KafkaException, ClusterError) as error:
        raise ReadError(f"{topic}: {error}") from error
    finally:
        consumer.close()
    return found


_numbers: Final = itertools.count()


def _read_with_kafka_python(
    bootstrap_servers: str,
    topic: str,
    isolation: Isolation,
    deadline: float,
    config: Mapping[str, Any],
) -> list[Logged]:
    kafka: Any = importlib.import_module("kafka")
    opened: list[socket.socket] = []
    consumer: Any = kafka.KafkaConsumer(
        bootstrap_servers=bootstrap_servers.split(","),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level=isolation,
        fetch_max_wait_ms=20,
        **{"metrics_enabled": False, "proxy_url": _remember_sockets(opened), **config},
    )
    found: list[Logged] = []
    try:
        sequences = _note_sequences(consumer)
        numbers: set[int] | None = None
        while not numbers:
            numbers = consumer.partitions_for_topic(topic)
            _check_time(deadline, topic, "its partitions are not known")
        partitions = [kafka.TopicPartition(topic, number) for number in sorted(numbers)]
        consumer.assign(partitions)
        begins = consumer.beginning_offsets(partitions)
        ends = consumer.end_offsets(partitions)
        for partition in partitions:
            consumer.seek(partition, begins[partition])
        # An embedded broker reports too low an end of a partition, unless it is empty. The end in
        # the answer with the records is correct.
        unfinished = {partition for partition in partitions if begins[partition] != ends[partition]}
        consumer.pause(*(set(partitions) - unfinished))
        while unfinished:
            _check_time(deadline, topic, f"the ends of {sorted(unfinished)} were not reached")
            for partition, records in consumer.poll(100, max_records=5_000).items():
                found.extend(_logged(partition, record) for record in records)
            for partition in list(unfinished):
                # The records of an open transaction are between the last stable offset and the end.
                end = ends[partition]
                if isolation == "read_uncommitted":
                    end = consumer.highwater(partition)
                if end is not None and consumer.position(partition) >= end:
                    unfinished.discard(partition)
    except kafka.errors.KafkaError as error:
        raise ReadError(f"{topic}: {error!r}") from error
    finally:
        consumer.close()
        # 3.0.12 leaves a connection to the garbage collector if it fails, or if it has something to
        # send when the client closes.
        for one in opened:
            one.close()
    return [
        dataclasses.replace(one, sequence=sequences.get((one.partition, one.offset)))
        for one in found
    ]


def _remember_sockets(opened: list[socket.socket]) -> str:
    """Make a ``proxy_url`` with which a kafka-python client connects directly, and adds each socket
    to a list."""
    base: Any = importlib.import_module("kafka.net.inet").KafkaNetSocket
    scheme = f"remembering{next(_numbers)}"

    async def sock_connect(self: Any, net: Any, sock: Any, *args: Any, **options: Any) -> Any:
        opened.append(sock)
        return await base.sock_connect(self, net, sock, *args, **options)

    type("Remembering", (base,), {"SCHEMES": (scheme,), "sock_connect": sock_connect})
    return f"{scheme}://"


def _note_sequences(consumer: Any) -> dict[tuple[int, int], tuple[int, int, int]]:
    """Have a kafka-python consumer note the sequence number of each partition and offset. Only
    batches have it, and they are not public."""
    found: dict[tuple[int, int], tuple[int, int, int]] = {}
    parse = consumer._fetcher.PartitionRecords

    class Watched:
        def __init__(self, partition: int, records: Any) -> None:
            self._partition = partition
            self._records = records

        def next_batch(self) -> Any:
            batch = self._records.next_batch()
            if batch is not None and batch.magic == 2 and batch.producer_id >= 0:
                for offset in range(batch.base_offset, batch.last_offset + 1):
                    sequence = batch.base_sequence + offset - batch.base_offset
                    identity = (batch.producer_id, batch.producer_epoch, sequence)
                    found[self._partition, offset] = identity
            return batch

    def parse_and_watch(offset: int, partition: Any, records: Any, **options: Any) -> Any:
        return parse(offset, partition, Watched(partition.partition, records), **options)

    consumer._fetcher.PartitionRecords = parse_and_watch
    return found


def _logged(partition: Any, record: Any) -> Logged:
    return Logged(
        partition.topic,
        partition.partition,
        record.offset,
        record.key,
        record.value,
        tuple(record.headers),
    )


def _check_time(deadline: float, topic: str, what: str) -> None:
    if time.monotonic() > deadline:
        raise ReadError(f"{topic}: {what} in time")


# --- the comparison ----------------------------------------------------------------------------


class FaultKind(enum.Enum):
    """The kinds of faults."""

    LOST = "acknowledged and not there"
    DOUBLED = "there more than once"
    REORDERED = "behind one that was sent later"
    ELSEWHERE = "not where its metadata says"
    THERE_ALL_THE_SAME = "said not to be there, and is"
    NO_OUTCOME = "accepted and without an outcome"
    TWO_OUTCOMES = "with more than one outcome"
    LATE = "its outcome came too late"
    CHANGED = "other bytes, key or headers than were sent"
    FOREIGN = "there and never sent"
    ABORTED = "of an aborted transaction, and there"
    TORN = "of a transaction that is there in part"


@dataclasses.dataclass(frozen=True)
class Fault:
    """One violation of the guarantees."""

    kind: FaultKind
    record: str
    detail: str

    def __str__(self) -> str:
        return f"{self.record}: {self.kind.value}: {self.detail}"


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of a run: counts of records, and the faults.

    `misreported` counts records whose outcome is false, missing or late. `damaged` counts records
    that should not be in the log, or not in this form. `repeated` counts copies with the sequence
    number of the first. A broker that checks these numbers drops such copies, so they are not a
    fault of the producer, and are not `doubled`.
    """

    sent: int
    acknowledged: int
    failed: Mapping[str, int]
    withdrawn: int
    abandoned: int
    never_accepted: int
    lost: int
    doubled: int
    repeated: int
    reordered: int
    misreported: int
    damaged: int
    longest_wait: float
    time_to_exit: float
    faults: tuple[Fault, ...]

    @property
    def failures(self) -> int:
        """The number of failed records of all kinds."""
        return sum(self.failed.values())

    def __str__(self) -> str:
        shown = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "faults"
        }
        lines = [", ".join(f"{name} {value}" for name, value in shown.items())]
        lines += [str(fault) for fault in self.faults[:20]]
        if len(self.faults) > 20:
            lines.append(f"and {len(self.faults) - 20} more")
        return "\n".join(lines)


_MISREPORTED: Final = {
    FaultKind.ELSEWHERE,
    FaultKind.THERE_ALL_THE_SAME,
    FaultKind.NO_OUTCOME,
    FaultKind.TWO_OUTCOMES,
    FaultKind.LATE,
}
_DAMAGED: Final = {FaultKind.CHANGED, FaultKind.FOREIGN, FaultKind.ABORTED, FaultKind.TORN}


def check(
    history: History,
    log: Iterable[Logged],
    *,
    delivery_timeout: float,
    grace: float = GRACE,
    time_to_exit: float = 0.0,
    isolation: Isolation = "read_uncommitted",
    killed: bool = False,
    repeats: bool = False,
    concludes: bool = False,
    answered: bool = True,
) -> Report:
    """Compare the reported outcomes with the log.

    Args:
        history: the records and their reported outcomes.
        log: all records of every topic that was sent to. A record is recognized by its content, so
            no two records may be equal. A record with changed content is recognized by its header
            `id`, or by the first word of its value if that is its id.
        delivery_timeout: the limit in seconds for a record's outcome.
        grace: seconds added to that limit, for a busy machine.
        time_to_exit: passed on to the report.
        isolation: how the log was read.
        killed: the sending process was killed. A record without an outcome may be in the log or
            not.
        repeats: the broker does not check sequence numbers. Copies with the number of the first are
            counted as `repeated`. If the reader reports no numbers, all copies are.
        concludes: the client concludes from an acknowledgement that earlier batches are written
            too. This holds for a broker that checks sequence numbers, and this one does not. So an
            acknowledgement without an offset claims nothing.
        answered: brokers answer. If they do not (acks=0), an acknowledgement claims nothing.
    """
    faults: list[Fault] = []

    def found_fault(kind: FaultKind, record: str, detail: str) -> None:
        faults.append(Fault(kind, record, detail))

    copies = _match(history, log, found_fault)
    repeated = 0
    for id_, sent in history.sent.items():
        there = copies.get(id_, [])
        ended = history.ended.get(id_, [])
        _check_telling(sent, ended, delivery_timeout + grace, killed, found_fault)
        again = _judged_copies(there, repeats)
        repeated += len(there) - 1 - again if there else 0
        if again:
            places = ", ".join(f"{one.partition}/{one.offset}" for one in there)
            found_fault(FaultKind.DOUBLED, id_, f"at {places}")
        outcome = history.outcome(id_)
        claims = not isinstance(outcome, Acknowledged) or (
            answered and not (concludes and outcome.offset is None)
        )
        if claims:
            _check_presence(history, sent, there, isolation, found_fault)
    _check_order(history, copies, found_fault)
    _check_transactions(history, copies, isolation, found_fault)
    return _report(history, faults, repeated, time_to_exit)


#: Called with the kind of fault, the record's id and a detail.
_Finder = Callable[[FaultKind, str, str], None]


def _match(history: History, log: Iterable[Logged], fault: _Finder) -> dict[str, list[Logged]]:
    """Group the copies of each record, in the order of the log."""
    by_content: dict[Any, str] = {}
    for sent in history.sent.values():
        content = (sent.topic, *sent.content)
        if by_content.setdefault(content, sent.id) != sent.id:
            raise ValueError(f"{sent.id} is the same as {by_content[content]}: can't be judged")
    copies: dict[str, list[Logged]] = defaultdict(list)
    for logged in sorted(log, key=lambda one: (one.topic, one.partition, one.offset)):
        id_ = by_content.get((logged.topic, *logged.content))
        if id_ is None:
            place = f"{logged.topic} {logged.partition}/{logged.offset}"
            id_ = _name_in(logged)
            known = None if id_ is None else history.sent.get(id_)
            if id_ is None or known is None or known.topic != logged.topic:
                fault(FaultKind.FOREIGN, id_ or place, f"at {place}: {logged.content!r:.200}")
                continue
            fault(FaultKind.CHANGED, id_, f"at {place}: {logged.content!r:.200}")
        copies[id_].append(logged)
    return copies


def _name_in(logged: Logged) -> str | None:
    for name, content in logged.headers:
        # A consumer may return None for a header without a value.
        if name == "id" and cast("bytes | None", content):
            return content.decode(errors="replace")
    words = (logged.value or b"").split(maxsplit=1)
    return words[0].decode(errors="replace") if words else None


def _check_telling(
    sent: Sent, ended: Sequence[Ended], allowed: float, killed: bool, fault: _Finder
) -> None:
    if not ended and not killed:
        fault(FaultKind.NO_OUTCOME, sent.id, "nothing was said of it")
    if len(ended) > 1:
        fault(FaultKind.TWO_OUTCOMES, sent.id, "; ".join(str(one.outcome) for one in ended))
    if ended and ended[0].at - sent.at > allowed:
        took = ended[0].at - sent.at
        fault(FaultKind.LATE, sent.id, f"{ended[0].outcome} after {took:.3f} s, not {allowed:g} s")


def _judged_copies(there: Sequence[Logged], repeats: bool) -> int:
    """Count the copies besides the first, without the copies that no real broker would keep."""
    if not repeats:
        return max(0, len(there) - 1)
    # A copy without a number can't be distinguished from a repetition.
    return max(0, len({one.sequence for one in there if one.sequence is not None}) - 1)


def _check_presence(
    history: History, sent: Sent, there: Sequence[Logged], isolation: Isolation, fault: _Finder
) -> None:
    outcome = history.outcome(sent.id)
    places = [(one.partition, one.offset) for one in there]
    if sent.partition is not None and any(place[0] != sent.partition for place in places):
        fault(FaultKind.ELSEWHERE, sent.id, f"sent to {sent.partition}, and at {places}")
        return
    if sent.transaction is not None and isolation == "read_committed":
        # _check_transactions checks the presence of records in transactions.
        committed = history.transactions.get(sent.transaction)
        if committed is False:
            if there:
                fault(FaultKind.ABORTED, sent.id, f"{sent.transaction} was aborted; at {places}")
            return
        if committed is None and not there:
            return
    match outcome:
        case Acknowledged(partition, offset):
            if not there:
                fault(FaultKind.LOST, sent.id, f"acknowledged at {partition}/{offset}")
            elif offset is None:
                # The broker recognized a repetition, and reported no offset.
                if all(place[0] != partition for place in places):
                    fault(FaultKind.ELSEWHERE, sent.id, f"acknowledged at {partition}; at {places}")
            elif (partition, offset) not in places:
                detail = f"acknowledged at {partition}/{offset}, and at {places}"
                fault(FaultKind.ELSEWHERE, sent.id, detail)
        case Failed(error, Persistence.NOT_PERSISTED):
            if there:
                fault(FaultKind.THERE_ALL_THE_SAME, sent.id, f"{error}; at {places}")
        case Failed(error, Persistence.PERSISTED):
            if not there:
                fault(FaultKind.LOST, sent.id, f"{error}, persisted")
        case Plain(name) if outcome != ABANDONED:
            if there:
                fault(FaultKind.THERE_ALL_THE_SAME, sent.id, f"{name}; at {places}")
        case _:
            pass


def _check_order(history: History, copies: Mapping[str, Sequence[Logged]], fault: _Finder) -> None:
    """Check the order of the first copies."""
    lines: dict[Any, list[tuple[int, Sent]]] = defaultdict(list)
    for id_, there in copies.items():
        sent = history.sent[id_]
        first = there[0]
        lines[first.topic, first.partition, sent.line].append((first.offset, sent))
    for (topic, partition, _), line in lines.items():
        line.sort(key=lambda one: one[0])
        last = line[0][1]
        for offset, sent in line[1:]:
            if sent.number < last.number:
                detail = f"number {sent.number} at {topic} {partition}/{offset}, behind "
                fault(FaultKind.REORDERED, sent.id, f"{detail}{last.id}, number {last.number}")
            else:
                last = sent


def _check_transactions(
    history: History,
    copies: Mapping[str, Sequence[Logged]],
    isolation: Isolation,
    fault: _Finder,
) -> None:
    """If it is unknown whether a transaction was committed, the log has all of it or nothing."""
    if isolation != "read_committed":
        return
    members: dict[str, list[Sent]] = defaultdict(list)
    for sent in history.sent.values():
        if sent.transaction is not None:
            members[sent.transaction].append(sent)
    for transaction, of_it in members.items():
        if history.transactions.get(transaction) is not None:
            continue
        owed = [one for one in of_it if isinstance(history.outcome(one.id), Acknowledged)]
        if any(one.id in copies for one in of_it):
            for sent in owed:
                if sent.id not in copies:
                    fault(FaultKind.TORN, sent.id, f"the rest of {transaction} is there")


def _report(
    history: History, faults: Sequence[Fault], repeated: int, time_to_exit: float
) -> Report:
    outcomes = [history.outcome(id_) for id_ in history.sent]
    plain = Counter(one.name for one in outcomes if isinstance(one, Plain))
    failed = Counter(
        f"{one.error}, {one.persistence.value}" for one in outcomes if isinstance(one, Failed)
    )

    def records(*kinds: FaultKind) -> int:
        return len({fault.record for fault in faults if fault.kind in kinds})

    waits = [
        ended[0].at - history.sent[id_].at
        for id_, ended in history.ended.items()
        if ended and id_ in history.sent
    ]
    return Report(
        sent=len(outcomes),
        acknowledged=sum(isinstance(one, Acknowledged) for one in outcomes),
        failed=dict(sorted(failed.items())),
        withdrawn=plain[WITHDRAWN.name],
        abandoned=plain[ABANDONED.name],
        never_accepted=plain[NEVER_ACCEPTED.name],
        lost=records(FaultKind.LOST),
        doubled=records(FaultKind.DOUBLED),
        repeated=repeated,
        reordered=records(FaultKind.REORDERED),
        misreported=records(*_MISREPORTED),
        damaged=records(*_DAMAGED),
        longest_wait=max(waits, default=0.0),
        time_to_exit=time_to_exit,
        faults=tuple(faults),
    )
