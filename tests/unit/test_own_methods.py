"""How Python shows the methods that the producer and the transaction share."""

from __future__ import annotations

import inspect
import pydoc
import re
from typing import Any

import pytest

from anyio_sendproducer import ProducerSettings, SendProducer, Transaction, open_send_producer
from anyio_sendproducer._sending import Sender
from anyio_sendproducer.testing import FakeDriver

SHARED = [name for name in vars(Sender) if not name.startswith("_")]

public = pytest.mark.parametrize("cls", [SendProducer, Transaction], ids=lambda cls: cls.__name__)


@public
@pytest.mark.parametrize("name", SHARED)
def test_a_shared_method_belongs_to_the_public_class(cls: type, name: str) -> None:
    method, original = vars(cls)[name], vars(Sender)[name]
    assert method.__qualname__ == f"{cls.__name__}.{name}"
    assert inspect.signature(method) == inspect.signature(original)
    assert method.__doc__ == original.__doc__
    assert inspect.iscoroutinefunction(method) == inspect.iscoroutinefunction(original)
    assert method.__code__ is original.__code__


async def test_a_forgotten_await_names_the_public_method() -> None:
    settings = ProducerSettings(bootstrap_servers="broker.invalid:9092")
    async with open_send_producer(settings, driver=FakeDriver()) as producer:
        forgotten: list[Any] = [producer.send("orders", b"two tins")]
        with pytest.warns(RuntimeWarning, match="'SendProducer.send' was never awaited"):
            forgotten.clear()


def test_help_starts_with_the_methods_of_the_class_and_with_send() -> None:
    text = pydoc.plain(pydoc.render_doc(SendProducer))
    own = text.split("Methods defined here:")[1]
    methods = re.findall(r"^ \|  (?:async )?(\w+)\(", own, re.MULTILINE)
    assert methods[:3] == ["send", "send_many", "send_envelope"]
    assert set(SHARED) < set(methods)
