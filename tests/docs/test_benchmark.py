"""The benchmark: its schedule, its figures and charts, and the pages that show its results."""

from __future__ import annotations

import importlib
import itertools
import json
import re
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

import anyio
import pytest

from tests.support.paths import ROOT

_SVG: Final = "{http://www.w3.org/2000/svg}"
#: The background of a light and of a dark page.
_BACKGROUNDS: Final = ("#ffffff", "#131416")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that imports a script of bench/. These scripts import each other."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "bench"), *sys.path])
    return importlib.import_module


# --- the open loop -------------------------------------------------------------------------------


def test_the_schedule_is_the_same_each_time_and_has_the_mean_rate(scripts: Any) -> None:
    schedule = scripts("open_loop").schedule
    times = schedule(2_000, 10_000)
    assert times == schedule(2_000, 10_000)
    assert times[0] == 0
    assert times == sorted(times)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert statistics.mean(gaps) == pytest.approx(1 / 2_000, rel=0.05)
    # The standard deviation of an exponential distribution is its mean.
    assert statistics.stdev(gaps) == pytest.approx(1 / 2_000, rel=0.1)
    assert schedule(2_000, 10_000, seed=1) != times


_needs_linux = pytest.mark.skipif(
    not Path("/proc/self/schedstat").exists(), reason="needs the timers and /proc of Linux"
)


