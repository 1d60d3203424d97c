"""Run one client with one workload against a running broker.

    python bench/contender.py CLIENT WORKLOAD --bootstrap ADDRESS [--loop asyncio|uvloop|trio] ...

This script prints a JSON object with the figures: records per second, processor time per record,
latencies if the workload measures them, the lateness of a 1 ms timer on the same event loop, and
the peak memory of the process. ``bench/compare.py`` and ``bench/suite.py`` start a process for each
turn, so no client is measured with the modules and the memory of another client.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import resource
import statistics
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import open_loop
import opening
import pending

#: Seconds between two ticks.
TICK = 0.001


@dataclass
class Job:
    """A turn: its arguments and its figures."""

    client: str
    workload: str
    bootstrap: str
    topic: str
    records: int
    size: int
    compression: str
    #: The version of the protocol for kafka-python, if the client cannot get it from the sink.
    api_version: str
    #: In the open loop: records that are due earlier belong to the warm-up.
    due_from: float = math.inf
    seconds: float = 0.0
    processor: float = 0.0
    latencies: list[float] = field(default_factory=list[float])
    extra: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def value(self) -> bytes:
        """The value of each record. It is the same in each run."""
        pattern = bytes(range(32, 127))
        return (pattern * (self.size // len(pattern) + 1))[: self.size]

    @property
    def kafka_python(self) -> dict[str, Any]:
        """The settings of kafka-python that depend on the sink."""
        version = tuple(map(int, self.api_version.split("."))) if self.api_version else None
        return {"api_version": version} if version else {}

    def begin(self) -> None:
        """Start the measurement after the warm-up."""
        self.freeze()
        self.start()

    def freeze(self) -> None:
        """Exclude all present objects from garbage collection, such as imported modules."""
        gc.collect()
        gc.freeze()

    def start(self) -> None:
        """Start the measurement."""
        self._processor = time.process_time()
        self._start = time.perf_counter()

    def end(self, records: int) -> None:
        """Stop the measurement, in which this many records were acknowledged."""
        self.seconds = time.perf_counter() - self._start
        self.processor = time.process_time() - self._processor
        self.records = records

    def start_by_thread(self, due_from: float) -> None:
        """Start the measurement, also of each thread. Records that are due earlier do not count."""
        self.due_from = due_from
        self._threads = open_loop.processor_times()
        self.start()

    def acknowledged(self, due: float) -> None:
        """Note the latency of a record that was due at this time."""
        if due >= self.due_from:
            self.latencies.append(time.perf_counter() - due)

    def end_by_thread(self) -> None:
        """Stop the measurement, and note the processor time of each group of threads."""
        records = len(self.latencies)
        self.end(records)
        for group, seconds in open_loop.spent(self._threads).items():
            self.extra[f"cpu_{group}_us"] = seconds / records * 1e6


Send = Callable[[], Awaitable[Any]]


async def crowd(job: Job, send: Send, tasks: int) -> None:
    """Run this many tasks. Each task awaits one record after the other."""
    await send()
    each = max(1, job.records // tasks)
    there = 0
    go = anyio.Event()

    async def one() -> None:
        for _ in range(each):
            await send()

    async def timed() -> None:
        for _ in range(each):
            start = time.perf_counter()
            await send()
            job.latencies.append(time.perf_counter() - start)

    async def when_all_are_there() -> None:
        nonlocal there
        there += 1
        if there == tasks:
            # Do not measure the creation of the tasks.
            job.start()
            go.set()
        await go.wait()
        await (timed if tasks == 1 else one)()

    job.freeze()
    async with anyio.create_task_group() as group:
        for _ in range(tasks):
            group.start_soon(when_all_are_there)
    job.end(each * tasks)


async def requests(job: Job, send: Send) -> None:
    """Send records that arrive at a mean rate, each from its own task."""

    async def one(due: float) -> None:
        await send()
        job.acknowledged(due)

    await send()
    async with anyio.create_task_group() as group:
        await arrivals(job, partial(group.start_soon, one))
    job.end_by_thread()


async def arrivals(job: Job, send: Callable[[float], object]) -> None:
    """Start records that arrive at the mean rate of a workload named ``open-RATE``."""
    rate = float(job.workload[5:])
    times = open_loop.schedule(rate, job.records + int(rate * open_loop.WARM_UP))
    job.freeze()
    await open_loop.run(times, job.start_by_thread, send)


def tasks_of(workload: str) -> int | None:
    """Return the number of tasks of a workload named ``tasks-N``, or None."""
    return int(workload[6:]) if workload.startswith("tasks-") else None


async def opened_and_closed(job: Job, client: opening.Client) -> None:
    """Open and close a client. The number of records is the number of times."""
    job.begin()
    job.extra |= await opening.run(client, job.records)
    job.end(job.records)


def is_open(workload: str) -> bool:
    """Return whether a workload is named ``open-RATE``."""
    return workload.startswith("open-")


def is_prompt(workload: str) -> bool:
    """Return whether a workload measures the latency of each record. Bare clients then must not
    linger."""
    return workload in {"tasks-1", "opening"} or is_open(workload)


async def awaited(job: Job, send: Send) -> bool:
    """Do a workload in which tasks await their records. Return False if it is another workload."""
    tasks = tasks_of(job.workload)
    if tasks is not None:
        await crowd(job, send, tasks)
    elif is_open(job.workload):
        await requests(job, send)
    else:
        return False
    return True


async def nothing(job: Job) -> None:
    """Use no client: each task waits until another task wakes it up.

    This measures the event loop's time to suspend and resume tasks. No client can be faster.

    In the open loop each task sleeps for 0.8 ms.
    """
    if is_open(job.workload):
        await requests(job, partial(anyio.sleep, 0.0008))
        return
    parked: list[Any] = []
    import sniffio

    if sniffio.current_async_library() == "trio":
        from trio import lowlevel

        async def send() -> None:
            parked.append(lowlevel.current_task())
            await lowlevel.wait_task_rescheduled(lambda _: lowlevel.Abort.SUCCEEDED)

        wake = lowlevel.reschedule
    else:
        loop = asyncio.get_running_loop()

        async def send() -> None:
            future = loop.create_future()
            parked.append(future)
            await future

        def wake(future: Any) -> None:
            future.set_result(None)

    async def wake_all() -> None:
        while True:
            waiting = parked[:]
            parked.clear()
            for one in waiting:
                wake(one)
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(wake_all)
        await crowd(job, send, tasks_of(job.workload) or 1)
        group.cancel_scope.cancel()


# --- ours ----------------------------------------------------------------------------------------


async def ours(job: Job, driver: str = "kafka-python", observers: Sequence[Any] = ()) -> None:
    """This package with its defaults, except for settings that the sink needs."""
    from anyio_sendproducer import (
        Message,
        ProducerRecord,
        ProducerSettings,
        UndeliveredRecords,
        open_send_producer,
    )

    value = job.value
    if job.workload in pending.WAYS:
        job.begin()
        job.extra["pending_bytes"] = await pending.run(driver, job.workload, job.records, value)
        job.end(job.records)
        return
    properties: dict[str, Any] = {"compression.type": job.compression}
    if driver == "kafka-python":
        properties |= job.kafka_python
    settings = ProducerSettings(bootstrap_servers=job.bootstrap, properties=properties)

    @asynccontextmanager
    async def client() -> AsyncIterator[Send]:
        async with open_send_producer(settings, driver=driver, observers=observers) as producer:
            yield lambda: producer.send(ProducerRecord(job.topic, value))

    if job.workload == "opening":
        await opened_and_closed(job, client)
        return
    async with open_send_producer(settings, driver=driver, observers=observers) as producer:
        await producer.send(ProducerRecord(job.topic, value))
        before = producer.statistics()
        if await awaited(job, lambda: producer.send(ProducerRecord(job.topic, value))):
            pass
        elif job.workload.startswith("many-"):
            at_once = min(int(job.workload[5:]), job.records)
            job.begin()
            for _ in range(job.records // at_once):
                await producer.send_many([ProducerRecord(job.topic, value) for _ in range(at_once)])
            job.end(job.records // at_once * at_once)
        elif job.workload == "flow" or job.workload.startswith("sink"):

            async def envelopes() -> AsyncIterator[Message[None, bytes, None]]:
                for _ in range(job.records):
                    yield Message(ProducerRecord(job.topic, value))

            job.begin()
            if job.workload != "flow":
                await producer.sink(envelopes())
            else:
                async with producer.flow(envelopes()) as results:
                    async for _ in results:
                        pass
            job.end(job.records)
        elif job.workload == "wait":
            job.begin()
            deliveries = [
                await producer.enqueue(ProducerRecord(job.topic, value)) for _ in range(job.records)
            ]
            for delivery in deliveries:
                await delivery.wait()
            job.end(job.records)
        elif job.workload == "forget":
            job.begin()
            for _ in range(job.records):
                await producer.enqueue(ProducerRecord(job.topic, value))
            await producer.flush()
            job.end(job.records)
        else:
            raise NotImplementedError(job.workload)
        after = producer.statistics()
        if after.failed:
            raise UndeliveredRecords([], after.failed)
        crossings = after.hand_overs - before.hand_overs + after.wake_ups - before.wake_ups
        job.extra["crossings"] = crossings / job.records


async def ours_confluent(job: Job) -> None:
    """This package with the librdkafka driver and its defaults."""
    await ours(job, "confluent")


class Idle:
    """An observer that does nothing."""

    def observe(self, events: Sequence[Any], /) -> None:
        """Ignore the events."""


@contextmanager
def opentelemetry(*, traces: bool = True) -> Iterator[Any]:
    """OpenTelemetry's observer with its SDK and the batch processor of our guide. The exporter
    drops all spans. Without traces, the observer only has metrics."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import (
        BatchSpanProcessor,
        SpanExporter,
        SpanExportResult,
    )

    from anyio_sendproducer.telemetry import OpenTelemetryObserver

    class Nowhere(SpanExporter):
        def export(self, spans: Sequence[Any]) -> SpanExportResult:  # noqa: ARG002  # required by the SDK
            return SpanExportResult.SUCCESS

    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(BatchSpanProcessor(Nowhere()))
    meters = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    try:
        yield OpenTelemetryObserver(tracer_provider=tracers, meter_provider=meters, traces=traces)
    finally:
        tracers.shutdown()
        meters.shutdown()


