"""Reads texts with Java's ``Properties.load()``.

``python -m tests.support.java_properties`` writes the corpus for the comparison in tests/unit.
"""

from __future__ import annotations

import base64
import json
import random
import subprocess
from collections.abc import Iterable
from typing import Final

from tests.support.paths import ROOT

__all__ = ["CORPUS", "PROGRAM", "TEXTS", "read_by_java", "some_texts"]

PROGRAM: Final = ROOT / "tests/support/ReadProperties.java"
CORPUS: Final = ROOT / "tests/support/properties_corpus.json"

#: Texts for each rule.
TEXTS: Final = [
    "",
    "\n\r\n \t\f\n",
    "a=b",
    "a = b",
    "a:b",
    "a b",
    "a\tb",
    "a\fb",
    "a   :   b",
    "a = = b",
    "a : = b",
    "a  b = c",
    "a=b=c:d e",
    "a",
    "a=",
    "=b",
    ":b",
    "= b = c",
    "  a=b  ",
    "a=b \t\f \nc=d",
    "a=b\\",
    "a=b\\\\",
    "a=b\\\\\\",
    "# a=b\nc=d",
    "! a=b\nc=d",
    "  # a=b\\\nc=d",
    "a=b # c",
    "a=b\\\n  c",
    "a=b\\\r\n\t c",
    "a=b\\\r  c",
    "a=b\\\n\n  c",
    "a=b\\\n   \nc=d",
    "a=b\\\n# c",
    "\\\n# c\nd=e",
    "\\\n",
    "\\\r\n",
    "\\",
    "\\\n\n",
    "\\\na=b",
    "a\\\n =b",
    "a=b\rc=d\r\ne=f",
    "a\\ b=c",
    "a\\=b=c",
    "a\\:b:c",
    "a\\\\=c",
    "\\#a=b",
    "a=\\t\\n\\r\\f\\q\\\"\\'\\ ",
    "a=\\u0041\\u00e9\\uD83D\\ude00",
    "\\u0041=\\uD83D",
    "a=\\u12",
    "a=\\u12x4",
    "a=\\U0041",
    "a=1\na=2",
    "a=\xe9\x85\xa0b\xa0",
    "a\xa0b=c",
    "a=b\x00c\x0bd",
    "\xef\xbb\xbfa=b",
    "a=b\\ \n c=d",
]
#: Characters with and without a meaning.
ALPHABET: Final = "ab=: \t\f\\\n\r#!u04\xe9"


def some_texts(count: int, seed: int) -> list[str]:
    """Make random texts of these characters."""
    dice = random.Random(seed)
    return ["".join(dice.choices(ALPHABET, k=dice.randrange(4, 24))) for _ in range(count)]


def read_by_java(texts: Iterable[str]) -> list[dict[str, str] | None]:
    """Read the properties of each text with Java, in the order of their names; None: an error."""
    lines = "".join(base64.b64encode(text.encode("iso-8859-1")).decode() + "\n" for text in texts)
    done = subprocess.run(
        ["java", str(PROGRAM)], input=lines, capture_output=True, text=True, check=True
    )
    return [None if line == "error" else _decoded(line) for line in done.stdout.splitlines()]


def _decoded(line: str) -> dict[str, str]:
    pairs = (pair.split("=") for pair in line.split())
    return {_text(name): _text(value) for name, value in pairs}


def _text(digits: str) -> str:
    return bytes.fromhex(digits).decode("utf-16-be", "surrogatepass")


if __name__ == "__main__":
    texts = TEXTS + some_texts(200, seed=1)
    cases = [
        {"text": text, "found": found}
        for text, found in zip(texts, read_by_java(texts), strict=True)
    ]
    CORPUS.write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")
