"""The walker itself: each thing that it is to complain of, on a page that has it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from playwright.sync_api import Browser

from tests.site.walker import browser, walk

PAGE = """\
<!DOCTYPE html>
<html lang="en"><head><title>{title}</title><meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,">
<meta name="description" content="A page that the tests of the walker made.">
<style>
body {{ background: #fff; color: #111; font: 16px sans-serif }}
a {{ color: inherit }}
@media (prefers-color-scheme: dark) {{ body {{ background: #111; color: #eee }} }}
</style></head>
<body><main><h1 id="top">{title}</h1>{body}</main></body></html>
"""


def make(root: Path, **pages: str) -> Path:
    for name, body in pages.items():
        (root / f"{name}.html").write_text(PAGE.format(title=name, body=body))
    return root


def test_a_good_site_is_not_complained_of(tmp_path: Path, chromium: Browser) -> None:
    root = make(
        tmp_path,
        index='<p>See <a href="other.html#part">it</a>, <a href="data.txt">its data</a> and '
        '<a href="https://example.org/">them</a>.</p>',
        other='<h2 id="part">Part</h2><p>Back to <a href="index.html">the first</a>.</p>'
        '<pre style="overflow-x: auto" tabindex="0"><b style="padding-right: 900px">wide</b></pre>'
        '<svg viewBox="0 0 100 20" width="100" role="img" aria-label="x">'
        '<text y="15" fill="currentColor" font-size="14">x</text></svg>',
        search="<p>Reached by a form.</p>",
    )
    (root / "data.txt").write_text("1")
    report = walk(root, chromium)
    assert report.complaints == []
    assert report.pages == ["index.html", "other.html", "search.html"]
    assert report.outside == ["https://example.org/"]


#: What is on a page, and what is to be said of it.
BAD: Final = [
    ('<a href="gone.html">a</a>', "leads to gone.html, which is not there"),
    ('<a href="index.html#gone">a</a>', "leads to index.html#gone, where there is no such"),
    ('<a href="#gone">a</a>', "#gone, where there is no such part"),
    ("<script>console.error('oh')</script>", "says in the console: oh"),
    ("<script>console.warn('oh')</script>", "says in the console: oh"),
    ("<script>throw new Error('oh')</script>", "raises oh"),
    ('<img src="gone.png" alt="x">', "has 404 for"),
    ('<img src="gone.png" alt="x">', "shows no picture"),
    (
        '<img src="https://example.org/x.png" alt="x">',
        "asks elsewhere, for https://example.org",
    ),
    (
        "<script>fetch('http://127.0.0.1:1/')</script>",
        "asks elsewhere, for http://127.0.0.1:1/",
    ),
    ('<p style="color: #ccc; background: #fff">pale</p>', "html: has a contrast of 1.6: pale"),
    ('<p style="color: #222">for light pages alone</p>', "html, dark: has a contrast of"),
    ('<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">', "html: image-alt"),
    ('<p style="width: 900px">wide</p>', "is cut off at 360 pixels: <p> wide"),
    (
        '<p style="overflow: hidden"><b style="display: block; width: 900px">wide</b></p>',
        "is cut off at 360 pixels: <b> wide",
    ),
    (
        '<div style="overflow-x: auto"><p style="width: 370px">wide</p></div>',
        "scrolls sideways at 360 pixels: <div> wide",
    ),
    (
        '<div style="overflow-x: auto"><p style="min-width: 120%">wide</p></div>',
        "scrolls sideways at 390 pixels: <div> wide",
    ),
    (
        '<pre style="overflow-x: auto"><b style="padding-right: 1300px">wide</b></pre>',
        "scrolls sideways at 1280 pixels: <pre> wide",
    ),
    ('<script>document.querySelector("meta[name=description]").remove()</script>', "no descr"),
    ('<script>document.querySelector("link").remove()</script>', "has no favicon"),
    ('<script>document.querySelector("link").href = "gone.svg"</script>', "has no favicon"),
    ('<div class="highlight-python"><pre>code</pre></div>', "has no copy button: code"),
    ('<dl class="py"><dt>a<dd style="height: 8000px">b</dl>', "pixels long"),
    ('<p style="font-size: 6px">tiny</p>', "has text of 6.0 pixels: <p> tiny"),
    (
        '<svg viewBox="0 0 1000 20" width="100%"><text y="15" font-size="14">x</text></svg>',
        "pixels: <text> x",
    ),
    (
        '<svg viewBox="0 0 100 20" width="100"><text y="15" fill="#ddd">pale</text></svg>',
        "pale (<text class",
    ),
]


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory, chromium: Browser) -> list[str]:
    """What is said of a site of all of them."""
    root = tmp_path_factory.mktemp("bad")
    for number, (body, _) in enumerate(BAD):
        make(root, **{f"page{number}": body})
    links = "".join(f'<a href="page{number}.html">{number}</a> ' for number in range(len(BAD)))
    return walk(make(root, index=f"<p>{links}</p>"), chromium).complaints


@pytest.mark.parametrize(
    "number", range(len(BAD)), ids=lambda number: f"{number}, {BAD[number][1]}"
)
def test_it_complains(complaints: list[str], number: int) -> None:
    said = [found for found in complaints if found.startswith(f"page{number}.html")]
    assert any(BAD[number][1] in found for found in said), complaints


def test_it_complains_of_nothing_else(complaints: list[str]) -> None:
    assert not [found for found in complaints if found.startswith("index.html")]


def test_it_complains_of_a_page_that_nothing_leads_to(tmp_path: Path, chromium: Browser) -> None:
    report = walk(make(tmp_path, index="<p>x</p>", lost='<a href="lost.html">me</a>'), chromium)
    assert report.complaints == ["lost.html: nothing leads to it"]


def test_without_a_browser_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CHROMIUM", raising=False)
    with pytest.raises(FileNotFoundError, match="apt-get install chromium"), browser():
        pass
