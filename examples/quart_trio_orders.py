"""Takes orders over HTTP and puts them into Kafka: Quart-Trio, run by Hypercorn on Trio.

    ORDERS_BOOTSTRAP_SERVERS=localhost:9092 python quart_trio_orders.py --port 8000

An order is answered when it is known what became of it:

| status | what it means |
|---|---|
| 201 | it is in Kafka, at this partition and offset |
| 400 | it is not an order |
| 422 | Kafka refuses it: sending it again changes nothing |
| 503 | it is not in Kafka and never will be: send it again |
| 504 | nobody knows: send it again with the same id, by which readers drop doubles |

A page view is answered with 202 before it is sent: it may be lost, and then the log says so.

Ctrl-C and SIGTERM end it in order: no more connections, the requests that are being served get
their answers, and what was accepted is delivered, all within half a minute. The exit code is 0.
Variables that begin with ORDERS_ are settings of the producer.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
from collections.abc import Mapping
from typing import Any, Final

import anyio
import trio
from hypercorn.config import Config
from hypercorn.trio import serve  # pyright: ignore[reportUnknownVariableType]  # WSGI's part
from quart import Response, request
from quart_trio import QuartTrio

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
    start_send_producer,
)

log = logging.getLogger("orders")

#: A request is answered within the delivery_timeout, so Hypercorn need not wait longer for those it
#: serves. With the close_timeout behind it, the end comes before Kubernetes' 30 seconds are over.
DEFAULTS: Final[Mapping[str, str]] = {
    "ORDERS_BOOTSTRAP_SERVERS": "localhost:9092",
    "ORDERS_DELIVERY_TIMEOUT": "10",
    "ORDERS_CLOSE_TIMEOUT": "12",
}
GRACE_SECONDS: Final = 12


class Orders(QuartTrio):
    """The application, and the producer that all requests share."""

    producer: SendProducer


app = Orders(__name__)


@app.before_serving
async def open_producer() -> None:
    """Start the producer in the nursery that the application has while it serves."""
    settings = ProducerSettings.from_env("ORDERS", {**DEFAULTS, **os.environ})
    app.producer = await start_send_producer(app.nursery, settings)


@app.after_serving
async def close_producer() -> None:
    """Deliver what was accepted, after the last request."""
    try:
        await app.producer.aclose()
    except UndeliveredRecords as error:
        log.error("page views were lost: %s", error)  # noqa: TRY400  # the message says it all


@app.post("/orders")
async def place_order() -> Response:
    """Answer when the order is in Kafka. A customer's orders keep their order, by the key."""
    order: Any = await request.get_json()
    match order:
        case {"id": str(id_), "customer": str(customer), "items": [*_]}:
            pass
        case _:
            return answer(400, detail="this is no order")
    metadata = await app.producer.send(
        ProducerRecord(
            "orders",
            value=json.dumps(order).encode(),
            key=customer.encode(),
            headers=[("id", id_.encode())],
        )
    )
    return answer(201, partition=metadata.partition, offset=metadata.offset)


@app.post("/page-views")
async def count_page_view() -> Response:
    """Answer at once. There is no ``await`` at which a client that hangs up could cancel it, once
    its request is here."""
    view: Any = await request.get_json()
    match view:
        case {"page": str(page)}:
            app.producer.enqueue_nowait(ProducerRecord("page-views", value=page.encode()))
            return answer(202, status="accepted")
        case _:
            return answer(400, detail="this is no page view")


@app.get("/health")
async def health() -> Response:
    """Whether it can send, for whoever decides about restarts."""
    figures = app.producer.statistics()
    return answer(
        200 if figures.state == "open" else 503, state=figures.state, in_flight=figures.in_flight
    )


@app.errorhandler(DeliveryError)
async def not_delivered(error: DeliveryError) -> Response:
    """What the caller can do follows from what is known. The error itself names brokers, and is
    for the log."""
    log.warning("%s", error.summary)
    if isinstance(error, (RecordRejected, SerializationFailed)):
        return answer(422, detail="Kafka refuses it")
    if error.persistence is Persistence.NOT_PERSISTED:
        return answer(503, detail="not written: send it again")
    return answer(504, detail="not known: send it again, with the same id")


@app.errorhandler(anyio.WouldBlock)
@app.errorhandler(ProducerClosed)
async def no_room(error: Exception) -> Response:  # noqa: ARG001  # Quart gives it
    """As many records as may be are on their way, or the service is about to end."""
    return answer(503, detail="not accepted: send it again")


def answer(status: int, /, **content: object) -> Response:
    """JSON; who may try again is told when."""
    headers = {"Retry-After": "1"} if status == 503 else {}
    return Response(json.dumps(content), status, headers, content_type="application/json")


async def until_signal() -> None:
    """Return when Ctrl-C or SIGTERM asks for the end. Hypercorn handles no signals where it is
    called from Python, and one that came out as KeyboardInterrupt would cancel the requests."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            return


async def main(port: int) -> None:
    """Serve until a signal comes."""
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    # On Trio it waits so long for connections without a request too, where clients keep them.
    config.graceful_timeout = GRACE_SECONDS
    await serve(app, config, shutdown_trigger=until_signal)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Takes orders over HTTP and puts them into Kafka.")
    parser.add_argument("--port", type=int, default=8000, help="0 takes one that is free")
    trio.run(main, parser.parse_args().port)
