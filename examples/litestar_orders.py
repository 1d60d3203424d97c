"""Takes orders over HTTP and puts them into Kafka: Litestar, run by uvicorn.

    ORDERS_BOOTSTRAP_SERVERS=localhost:9092 python litestar_orders.py --port 8000

``uvicorn litestar_orders:app`` also starts the service. The service answers an order when the
outcome of its record is known:

| status | meaning |
|---|---|
| 201 | the order is in Kafka, at this partition and offset |
| 400 | the request is not an order |
| 413 | the order is too large |
| 500 | Kafka refuses the record: the service or the cluster must be changed |
| 503 | the order is not in Kafka and never will be: send it again |
| 504 | the order may be in Kafka: send it again with the same id (consumers drop duplicates) |

The service answers a page view with 202 before the record is sent. If the record is lost, the log
reports it.

After Ctrl-C or SIGTERM, the service accepts no more connections, answers its current requests, and
delivers the accepted records. This takes at most half a minute. After Ctrl-C, the exit code is 0.
After SIGTERM, uvicorn ends itself with the same signal. Environment variables that start with
ORDERS_ are settings of the producer.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

import anyio
import uvicorn
from litestar import Litestar, Request, Response, get, post
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.params import Body

from anyio_sendproducer import (
    DeliveryError,
    Persistence,
    ProducerBroken,
    ProducerClosed,
    ProducerRecord,
    ProducerSettings,
    RecordRejected,
    SendProducer,
    SerializationFailed,
    UndeliveredRecords,
    open_send_producer,
)

log = logging.getLogger("orders")

#: Each request is answered within delivery_timeout, which is shorter than the grace period. The
#: grace period and close_timeout together are shorter than the 30 seconds that Kubernetes allows.
DEFAULTS: Final[Mapping[str, str]] = {
    "ORDERS_BOOTSTRAP_SERVERS": "localhost:9092",
    "ORDERS_DELIVERY_TIMEOUT": "10",
    "ORDERS_CLOSE_TIMEOUT": "12",
}
GRACE_SECONDS: Final = 12

#: The size of the largest order in bytes. By default, Kafka refuses records of 1 MiB and more.
LARGEST_ORDER: Final = 500_000


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncGenerator[None]:
    """Open one producer before the first request, and close it after the last."""
    settings = ProducerSettings.from_env("ORDERS", {**DEFAULTS, **os.environ})
    try:
        async with open_send_producer(settings) as producer:
            app.state.producer = producer
            yield
    except UndeliveredRecords as error:
        log.error("page views were lost: %s", error)  # noqa: TRY400  # no traceback needed


@dataclasses.dataclass
class Order:
    """An order, as received and as sent."""

    id: str
    customer: str
    items: list[str]


@dataclasses.dataclass
class PageView:
    """A view of a page."""

    page: str


@post("/orders")
async def place_order(data: Annotated[Order, Body()], state: State) -> dict[str, int | None]:
    """Answer when the order is in Kafka. The key keeps the orders of one customer in order."""
    producer: SendProducer = state.producer
    value = json.dumps(dataclasses.asdict(data)).encode()
    if len(value) > LARGEST_ORDER:
        raise HTTPException(status_code=413, detail="the order is too large")
    metadata = await producer.send(
        ProducerRecord(
            "orders",
            value=value,
            key=data.customer.encode(),
            headers=[("id", data.id.encode())],
        )
    )
    return {"partition": metadata.partition, "offset": metadata.offset}


@post("/page-views", status_code=202)
async def count_page_view(data: Annotated[PageView, Body()], state: State) -> dict[str, str]:
    """Answer at once. A client that disconnects cannot cancel it, because it has no ``await``."""
    producer: SendProducer = state.producer
    producer.enqueue_nowait(ProducerRecord("page-views", value=data.page.encode()))
    return {"status": "accepted"}


@get("/health")
async def health(state: State) -> Response[dict[str, Any]]:
    """Report whether the producer can send, for the probes of an orchestrator."""
    producer: SendProducer = state.producer
    figures = producer.statistics()
    return Response(
        {"state": figures.state, "in_flight": figures.in_flight},
        status_code=200 if figures.state == "open" else 503,
    )


def not_delivered(
    request: Request[Any, Any, Any],  # noqa: ARG001  # Litestar passes it
    error: DeliveryError,
) -> Response[dict[str, str]]:
    """Tell the client what to do. The error names brokers, so only the log gets it."""
    if isinstance(error, (RecordRejected, SerializationFailed)):
        log.error("%s", error.summary)  # the HTTP client cannot correct it
        return Response({"detail": "Kafka refuses the record"}, status_code=500)
    log.warning("%s", error.summary)
    if error.persistence is Persistence.NOT_PERSISTED:
        return try_again("not written: send it again")
    return Response({"detail": "possibly written: send it again with the same id"}, status_code=504)


def no_room(
    request: Request[Any, Any, Any],  # noqa: ARG001  # Litestar passes it
    error: Exception,  # noqa: ARG001
) -> Response[dict[str, str]]:
    """Ask for another attempt: the producer has no room, is closing, or is broken."""
    return try_again("not accepted: send it again")


def try_again(detail: str) -> Response[dict[str, str]]:
    """Answer that nothing was written, and that another attempt may succeed."""
    return Response({"detail": detail}, status_code=503, headers={"Retry-After": "1"})


app = Litestar(
    [place_order, count_page_view, health],
    lifespan=[lifespan],
    exception_handlers={
        DeliveryError: not_delivered,
        anyio.WouldBlock: no_room,
        ProducerBroken: no_room,
        ProducerClosed: no_room,
    },
)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Takes orders over HTTP and puts them into Kafka.")
    parser.add_argument("--port", type=int, default=8000, help="the port; 0 chooses a free port")
    uvicorn.run(app, port=parser.parse_args().port, timeout_graceful_shutdown=GRACE_SECONDS)
