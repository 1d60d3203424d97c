"""``producer.check()`` with real clients."""

from __future__ import annotations

import anyio
import pytest

from anyio_sendproducer import ProducerSettings, SendProducerError, open_send_producer
from anyio_sendproducer.checking import check_cluster
from anyio_sendproducer.drivers import DriverName
from anyio_sendproducer.testing import EmbeddedBroker
from tests.support.ports import reserved_ports
from tests.support.scripted_broker import METADATA, framed, scripted_broker
from tests.support.waiting import PATIENCE


async def test_the_cluster_describes_itself(driver: DriverName) -> None:
    with scripted_broker() as broker:
        async with open_send_producer(bootstrap_servers=broker.address, driver=driver) as producer:
            found = await producer.check(timeout=PATIENCE)
            assert [(one.id, one.host, one.port, one.version) for one in found.brokers] == [
                (1, broker.host, broker.port, None)
            ]
            await producer.send("orders", b"two tins")
            assert producer.statistics().generations == 1


async def test_nobody_answers(driver: DriverName) -> None:
    with reserved_ports(1) as [nobody]:
        address = f"127.0.0.1:{nobody}"
        async with open_send_producer(
            bootstrap_servers=address, driver=driver, wait_for_cluster=False
        ) as producer:
            says = ""
            with anyio.fail_after(PATIENCE):
                while (
                    "refused" not in says
                ):  # on a machine that stalls, the client may try no address in time
                    with pytest.raises(SendProducerError) as caught:
                        await producer.check(timeout=0.5)
                    assert type(caught.value) is SendProducerError
                    says = str(caught.value)
            assert says.startswith(f"no broker answered: {address}: ")
            assert says.count(address) == 1 or driver == "confluent"
            assert "NotReached" not in says


async def test_a_cluster_that_stops_to_answer(driver: DriverName) -> None:
    with scripted_broker() as broker:
        async with open_send_producer(bootstrap_servers=broker.address, driver=driver) as producer:
            broker.answers[METADATA] = lambda correlation: framed(correlation, b"")
            with pytest.raises(SendProducerError):
                await producer.check(timeout=0.5)


async def test_the_producer_keeps_its_transactional_id(
    driver: DriverName, broker: EmbeddedBroker
) -> None:
    """A second client with the id would fence the producer."""
    settings = ProducerSettings(
        bootstrap_servers=broker.bootstrap_servers, transactional_id=f"checked-{driver}"
    )
    async with (
        open_send_producer(settings, driver=driver) as producer,
        producer.transaction() as transaction,
    ):
        await transaction.send("orders", b"two tins")
        found = await producer.check()
        assert len(found.brokers) == 1
        steps = (await check_cluster(settings, driver=driver)).steps
        assert {step.state for step in steps} <= {"ok", "skipped"}
        await transaction.send("orders", b"a brush")
