"""The web services in ``examples/``, each in its own process.

Each response has the status for the outcome of its record. No accepted record is lost after Ctrl-C
or SIGTERM.
"""

from __future__ import annotations

import collections
import itertools
import json
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import httpx
import pytest

from anyio_sendproducer.testing import EmbeddedBroker
from tests.support.calls import Call, task_group
from tests.support.example_process import EXAMPLES, SOON, Example, read, running, until_true
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")

#: The services with their event loops. The HTTP client of a test runs on the same event loop.
SERVICES: Final = [
    ("fastapi_orders.py", "asyncio"),
    ("litestar_orders.py", "asyncio"),
    ("quart_trio_orders.py", "trio"),
]
services = pytest.mark.parametrize(("service", "anyio_backend"), SERVICES)

#: Requests one after another, so that the service has handled an event that preceded them.
ROUND_TRIPS: Final = 10

#: The number of customers. Each customer places its next order after the previous answer.
CUSTOMERS: Final = 30


def test_each_example_is_tested() -> None:
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert names == {
        *(service for service, _ in SERVICES),
        "outbox.py",  # test_outbox.py
        "log_shipper.py",  # test_log_shipper.py
        "pipeline.py",  # test_pipeline.py
    }


class Service:
    """A running service, and an HTTP client for it."""

    def __init__(self, example: Example, client: httpx.AsyncClient) -> None:
        self.example = example
        self.client = client

    async def in_flight(self) -> int:
        # Leave no connection open: on Trio, Hypercorn waits 12 s for idle connections at its end.
        response = await self.client.get("/health", headers={"Connection": "close"})
        assert response.status_code == 200
        return int(response.json()["in_flight"])

    async def until_delivered(self) -> None:
        """Wait until the producer has nothing left to deliver."""
        await until_true(self.in_flight, lambda count: count == 0)

    async def order(self, id_: str, customer: str = "alice", item: str = "tin") -> httpx.Response:
        return await self.client.post(
            "/orders", json={"id": id_, "customer": customer, "items": [item]}
        )

    async def view(self, page: str) -> httpx.Response:
        return await self.client.post("/page-views", json={"page": page})

    async def takes_no_more(self) -> None:
        """Wait until the service accepts no connection, because it is shutting down."""
        port = self.client.base_url.port
        assert port is not None
        with anyio.fail_after(PATIENCE):
            while True:
                try:
                    stream = await anyio.connect_tcp("127.0.0.1", port)
                except OSError:
                    return
                await stream.aclose()
                await anyio.sleep(0.01)


@asynccontextmanager
async def serving(
    program: str, broker: EmbeddedBroker, **settings: str
) -> AsyncGenerator[Service, None]:
    env = {"ORDERS_BOOTSTRAP_SERVERS": str(broker), **settings}
    async with running(program, "--port", "0", env=env) as example:
        url = (await example.line(r"[Rr]unning on (http://127\.0\.0\.1:\d+)"))[1]
        async with httpx.AsyncClient(
            base_url=url,
            timeout=PATIENCE,
            limits=httpx.Limits(max_connections=200),
            trust_env=False,
        ) as client:
            yield Service(example, client)


