"""Each public name is used in an example that the tests run.

A new name needs an example: a ``python`` block on a page of ``docs``, or an indented block after
``::`` in a docstring. The example must use the name, not only import it. The page
``docs/reference/examples.md`` then lists the example automatically.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

import anyio_sendproducer
from tests.support.checkout import used_names
from tests.support.paths import ROOT

PUBLIC: Final[dict[str, list[str]]] = used_names.public_names()
PLACES: Final[dict[tuple[str, str], list[str]]] = used_names.where_used()


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, known in PUBLIC.items() for name in known]
)
def test_an_example_uses_each_public_name(module: str, name: str) -> None:
    assert PLACES.get((module, name)), f"no example in docs or a docstring uses {module}.{name}"


def test_all_public_modules_are_checked() -> None:
    source = Path(anyio_sendproducer.__file__).parent
    files = {path.relative_to(source.parent).with_suffix("") for path in source.rglob("*.py")}
    modules = {".".join(path.parts).removesuffix(".__init__") for path in files}
    # The modules of the command line are not public.
    public = {name for name in modules if "._" not in name} - {"anyio_sendproducer.cli"}
    assert "anyio_sendproducer.testing.factories" in public
    assert set(PUBLIC) == public
    assert PUBLIC["anyio_sendproducer"] == sorted(anyio_sendproducer.__all__)


def test_each_counted_example_is_run(request: pytest.FixtureRequest) -> None:
    runner: Any = request.config.pluginmanager.get_plugin(str(ROOT / "conftest.py"))

    def run(sybil: Any, path: Path) -> list[str]:
        return [str(one.parsed).strip() for one in sybil.parse(path).examples()]

    pages = used_names.pages()
    assert len(pages) > 20
    for page in pages:
        assert {code.strip() for code in used_names.examples_of(page)} <= set(
            run(runner._pages, page)
        )
    found = list(used_names.docstring_examples())
    assert found
    for module, code in found:
        assert code.strip() in run(runner._docstrings, module)


@pytest.mark.parametrize(
    ("examples", "used"),
    [
        (["from anyio_sendproducer import SendProducer"], set[str]()),
        (["from anyio_sendproducer import SendProducer as S", "x: S"], {"SendProducer"}),
        (["import anyio_sendproducer", "anyio_sendproducer.Message()"], {"Message"}),
        (["import anyio_sendproducer as a", "a.Message(a.nothing)"], {"Message"}),
        (["import anyio_sendproducer.testing as t\nt.Gate()"], {"Gate"}),
        (["import anyio_sendproducer.testing", "anyio_sendproducer.testing.Gate()"], {"Gate"}),
        (["from anyio_sendproducer import testing", "testing.Gate"], {"Gate"}),
        (["from anyio_sendproducer.testing import Gate", "Gate = 1"], set[str]()),
        (["Message()", "testing.Gate"], set[str]()),
        (["try:\n    pass\nexcept ProducerClosed: ..."], set[str]()),
        (["async def test(kafka_topic): ..."], {"kafka_topic"}),
        (["def kafka_topic(): return 't'"], {"kafka_topic"}),
        (["class Test:\n    def test(self, kafka_topic): ..."], {"kafka_topic"}),
        (["kafka_topic = print(kafka_topic)", "test(kafka_topic=1)"], set[str]()),
    ],
)
def test_an_import_alone_is_not_a_use(examples: list[str], used: set[str]) -> None:
    assert {name for _, name in used_names.used_in(examples, PUBLIC)} == used
