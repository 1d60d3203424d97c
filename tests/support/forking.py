"""A program that forks while its producer is open. The child ends normally.

Run it as ``python -m tests.support.forking ADDRESS DRIVER LOOP``. It prints how the child ended.
The loop runs in another thread, so the child does not have it.
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
    """Run the program. The child's return code is 7 if all is well."""
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
                # Leave the block in the child, as any task of a program might.
                client: Any = producer._engine.bridge._worker.driver
                client.close(0)
                del client
            # Drop the last reference to it and all its objects.
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
