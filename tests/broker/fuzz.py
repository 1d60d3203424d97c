"""Producers against brokers that spoil their answers: does one hang or raise a foreign error?

``python -m tests.broker.fuzz`` runs for ten minutes with the kafka-python driver, half of the time
on Trio. In each example a producer starts, sends, commits a transaction or describes the cluster,
at a broker of its own that spoils some of its answers: see ``tests/support/fuzzed_broker.py``. It
fails if

- an example takes longer than the settings allow, apart from some seconds for a busy machine;
- an exception leaves the package that is not a ``SendProducerError``;
- control characters of an answer are in an error, in its causes, or in a message of the log;
- a thread ends with an exception, or is left;
- a broker gets many more requests than a client needs;
- the process has needed more than 300 MB.

With ``--driver confluent`` the examples run in other processes, since librdkafka does not survive
some answers. Its crashes are counted and listed, each kind with its first example. They are not
failures of this package.

``--example 17`` runs one example and prints what it does. The same seed has the same examples.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import itertools
import logging
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, get_args

import anyio
import anyio.to_thread

from anyio_sendproducer import (
    ProducerRecord,
    ProducerSettings,
    SendProducerError,
    open_send_producer,
)
from anyio_sendproducer.drivers import DriverName
from anyio_sendproducer.drivers._describe import describe_cluster
from tests.support.fuzzed_broker import PASSWORD, USER, FuzzedBroker, Plan, fuzzed_broker
from tests.support.paths import ROOT
from tests.support.scripted_broker import SASL_AUTHENTICATE

__all__ = ["Report", "run", "run_example"]

#: The time-out in seconds of each wait of a producer.
STEP: Final = 0.5
#: How often an example may wait for this long: for the start, four records, topics, and the end.
_STEPS: Final = 8
#: Seconds for delays that no setting bounds: the end of threads, and a busy machine.
SLACK: Final = 15.0
#: Seconds after which an example counts as one that never ends.
_HANGS: Final = 120
#: A number of requests that no example needs, even with retries.
_FLOOD: Final = 400
#: In bytes.
MEMORY: Final = 300 * 1000 * 1000
#: Producers in the process at a time.
_AT_ONCE: Final = 4
#: How many problems of a kind a report shows, and how many characters are a problem's kind.
_SHOWN: Final = 3
_KIND: Final = 40


class Tokens:
    """Returns the token that the broker expects."""

    def token(self) -> str:
        """The token."""
        return PASSWORD


class Report:
    """The result of some examples."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.longest = 0.0
        self.most_requests = 0
        self.problems: list[str] = []

    def note(self, outcome: str, seconds: float, requests: int) -> None:
        """Count an example."""
        self.outcomes[outcome] += 1
        self.longest = max(self.longest, seconds)
        self.most_requests = max(self.most_requests, requests)

    @property
    def examples(self) -> int:
        """The number of examples."""
        return sum(self.outcomes.values())

    def __str__(self) -> str:
        lines = [f"{count:7,}  {outcome}" for outcome, count in self.outcomes.most_common()]
        lines.append(
            f"{self.examples:,} examples, the longest {self.longest:.1f} s, at most "
            f"{self.most_requests:,} requests; {len(self.problems)} problems"
        )
        kinds: Counter[str] = Counter()
        for problem in self.problems:
            kind = problem[:_KIND]
            kinds[kind] += 1
            if kinds[kind] <= _SHOWN:
                lines.append(problem)
        lines += [f"{count:7,}  {kind} ..." for kind, count in kinds.items() if count > _SHOWN]
        return "\n".join(lines)


class Watch(logging.Handler):
    """Collects violations of examples: raw control characters in the log, and threads that end with
    an error."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[str] = []
        self._hook = threading.excepthook

    @contextlib.contextmanager
    def watching(self) -> Generator[None]:
        """Watch, for a ``with`` block."""
        loggers = [logging.getLogger(name) for name in ("anyio_sendproducer", "kafka")]
        threading.excepthook = self._note
        for logger in loggers:
            logger.addHandler(self)
        try:
            yield
        finally:
            threading.excepthook = self._hook
            for logger in loggers:
                logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Check a message."""
        message = record.getMessage()
        if not message.isprintable():
            self.problems.append(f"log of {record.name}: {message[:300]!r}")

    def _note(self, args: Any) -> None:
        self.problems.append(f"thread {args.thread}: {args.exc_type.__name__}: {args.exc_value}")
        self._hook(args)


