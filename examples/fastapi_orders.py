"""Takes orders over HTTP and puts them into Kafka: FastAPI, run by uvicorn.

    ORDERS_BOOTSTRAP_SERVERS=localhost:9092 python fastapi_orders.py --port 8000

``uvicorn fastapi_orders:app`` runs it too. An order is answered when it is known what became of it:

| status | what it means |
|---|---|
| 201 | it is in Kafka, at this partition and offset |
| 422 | it is not an order, or Kafka refuses it: sending it again changes nothing |
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
import logging
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Final, TypedDict

import anyio
import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

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


class State(TypedDict):
    """What all requests share."""

    producer: SendProducer


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[State]:  # noqa: ARG001  # FastAPI gives it
    """One producer, from before the first request until after the last."""
    settings = ProducerSettings.from_env("ORDERS", {**DEFAULTS, **os.environ})
    try:
        async with open_send_producer(settings) as producer:
            yield {"producer": producer}
    except UndeliveredRecords as error:
        log.error("page views were lost: %s", error)  # noqa: TRY400  # the message says it all


def get_producer(request: Request) -> SendProducer:
    """The producer that the lifespan opened."""
    producer: SendProducer = request.state.producer
    return producer


Producer = Annotated[SendProducer, Depends(get_producer)]
app = FastAPI(lifespan=lifespan)


class Order(BaseModel):
    """An order, as it comes and as it goes."""

    id: str
    customer: str
    items: list[str]


class PageView(BaseModel):
    """That a page was seen."""

    page: str


@app.post("/orders", status_code=201)
async def place_order(order: Order, producer: Producer) -> dict[str, int | None]:
    """Answer when the order is in Kafka. A customer's orders keep their order, by the key."""
    metadata = await producer.send(
        ProducerRecord(
            "orders",
            value=order.model_dump_json().encode(),
            key=order.customer.encode(),
            headers=[("id", order.id.encode())],
        )
    )
    return {"partition": metadata.partition, "offset": metadata.offset}


@app.post("/page-views", status_code=202)
async def count_page_view(view: PageView, producer: Producer) -> dict[str, str]:
    """Answer at once. There is no ``await`` at which a client that hangs up could cancel it."""
    producer.enqueue_nowait(ProducerRecord("page-views", value=view.page.encode()))
    return {"status": "accepted"}


@app.get("/health")
async def health(producer: Producer) -> JSONResponse:
    """Whether it can send, for whoever decides about restarts."""
    figures = producer.statistics()
    return JSONResponse(
        {"state": figures.state, "in_flight": figures.in_flight},
        status_code=200 if figures.state == "open" else 503,
    )


@app.exception_handler(DeliveryError)
async def not_delivered(request: Request, error: DeliveryError) -> JSONResponse:  # noqa: ARG001
    """What the caller can do follows from what is known. The error itself names brokers, and is
    for the log."""
    log.warning("%s", error.summary)
    if isinstance(error, (RecordRejected, SerializationFailed)):
        return JSONResponse({"detail": "Kafka refuses it"}, status_code=422)
    if error.persistence is Persistence.NOT_PERSISTED:
        return try_again("not written: send it again")
    return JSONResponse(
        {"detail": "not known: send it again, with the same id"},
        status_code=504,
    )


@app.exception_handler(anyio.WouldBlock)
@app.exception_handler(ProducerClosed)
async def no_room(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    """As many records as may be are on their way, or the service is about to end."""
    return try_again("not accepted: send it again")


def try_again(detail: str) -> JSONResponse:
    """It was not written, and another try may work."""
    return JSONResponse({"detail": detail}, status_code=503, headers={"Retry-After": "1"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Takes orders over HTTP and puts them into Kafka.")
    parser.add_argument("--port", type=int, default=8000, help="0 takes one that is free")
    uvicorn.run(app, port=parser.parse_args().port, timeout_graceful_shutdown=GRACE_SECONDS)
