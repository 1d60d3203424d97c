"""What loop and threads of the bridge share: gates between the steps that belong together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from anyio_sendproducer._bridge import Bridge
from anyio_sendproducer._driver_events import BatchSubmitted, Event, MetadataChanged
from anyio_sendproducer._loops import current_loop
from anyio_sendproducer.drivers import Submitted
from anyio_sendproducer.testing import FakeDriver, Gate
from tests.support.calls import at_gate, quiet
from tests.support.waiting import blocking_until


class Outbox(list[Event]):
    """Stops whoever appends, after it has appended."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    def append(self, item: Event) -> None:
        super().append(item)
        self.gate.pass_through()


@pytest.fixture
async def bridge() -> Bridge:
    return Bridge(current_loop(), FakeDriver, time.monotonic)


def on_a_thread(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


@pytest.mark.parametrize("is_wanted", [False, True])
async def test_what_is_posted_and_the_wake_up_go_together(bridge: Bridge, is_wanted: bool) -> None:
    """A thread has appended and has not woken the loop; another one takes what there is."""
    worker = bridge._worker
    outbox = Outbox()
    cast("Any", worker).outbox = outbox
    outbox.gate.shut()
    event = BatchSubmitted(Submitted()) if is_wanted else MetadataChanged()
    posting = on_a_thread(lambda: worker.post(event, urgent=not is_wanted))
    await at_gate(outbox.gate)
    taken: list[Event] = []
    taking = on_a_thread(lambda: taken.extend(bridge._take_out()))
    assert not worker.posting.acquire(blocking=False)
    assert taken == []
    outbox.gate.open()
    posting.join()
    taking.join()
    assert taken == [event]
    assert not worker.signalled
    await quiet()


async def test_what_is_not_urgent_waits_until_the_loop_wants_it(bridge: Bridge) -> None:
    worker = bridge._worker
    posting = on_a_thread(lambda: worker.post(BatchSubmitted(Submitted()), urgent=False))
    posting.join()
    await quiet()
    assert (len(bridge.events), bridge.wake_ups) == (0, 0)
    bridge.notify_when_ready()  # takes what came before
    assert len(bridge.events) == 1
    posting = on_a_thread(lambda: worker.post(BatchSubmitted(Submitted()), urgent=False))
    posting.join()
    await quiet()
    assert (len(bridge.events), bridge.wake_ups) == (2, 1)


async def test_a_loop_that_is_about_to_look_is_not_woken(bridge: Bridge) -> None:
    """Two threads post before the loop looks: one wake-up brings both."""
    worker = bridge._worker
    threads = [on_a_thread(lambda: worker.post(MetadataChanged())) for _ in range(2)]
    blocking_until(lambda: len(worker.outbox) == 2)  # the loop does not run meanwhile
    for thread in threads:
        thread.join()
    await quiet()
    assert (len(bridge.events), bridge.wake_ups) == (1, 1)
