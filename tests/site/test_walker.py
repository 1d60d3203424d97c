"""The walker reports each kind of problem on a page that has it."""

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


def test_a_good_site_has_no_problems(tmp_path: Path, chromium: Browser) -> None:
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
    assert report.problems == []
    assert report.pages == ["index.html", "other.html", "search.html"]
    assert report.outside == ["https://example.org/"]


#: The content of a page, and the problem to report for it.
BAD: Final = [
    ('<a href="gone.html">a</a>', "links to gone.html, which does not exist"),
    ('<a href="index.html#gone">a</a>', "links to index.html#gone, which has no such anchor"),
    ('<a href="#gone">a</a>', "#gone, which has no such anchor"),
    ("<script>console.error('oh')</script>", "logs to the console: oh"),
    ("<script>console.warn('oh')</script>", "logs to the console: oh"),
    ("<script>throw new Error('oh')</script>", "raises oh"),
    ('<img src="gone.png" alt="x">', "gets 404 for"),
    ('<img src="gone.png" alt="x">', "does not show the picture"),
    (
        '<img src="https://example.org/x.png" alt="x">',
        "requests another host: https://example.org",
    ),
    (
        "<script>fetch('http://127.0.0.1:1/')</script>",
        "requests another host: http://127.0.0.1:1/",
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
def problems(tmp_path_factory: pytest.TempPathFactory, chromium: Browser) -> list[str]:
    """The problems of a site with all these pages."""
    root = tmp_path_factory.mktemp("bad")
    for number, (body, _) in enumerate(BAD):
        make(root, **{f"page{number}": body})
    links = "".join(f'<a href="page{number}.html">{number}</a> ' for number in range(len(BAD)))
    return walk(make(root, index=f"<p>{links}</p>"), chromium).problems


@pytest.mark.parametrize(
    "number", range(len(BAD)), ids=lambda number: f"{number}, {BAD[number][1]}"
)
def test_each_bad_page_is_reported(problems: list[str], number: int) -> None:
    reported = [found for found in problems if found.startswith(f"page{number}.html")]
    assert any(BAD[number][1] in found for found in reported), problems


def test_the_good_page_is_not_reported(problems: list[str]) -> None:
    assert not [found for found in problems if found.startswith("index.html")]


def test_a_page_without_a_link_to_it_is_reported(tmp_path: Path, chromium: Browser) -> None:
    report = walk(make(tmp_path, index="<p>x</p>", lost='<a href="lost.html">me</a>'), chromium)
    assert report.problems == ["lost.html: no page links to it"]


def test_without_a_browser_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CHROMIUM", raising=False)
    with pytest.raises(FileNotFoundError, match="apt-get install chromium"), browser():
        pass