@pytest.mark.parametrize(
    ("service", "anyio_backend", "stay"),
    [
        *((service, backend, backend == "asyncio") for service, backend in SERVICES),
        # On Trio, Hypercorn waits 12 s before it closes the connections of the customers.
        pytest.param("quart_trio_orders.py", "trio", True, marks=pytest.mark.nightly),
    ],
)
async def test_each_answered_order_is_in_kafka(
    service: str, stay: bool, broker: EmbeddedBroker
) -> None:
    """At shutdown, the customers keep their connections and place more orders, or they leave."""
    answers: dict[str, httpx.Response] = {}
    ordered: set[str] = set()
    leave = False

    async with serving(service, broker) as running_service:
        async with task_group() as tasks:

            async def order_on_and_on(customer: str) -> None:
                for number in itertools.count():
                    id_ = f"{customer}-{number}"
                    ordered.add(id_)
                    try:
                        answers[id_] = await running_service.order(id_, customer)
                    except httpx.TransportError:
                        return  # the service has ended
                    if leave:
                        return

            for number in range(CUSTOMERS):
                tasks.start_soon(order_on_and_on, f"customer {number}")
            await until(lambda: len(answers) > 5 * CUSTOMERS)
            broker.pause()
            await until_true(running_service.in_flight, CUSTOMERS.__le__)
            unanswered = ordered - set(answers)
            running_service.example.interrupt()
            await running_service.takes_no_more()
            # The broker may have acknowledged a few of them just before the pause.
            in_flight = unanswered - set(answers)
            assert in_flight
            leave = not stay
            broker.resume()
        await running_service.client.aclose()
        assert await running_service.example.code(within=SOON) == 0

    # The orders in flight were answered. Open connections may have brought more orders meanwhile.
    assert in_flight <= set(answers)
    assert {answer.status_code for answer in answers.values()} == {201}
    logged = {(one.partition, one.offset): one for one in await read(broker, "orders")}
    ids = [one.headers for one in logged.values()]
    assert len(set(ids)) == len(ids)
    last: dict[Any, int] = collections.defaultdict(lambda: -1)
    for id_, answer in answers.items():
        place = answer.json()
        one = logged.pop((place["partition"], place["offset"]))
        order = json.loads(one.value or b"")
        assert one.headers == (("id", id_.encode()),)
        assert one.key == order["customer"].encode()
        assert order == {"id": id_, "customer": id_.rpartition("-")[0], "items": ["tin"]}
        # The records of a customer are in the order of the orders.
        assert place["offset"] > last[order["customer"]]
        last[order["customer"]] = place["offset"]


@services
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_accepted_page_view_is_in_kafka_after_the_shutdown(
    number: signal.Signals, service: str, broker: EmbeddedBroker
) -> None:
    async with serving(service, broker) as running_service:
        assert (await running_service.view("first")).status_code == 202
        await running_service.until_delivered()
        broker.pause()
        for page in range(100):
            assert (await running_service.view(f"page {page}")).status_code == 202
        assert await running_service.in_flight() >= 100
        # Hypercorn would wait for an open connection.
        await running_service.client.aclose()
        running_service.example.send(number)
        await running_service.takes_no_more()
        broker.resume()
        code = await running_service.example.code(within=SOON)
    # At its end, uvicorn sends SIGTERM to itself again.
    again = number is signal.SIGTERM and service != "quart_trio_orders.py"
    assert code == (-signal.SIGTERM if again else 0)
    views = [one.value for one in await read(broker, "page-views")]
    assert sorted(views, key=repr) == sorted(
        [b"first", *(b"page %d" % page for page in range(100))], key=repr
    )


