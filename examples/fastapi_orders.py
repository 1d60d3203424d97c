"""Takes orders over HTTP and puts them into Kafka: FastAPI, run by uvicorn.

    ORDERS_BOOTSTRAP_SERVERS=localhost:9092 python fastapi_orders.py --port 8000

``uvicorn fastapi_orders:app`` also starts the service. The service answers an order when the
outcome of its record is known:

| status | meaning |
|---|---|
| 201 | the order is in Kafka, at this partition and offset |
| 413 | the order is too large |
| 422 | the request is not an order |
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
import logging
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Final, TypedDict

import anyio
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

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


class State(TypedDict):
    """The state that all requests share."""

    producer: SendProducer


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[State]:  # noqa: ARG001  # FastAPI passes it
    """Open one producer before the first request, and close it after the last."""
    settings = ProducerSettings.from_env("ORDERS", {**DEFAULTS, **os.environ})
    try:
        async with open_send_producer(settings) as producer:
            yield {"producer": producer}
    except UndeliveredRecords as error:
        log.error("page views were lost: %s", error)  # noqa: TRY400  # no traceback needed


def get_producer(request: Request) -> SendProducer:
    """Return the producer that the lifespan opened."""
    producer: SendProducer = request.state.producer
    return producer


Producer = Annotated[SendProducer, Depends(get_producer)]
app = FastAPI(lifespan=lifespan)


class Order(BaseModel):
    """An order, as received and as sent."""

    id: str
    customer: str
    items: list[str]


class PageView(BaseModel):
    """A view of a page."""

    page: str


@app.post("/orders", status_code=201)
async def place_order(order: Order, producer: Producer) -> dict[str, int | None]:
    """Answer when the order is in Kafka. The key keeps the orders of one customer in order."""
    value = order.model_dump_json().encode()
    if len(value) > LARGEST_ORDER:
        raise HTTPException(413, "the order is too large")
    metadata = await producer.send(
        ProducerRecord(
            "orders",
            value=value,
            key=order.customer.encode(),
            headers=[("id", order.id.encode())],
        )
    )
    return {"partition": metadata.partition, "offset": metadata.offset}


@app.post("/page-views", status_code=202)
async def count_page_view(view: PageView, producer: Producer) -> dict[str, str]:
    """Answer at once. A client that disconnects cannot cancel it, because it has no ``await``."""
    producer.enqueue_nowait(ProducerRecord("page-views", value=view.page.encode()))
    return {"status": "accepted"}


@app.get("/health")
async def health(producer: Producer) -> JSONResponse:
    """Report whether the producer can send, for the probes of an orchestrator."""
    figures = producer.statistics()
    return JSONResponse(
        {"state": figures.state, "in_flight": figures.in_flight},
        status_code=200 if figures.state == "open" else 503,
    )


@app.exception_handler(DeliveryError)
async def not_delivered(request: Request, error: DeliveryError) -> JSONResponse:  # noqa: ARG001
    """Tell the client what to do. The error names brokers, so only the log gets it."""
    if isinstance(error, (RecordRejected, SerializationFailed)):
        log.error("%s", error.summary)  # the HTTP client cannot correct it
        return JSONResponse({"detail": "Kafka refuses the record"}, status_code=500)
    log.warning("%s", error.summary)
    if error.persistence is Persistence.NOT_PERSISTED:
        return try_again("not written: send it again")
    return JSONResponse(
        {"detail": "possibly written: send it again with the same id"},
        status_code=504,
    )


@app.exception_handler(anyio.WouldBlock)
@app.exception_handler(ProducerBroken)
@app.exception_handler(ProducerClosed)
async def no_room(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    """Ask for another attempt: the producer has no room, is closing, or is broken."""
    return try_again("not accepted: send it again")


@app.exception_handler(PydanticSerializationError)
@app.exception_handler(UnicodeEncodeError)
async def not_text(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    """Refuse half of a surrogate pair, which JSON can contain, but UTF-8 cannot."""
    return JSONResponse({"detail": "a text is not valid Unicode"}, status_code=422)


def try_again(detail: str) -> JSONResponse:
    """Answer that nothing was written, and that another attempt may succeed."""
    return JSONResponse({"detail": detail}, status_code=503, headers={"Retry-After": "1"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Takes orders over HTTP and puts them into Kafka.")
    parser.add_argument("--port", type=int, default=8000, help="the port; 0 chooses a free port")
    uvicorn.run(app, port=parser.parse_args().port, timeout_graceful_shutdown=GRACE_SECONDS)