async def run_example(
    seed: str, driver: DriverName, report: Report, tell: Callable[[str], object] = bool
) -> str:
    """Run one example, and note its result.

    Args:
        seed: determines the example.
        driver: the driver.
        report: gets the outcome.
        tell: called with the description of a spoilt answer before it is sent.

    Returns:
        A line about it.
    """
    plan = Plan(seed)
    began = time.monotonic()
    problem = ""
    with fuzzed_broker(plan) as broker:
        broker.tell = tell
        try:
            with anyio.fail_after(_HANGS):
                await _do(plan, broker, driver)
            outcome = "done"
        except SendProducerError as error:
            outcome = type(error).__name__
            problem = _raw(outcome, error)
        except Exception as error:  # noqa: BLE001  # this is what is looked for
            outcome = f"UNEXPECTED {type(error).__name__}"
            problem = f"{outcome}: {error!r}"
        took = time.monotonic() - began
        await anyio.to_thread.run_sync(broker.close)
    requests = len(broker.requests) + broker.connections
    report.note(f"{plan.job}: {outcome}", took, requests)
    line = f"{seed}: {plan}; {', '.join(broker.notes[:6])}; {took:.1f} s, {requests} requests"
    if took > STEP * _STEPS + SLACK:
        problem = problem or f"took {took:.1f} s"
    # librdkafka logs in as often as a broker demands: see SECURITY.md.
    if requests > _FLOOD and (driver, plan.target) != ("confluent", SASL_AUTHENTICATE):
        problem = problem or f"sent {requests} requests"
    if problem:
        report.problems.append(f"{problem}\n    {line}")
    return f"{line}: {outcome}"


def _raw(outcome: str, error: Exception) -> str:
    """List the problems in the texts of an error and its causes, which a traceback prints."""
    if not str(error).isprintable():
        return f"raw characters in {outcome}: {str(error)[:300]!r}"
    printed = "".join(traceback.format_exception(error))
    if not printed.replace("\n", "").isprintable():
        return f"raw characters in the traceback of {outcome}: {printed[-300:]!r}"
    return ""


async def _do(plan: Plan, broker: FuzzedBroker, driver: DriverName) -> None:
    settings = ProducerSettings(
        bootstrap_servers=broker.address,
        start_timeout=STEP,
        delivery_timeout=STEP,
        unknown_topic_timeout=STEP,
        close_timeout=STEP,
        cancel_timeout=STEP,
        properties={"retry.backoff.ms": 20, **_login(plan.mechanism)},
    )
    if plan.job == "describe":
        await anyio.to_thread.run_sync(
            describe_cluster, driver, settings, limiter=anyio.CapacityLimiter(1)
        )
    elif plan.job == "transaction":
        made = settings.with_transactional_id("fuzzed")
        async with (
            open_send_producer(made, driver=driver) as producer,
            producer.transaction() as transaction,
        ):
            await transaction.send(ProducerRecord("orders", b"two tins", b"key"))
            await transaction.send_offsets({("orders", 0): 7}, "group")
    else:
        async with open_send_producer(settings, driver=driver) as producer:
            await producer.send(ProducerRecord("orders", b"two tins", b"key"))
            await producer.partitions_for("bills")
            deliveries = [
                await producer.enqueue(ProducerRecord(topic, b"one", partition=partition))
                for topic, partition in (("orders", 0), ("bills", 1), ("orders", 1))
            ]
            for delivery in deliveries:
                await delivery.wait()


def _login(mechanism: str) -> dict[str, Any]:
    if not mechanism:
        return {}
    properties: dict[str, Any] = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": mechanism,
    }
    if mechanism == "OAUTHBEARER":
        return {**properties, "sasl_oauth_token_provider": Tokens()}
    return {**properties, "sasl.username": USER, "sasl.password": PASSWORD}


async def run(seeds: Iterator[str], driver: DriverName, report: Report) -> None:
    """Run several examples at a time."""

    async def work() -> None:
        for seed in seeds:
            await run_example(seed, driver, report)

    watch = Watch()
    with watch.watching():
        async with anyio.create_task_group() as tasks:
            for _ in range(_AT_ONCE):
                tasks.start_soon(work)
    report.problems += watch.problems


def say(text: object) -> None:
    """Print a line at once and as a whole, because several threads print."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def numbered(seed: int, first: int, seconds: float) -> Iterator[str]:
    """Yield the seeds of examples until the time is over."""
    end = time.monotonic() + seconds
    for number in itertools.count(first):
        if time.monotonic() > end:
            return
        # A process that hangs prints its stacks, and ends.
        faulthandler.dump_traceback_later(2 * _HANGS, exit=True)
        yield f"{seed}-{number}"


def highest_memory() -> int:
    """The peak memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- kafka-python --------------------------------------------------------------------------------


def fuzz_here(seed: int, seconds: float) -> int:
    """Run in this process, and print the report."""
    report = Report()
    first = 0
    for loop in ("asyncio", "trio"):
        anyio.run(run, numbered(seed, first, seconds / 2), "kafka-python", report, backend=loop)
        first = 1_000_000
    faulthandler.cancel_dump_traceback_later()
    memory = highest_memory()
    if memory > MEMORY:
        report.problems.append(f"the process needed {memory / 1e6:.0f} MB")
    left = [one for one in threading.enumerate() if one.name.startswith("kafka")]
    report.problems += [f"the thread {one.name} is left" for one in left]
    say(f"{report}\nmemory: {memory / 1e6:.0f} MB")
    return 1 if report.problems else 0


