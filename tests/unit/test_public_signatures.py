"""Compares the public names and signatures with the listing in public_signatures.txt."""

from __future__ import annotations

from tests.support.public_signatures import LISTING, listed


def test_public_names_and_signatures_match_the_listing() -> None:
    assert listed().splitlines() == LISTING.read_text(encoding="utf-8").splitlines(), (
        "if this change is intended, run python -m tests.support.public_signatures"
    )
