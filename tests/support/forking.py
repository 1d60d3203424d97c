"""A program that forks while a producer of its own is open, and whose child ends as any does.

Run it as ``python -m tests.support.forking ADDRESS DRIVER LOOP``. It prints how the child ended.
The loop runs in another thread, so that the child has no part in it.
"""

from __future__ import annotations

import gc
import os
import queue
import sys
import threading
from typing import Any, cast

import anyio
import anyio.to_thread

from anyio_sendproducer import (
    ProducerMisused,
    ProducerRecord,
    ProducerSettings,
    SendProducer,
    open_send_producer,
)
from anyio_sendproducer.drivers import DriverName


class _Parent:
    """Sends before its process forks, and after."""

    def __init__(self, address: str, driver: DriverName) -> None:
        self._settings = ProducerSettings(bootstrap_servers=address)
        self._driver: DriverName = driver
        self.opened: queue.SimpleQueue[SendProducer] = queue.SimpleQueue()
        self.forked = threading.Event()

    async def run(self) -> None:
        async with open_send_producer(self._settings, driver=self._driver) as producer:
            await producer.send(ProducerRecord("forked", b"before"))
            self.opened.put(producer)
            await anyio.to_thread.run_sync(self.forked.wait)
            await producer.send(ProducerRecord("forked", b"after"))


def _tell(child: int) -> None:
    _, status = os.waitpid(child, 0)
    sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
    sys.stdout.flush()


def main() -> int:
    """Do it; the child's return code is 7 where all is well."""
    address, driver, loop = sys.argv[1:]
    parent = _Parent(address, cast("DriverName", driver))
    thread = threading.Thread(target=anyio.run, args=(parent.run,), kwargs={"backend": loop})
    thread.start()
    producer = parent.opened.get()
    child = os.fork()
    if child == 0:
        try:
            producer.enqueue_nowait(ProducerRecord("forked", b"the child's"))
        except ProducerMisused:
            if driver == "confluent":
                # As whoever leaves the block in the child, from whichever task.
                client: Any = producer._engine.bridge._worker.driver
                client.close(0)
                del client
            # It is forgotten, and all that belongs to it.
            del producer, parent, thread
            gc.collect()
            return 7
        return 1
    _tell(child)
    parent.forked.set()
    thread.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
