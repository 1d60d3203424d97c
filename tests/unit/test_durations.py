"""Durations as seconds or timedelta, and the warning about a long one."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_sendproducer import ProducerSettings, SettingsError, SettingsWarning, open_send_producer

DURATIONS = [
    "delivery_timeout",
    "unknown_topic_timeout",
    "start_timeout",
    "close_timeout",
    "cancel_timeout",
    "eos_commit_interval",
    "resolve_timeout",
]


def test_each_setting_in_seconds_is_tested() -> None:
    types = get_type_hints(ProducerSettings)
    assert [name for name, kind in types.items() if kind is float] == DURATIONS


def make(**fields: Any) -> ProducerSettings:
    return ProducerSettings(bootstrap_servers="localhost:9092", **fields)


@pytest.mark.parametrize("field", DURATIONS)
@given(st.timedeltas(timedelta(microseconds=1), timedelta(seconds=1e9)))
def test_a_timedelta_is_seconds(field: str, duration: timedelta) -> None:
    assert getattr(make(**{field: duration}), field) == duration.total_seconds()
    changed = getattr(make(), f"with_{field}")(duration)
    assert getattr(changed, field) == duration.total_seconds()


@pytest.mark.parametrize("duration", [timedelta(seconds=-1), timedelta(days=36_500)])
def test_a_timedelta_has_bounds(duration: timedelta) -> None:
    with pytest.raises(SettingsError, match="delivery_timeout must be a number of seconds above"):
        make(delivery_timeout=duration)


@pytest.mark.parametrize("field", DURATIONS)
def test_a_long_number_causes_a_warning(field: str) -> None:
    says = (
        f"^{field}=30000 is in seconds, which is 8.3 hours. If milliseconds are meant, divide by "
        r"1000. If this duration is intended, use timedelta\(seconds=30000\).$"
    )
    with pytest.warns(SettingsWarning, match=says):
        settings = make(**{field: 30_000})
    assert getattr(settings, field) == 30_000


@pytest.mark.parametrize(
    ("number", "words"),
    [(3600.5, "1.0 hours"), (172_800, "2.0 days"), (1e9, "31.7 years")],
)
def test_the_warning_has_the_number_in_words(number: float, words: str) -> None:
    with pytest.warns(SettingsWarning, match=f"which is {words}. If"):
        make(close_timeout=number)


def test_an_hour_causes_no_warning() -> None:
    assert make(delivery_timeout=3600).delivery_timeout == 3600


def test_the_warning_is_a_user_warning_that_can_be_filtered() -> None:
    assert issubclass(SettingsWarning, UserWarning)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SettingsWarning)
        assert make(delivery_timeout=30_000).delivery_timeout == 30_000


WAYS: dict[str, Callable[[], object]] = {
    "made": lambda: ProducerSettings(bootstrap_servers="a:1", delivery_timeout=30_000),
    "evolve": lambda: make().evolve(delivery_timeout=30_000),
    "with": lambda: make().with_delivery_timeout(30_000),
    "mapping": lambda: ProducerSettings.from_mapping(
        {"bootstrap_servers": "a:1", "delivery_timeout": "30000"}
    ),
    "opening": lambda: open_send_producer(bootstrap_servers="a:1", delivery_timeout=30_000),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_warning_names_the_line_of_the_user(way: str) -> None:
    with pytest.warns(SettingsWarning) as caught:
        WAYS[way]()
    assert [Path(one.filename).name for one in caught] == [Path(__file__).name]
    assert caught[0].lineno == WAYS[way].__code__.co_firstlineno


def test_an_accepted_duration_causes_no_second_warning() -> None:
    settings = make(delivery_timeout=timedelta(hours=2))
    with pytest.warns(SettingsWarning):
        others = [settings, make(delivery_timeout=7200)]
    for one in others:
        for other in (
            one.evolve(client_id="me").evolve(client_id=one.client_id),
            dataclasses.replace(one),
            pickle.loads(pickle.dumps(one)),
            copy.deepcopy(one),
            make(delivery_timeout=one.delivery_timeout),
        ):
            assert other == settings
            assert repr(other) == repr(settings)
            assert "delivery_timeout=7200.0" in repr(other)