async def ours_observed(job: Job, driver: str = "kafka-python") -> None:
    """This package with an observer that does nothing."""
    await ours(job, driver, [Idle()])


async def ours_counted(job: Job, driver: str = "kafka-python") -> None:
    """This package with OpenTelemetry's observer for metrics only."""
    with opentelemetry(traces=False) as observer:
        await ours(job, driver, [observer])


async def ours_traced(job: Job, driver: str = "kafka-python") -> None:
    """This package with OpenTelemetry's observer: a span for each record, and metrics."""
    with opentelemetry() as observer:
        await ours(job, driver, [observer])


# --- the others ----------------------------------------------------------------------------------


def _kafka_python(job: Job) -> dict[str, Any]:
    """The settings of the bare kafka-python that suit it best here."""
    return {
        "bootstrap_servers": job.bootstrap,
        "metrics_enabled": False,
        "linger_ms": 0 if is_prompt(job.workload) else 5,
        "batch_size": 256 * 1024,
        "compression_type": None if job.compression == "none" else job.compression,
        **job.kafka_python,
    }


def bare(job: Job) -> None:
    """kafka-python itself."""
    from kafka import KafkaProducer

    make: Callable[[], Any] = partial(KafkaProducer, **_kafka_python(job))
    value = job.value

    @asynccontextmanager
    async def opened() -> AsyncIterator[Send]:
        client = make()

        async def send() -> None:
            client.send(job.topic, value).get(30)

        yield send
        client.close()

    if job.workload == "opening":
        anyio.run(opened_and_closed, job, opened)
        return
    client = make()
    try:
        client.send(job.topic, value).get(30)
        job.begin()
        if job.workload == "tasks-1":
            for _ in range(job.records):
                start = time.perf_counter()
                client.send(job.topic, value).get(30)
                job.latencies.append(time.perf_counter() - start)
        elif job.workload == "forget":
            for _ in range(job.records):
                client.send(job.topic, value)
            client.flush()
        elif is_open(job.workload):

            def send(due: float) -> None:
                client.send(job.topic, value).add_callback(lambda _: job.acknowledged(due))

            anyio.run(arrivals, job, send)
            client.flush()
            job.end_by_thread()
            return
        else:
            raise NotImplementedError(job.workload)
        job.end(job.records)
    finally:
        client.close()