@_needs_linux
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_records_start_when_due_and_are_measured_after_the_warm_up(
    backend: str, scripts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_loop = scripts("open_loop")
    monkeypatch.setattr(open_loop, "WARM_UP", 0.004)
    times = [0.0, 0.001, 0.003, 0.005, 0.006]
    happened: list[float | None] = []
    measured_from: list[float] = []

    def send(due: float) -> None:
        assert due <= time.perf_counter()
        happened.append(due)

    def begin(due_from: float) -> None:
        happened.append(None)
        measured_from.append(due_from)

    anyio.run(open_loop.run, times, begin, send, backend=backend)
    (start,) = (due_from - 0.004 for due_from in measured_from)
    assert happened[3] is None
    sent = [due for due in happened if due is not None]
    assert sent == pytest.approx([start + one for one in times])


@_needs_linux
def test_processor_time_is_measured_for_each_group_of_threads(scripts: Any) -> None:
    open_loop = scripts("open_loop")
    before = open_loop.processor_times()
    ended = threading.Event()

    def wait(begun: threading.Event) -> None:
        begun.set()
        ended.wait()

    threads: list[threading.Thread] = []
    for name in ("a-network-thread", "another"):
        begun = threading.Event()
        threads.append(threading.Thread(target=wait, args=(begun,), name=name))
        threads[-1].start()
        begun.wait()
    groups = {number: group for number, (group, _) in open_loop.processor_times().items()}
    spent = open_loop.spent(before)
    ended.set()
    for thread in threads:
        thread.join()
    assert groups[threading.main_thread().native_id] == "loop"
    assert [groups[thread.native_id] for thread in threads] == ["client", "polling"]
    assert set(spent) == {"loop", "client", "polling"}


def test_percentiles(scripts: Any) -> None:
    spread = scripts("contender").spread
    thousand = spread([number / 1000 for number in range(1000, 0, -1)])
    expected = {"median_ms": 500.5, "p99_ms": 991, "p999_ms": 1000, "max_ms": 1000}
    assert thousand == pytest.approx(expected)
    assert set(spread([0.002]).values()) == {2}


# --- contenders ----------------------------------------------------------------------------------


def test_each_observed_contender_has_an_unobserved_counterpart(scripts: Any) -> None:
    chosen = scripts("compare").chosen("observed")
    assert {one.unobserved for one in chosen} < set(chosen)
    assert len({one for one in chosen if one.unobserved != one}) == 12
    assert [str(one) for one in scripts("compare").chosen("^ours, tasks-100, trio$")] == [
        "ours, tasks-100, trio"
    ]


def test_each_contender_is_a_known_client(scripts: Any) -> None:
    contender = scripts("contender")
    everybody = scripts("compare").contenders()
    clients = {one.client for one in everybody} - {scripts("pekko").CLIENT}
    assert clients <= {*contender.THREADED, *contender.LOOPED}
    on_trio = {one.client for one in everybody if one.loop == "trio"}
    assert on_trio == {name for name, (_, trio) in contender.LOOPED.items() if trio}


def test_compared_contenders_are_in_the_same_section(scripts: Any) -> None:
    sections = scripts("sections")
    aims = sections.aims()
    for aim in aims:
        contenders = sections.SECTIONS[aim.section].contenders
        assert {aim.one, aim.other, aim.less or aim.one} <= set(contenders)
    assert len({f"{aim}, {aim.figure}" for aim in aims}) == len(aims)


def test_an_aim_is_computed_for_each_round(scripts: Any) -> None:
    sections = scripts("sections")
    one, other, nothing = (sections.Contender(name, "open-200") for name in ("a", "b", "nothing"))
    rounds = {
        str(one): [{"cpu_us": 5.0}, None, {"cpu_us": 9.0}],
        str(other): [{"cpu_us": 4.0}, {"cpu_us": 1.0}, {"cpu_us": 3.0}],
        str(nothing): [{"cpu_us": 2.0}, {"cpu_us": 1.0}, {"cpu_us": 1.0}],
    }
    ratio = sections.Aim("open", "cpu_us", one, other, at_most=2.0)
    assert ratio.values(rounds) == [1.25, 3.0]
    assert (ratio.bound, ratio.is_reached(2.0), ratio.is_reached(2.1)) == ("at most 2", True, False)
    less = sections.Aim("open", "cpu_us", one, other, at_least=2.0, less=nothing)
    assert less.values(rounds) == [1.5, 4.0]
    assert (less.bound, less.is_reached(2.0), less.is_reached(1.9)) == ("at least 2", True, False)
    difference = sections.Aim("open", "cpu_us", one, other, is_difference=True)
    assert difference.values(rounds) == [1.0, 6.0]
    assert difference.bound == ""


def test_rounds_are_condensed(scripts: Any) -> None:
    rounds = {
        "a": [{"rate": 2.0, "crossings": 1.0}, None, {"rate": 1.23456}, {"rate": 9.0}],
        "b": [None, None],
    }
    assert scripts("suite").condensed(rounds) == {"a": {"rate": [2.0, 1.235, 9.0]}}


def test_a_new_measurement_of_one_section_keeps_the_other_sections(
    scripts: Any, tmp_path: Path
) -> None:
    suite = scripts("suite")
    rounds = {"ours, flow, asyncio": [{"rate": 2.0}], "gone, flow, asyncio": [{"rate": 3.0}]}
    about = {"date": "2026-02-01", "commit": "b", "Python": "3.14"}
    content = {"about": about, "seconds": 4, "records": 5, "rounds": rounds}
    (tmp_path / "streams.json").write_text(json.dumps(content), encoding="utf-8")
    kept = {"about": {"date": "2026-01-01", "commit": "a", "Python": "3.13"}}
    found = suite.results(tmp_path, {"sections": {"clients": kept, "no more": kept}})
    assert [*found["sections"]] == ["clients", "streams"]
    assert found["sections"]["clients"] == kept
    # A contender that the section no longer has is left out.
    assert found["sections"]["streams"]["contenders"] == {
        "ours, flow, asyncio": {"rate": [2.0] * 3}
    }
    assert found["about"] == {"date": "2026-02-01", "commit": "a, b", "Python": "3.14"}


# --- charts --------------------------------------------------------------------------------------


def _texts(svg: str) -> list[str]:
    return [str(one.text) for one in ET.fromstring(svg).iter(f"{_SVG}text") if one.text]


def _contrast(colour: str, background: str) -> float:
    def luminance(value: str) -> float:
        parts = [int(value[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        ]
        red, green, blue = linear
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    lighter, darker = sorted((luminance(colour), luminance(background)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _is_readable(svg: str) -> None:
    """Assert that texts stay within the chart and do not overlap. Their widths are estimates."""
    root = ET.fromstring(svg)
    _, _, right, bottom = map(float, root.get("viewBox", "").split())
    boxes: list[tuple[float, float, float, str]] = []
    for text in root.iter(f"{_SVG}text"):
        x, y, word = float(text.get("x", "")), float(text.get("y", "")), str(text.text)
        # In DejaVu Sans, one of the widest usual fonts, a digit of this size needs 7 pixels.
        width = sum(7.0 if one.isdigit() else 5.2 for one in word)
        x -= {"end": width, "middle": width / 2}.get(text.get("text-anchor", ""), 0)
        assert x >= -3, word
        assert x + width <= right + 3, word
        assert 8 <= y <= bottom, word
        boxes.append((x, x + width, y, word))
    for one, other in itertools.combinations(boxes, 2):
        apart = abs(one[2] - other[2]) >= 10 or one[1] < other[0] + 6 or other[1] < one[0] + 6
        assert apart, (one, other)
    _is_seen_on_every_page(svg)


def _is_seen_on_every_page(svg: str) -> None:
    """Assert that colours are visible on light and dark pages, and text has the page's colour."""
    body = re.sub(r"<style>.*?</style>", "", svg)
    colours = set(re.findall(r'(?:fill|stroke)="(?!none|currentColor)([^"]*)"', body))
    assert colours
    for colour in colours:
        for background in _BACKGROUNDS:
            assert _contrast(colour, background) >= 3, colour
    for text in ET.fromstring(svg).iter(f"{_SVG}text"):
        assert text.get("fill") is None


def test_bars(scripts: Any) -> None:
    charts = scripts("charts")
    values = [
        charts.Value("ours & co", 50.0, 40.0, 60.0, is_ours=True),
        charts.Value("other", 10.0, 9.0, 12.0),
        charts.Value("slow", 2_004.0, 2_000.0, 2_010.0),
    ]
    marks = [charts.Mark("inside", 20.0), charts.Mark("far", 900.0)]
    svg = charts.bars("A title", "ms", values, marks, limit=60.0)
    assert _texts(svg) == [
        *("ms", "ours & co", "50", "other", "10", "slow", "2,000 →"),
        *("inside: 20", "far: 900 →"),
    ]
    rectangles = [*ET.fromstring(svg).iter(f"{_SVG}rect")]
    widths = [float(one.get("width", "")) for one in rectangles]
    assert widths[0] / widths[1] == pytest.approx(5, rel=0.01)
    assert widths[2] / widths[0] == pytest.approx(1.2, rel=0.01)
    assert [one.get("fill") for one in rectangles] == [charts.OURS, *[charts.OTHERS] * 2]
    assert "A title. ms. ours &amp; co: 50; other: 10; slow: 2,000" in svg
    _is_readable(svg)


def test_lines_have_names_that_do_not_overlap(scripts: Any) -> None:
    charts = scripts("charts")
    series = [
        charts.Series("a", (1_000.0, 2_000.0), is_ours=True),
        charts.Series("b", (500.0, 2_001.0)),
        charts.Series("c", (None, 1_999.0)),
        charts.Series("nothing at all", (None, None)),
    ]
    svg = charts.lines("A title", "records per second", ["1 KB", "10 KB"], series, "size")
    names = [one for one in ET.fromstring(svg).iter(f"{_SVG}text") if one.text in {"a", "b", "c"}]
    heights = sorted(float(one.get("y", "")) for one in names)
    assert len(heights) == 3
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 12
    assert {"1 KB", "10 KB", "0", "1,000", "2,000"} <= set(_texts(svg))
    assert "a: 1,000 (1 KB), 2,000 (10 KB); b: 500 (1 KB), 2,000 (10 KB); c: 2,000 (10 KB)" in svg
    _is_readable(svg)


@pytest.mark.parametrize("value", [1.0, 20.0, 40.0, 60.0, 61.0])
def test_the_name_of_a_mark_is_never_cut_off(value: float, scripts: Any) -> None:
    charts = scripts("charts")
    bar = charts.Value("bar", 60.0, 60.0, 60.0)
    mark = charts.Mark("a name that is about as long as they are", value)
    _is_readable(charts.bars("A title", "ms", [bar], [mark]))


@pytest.mark.parametrize("ends", [(0.0, 1.0, 2.0, 3.0), (97.0, 98.0, 99.0, 100.0), (0.0, 50.0)])
def test_the_names_of_lines_stay_within_the_chart(ends: tuple[float, ...], scripts: Any) -> None:
    charts = scripts("charts")
    series = [charts.Series(f"name {end:g}", (100.0, end)) for end in ends]
    _is_readable(charts.lines("A title", "ms", ["1", "10,000"], series, "size"))


def test_ranges(scripts: Any) -> None:
    charts = scripts("charts")
    groups = [
        (
            "200 per second",
            [charts.Range("a", 0.7, 5.0, is_ours=True), charts.Range("b", 2.0, 20.0)],
        ),
        ("2,000 per second", [charts.Range("a", 0.72, 7.0, is_ours=True)]),
    ]
    svg = charts.ranges("A title", "milliseconds", ("median", "p99"), groups)
    assert _texts(svg) == [
        "milliseconds: median ● and p99 ○",
        *("200 per second", "a", "0.70", "5.0", "b", "2.0", "20"),
        *("2,000 per second", "a", "0.72", "7.0"),
    ]
    circles = [float(one.get("cx", "")) for one in ET.fromstring(svg).iter(f"{_SVG}circle")]
    assert circles == sorted(circles[:2]) + sorted(circles[2:4]) + sorted(circles[4:])
    _is_readable(svg)


@pytest.mark.parametrize(("low", "high"), [(0.02, 123_000.0), (3.0, 3.1), (2.0, 2.0)])
def test_numbers_have_space_beside_ranges(low: float, high: float, scripts: Any) -> None:
    charts = scripts("charts")
    rows = [charts.Range("aiokafka, same guarantees", low, high)]
    _is_readable(charts.ranges("A title", "milliseconds", ("median", "p99"), [("a", rows)]))


def test_a_standalone_chart_has_text_for_both_colour_schemes(scripts: Any) -> None:
    charts = scripts("charts")
    values = [charts.Value("a", 1.0, 1.0, 1.0)]
    assert "<style>" not in charts.bars("A title", "ms", values)
    svg = charts.bars("A title", "ms", values, standalone=True)
    assert "prefers-color-scheme: dark" in svg
    light, dark = _BACKGROUNDS
    assert _contrast(charts.LIGHT_TEXT, light) >= 7
    assert _contrast(charts.DARK_TEXT, dark) >= 7


def test_figures_are_rounded(scripts: Any) -> None:
    shown = scripts("charts").shown
    figures = (72_634.0, 123.4, 99.6, 10.04, 9.96, 9.94, 1.0, 0.996, 0.79, 0.1, 0.0123, 0.0)
    assert [shown(figure) for figure in figures] == [
        *("72,600", "123", "100", "10", "10", "9.9", "1.0", "1.0", "0.79", "0.10", "0.01", "0"),
    ]


# --- pages ---------------------------------------------------------------------------------------


def test_the_pages_show_the_results(scripts: Any) -> None:
    """`python bench/suite.py --only-page` generates the pages."""
    page = scripts("page")
    results = page.read_results()
    assert page.PAGE.read_text(encoding="utf-8") == page.render(results, "benchmark.md")
    assert page.TABLES.read_text(encoding="utf-8") == page.render(results, "benchmark-tables.md")
    readme = page.README.read_text(encoding="utf-8")
    assert readme == page.in_readme(results, readme)
    assert page.readme_table(results) in readme
    for chart, draw in page.DRAWN.items():
        assert (page.CHARTS / f"{chart}.svg").read_text(encoding="utf-8") == draw(results)


def test_the_results_cover_every_section_and_no_figure_is_missing(scripts: Any) -> None:
    sections = scripts("sections").SECTIONS
    page = scripts("page")
    results = page.read_results()
    assert [*results.content["sections"]] == [*sections]
    for key, section in sections.items():
        measured = results.content["sections"][key]["contenders"]
        assert set(measured) <= {str(one) for one in section.contenders}
    for made in (page.PAGE, page.README):
        assert page.MISSING not in made.read_text(encoding="utf-8")
    about = results.content["about"]
    assert {"date", "commit", "machine", "Python", "aiokafka"} <= set(about)


def test_the_first_chart_has_a_distinct_name_for_each_contender(scripts: Any) -> None:
    page = scripts("page")
    results = page.read_results()
    texts = _texts(page.rates(results))
    names = [text for text in texts if not re.search(r"\d|records", text)]
    assert names == [
        *("librdkafka driver, asyncio", "librdkafka driver, Trio"),
        *("kafka-python driver, asyncio", "kafka-python driver, Trio"),
        *("aiokafka, defaults", "aiokafka, same guarantees"),
        *("AIOProducer", "Pekko SendProducer (JVM)"),
    ]
    assert [text.partition(":")[0] for text in texts if "nothing awaited" in text] == [
        *("kafka-python itself, nothing awaited", "confluent-kafka itself, nothing awaited"),
    ]
    for draw in page.DRAWN.values():
        _is_readable(draw(results))


#: Numbers in the prose that are conditions of the benchmark, and not results.
_CONDITIONS: Final = {
    *(
        "0.8",
        "1",
        "2",
        "5",
        "16",
        "100",
        "200",
        "256",
        "1,000",
        "2,000",
        "10,000",
        "1,000,000",
        "10,000,000",
    ),
}


def test_the_prose_contains_no_fixed_figures(scripts: Any) -> None:
    template = (scripts("page").TEMPLATES / "benchmark.md").read_text(encoding="utf-8")
    without = re.sub(r"`[^`\n]*`|\$\w+|<!--.*?-->", "", template)
    assert set(re.findall(r"\b\d[\d,.]*\b", without)) <= _CONDITIONS
