"""The sections of the suite, each with its contenders and its sink, and the aims."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import pekko
import pending
from turns import Contender, Rounds

#: The bare clients, with callbacks and without awaiting.
BARE, BARE_CONFLUENT = "kafka-python", "confluent"
#: This package with each driver.
OURS, OURS_CONFLUENT = "ours", "ours, confluent"
BOTH = (OURS, OURS_CONFLUENT)
#: The bare clients with a future for each record, and nothing else.
BARE_AWAITED, BARE_CONFLUENT_AWAITED = "kafka-python, awaited", "confluent, awaited"
AIOKAFKA, AIOKAFKA_IDEMPOTENT = "aiokafka", "aiokafka, idempotent"
AIO = "confluent-aio"
LOOPS = ("asyncio", "trio")
TASKS = ("tasks-1", "tasks-10", "tasks-100", "tasks-1000", "tasks-10000")
RATES = (200, 2_000, 8_000)
#: One million and ten million records through a sink.
MILLIONS = ("sink-1000000", "sink-10000000")
STREAMS = ("tasks-1000", "many-10000", "flow", "sink", "wait", "forget")
OBSERVED = (", observed", ", observed by metrics", ", observed by OpenTelemetry")


_SINKS = {
    "mock": "the mock cluster",
    "mock-20ms": "the mock cluster with a round trip of 20 ms",
    "kafka": "Apache Kafka",
    "none": "an embedded broker that does not answer",
}


@dataclass(frozen=True)
class Section:
    """Contenders that take turns in the same rounds."""

    title: str
    contenders: tuple[Contender, ...]
    rounds: int = 5
    sink: str = "mock"
    size: int = 100

    @property
    def description(self) -> str:
        """The records and the sink of the section."""
        return f"Records have {self.size:,} B, and go to {_SINKS[self.sink]}."


def _each(
    clients: tuple[str, ...], workloads: tuple[str, ...], loops: tuple[str, ...] = ("none",)
) -> tuple[Contender, ...]:
    return tuple(
        Contender(client, workload, loop)
        for loop in loops
        for workload in workloads
        for client in clients
    )


#: The contenders of the sections with other sizes and sinks.
_SOME = (
    *_each((BARE, BARE_CONFLUENT), ("forget",)),
    *_each(BOTH, ("tasks-1000",), LOOPS),
    *_each((AIOKAFKA_IDEMPOTENT,), ("tasks-1000",), ("asyncio",)),
)
_OPEN = tuple(f"open-{rate}" for rate in RATES)

SECTIONS: Mapping[str, Section] = {
    "clients": Section(
        "Clients",
        (
            *_each((BARE, BARE_CONFLUENT), ("forget", "tasks-1")),
            *_each(("nothing",), TASKS[2:], LOOPS),
            *_each(BOTH, (*TASKS, "many-10000"), LOOPS),
            *_each(BOTH, ("tasks-1000",), ("uvloop",)),
            *_each((AIOKAFKA_IDEMPOTENT,), (*TASKS, "many-10000"), ("asyncio",)),
            # Without 10,000 tasks: with its defaults, aiokafka is too slow for them.
            *_each((AIOKAFKA,), (*TASKS[:4], "many-10000"), ("asyncio",)),
            *_each((AIO,), TASKS, ("asyncio",)),
            Contender("confluent-aio, tuned", "tasks-1000", "asyncio"),
            *_each((pekko.CLIENT,), ("tasks-1", "tasks-100", "tasks-1000", "many-10000")),
        ),
        rounds=4,
    ),
    "open": Section(
        "Open loop",
        tuple(
            one
            for workload in _OPEN
            for one in (
                Contender("nothing", workload, "asyncio"),
                *_each(BOTH, (workload,), LOOPS),
                Contender(AIOKAFKA_IDEMPOTENT, workload, "asyncio"),
                *_each((BARE, BARE_CONFLUENT), (workload,)),
                *_each((BARE_AWAITED, BARE_CONFLUENT_AWAITED), (workload,), ("asyncio",)),
            )
        ),
        rounds=9,
        sink="kafka",
        size=200,
    ),
    "streams": Section("Streams", _each(BOTH, STREAMS, LOOPS)),
    "observers": Section(
        "Observers",
        tuple(
            Contender(client + how, "tasks-1000", loop)
            for loop in LOOPS
            for client in BOTH
            for how in ("", *OBSERVED)
        ),
        rounds=4,
    ),
    "opening": Section(
        "Opening and the first record",
        (
            *_each((BARE, BARE_CONFLUENT), ("opening",)),
            *_each(BOTH, ("opening",), LOOPS),
            *_each((AIOKAFKA_IDEMPOTENT,), ("opening",), ("asyncio",)),
        ),
        sink="kafka",
    ),
    "pending": Section(
        "Memory of records without an outcome",
        _each(BOTH, pending.WAYS, ("asyncio",)),
        rounds=3,
        sink="none",
    ),
    "many records": Section(
        "Memory after many records",
        _each((OURS_CONFLUENT,), MILLIONS, ("asyncio",)),
        rounds=1,
    ),
    "1 KB": Section("Records of 1 KB", _SOME, rounds=3, size=1_000),
    "10 KB": Section("Records of 10 KB", _SOME, rounds=3, size=10_000),
    "20 ms away": Section("A cluster 20 ms away", _SOME, rounds=3, sink="mock-20ms"),
    "Apache Kafka": Section("Apache Kafka", _SOME, rounds=3, sink="kafka"),
}


@dataclass(frozen=True)
class Aim:
    """A comparison of two contenders of a section, with a bound that was set in advance."""

    section: str
    figure: str
    one: Contender
    other: Contender
    at_most: float | None = None
    at_least: float | None = None
    #: The kind of comparison is a ratio, or a difference. With `less`, it is the ratio after the
    #: figure of this contender is subtracted from both.
    less: Contender | None = None
    is_difference: bool = False

    def __str__(self) -> str:
        less = f", each less {self.less}" if self.less else ""
        sign = "-" if self.is_difference else "/"
        return f"{self.one} {sign} {self.other}{less}"

    @property
    def bound(self) -> str:
        """The bound in words."""
        if self.at_most is not None:
            return f"at most {self.at_most:g}"
        return "" if self.at_least is None else f"at least {self.at_least:g}"

    def is_reached(self, value: float) -> bool:
        """Return whether a value is within the bound."""
        return (self.at_most is None or value <= self.at_most) and (
            self.at_least is None or value >= self.at_least
        )

    def values(self, rounds: Rounds) -> list[float]:
        """Return the ratios or differences, one for each round that has all contenders."""
        names = [self.one, self.other, *([self.less] if self.less else [])]
        found: list[float] = []
        for figures in zip(*(rounds.get(str(name), []) for name in names), strict=False):
            values = [one.get(self.figure, 0.0) if one else 0.0 for one in figures]
            if not all(values):
                continue
            one, other, *less = values
            if self.is_difference:
                found.append(one - other)
            elif other > sum(less):
                found.append((one - sum(less)) / (other - sum(less)))
        return found

    def median(self, rounds: Rounds) -> tuple[float, float, float] | None:
        """Return the median, minimum and maximum, or None if no round has all contenders."""
        values = self.values(rounds)
        return (statistics.median(values), min(values), max(values)) if values else None


def aims() -> list[Aim]:
    """Return all comparisons that the documents show."""
    return [*_rates(), *_open_loop(), *_streams(), *_observers(), *_first_record()]


def _rates() -> list[Aim]:
    found: list[Aim] = []

    def add(
        at_least: float | None, client: str, workload: str, loop: str, other: Contender
    ) -> None:
        one = Contender(client, workload, loop)
        found.append(Aim("clients", "rate", one, other, at_least=at_least))

    bare, bare_confluent = (Contender(one, "forget") for one in (BARE, BARE_CONFLUENT))
    for loop in LOOPS:
        add(0.9, OURS, "tasks-1000", loop, bare)
        add(0.75, OURS, "tasks-100", loop, bare)
        add(1.1, OURS, "many-10000", loop, bare)
        add(0.85, OURS_CONFLUENT, "many-10000", loop, bare_confluent)
        for client, lone in ((OURS, BARE), (OURS_CONFLUENT, BARE_CONFLUENT)):
            one, other = Contender(client, "tasks-1", loop), Contender(lone, "tasks-1")
            found.append(Aim("clients", "latency_median_ms", one, other, at_most=1.25))
        for client, bound in ((OURS, 0.8), (OURS_CONFLUENT, 0.8), ("nothing", None)):
            add(bound, client, "tasks-10000", loop, Contender(client, "tasks-1000", loop))
    asyncio = {
        (client, workload): Contender(client, workload, "asyncio")
        for client in (AIOKAFKA, AIOKAFKA_IDEMPOTENT, AIO, *BOTH, "nothing")
        for workload in (*TASKS, "many-10000")
    }
    add(3.0, OURS_CONFLUENT, "tasks-1000", "asyncio", asyncio[AIOKAFKA, "tasks-1000"])
    add(1.8, OURS_CONFLUENT, "tasks-1000", "trio", asyncio[AIOKAFKA, "tasks-1000"])
    add(2.0, OURS_CONFLUENT, "tasks-100", "asyncio", asyncio[AIOKAFKA, "tasks-100"])
    for loop in LOOPS:
        add(100.0, OURS_CONFLUENT, "tasks-1000", loop, asyncio[AIO, "tasks-1000"])
    for client, bound in ((OURS, 0.85), (OURS_CONFLUENT, None), ("nothing", None)):
        add(bound, client, "tasks-1000", "trio", asyncio[client, "tasks-1000"])
    for workload in ("tasks-100", "tasks-1000", "many-10000"):
        for client in BOTH:
            add(None, client, workload, "asyncio", asyncio[AIOKAFKA_IDEMPOTENT, workload])
        add(None, OURS_CONFLUENT, workload, "asyncio", Contender(pekko.CLIENT, workload))
    return found


def _open_loop() -> list[Aim]:
    found: list[Aim] = []
    p50, p99, cpu = "latency_median_ms", "latency_p99_ms", "cpu_us"
    for workload in _OPEN:
        nothing = Contender("nothing", workload, "asyncio")
        kafka_python, librdkafka = (Contender(one, workload, "asyncio") for one in BOTH)
        aiokafka = Contender(AIOKAFKA_IDEMPOTENT, workload, "asyncio")
        bare = Contender(BARE, workload)
        bare_awaited, confluent_awaited = (
            Contender(one, workload, "asyncio") for one in (BARE_AWAITED, BARE_CONFLUENT_AWAITED)
        )
        found += [
            Aim("open", p50, librdkafka, aiokafka, at_most=1.0),
            Aim("open", p99, librdkafka, aiokafka, at_most=1.2),
            Aim("open", cpu, librdkafka, aiokafka, at_most=1.0),
            Aim("open", p50, kafka_python, bare, at_most=1.2),
            Aim("open", cpu, kafka_python, bare, at_most=1.2, less=nothing),
            # The smallest programs that await each record.
            *(Aim("open", figure, confluent_awaited, aiokafka) for figure in (p50, p99, cpu)),
            Aim("open", p50, bare_awaited, bare),
            Aim("open", cpu, bare_awaited, bare, less=nothing),
            *(Aim("open", figure, librdkafka, confluent_awaited) for figure in (p50, p99, cpu)),
            *(Aim("open", figure, kafka_python, bare_awaited) for figure in (p50, p99, cpu)),
        ]
        found += [
            Aim("open", figure, Contender(client, workload, "trio"), asyncio, at_most=1.3)
            for client, asyncio in zip(BOTH, (kafka_python, librdkafka), strict=True)
            for figure in (p50, cpu)
        ]
    return found


def _streams() -> list[Aim]:
    found: list[Aim] = []
    for loop in LOOPS:
        for workload, bound in (("flow", 1.8), ("sink", 1.5), ("wait", 1.7)):
            one, other = (
                Contender(OURS_CONFLUENT, work, loop) for work in (workload, "many-10000")
            )
            found.append(Aim("streams", "cpu_us", one, other, at_most=bound))
        for workload in ("flow", "sink"):
            one, other = (Contender(OURS, work, loop) for work in (workload, "many-10000"))
            found.append(Aim("streams", "rate", one, other, at_least=0.8))
    return found


def _observers() -> list[Aim]:
    found: list[Aim] = []
    idle, metrics, traces = OBSERVED
    for loop in LOOPS:
        for client in BOTH:
            without = Contender(client, "tasks-1000", loop)
            ours = client == OURS_CONFLUENT
            bound = (0.8 if loop == "asyncio" else 0.75) if ours else None
            one = Contender(client + idle, "tasks-1000", loop)
            found.append(Aim("observers", "rate", one, without, at_least=bound))
            for how, most in ((metrics, 15.0), (traces, None)):
                one = Contender(client + how, "tasks-1000", loop)
                found.append(
                    Aim("observers", "cpu_us", one, without, at_most=most, is_difference=True)
                )
    return found


def _first_record() -> list[Aim]:
    return [
        Aim(
            "opening",
            "first_record_ms",
            Contender(client, "opening", loop),
            Contender(bare, "opening"),
            at_most=most,
            is_difference=True,
        )
        for loop in LOOPS
        for client, bare, most in ((OURS, BARE, 20.0), (OURS_CONFLUENT, BARE_CONFLUENT, 0.0))
    ]
