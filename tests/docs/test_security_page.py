"""SECURITY.md: each claim names the test that shows it, and the test exists."""

from __future__ import annotations

import re
from typing import Final

from tests.support.named_tests import named_tests, names_of_tests
from tests.support.paths import ROOT

#: The starts of paragraphs that make no testable claim: introductions and limits.
CLAIMS_NOTHING: Final = (
    "A broker gets the records",
    'With `driver="confluent"`, librdkafka reads the answers of a broker',
    "A resolver decides where the client connects",
    "Errors and logs show the `repr()` of a resolver",
    "Keys, values, headers and topics may come from users",
    "Serializers, partitioners, token providers and observers are your code",
)


def claims() -> list[str]:
    """Return the paragraphs and list items of the sections that make claims."""
    page = (ROOT / "SECURITY.md").read_text("utf-8")
    section = page.partition("## How secrets are handled")[2].partition("## What is not covered")
    text = section[0] + section[2].partition("## Supply chain")[2]
    blocks = [" ".join(block.split()) for block in re.split(r"\n\n+|\n(?=- )", text)]
    return [block for block in blocks if block and not block.startswith("#")]


def test_each_test_that_the_page_names_exists() -> None:
    named = named_tests("SECURITY.md")
    assert sum(map(len, named.values())) > 50
    for path, names in named.items():
        assert names <= names_of_tests(path), path


def test_each_claim_names_a_test() -> None:
    found = claims()
    assert len(found) > 30
    for claim in found:
        shows = re.search(r"`tests/[\w/]+\.py::test_\w+`|`nox -s [\w ]+`", claim)
        assert shows or claim.startswith(CLAIMS_NOTHING), claim
    # Each start in CLAIMS_NOTHING is still on the page.
    for words in CLAIMS_NOTHING:
        assert any(claim.startswith(words) for claim in found), words