# --- librdkafka ----------------------------------------------------------------------------------


class Children:
    """Processes that run examples with librdkafka, and their results.

    Args:
        seed: the seed of all examples.
        seconds: the time limit of all examples.
        count: the number of concurrent processes. With `count` of them, each runs every `count`-th
            example.
        last: the number of examples; None: as many as the time allows.
    """

    def __init__(
        self, seed: int, seconds: float, *, count: int = 4, last: int | None = None
    ) -> None:
        self._seed = seed
        self._end = time.monotonic() + seconds
        self._count = count
        self._last = sys.maxsize if last is None else last
        self.report = Report()
        self.deaths: Counter[str] = Counter()
        #: The first example of each kind of death.
        self.firsts: dict[str, str] = {}

    def run(self) -> None:
        """Run processes until the time is over. If one dies, the next one goes on after its
        example."""
        with ThreadPoolExecutor(self._count) as threads:
            list(threads.map(self._run_some, range(self._count)))

    def _run_some(self, number: int) -> None:
        while number < self._last and (remaining := self._end - time.monotonic()) > 0:
            command = ["-m", "tests.broker.fuzz", "--child", "--seed", self._seed]
            command += ["--first", number, "--last", self._last, "--step", self._count]
            command += ["--seconds", remaining]
            number = self.watch([sys.executable, *map(str, command)], number) + self._count

    def watch(self, command: Sequence[str], number: int) -> int:
        """Run one process to its end.

        Returns:
            The number of the last example that it has started.
        """
        about = note = said = ""
        is_running = False
        with subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                word, _, rest = line.rstrip().partition(" ")
                if word == "begin":
                    first, _, about = rest.partition(" ")
                    number = int(first)
                    is_running = True
                elif word == "end":
                    is_running = False
                    took, requests, outcome = rest.split(" ", 2)
                    self.report.note(outcome, float(took), int(requests))
                elif word == "note":
                    note = rest
                elif word == "problem":
                    self.report.problems.append(rest)
                elif "ssertion" in line:
                    said = line.strip()[-200:]
        if process.returncode:
            self._note_death(process.returncode, note, f"--example {number}: {about}. {said}")
            if is_running:
                self.report.note("the process died", 0, 0)
        return number

    def _note_death(self, code: int, note: str, example: str) -> None:
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        death = f"{name}  {note}".rstrip()
        self.deaths[death] += 1
        self.firsts.setdefault(death, example.rstrip())
        if code > 0:  # Python itself, or an example that never ended
            self.report.problems.append(f"{death}: {example}")

    def __str__(self) -> str:
        lines = [str(self.report), f"{sum(self.deaths.values())} crashes of librdkafka"]
        for death, count in self.deaths.most_common():
            lines.append(f"{count:7,}  {death}\n         first {self.firsts[death]}")
        return "\n".join(lines)


def fuzz_children(seed: int, seconds: float) -> int:
    """Run librdkafka in processes, and print the causes of their deaths."""
    children = Children(seed, seconds)
    children.run()
    say(children)
    return 1 if children.report.problems else 0


def _say_note(note: str) -> None:
    say(f"note {note}")


def be_child(seed: int, numbers: Iterable[int], seconds: float) -> None:
    """Run examples one at a time, and print the start and the end of each."""
    end = time.monotonic() + seconds
    for number in numbers:
        if time.monotonic() > end:
            return
        faulthandler.dump_traceback_later(_HANGS, exit=True)
        name = f"{seed}-{number}"
        report = Report()
        say(f"begin {number} {Plan(name)}")
        watch = Watch()
        with watch.watching():
            loop = random.Random(name).choice(["asyncio", "trio"])
            anyio.run(run_example, name, "confluent", report, _say_note, backend=loop)
        for problem in report.problems + watch.problems:
            say(f"problem {' '.join(problem.split())}")
        [outcome] = report.outcomes
        say(f"end {report.longest} {report.most_requests} {outcome}")


def main() -> int:
    """Run the examples of the command line."""
    parser = argparse.ArgumentParser(description="Fuzz a broker's answers.")
    parser.add_argument("--driver", choices=get_args(DriverName), default="kafka-python")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--step", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--last", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--example", help="run this one only, and print the log")
    asked = parser.parse_args()
    if asked.example is not None:
        logging.basicConfig(level=logging.INFO)
        report = Report()
        name = asked.example if "-" in asked.example else f"{asked.seed}-{asked.example}"
        say(anyio.run(run_example, name, asked.driver, report))
        say(report)
        return 1 if report.problems else 0
    # Each client logs a warning about nearly every spoilt answer.
    logging.getLogger().addHandler(logging.NullHandler())
    if asked.child:
        be_child(asked.seed, range(asked.first, asked.last, asked.step), asked.seconds)
        return 0
    if asked.driver == "confluent":
        return fuzz_children(asked.seed, asked.seconds)
    return fuzz_here(asked.seed, asked.seconds)


if __name__ == "__main__":
    sys.exit(main())
