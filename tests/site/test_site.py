"""The built documents in a real browser."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.site.walker import PHONE, WIDE, context, listen, serve, walk
from tests.support.state_picture import TABLES, Picture, table


def test_no_page_has_a_problem(
    site: Path, chromium: Browser, capsys: pytest.CaptureFixture[str]
) -> None:
    report = walk(site, chromium)
    with capsys.disabled():
        sys.stdout.write(f"\n{len(report.pages)} pages. Links to other sites:\n")
        sys.stdout.writelines(f"{link}\n" for link in report.outside)
    assert len(report.pages) > 30
    assert not report.problems, "\n" + "\n".join(report.problems)


def test_the_state_machines_are_on_their_page(site: Path) -> None:
    html = (site / "explanation/what-can-happen-to-a-record.html").read_text(encoding="utf-8")
    pictures = re.findall(r'<svg [^>]*class="state-machine".*?</svg>', html, re.DOTALL)
    assert len(pictures) == len(TABLES)
    for name, picture in zip(TABLES, map(Picture, pictures), strict=True):
        assert set(picture.states) == {state.name for state in table(name)}


@pytest.mark.parametrize(
    ("page", "alias", "start"),
    [
        ("telemetry-events", "telemetry.Event", "An event that"),
        ("testing", "testing.AnswerRule", "A callable that takes a record"),
    ],
)
def test_a_type_alias_shows_its_docstring(site: Path, page: str, alias: str, start: str) -> None:
    html = (site / f"reference/{page}.html").read_text(encoding="utf-8")
    entry = html[html.index(f'id="anyio_sendproducer.{alias}"') :]
    assert f"<dd><p>{start}" in entry[: entry.index("</dl>")]


@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("open_send_producer", "reference/opening.html#anyio_sendproducer.open_send_producer"),
        ("FakeDriver", "reference/testing-driver.html#anyio_sendproducer.testing.FakeDriver"),
        ("withdrawn", "explanation/cancellation.html"),
        ("fire and forget", "how-to/fire-and-forget.html"),
        ("dead letter", "how-to/retry-and-dead-letters.html"),
        ("Jupyter", "how-to/use-without-a-scope.html"),
        ("Django", "how-to/use-in-django.html"),
        ("exactly once", "explanation/delivery-certainty.html"),
    ],
)
def test_the_search_finds_the_page(site: Path, chromium: Browser, words: str, page: str) -> None:
    problems: list[str] = []
    with serve(site) as base, context(chromium, WIDE) as wide:
        opened = wide.new_page()
        listen(opened, base, problems)
        opened.goto(base + "index.html")
        opened.locator("input[name=q]").first.fill(words)
        opened.keyboard.press("Enter")
        opened.wait_for_url(re.compile(r"search\.html\?q="))
        found = opened.locator(f'#search-results a[href*="{page}"]').first
        expect(found).to_be_visible()
        found.click()
        opened.wait_for_url(re.compile(re.escape(page.partition("#")[0])))
        expect(opened.locator("h1").first).to_be_visible()
    assert not problems, problems


def test_the_reader_chooses_between_light_and_dark(site: Path, chromium: Browser) -> None:
    problems: list[str] = []
    backgrounds: dict[str | None, str] = {}
    with serve(site) as base, context(chromium, WIDE) as wide:
        page = wide.new_page()
        listen(page, base, problems)
        page.goto(base + "index.html")
        for _ in range(3):
            page.locator(".theme-toggle:visible").first.click()
            chosen = page.locator("body").get_attribute("data-theme")
            backgrounds[chosen] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        # The next page keeps the choice.
        page.locator(".theme-toggle:visible").first.click()
        kept = page.locator("body").get_attribute("data-theme")
        page.goto(base + "reference/api.html")
        assert page.locator("body").get_attribute("data-theme") == kept
    assert set(backgrounds) == {"auto", "light", "dark"}
    assert backgrounds["light"] == backgrounds["auto"] != backgrounds["dark"]
    assert not problems, problems


def test_on_a_phone_the_menu_opens_and_its_links_work(site: Path, chromium: Browser) -> None:
    problems: list[str] = []
    with serve(site) as base, context(chromium, PHONE) as phone:
        page = phone.new_page()
        listen(page, base, problems)
        page.goto(base + "index.html")
        link = page.locator(".sidebar-tree a", has_text="Your first records")
        assert not page.evaluate(
            "(e) => e.getBoundingClientRect().right > 0", link.element_handle()
        )
        page.locator(".nav-overlay-icon:visible").first.click()
        link.click()
        page.wait_for_url(re.compile(r"tutorial/first-records\.html"))
    assert not problems, problems
