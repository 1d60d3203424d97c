"""Properties files: Java reads the same properties."""

from __future__ import annotations

from anyio_sendproducer import SettingsError
from anyio_sendproducer._properties_file import parse
from tests.support.java_properties import TEXTS, read_by_java, some_texts


def found_in(text: str) -> dict[str, str] | None:
    try:
        return parse(text)
    except SettingsError:
        return None


def test_java_reads_the_same_properties() -> None:
    texts = [*TEXTS, *some_texts(20_000, seed=2)]
    for text, found in zip(texts, read_by_java(texts), strict=True):
        assert found_in(text) == found, repr(text)
