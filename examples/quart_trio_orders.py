"""Takes orders over HTTP and puts them into Kafka: Quart-Trio, run by Hypercorn on Trio.

    ORDERS_BOOTSTRAP_SERVERS=localhost:9092 python quart_trio_orders.py --port 8000

The service answers an order when the outcome of its record is known:

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
delivers the accepted records. This takes at most half a minute. The exit code is 0. Environment
variables that start with ORDERS_ are settings of the producer.
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
from hypercorn.trio import serve  # pyright: ignore[reportUnknownVariableType]  # its types of WSGI
from quart import Response, request
from quart_trio import QuartTrio

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
    start_send_producer,
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


class Orders(QuartTrio):
    """The application, and the producer that all requests share."""

    producer: SendProducer


app = Orders(__name__)


@app.before_serving
async def open_producer() -> None:
    """Start the producer in the nursery of the application."""
    settings = ProducerSettings.from_env("ORDERS", {**DEFAULTS, **os.environ})
    app.producer = await start_send_producer(app.nursery, settings)


@app.after_serving
async def close_producer() -> None:
    """Deliver the accepted records, after the last request."""
    try:
        await app.producer.aclose()
    except UndeliveredRecords as error:
        log.error("page views were lost: %s", error)  # noqa: TRY400  # no traceback needed


@app.post("/orders")
async def place_order() -> Response:
    """Answer when the order is in Kafka. The key keeps the orders of one customer in order."""
    order: Any = await request.get_json()
    match order:
        case {"id": str(id_), "customer": str(customer), "items": [*_]}:
            pass
        case _:
            return answer(400, detail="this is not an order")
    value = json.dumps(order).encode()
    if len(value) > LARGEST_ORDER:
        return answer(413, detail="the order is too large")
    metadata = await app.producer.send(
        ProducerRecord(
            "orders",
            value=value,
            key=customer.encode(),
            headers=[("id", id_.encode())],
        )
    )
    return answer(201, partition=metadata.partition, offset=metadata.offset)


@app.post("/page-views")
async def count_page_view() -> Response:
    """Answer as soon as the request is read. From then on, a client that disconnects cannot cancel
    it, because there is no ``await``."""
    view: Any = await request.get_json()
    match view:
        case {"page": str(page)}:
            app.producer.enqueue_nowait(ProducerRecord("page-views", value=page.encode()))
            return answer(202, status="accepted")
        case _:
            return answer(400, detail="this is not a page view")


@app.get("/health")
async def health() -> Response:
    """Report whether the producer can send, for the probes of an orchestrator."""
    figures = app.producer.statistics()
    return answer(
        200 if figures.state == "open" else 503, state=figures.state, in_flight=figures.in_flight
    )


@app.errorhandler(DeliveryError)
async def not_delivered(error: DeliveryError) -> Response:
    """Tell the client what to do. The error names brokers, so only the log gets it."""
    if isinstance(error, (RecordRejected, SerializationFailed)):
        log.error("%s", error.summary)  # the HTTP client cannot correct it
        return answer(500, detail="Kafka refuses the record")
    log.warning("%s", error.summary)
    if error.persistence is Persistence.NOT_PERSISTED:
        return answer(503, detail="not written: send it again")
    return answer(504, detail="possibly written: send it again with the same id")


@app.errorhandler(anyio.WouldBlock)
@app.errorhandler(ProducerBroken)
@app.errorhandler(ProducerClosed)
async def no_room(error: Exception) -> Response:  # noqa: ARG001  # Quart passes it
    """Ask for another attempt: the producer has no room, is closing, or is broken."""
    return answer(503, detail="not accepted: send it again")


@app.errorhandler(UnicodeEncodeError)
async def not_text(error: Exception) -> Response:  # noqa: ARG001  # Quart passes it
    """Refuse half of a surrogate pair, which JSON can contain, but UTF-8 cannot."""
    return answer(400, detail="a text is not valid Unicode")


def answer(status: int, /, **content: object) -> Response:
    """Return a response with JSON. With status 503, it says when to try again."""
    headers = {"Retry-After": "1"} if status == 503 else {}
    return Response(json.dumps(content), status, headers, content_type="application/json")


async def until_signal() -> None:
    """Return after Ctrl-C or SIGTERM. Hypercorn handles no signals if it is called from Python, and
    a KeyboardInterrupt would cancel the requests."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            return


async def main(port: int) -> None:
    """Serve requests until a signal arrives."""
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    # On Trio, Hypercorn also waits this long for connections that clients keep without a request.
    config.graceful_timeout = GRACE_SECONDS
    await serve(app, config, shutdown_trigger=until_signal)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Takes orders over HTTP and puts them into Kafka.")
    parser.add_argument("--port", type=int, default=8000, help="the port; 0 chooses a free port")
    trio.run(main, parser.parse_args().port)
