"""A change of a public name or signature is a decision: the listing changes with it."""

from __future__ import annotations

from tests.support.public_signatures import LISTING, listed


def test_public_names_and_signatures_are_those_of_the_listing() -> None:
    assert listed().splitlines() == LISTING.read_text(encoding="utf-8").splitlines(), (
        "if this change is intended, run python -m tests.support.public_signatures"
    )
