"""Takes orders over HTTP and puts them into Kafka: Litestar, run by uvicorn.

    ORDERS_BOOTSTRAP_SERVERS=localhost:9092 python litestar_orders.py --port 8000

``uvicorn litestar_orders:app`` runs it too. An order is answered when it is known what became of
it:

| status | what it means |
|---|---|
| 201 | it is in Kafka, at this partition and offset |
| 400 | it is not an order |
| 422 | Kafka refuses it: sending it again changes nothing |
| 503 | it is not in Kafka and never will be: send it again |
| 504 | nobody knows: send it again with the same id, by which readers drop doubles |

A page view is answered with 202 before it is sent: it may be lost, and then the log says so.

Ctrl-C and SIGTERM end it in order: no more connections, the requests that are being served get
their answers, and what was accepted is delivered, all within half a minute. The exit code is 0
after Ctrl-C; after SIGTERM uvicorn ends itself by the same signal. Variables that begin with
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
from litestar.params import Body

from anyio_sendproducer import (
    DeliveryError,
    Persistence,
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

#: A request is answered within the delivery_timeout, so uvicorn need not wait longer for those it
#: serves. With the close_timeout behind it, the end comes before Kubernetes' 30 seconds are over.
DEFAULTS: Final[Mapping[str, str]] = {
    "ORDERS_BOOTSTRAP_SERVERS": "localhost:9092",
    "ORDERS_DELIVERY_TIMEOUT": "10",
    "ORDERS_CLOSE_TIMEOUT": "12",
}
GRACE_SECONDS: Final = 12


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncGenerator[None]:
    """One producer, from before the first request until after the last."""
    settings = ProducerSettings.from_env("ORDERS", {**DEFAULTS, **os.environ})
    try:
        async with open_send_producer(settings) as producer:
            app.state.producer = producer
            yield
    except UndeliveredRecords as error:
        log.error("page views were lost: %s", error)  # noqa: TRY400  # the message says it all


@dataclasses.dataclass
class Order:
    """An order, as it comes and as it goes."""

    id: str
    customer: str
    items: list[str]


@dataclasses.dataclass
class PageView:
    """That a page was seen."""

    page: str


@post("/orders")
async def place_order(data: Annotated[Order, Body()], state: State) -> dict[str, int | None]:
    """Answer when the order is in Kafka. A customer's orders keep their order, by the key."""
    producer: SendProducer = state.producer
    metadata = await producer.send(
        ProducerRecord(
            "orders",
            value=json.dumps(dataclasses.asdict(data)).encode(),
            key=data.customer.encode(),
            headers=[("id", data.id.encode())],
        )
    )
    return {"partition": metadata.partition, "offset": metadata.offset}


@post("/page-views", status_code=202)
async def count_page_view(data: Annotated[PageView, Body()], state: State) -> dict[str, str]:
    """Answer at once. There is no ``await`` at which a client that hangs up could cancel it."""
    producer: SendProducer = state.producer
    producer.enqueue_nowait(ProducerRecord("page-views", value=data.page.encode()))
    return {"status": "accepted"}


@get("/health")
async def health(state: State) -> Response[dict[str, Any]]:
    """Whether it can send, for whoever decides about restarts."""
    producer: SendProducer = state.producer
    figures = producer.statistics()
    return Response(
        {"state": figures.state, "in_flight": figures.in_flight},
        status_code=200 if figures.state == "open" else 503,
    )


def not_delivered(
    request: Request[Any, Any, Any],  # noqa: ARG001  # Litestar gives it
    error: DeliveryError,
) -> Response[dict[str, str]]:
    """What the caller can do follows from what is known. The error itself names brokers, and is
    for the log."""
    log.warning("%s", error.summary)
    if isinstance(error, (RecordRejected, SerializationFailed)):
        return Response({"detail": "Kafka refuses it"}, status_code=422)
    if error.persistence is Persistence.NOT_PERSISTED:
        return try_again("not written: send it again")
    return Response({"detail": "not known: send it again, with the same id"}, status_code=504)


def no_room(
    request: Request[Any, Any, Any],  # noqa: ARG001  # Litestar gives it
    error: Exception,  # noqa: ARG001
) -> Response[dict[str, str]]:
    """As many records as may be are on their way, or the service is about to end."""
    return try_again("not accepted: send it again")


def try_again(detail: str) -> Response[dict[str, str]]:
    """It was not written, and another try may work."""
    return Response({"detail": detail}, status_code=503, headers={"Retry-After": "1"})


app = Litestar(
    [place_order, count_page_view, health],
    lifespan=[lifespan],
    exception_handlers={
        DeliveryError: not_delivered,
        anyio.WouldBlock: no_room,
        ProducerClosed: no_room,
    },
)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Takes orders over HTTP and puts them into Kafka.")
    parser.add_argument("--port", type=int, default=8000, help="0 takes one that is free")
    uvicorn.run(app, port=parser.parse_args().port, timeout_graceful_shutdown=GRACE_SECONDS)