@services
async def test_each_kind_of_failure_has_its_http_status(
    service: str, broker: EmbeddedBroker
) -> None:
    limits = {
        "ORDERS_DELIVERY_TIMEOUT": "4",
        "ORDERS_CLOSE_TIMEOUT": "0.5",
        "ORDERS_MAX_IN_FLIGHT": "3",
        "ORDERS_PROPERTIES_MAX_REQUEST_SIZE": "100000",
    }
    async with serving(service, broker, **limits) as running_service, task_group() as tasks:
        assert (await running_service.order("good")).status_code == 201
        assert (await running_service.view("good")).status_code == 202
        await running_service.until_delivered()
        for wrong in ({}, {"id": 1}, ["order"]):
            response = await running_service.client.post("/orders", json=wrong)
            assert response.status_code == (422 if service == "fastapi_orders.py" else 400)
        too_large = await running_service.order("large", item="x" * 600_000)
        assert too_large.status_code == 413
        assert too_large.json()["detail"] == "the order is too large"
        refused = await running_service.order("refused", item="x" * 200_000)
        assert refused.status_code == 500
        assert refused.json() == {"detail": "Kafka refuses the record"}

        broker.pause()
        unknown = Call(tasks, running_service.order, "unknown")
        await until_true(running_service.in_flight, lambda count: count == 1)
        # There is room for two more.
        views = [await running_service.view(f"{number}") for number in range(3)]
        assert [view.status_code for view in views] == [202, 202, 503]
        assert views[-1].headers["Retry-After"] == "1"
        # The client keeps the records beyond their deadlines, so this order waits for room until
        # its own deadline.
        no_room = await running_service.order("no room")
        answer = (await unknown.wait()).value
        assert answer.status_code == 504
        assert str(broker) not in answer.text
        # On a slow machine, the client drops the first record meanwhile, and this order gets its
        # room.
        if no_room.status_code != 504:
            assert no_room.status_code == 503
            assert no_room.json() == {"detail": "not written: send it again"}
            assert no_room.headers["Retry-After"] == "1"
        await running_service.client.aclose()
        running_service.example.interrupt()
        # The service ends although the broker does not answer.
        assert await running_service.example.code(within=SOON) == 0
        assert "page views were lost: 2 record(s) failed" in running_service.example.errors


@services
async def test_half_of_a_surrogate_pair_is_a_wrong_request(
    service: str, broker: EmbeddedBroker
) -> None:
    """JSON can contain such a text, and no record can."""
    orders = (
        {"id": "\ud800", "customer": "alice", "items": ["tin"]},
        {"id": "1", "customer": "\ud800", "items": ["tin"]},
    )
    async with serving(service, broker) as running_service:
        for path, content in (
            *(("/orders", order) for order in orders),
            ("/page-views", {"page": "\ud800"}),
        ):
            response = await running_service.client.post(
                path, content=json.dumps(content), headers={"Content-Type": "application/json"}
            )
            assert response.status_code == (422 if service == "fastapi_orders.py" else 400)
        await running_service.client.aclose()
        running_service.example.interrupt()
        assert await running_service.example.code(within=SOON) == 0


@services
async def test_only_quart_cancels_an_order_whose_http_client_disconnects(
    service: str, broker: EmbeddedBroker
) -> None:
    async with serving(
        service, broker, ORDERS_DELIVERY_TIMEOUT=f"{PATIENCE}", ORDERS_MAX_IN_FLIGHT="1"
    ) as running_service:
        assert (await running_service.order("first")).status_code == 201
        broker.pause()
        assert (await running_service.view("in flight")).status_code == 202
        async with task_group() as tasks:
            tasks.start_soon(running_service.order, "disconnected")
            # A page view gets no room, so the order before it waits for room.
            for _ in range(ROUND_TRIPS):
                assert (await running_service.view("no room")).status_code == 503
            tasks.cancel_scope.cancel()
        # The service notices the end of the connection before these requests.
        for _ in range(ROUND_TRIPS):
            assert await running_service.in_flight() == 1
        broker.resume()
        assert (await running_service.order("last")).status_code == 201
        await running_service.client.aclose()
        running_service.example.interrupt()
        assert await running_service.example.code(within=SOON) == 0
    ids = sorted(json.loads(one.value or b"")["id"] for one in await read(broker, "orders"))
    is_cancelled = service == "quart_trio_orders.py"
    assert ids == (["first", "last"] if is_cancelled else ["disconnected", "first", "last"])


@services
async def test_a_service_does_not_start_without_a_broker(service: str) -> None:
    env = {"ORDERS_BOOTSTRAP_SERVERS": "127.0.0.1:1", "ORDERS_START_TIMEOUT": "0.5"}
    async with running(service, "--port", "0", env=env) as example:
        await example.line(r"ProducerStartError: .*127\.0\.0\.1:1")
        assert await example.code(within=SOON, quiet=False) != 0
