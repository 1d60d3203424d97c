"""Opens each page of a static site in a real browser, and reports problems.

The walker opens each page on a wide screen, light and dark, and on phones of 360 and 390 pixels.
It reports:

* a link whose page or anchor does not exist, and a page without a link to it;
* an error or a warning in the console, and a request that fails or goes to another host;
* violations of WCAG 2 AA that axe (https://github.com/dequelabs/axe-core) finds;
* content that is cut off, scrolls sideways or is too small; on a phone, code and pictures may
  scroll;
* a page without a favicon or a description, and code without a copy button;
* a page of the API reference that is too long.

It lists links to other sites, and does not follow them.

The browser is the Chromium of the system. The environment variable ``CHROMIUM`` can name another
executable.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import http.server
import importlib
import os
import shutil
import threading
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import unquote, urldefrag, urlsplit

from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Error,
    Page,
    Response,
    Route,
    sync_playwright,
)

__all__ = ["Report", "browser", "context", "listen", "serve", "walk"]

# This package has no types.
Axe: Final[Any] = importlib.import_module("axe_playwright_python.sync_playwright").Axe

WIDE: Final = (1280, 900)
PHONE: Final = (360, 740)
#: Two phones, because the layout of a page may change between their widths.
PHONES: Final = (PHONE, (390, 844))
#: The maximum length of a page of the API reference on the wide screen, in pixels.
LONGEST: Final = 8_000
#: Milliseconds for each call of the browser.
PATIENCE: Final = 60_000
#: Pages that need no link: readers reach them with a form or a known name.
UNLINKED: Final = frozenset({"search.html", "genindex.html", "py-modindex.html", "404.html"})
#: The options of axe: the rules of WCAG 2, levels A and AA, except the rule for contrast.
RULES: Final = {
    "runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]},
    "rules": {
        "color-contrast": {"enabled": False},
        # From Sphinx: the captions in the menu are headings without a level.
        "aria-required-attr": {"enabled": False},
        # From Sphinx: the arguments of a long signature are a definition list without terms.
        "definition-list": {"enabled": False},
        # In Chromium and Firefox, the keyboard can scroll each scrollable element.
        "scrollable-region-focusable": {"enabled": False},
    },
    "resultTypes": ["violations"],
}

#: Finds elements beyond the width of the page, and text that is too small to read. Content that
#: scrolls within its own box is not cut off. The argument says whether code and pictures may
#: scroll: wrapped code and a picture with smaller text are harder to read.
_CUT_OFF: Final = """
(wide) => {
  const width = document.documentElement.clientWidth;
  const scrolls = (element) => {
    for (let e = element.parentElement; e; e = e.parentElement) {
      const style = getComputedStyle(e);
      if (/auto|scroll/.test(style.overflowX) && e.getBoundingClientRect().right <= width + 1)
        return true;
    }
    return false;
  };
  const said = (element) =>
    `<${element.tagName.toLowerCase()}> ${(element.textContent || "").trim().slice(0, 40)}`;
  const found = [];
  for (const element of document.querySelectorAll("main *, article *, body > *")) {
    const box = element.getBoundingClientRect();
    const style = getComputedStyle(element);
    if (!box.width || !box.height || style.visibility === "hidden" || style.position === "fixed")
      continue;
    if (box.right > width + 1 && box.left < width && !scrolls(element))
      found.push(`is cut off at ${width} pixels: ${said(element)}`);
    if (/auto|scroll/.test(style.overflowX) && element.scrollWidth > element.clientWidth + 1
        && element.clientWidth > 1 && !(wide && element.matches("pre, .wide-picture")))
      found.push(`scrolls sideways at ${width} pixels: ${said(element)}`);
    const text = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (text) {
      const matrix = element.getScreenCTM ? element.getScreenCTM() : null;
      const size = parseFloat(style.fontSize) * (matrix ? matrix.a : 1);
      if (size < 9) found.push(`has text of ${size.toFixed(1)} pixels: ${said(element)}`);
    }
  }
  if (document.documentElement.scrollWidth > width)
    found.push(`is ${document.documentElement.scrollWidth} pixels wide, on ${width}`);
  return found.slice(0, 5);
}
"""

#: Finds text with too little contrast to its background, also in pictures, by the formula of
#: WCAG 2. The rule of axe takes seconds for a page of code, and ignores pictures.
_CONTRAST: Final = """
() => {
  const parse = (colour) => {
    const [r, g, b, a = 1] = (colour.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
    return [r, g, b, a];
  };
  const over = ([r, g, b, a], [R, G, B]) =>
    [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a), 1];
  const light = (rgb) => {
    const [r, g, b] = rgb.slice(0, 3).map((c) => {
      c /= 255;
      return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = new Map();
  const backdrop = (element) => {
    if (!element) return [255, 255, 255, 1];
    if (!behind.has(element)) {
      const own = parse(getComputedStyle(element).backgroundColor);
      behind.set(element, own[3] === 1 ? own : over(own, backdrop(element.parentElement)));
    }
    return behind.get(element);
  };
  const onShape = (text, back) => {  // for example a number in a disc
    const box = text.getBoundingClientRect();
    const shapes = text.closest("svg")?.querySelectorAll("circle, rect") || [];
    for (const shape of shapes) {
      const outer = shape.getBoundingClientRect();
      const {fill, fillOpacity} = getComputedStyle(shape);
      const x = box.left + box.width / 2, y = box.top + box.height / 2;
      const within =
        x > outer.left && x < outer.right && y > outer.top && y < outer.bottom;
      if (within && fill !== "none")
        back = over([...parse(fill).slice(0, 3), Number(fillOpacity)], back);
    }
    return back;
  };
  const found = new Set();
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode.data.trim();
    const element = texts.currentNode.parentElement;
    const kinds = {visibilityProperty: true, opacityProperty: true};
    if (!text || !element || !element.checkVisibility(kinds)) continue;
    const style = getComputedStyle(element);
    if (element.closest("title, desc, script, style, noscript, [aria-hidden=true]")) continue;
    const drawn = element.closest("svg") ? style.fill : style.color;
    let back = backdrop(element);
    if (style.fill === drawn) back = onShape(element, back);
    const [a, b] = [light(over(parse(drawn), back)), light(back)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && parseInt(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5))
      found.add(`has a contrast of ${ratio.toFixed(1)}: ${text.slice(0, 40)} ` +
        `(<${element.tagName.toLowerCase()} class="${element.getAttribute("class") || ""}">)`);
  }
  return [...found].slice(0, 8);
}
"""

_PARTS: Final = """
() => ({
  links: [...document.querySelectorAll("a[href], area[href]")].map((e) => e.href),
  ids: [...document.querySelectorAll("[id], a[name]")].map((e) => e.id || e.name),
  described: (document.querySelector("meta[name=description]")?.content ?? "").length > 30,
  icon: document.querySelector("link[rel~=icon]")?.href ?? "",
  uncopied: [...document.querySelectorAll(".highlight-python pre, .highlight-py pre, " +
    ".highlight-python3 pre, .highlight-console pre, .highlight-toml pre")]
    .filter((e) => !e.parentElement.querySelector("button.copybtn"))
    .map((e) => e.textContent.trim().slice(0, 40)),
  length: document.querySelector("dl.py") ? document.documentElement.scrollHeight : 0,
  images: [...document.images].filter((e) => e.complete && !e.naturalWidth).map((e) => e.src),
})
"""


@dataclasses.dataclass
class Report:
    """The problems, the pages, and the links to other sites."""

    problems: list[str] = dataclasses.field(default_factory=list[str])
    pages: list[str] = dataclasses.field(default_factory=list[str])
    outside: list[str] = dataclasses.field(default_factory=list[str])


@dataclasses.dataclass
class _Seen:
    """The anchors and the links of one page."""

    ids: set[str]
    links: set[str]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name in the base class
        """Log nothing: the report has all problems."""


@contextlib.contextmanager
def serve(root: Path) -> Generator[str]:
    """Serve a directory on the loopback interface. Yield the address."""
    handler = functools.partial(_Quiet, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="site")
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def _chromium() -> str:
    names = [os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    for name in filter(None, names):
        found = shutil.which(name)
        if found:
            return found
    raise FileNotFoundError(
        "Chromium was not found: install it (Debian: apt-get install chromium), or set the "
        "environment variable CHROMIUM to its path"
    )


@contextlib.contextmanager
def browser() -> Generator[Browser]:
    """Start a browser without a window.

    Raises:
        FileNotFoundError: this machine has no Chromium.
    """
    executable = _chromium()
    with sync_playwright() as playwright:
        # Chromium has no sandbox for root, for example in a container. The pages are our own.
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        launched = playwright.chromium.launch(executable_path=executable, args=arguments)
        try:
            yield launched
        finally:
            launched.close()


@contextlib.contextmanager
def context(
    launched: Browser, size: tuple[int, int], scheme: Literal["light", "dark"] = "light"
) -> Generator[BrowserContext]:
    """Open a new profile without data of other profiles."""
    width, height = size
    made = launched.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    made.set_default_timeout(PATIENCE)
    try:
        yield made
    finally:
        made.close()


def listen(page: Page, base: str, problems: list[str]) -> None:
    """Report errors of a page, and its requests to other hosts, which are blocked."""

    def where() -> str:
        return page.url.removeprefix(base) or "index.html"

    def block(route: Route) -> None:
        problems.append(f"{where()}: requests another host: {route.request.url}")
        route.abort()

    def console(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            problems.append(f"{where()}: logs to the console: {message.text}")

    def error(raised: Error) -> None:
        problems.append(f"{where()}: raises {raised.message}")

    def response(answer: Response) -> None:
        if answer.status >= 400:
            problems.append(f"{where()}: gets {answer.status} for {answer.url}")

    page.route(lambda url: not url.startswith((base, "data:", "blob:")), block)
    page.on("console", console)
    page.on("pageerror", error)
    page.on("response", response)


def walk(root: Path, launched: Browser) -> Report:
    """Open every page below a directory.

    Args:
        root: the directory, with an ``index.html``.
        launched: the browser.
    """
    report = Report()
    report.pages = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.html"))
    seen: dict[str, _Seen] = {}
    with serve(root) as base:
        with context(launched, WIDE) as light:
            page = light.new_page()
            listen(page, base, report.problems)
            for name in report.pages:
                page.goto(base + name, wait_until="load")
                seen[name] = _collect(page, root, base, name, report)
                _run_axe(page, name, report)
                _check_contrast(page, name, report)
                _check_layout(page, name, report, wide=False)
        with context(launched, WIDE, "dark") as dark:
            page = dark.new_page()
            listen(page, base, report.problems)
            for name in report.pages:
                page.goto(base + name, wait_until="load")
                _check_contrast(page, f"{name}, dark", report)
        with context(launched, PHONE) as phone:
            page = phone.new_page()
            listen(page, base, report.problems)
            for name in report.pages:
                page.goto(base + name, wait_until="load")
                for width, height in PHONES:
                    page.set_viewport_size({"width": width, "height": height})
                    _check_layout(page, name, report, wide=True)
        _check_links(root, base, seen, report)
    report.problems = list(dict.fromkeys(report.problems))
    report.outside = sorted(set(report.outside))
    return report


def _collect(page: Page, root: Path, base: str, name: str, report: Report) -> _Seen:
    parts: dict[str, Any] = page.evaluate(_PARTS)
    report.problems += [f"{name}: does not show the picture {source}" for source in parts["images"]]
    report.problems += [f"{name}: has no copy button: {code}" for code in parts["uncopied"]]
    if not parts["described"]:
        report.problems.append(f"{name}: has no description")
    # A browser without a window does not load the favicon.
    icon: str = parts["icon"]
    if not icon.startswith("data:") and not (root / (icon.removeprefix(base) or "none")).is_file():
        report.problems.append(f"{name}: has no favicon")
    if parts["length"] > LONGEST:
        report.problems.append(f"{name}: is {parts['length']} pixels long")
    links: list[str] = parts["links"]
    inside = {link for link in links if link.startswith(base)}
    report.outside += [
        link
        for link in links
        if link not in inside and urlsplit(link).scheme in {"http", "https", "mailto"}
    ]
    return _Seen(set(parts["ids"]), {link.removeprefix(base) for link in inside})


def _check_layout(page: Page, name: str, report: Report, *, wide: bool) -> None:
    found: list[str] = page.evaluate(_CUT_OFF, wide)
    report.problems += [f"{name}: {what}" for what in found]


def _run_axe(page: Page, name: str, report: Report) -> None:
    found: Any = Axe().run(page, options=RULES).response
    for violation in found["violations"]:
        for node in violation["nodes"][:3]:
            why = " ".join(str(node.get("failureSummary", "")).split())
            report.problems.append(f"{name}: {violation['id']}: {node['html'][:120]}: {why}")


def _check_contrast(page: Page, name: str, report: Report) -> None:
    found: list[str] = page.evaluate(_CONTRAST)
    report.problems += [f"{name}: {what}" for what in found]


def _check_links(root: Path, base: str, seen: dict[str, _Seen], report: Report) -> None:
    reached = {"index.html"}
    for name, page in seen.items():
        for link in sorted(page.links):
            target, fragment = urldefrag(link)
            target = unquote(target.partition("?")[0]) or "index.html"
            if target.endswith("/"):
                target += "index.html"
            if not (root / target).is_file():
                report.problems.append(f"{name}: links to {link}, which does not exist")
            elif target in seen:
                if target != name:
                    reached.add(target)
                if fragment and unquote(fragment) not in seen[target].ids:
                    report.problems.append(f"{name}: links to {link}, which has no such anchor")
    for name in _unlinked(seen, reached):
        report.problems.append(f"{name}: no page links to it")


def _unlinked(seen: Iterable[str], reached: set[str]) -> list[str]:
    return sorted(set(seen) - reached - UNLINKED)
