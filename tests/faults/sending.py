"""A program that sends, for tests of faults in a whole process.

Run it with ``python -m tests.faults.sending``. Its first argument has its orders as JSON. It keeps
its history in a journal. It prints a line of JSON to report its progress to the test, and a last
one with the result. Where it has to wait for the test, it waits for a line on its standard input.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from anyio_sendproducer import ProducerRecord, ProducerSettings, SendProducer, open_send_producer
from anyio_sendproducer._engine import Engine
from tests.support.history import History
from tests.support.load import Load, Running, run_load


def tell(**what: Any) -> None:
    """Report to the test."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def _load(orders: dict[str, Any], history: History) -> None:
    settings = ProducerSettings(
        bootstrap_servers=orders["address"],
        delivery_timeout=20.0,
        close_timeout=orders["close_timeout"],
        cancel_timeout=orders["cancel_timeout"],
    )
    # The clients log that a broker does not answer. The test checks all other output.
    logging.basicConfig(handlers=[logging.NullHandler()])
    _tell_when_it_hurries()
    drains = orders["when"] in {"drain", "close"}
    if drains:  # there is room for all records, so that the block ends long before their deadline
        settings = settings.with_max_in_flight(orders["records"])
    load = Load(
        topic=orders["topic"],
        records=orders["records"],
        seconds=orders["seconds"],
        leave=drains,
        calls=("enqueue",) if drains else ("send", "enqueue"),
        admitted=0.5,
    )

    async def during(running: Running) -> None:
        await running.until_sent(0.5)
        if not drains:
            await running.until_settled(0.3)
        tell(now="sending")
        if drains:
            await anyio.to_thread.run_sync(sys.stdin.readline)
            tasks.start_soon(tell_when_it_drains, running)
        running.admit(1)
        if not drains:
            # The program waits here, so that a late signal arrives here.
            await anyio.sleep_forever()

    async def tell_when_it_drains(running: Running) -> None:
        while running.producer.statistics().state == "open":  # noqa: ASYNC110  # no event tells
            await anyio.sleep(0.005)
        tell(now="draining")

    async def watch(scope: anyio.CancelScope) -> None:
        # As services do: a signal ends the work in an orderly way.
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                scope.cancel()
                return

    async with anyio.create_task_group() as tasks:
        if orders["handler"]:
            tasks.start_soon(watch, tasks.cancel_scope)
        ran = await run_load(
            settings, load, during=during, history=history, driver=orders["driver"]
        )
        tell(now="left", undelivered=ran.undelivered)
        tasks.cancel_scope.cancel()


def _tell_when_it_hurries() -> None:
    """Report to the test when a cancellation starts to hurry the closing."""
    hurry: Any = Engine.close_quickly

    async def tell_and_hurry(self: Engine) -> None:
        tell(now="hurrying")
        await hurry(self)

    setattr(Engine, "close_quickly", tell_and_hurry)  # noqa: B010  # for type checkers


async def _exit_with_records_pending(orders: dict[str, Any]) -> None:
    """Exit with an exception while records are in flight, or without closing the producer."""
    settings = ProducerSettings(bootstrap_servers=orders["address"], cancel_timeout=0.5)
    if orders["how"] == "forgotten":
        # The block is not left and the producer is not closed: the loop ends in the middle.
        context = open_send_producer(settings, driver=orders["driver"])
        producer: SendProducer = await context.__aenter__()
        _enqueue_some(producer, orders["topic"])
        tell(now="pending")
        return
    async with open_send_producer(settings, driver=orders["driver"]) as producer:
        await producer.send(ProducerRecord("t", b"first"))
        _enqueue_some(producer, orders["topic"])
        tell(now="pending")
        if orders["how"] == "sys.exit":
            sys.exit(7)
        raise ZeroDivisionError


def _enqueue_some(producer: SendProducer, topic: str) -> None:
    for number in range(500):
        producer.enqueue_nowait(ProducerRecord(topic, b"%d" % number, partition=0))


def _is_interrupt(error: BaseException) -> bool:
    inside = getattr(error, "exceptions", None)
    if inside is None:
        return isinstance(error, KeyboardInterrupt)
    return all(map(_is_interrupt, inside))


def main() -> None:
    """Carry out the orders."""
    # A process in the background of a shell inherits that it ignores SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    orders: dict[str, Any] = json.loads(sys.argv[1])
    # A process in the background ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "how" in orders:
        anyio.run(_exit_with_records_pending, orders, backend=orders["loop"])
        return
    history = History(Path(orders["journal"]))
    began = time.monotonic()
    ended = "well"
    try:
        anyio.run(_load, orders, history, backend=orders["loop"])
    except BaseException as error:
        # A task group wraps it if one of its tasks raises it.
        if not _is_interrupt(error):
            raise
        ended = "KeyboardInterrupt"
    finally:
        history.close()
    tell(ended=ended, took=time.monotonic() - began)


if __name__ == "__main__":
    main()