async def aiokafka(job: Job, **options: Any) -> None:
    """The client aiokafka with its defaults."""
    from aiokafka import AIOKafkaProducer

    make: Callable[[], Any] = partial(
        AIOKafkaProducer,
        bootstrap_servers=job.bootstrap,
        compression_type=None if job.compression == "none" else job.compression,
        **options,
    )
    value = job.value

    @asynccontextmanager
    async def opened() -> AsyncIterator[Send]:
        async with make() as client:
            yield lambda: client.send_and_wait(job.topic, value)

    if job.workload == "opening":
        await opened_and_closed(job, opened)
        return
    client = make()
    await client.start()
    try:
        if await awaited(job, lambda: client.send_and_wait(job.topic, value)):
            pass
        elif job.workload.startswith("many-"):
            at_once = min(int(job.workload[5:]), job.records)
            await client.send_and_wait(job.topic, value)
            job.begin()
            for _ in range(job.records // at_once):
                futures = [await client.send(job.topic, value) for _ in range(at_once)]
                await asyncio.gather(*futures)
            job.end(job.records // at_once * at_once)
        elif job.workload == "forget":
            await client.send_and_wait(job.topic, value)
            job.begin()
            for _ in range(job.records):
                await client.send(job.topic, value)
            await client.flush()
            job.end(job.records)
        else:
            raise NotImplementedError(job.workload)
    finally:
        await client.stop()


async def aiokafka_tuned(job: Job) -> None:
    """The client aiokafka with larger batches."""
    await aiokafka(job, max_batch_size=256 * 1024)


async def aiokafka_idempotent(job: Job) -> None:
    """The client aiokafka with larger batches, and with the guarantees of our defaults."""
    await aiokafka(job, max_batch_size=256 * 1024, enable_idempotence=True, acks="all")


def _librdkafka(job: Job) -> dict[str, Any]:
    return {
        "bootstrap.servers": job.bootstrap,
        "enable.idempotence": True,
        "compression.type": job.compression,
        "log_level": 0,
    }


def confluent(job: Job) -> None:
    """confluent-kafka's Producer with its defaults, and a callback for each record."""
    from confluent_kafka import KafkaException, Producer

    done = 0

    def delivered(error: Any, _message: Any) -> None:
        nonlocal done
        if error is not None:
            raise KafkaException(error)
        done += 1

    lone = {"linger.ms": 0} if is_prompt(job.workload) else {}
    make: Callable[[], Any] = partial(Producer, _librdkafka(job) | lone)
    value = job.value

    @asynccontextmanager
    async def opened() -> AsyncIterator[Send]:
        client = make()
        sent = done

        async def send() -> None:
            nonlocal sent
            sent += 1
            client.produce(job.topic, value, on_delivery=delivered)
            while done < sent:
                client.poll(1)

        yield send
        client.close()

    if job.workload == "opening":
        anyio.run(opened_and_closed, job, opened)
        return
    client = make()
    client.produce(job.topic, value, on_delivery=delivered)
    client.flush()
    done = 0
    job.begin()
    if job.workload == "tasks-1":
        for number in range(job.records):
            start = time.perf_counter()
            client.produce(job.topic, value, on_delivery=delivered)
            while done <= number:
                client.poll(1)
            job.latencies.append(time.perf_counter() - start)
    elif job.workload == "forget":
        for _ in range(job.records):
            while True:
                try:
                    client.produce(job.topic, value, on_delivery=delivered)
                except BufferError:
                    client.poll(0.01)
                else:
                    break
            client.poll(0)
        client.flush()
    elif is_open(job.workload):
        with polling(client):
            anyio.run(arrivals, job, partial(_produce_timed, job, client, value))
            client.flush()
            job.end_by_thread()
        return
    else:
        raise NotImplementedError(job.workload)
    job.end(done)


def _produce_timed(job: Job, client: Any, value: bytes, due: float) -> None:
    def delivered(error: Any, _message: Any) -> None:
        if error is None:
            job.acknowledged(due)

    client.produce(job.topic, value, on_delivery=delivered)


@contextmanager
def polling(client: Any) -> Iterator[None]:
    """Call the delivery callbacks of confluent-kafka's Producer in a thread."""
    ended = threading.Event()

    def poll() -> None:
        while not ended.is_set():
            client.poll(0.1)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Wakes:
    """Sets futures of the event loop from the thread of a client, as many as it can in a turn."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._futures: deque[asyncio.Future[None]] = deque()
        self._is_due = False

    def future(self) -> asyncio.Future[None]:
        """Return a future for a record."""
        return self._loop.create_future()

    def acknowledged(self, future: asyncio.Future[None], *_: object) -> None:
        """Set a future soon. Any thread may call this."""
        self._futures.append(future)
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon_threadsafe(self._set_all)

    def _set_all(self) -> None:
        self._is_due = False
        while self._futures:
            self._futures.popleft().set_result(None)


async def bare_awaited(job: Job) -> None:
    """kafka-python with a future for each record, and nothing else."""
    from kafka import KafkaProducer

    wakes, value = Wakes(), job.value
    client: Any = KafkaProducer(**_kafka_python(job))

    async def send() -> None:
        future = wakes.future()
        client.send(job.topic, value).add_callback(wakes.acknowledged, future)
        await future

    try:
        if not await awaited(job, send):
            raise NotImplementedError(job.workload)
    finally:
        client.close()


async def confluent_awaited(job: Job) -> None:
    """confluent-kafka's Producer with a future for each record, and nothing else."""
    from confluent_kafka import Producer

    wakes, value = Wakes(), job.value
    client: Any = Producer(_librdkafka(job) | {"linger.ms": 0})

    async def send() -> None:
        future = wakes.future()
        client.produce(job.topic, value, on_delivery=lambda *_: wakes.acknowledged(future))
        await future

    with polling(client):
        if not await awaited(job, send):
            raise NotImplementedError(job.workload)


async def _confluent_aio(job: Job, **options: Any) -> None:
    from confluent_kafka.aio import AIOProducer

    value = job.value

    @asynccontextmanager
    async def opened() -> AsyncIterator[Send]:
        client: Any = AIOProducer(_librdkafka(job), **options)

        async def send() -> None:
            await (await client.produce(job.topic, value))

        yield send
        await client.close()

    if job.workload == "opening":
        await opened_and_closed(job, opened)
        return
    client: Any = AIOProducer(_librdkafka(job), **options)

    async def send() -> None:
        await (await client.produce(job.topic, value))

    try:
        if not await awaited(job, send):
            raise NotImplementedError(job.workload)
    finally:
        await client.close()


async def confluent_aio(job: Job) -> None:
    """confluent-kafka's AIOProducer with its defaults."""
    await _confluent_aio(job)


async def confluent_aio_tuned(job: Job) -> None:
    """confluent-kafka's AIOProducer with a small buffer and a short timeout."""
    await _confluent_aio(job, batch_size=100, buffer_timeout=0.002)


#: Clients that need no event loop.
THREADED: dict[str, Callable[[Job], None]] = {"kafka-python": bare, "confluent": confluent}
#: Clients by name, and whether they run on Trio.
LOOPED: dict[str, tuple[Callable[[Job], Awaitable[None]], bool]] = {
    "ours": (ours, True),
    "ours, confluent": (ours_confluent, True),
    "ours, observed": (ours_observed, True),
    "ours, observed by metrics": (ours_counted, True),
    "ours, observed by OpenTelemetry": (ours_traced, True),
    "ours, confluent, observed": (partial(ours_observed, driver="confluent"), True),
    "ours, confluent, observed by metrics": (partial(ours_counted, driver="confluent"), True),
    "ours, confluent, observed by OpenTelemetry": (partial(ours_traced, driver="confluent"), True),
    "nothing": (nothing, True),
    "kafka-python, awaited": (bare_awaited, False),
    "confluent, awaited": (confluent_awaited, False),
    "aiokafka": (aiokafka, False),
    "aiokafka, tuned": (aiokafka_tuned, False),
    "aiokafka, idempotent": (aiokafka_idempotent, False),
    "confluent-aio": (confluent_aio, False),
    "confluent-aio, tuned": (confluent_aio_tuned, False),
}


@asynccontextmanager
async def ticking(late: list[float]) -> AsyncIterator[None]:
    """Run a task that wakes up every millisecond and notes how late it is."""

    async def tick() -> None:
        while True:
            due = time.perf_counter() + TICK
            await anyio.sleep(TICK)
            late.append(time.perf_counter() - due)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tick)
        yield
        tasks.cancel_scope.cancel()


async def _run(job: Job, ticks: bool, late: list[float]) -> None:  # noqa: FBT001
    async with AsyncExitStack() as stack:
        if ticks:
            await stack.enter_async_context(ticking(late))
        await LOOPED[job.client][0](job)


def share(values: list[float], of: float) -> float:
    """A percentile: the value that this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * of))]


def spread(values: list[float]) -> dict[str, float]:
    """The median, the 99th and 99.9th percentile and the maximum, in milliseconds."""
    return {
        "median_ms": statistics.median(values) * 1e3,
        "p99_ms": share(values, 0.99) * 1e3,
        "p999_ms": share(values, 0.999) * 1e3,
        "max_ms": max(values) * 1e3,
    }


def main() -> None:
    """Run one contender."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("client", choices=[*THREADED, *LOOPED])
    parser.add_argument("workload", help="for example tasks-N, many-N, flow, open-RATE or opening")
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", default="bench")
    parser.add_argument("--loop", choices=["asyncio", "uvloop", "trio", "none"], default="asyncio")
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--compression", default="none")
    parser.add_argument("--api-version", default="", help="for kafka-python, for example 2.3")
    parser.add_argument("--ticks", action="store_true", help="also run a timer of 1 ms")
    options = vars(parser.parse_args())
    loop, ticks = options.pop("loop"), options.pop("ticks")
    job = Job(**options)
    late: list[float] = []
    if job.client in THREADED:
        THREADED[job.client](job)
    else:
        anyio.run(
            _run,
            job,
            ticks,
            late,
            backend="trio" if loop == "trio" else "asyncio",
            backend_options={"use_uvloop": True} if loop == "uvloop" else {},
        )
    figures: dict[str, float] = {
        "rate": job.records / job.seconds,
        "cpu_us": job.processor / job.records * 1e6,
        "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **job.extra,
    }
    if job.latencies:
        figures |= {f"latency_{name}": figure for name, figure in spread(job.latencies).items()}
    if late:
        figures |= {f"late_{name}": figure for name, figure in spread(late).items()}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
