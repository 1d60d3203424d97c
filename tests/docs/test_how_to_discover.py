"""The page on service discovery: its resolver for Consul works with a fake agent."""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Generator
from typing import Any, ClassVar

import pytest

from anyio_sendproducer import DiscoveryError, ProducerSettings, open_send_producer
from anyio_sendproducer.discovery import Lookup, Target
from anyio_sendproducer.testing import FakeDriver
from tests.support.paths import ROOT

PAGE = ROOT / "docs/how-to/discover-the-cluster.md"


class FakeAgent(http.server.BaseHTTPRequestHandler):
    """A fake Consul agent with short answers to ``/v1/health/service/:service``."""

    answers: ClassVar[dict[str, Any]] = {
        "/v1/health/service/kafka?passing=true": [
            {"Node": {"Address": "10.0.0.1"}, "Service": {"Address": "", "Port": 9092}},
            {"Node": {"Address": "10.0.0.2"}, "Service": {"Address": "b.test", "Port": 9093}},
        ],
        "/v1/health/service/nobody?passing=true": [],
    }

    def do_GET(self) -> None:
        answer = self.answers.get(self.path)
        self.send_response(500 if answer is None else 200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def agent() -> Generator[str, None, None]:
    server = http.server.HTTPServer(("127.0.0.1", 0), FakeAgent)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def consul(agent: str) -> Any:
    """Return the resolver of the page, with the address of the fake agent."""
    blocks = re.findall(r"```python\n(import httpx.*?)\n\n\nsettings", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(blocks[0].replace("localhost:8500", agent), names)
    return names["consul"]


async def test_consul_by_http(agent: str) -> None:
    resolve = consul(agent)
    found = [Target("10.0.0.1", 9092), Target("b.test", 9093)]
    assert await resolve(Lookup("kafka")) == found
    fake = FakeDriver()
    settings = ProducerSettings(
        service_name="kafka", discovery_method=resolve, resolve_timeout=60, start_timeout=60
    )
    async with open_send_producer(settings, driver=fake):
        assert fake.settings is not None
        assert fake.settings.addresses == ("10.0.0.1:9092", "b.test:9093")


@pytest.mark.parametrize(
    ("service", "says"), [("nobody", "nothing was found"), ("sick", "500 Internal Server Error")]
)
async def test_the_error_says_why_consul_returned_no_address(
    agent: str, service: str, says: str
) -> None:
    settings = ProducerSettings(
        service_name=service, discovery_method=consul(agent), resolve_timeout=60, start_timeout=60
    )
    with pytest.raises(DiscoveryError, match=rf"looked up with consul\(\): .*{says}"):
        async with open_send_producer(settings, driver=FakeDriver()):
            pass
