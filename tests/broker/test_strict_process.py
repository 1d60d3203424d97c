"""The drivers in a process that treats warnings as errors, or stops the clocks."""

from __future__ import annotations

import subprocess
import sys

import freezegun

from anyio_sendproducer import ProducerRecord, ProducerSettings, open_send_producer
from anyio_sendproducer.drivers import DriverName

PROGRAM = """
import sys, anyio
from anyio_sendproducer import ProducerRecord, ProducerSettings, open_send_producer

async def main(address, driver):
    settings = ProducerSettings(bootstrap_servers=address)
    async with open_send_producer(settings, driver=driver) as producer:
        await producer.send(ProducerRecord("t", b"v"))

anyio.run(main, *sys.argv[1:])
"""


def test_a_process_that_treats_warnings_as_errors_can_send(
    driver: DriverName, shared_broker: str
) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, shared_broker, driver],
        capture_output=True,
        check=False,
        text=True,
    )
    assert (ran.returncode, ran.stderr) == (0, "")


async def test_a_process_whose_clocks_stand_still_can_send(
    driver: DriverName, shared_broker: str
) -> None:
    """If freezegun ignores the modules that the guide names."""
    names = ["anyio_sendproducer", "kafka", "anyio", "trio", "asyncio"]
    freezegun.configure(extend_ignore_list=names)
    try:
        settings = ProducerSettings(bootstrap_servers=shared_broker)
        with freezegun.freeze_time("2020-01-01"):
            async with open_send_producer(settings, driver=driver) as producer:
                metadata = await producer.send(ProducerRecord("t", b"v"))
        assert metadata.timestamp_ms is not None
        assert metadata.timestamp_ms > 1_700_000_000_000
    finally:
        freezegun.config.reset_config()
