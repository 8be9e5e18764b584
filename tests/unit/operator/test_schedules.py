"""Schedules over time zones and changes of the clock, and what they make of a model's life."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_api.scaling import Scaling, Schedule
from gptoss_operator.plan.schedules import floor_at

WEEK = ("Mon", "Tue", "Wed", "Thu", "Fri")
BERLIN = "Europe/Berlin"
HOWE = "Australia/Lord_Howe"
ALL = (*WEEK, "Sat", "Sun")


def scaling(*schedules: dict[str, Any], **more: Any) -> Scaling:
    return Scaling(schedules=tuple(Schedule(**each) for each in schedules), **{"max_replicas": 4, **more})


def window(start: str, end: str, *, zone: str = "UTC", days: tuple[str, ...] = WEEK, **more: Any) -> dict[str, Any]:
    return {"name": "office", "time_zone": zone, "days": days, "start": start, "end": end, **more}


def span(schedule: dict[str, Any], around: str) -> tuple[str, str]:
    """Return the edges, in UTC, of the window that is open or opens next after a moment in UTC."""
    wanted = scaling(schedule)
    floor = floor_at(wanted, around)
    assert floor.replicas == 0, "the moment must lie before the window"
    assert floor.changes_at is not None
    closes = floor_at(wanted, floor.changes_at.isoformat())
    assert closes.replicas == 1
    assert closes.changes_at is not None
    return f"{floor.changes_at:%m-%d %H:%M}", f"{closes.changes_at:%m-%d %H:%M}"


@pytest.mark.parametrize(
    ("schedule", "around", "expected"),
    [
        # Wall times are the zone's own, in winter and in summer, east and west, by halves of an hour.
        (window("09:00", "17:00"), "2026-11-20T00:00:00Z", ("11-20 09:00", "11-20 17:00")),
        (window("09:00", "17:00", zone=BERLIN), "2026-01-15T00:00:00Z", ("01-15 08:00", "01-15 16:00")),
        (window("09:00", "17:00", zone=BERLIN), "2026-07-15T00:00:00Z", ("07-15 07:00", "07-15 15:00")),
        (window("09:00", "17:00", zone="Asia/Kolkata"), "2026-07-15T00:00:00Z", ("07-15 03:30", "07-15 11:30")),
        (window("09:00", "17:00", zone="America/New_York"), "2026-07-15T00:00:00Z", ("07-15 13:00", "07-15 21:00")),
        # The day is the zone's day: Monday morning in Auckland is Sunday evening in UTC, and the reverse.
        (
            window("08:00", "10:00", zone="Pacific/Auckland", days=("Mon",)),
            "2026-07-15T00:00:00Z",
            ("07-19 20:00", "07-19 22:00"),
        ),
        (
            window("20:00", "22:00", zone="Pacific/Honolulu", days=("Mon",)),
            "2026-07-15T00:00:00Z",
            ("07-21 06:00", "07-21 08:00"),
        ),
        # Over midnight the day is the one on which the window opens: Friday's ends on Saturday.
        (window("22:00", "06:00", days=("Fri",)), "2026-11-16T00:00:00Z", ("11-20 22:00", "11-21 06:00")),
        (window("00:00", "24:00", days=("Sat",)), "2026-11-16T00:00:00Z", ("11-21 00:00", "11-22 00:00")),
        (window("18:00", "24:00", days=("Sun",)), "2026-11-16T00:00:00Z", ("11-22 18:00", "11-23 00:00")),
        # Days that touch are one window.
        (window("00:00", "24:00"), "2026-11-15T12:00:00Z", ("11-16 00:00", "11-21 00:00")),
        # 2026-03-29, Berlin skips 02:00 to 03:00: a day with 23 hours, and wall times that do not exist.
        (window("01:00", "05:00", zone=BERLIN, days=ALL), "2026-03-28T12:00:00Z", ("03-29 00:00", "03-29 03:00")),
        (window("02:30", "05:00", zone=BERLIN, days=ALL), "2026-03-28T12:00:00Z", ("03-29 01:30", "03-29 03:00")),
        (window("01:00", "02:30", zone=BERLIN, days=ALL), "2026-03-28T12:00:00Z", ("03-29 00:00", "03-29 01:30")),
        (window("02:15", "02:45", zone=BERLIN, days=ALL), "2026-03-28T12:00:00Z", ("03-29 01:15", "03-29 01:45")),
        # Swallowed: 02:30 is read as 03:30 there, and the end is 03:00.
        (window("02:30", "03:00", zone=BERLIN, days=ALL), "2026-03-28T12:00:00Z", ("03-30 00:30", "03-30 01:00")),
        # 2026-10-25, Berlin has 02:00 to 03:00 twice: from the first start to the last end.
        (window("01:00", "05:00", zone=BERLIN, days=ALL), "2026-10-24T12:00:00Z", ("10-24 23:00", "10-25 04:00")),
        (window("02:30", "05:00", zone=BERLIN, days=ALL), "2026-10-24T12:00:00Z", ("10-25 00:30", "10-25 04:00")),
        (window("01:00", "02:30", zone=BERLIN, days=ALL), "2026-10-24T12:00:00Z", ("10-24 23:00", "10-25 01:30")),
        (window("02:15", "02:45", zone=BERLIN, days=ALL), "2026-10-24T12:00:00Z", ("10-25 00:15", "10-25 01:45")),
        # Over midnight and over a change: eight hours of wall time are seven or nine.
        (window("22:00", "06:00", zone=BERLIN, days=("Sat",)), "2026-03-27T12:00:00Z", ("03-28 21:00", "03-29 04:00")),
        (window("22:00", "06:00", zone=BERLIN, days=("Sat",)), "2026-10-23T12:00:00Z", ("10-24 20:00", "10-25 05:00")),
        # Lord Howe Island changes by half an hour; Lagos never.
        (window("01:45", "03:00", zone=HOWE, days=ALL), "2026-04-04T00:00:00Z", ("04-04 14:45", "04-04 16:30")),
        (window("09:00", "17:00", zone="Africa/Lagos"), "2026-03-29T12:00:00Z", ("03-30 08:00", "03-30 16:00")),
    ],
)  # fmt: skip
def test_a_window_opens_and_closes_at_its_zones_wall_times(schedule, around, expected):
    assert span(schedule, around) == expected


def test_the_highest_open_window_counts_and_the_next_change_is_of_the_number():
    wanted = scaling(
        window("08:00", "18:00", min_replicas=1),
        {**window("10:00", "12:00", min_replicas=3), "name": "peak"},
        {**window("11:00", "11:30", min_replicas=2), "name": "lost"},
    )
    told = []
    moment = "2026-11-20T07:00:00Z"
    for _ in range(4):
        floor = floor_at(wanted, moment)
        assert floor.changes_at is not None
        told.append((floor.replicas, floor.schedules, f"{floor.changes_at:%H:%M}", floor.then))
        moment = floor.changes_at.isoformat()
    assert told == [
        (0, (), "08:00", 1),
        (1, ("office",), "10:00", 3),
        (3, ("office", "peak"), "12:00", 1),
        (1, ("office",), "18:00", 0),
    ]
    assert floor_at(wanted, "2026-11-20T11:15:00Z").schedules == ("lost", "office", "peak")


def test_a_floor_stands_under_every_schedule_and_the_most_above():
    assert floor_at(scaling(window("09:00", "17:00"), min_replicas=2), "2026-11-20T12:00:00Z").replicas == 2
    assert floor_at(scaling(window("09:00", "17:00"), min_replicas=2), "2026-11-20T12:00:00Z").changes_at is None
    assert floor_at(scaling(window("09:00", "17:00", min_replicas=9)), "2026-11-20T12:00:00Z").replicas == 4


def test_an_always_open_window_never_changes():
    floor = floor_at(scaling(window("00:00", "24:00", days=ALL)), "2026-11-20T12:34:56Z")
    assert (floor.replicas, floor.changes_at, floor.then) == (1, None, None)


def test_an_unknown_zone_is_named_and_the_others_hold():
    wanted = scaling(window("09:00", "17:00"), {**window("00:00", "24:00", zone="Mars/Base"), "name": "x"})
    floor = floor_at(wanted, "2026-11-20T12:00:00Z")
    assert floor.replicas == 1
    assert floor.problem.startswith("spec.scaling.schedules[1].timeZone 'Mars/Base' is not known here")


walls = st.integers(0, 24 * 60 - 1).map(lambda minute: f"{minute // 60:02}:{minute % 60:02}")
zones = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe",
                         "Pacific/Apia", "Africa/Casablanca", "America/St_Johns"])  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    start=walls,
    end=walls,
    zone=zones,
    days=st.sets(st.sampled_from(ALL), min_size=1),
    minute=st.integers(0, 366 * 24 * 60 - 1),
)
def test_the_floor_is_what_the_walls_say_on_days_without_a_change(start, end, zone, days, minute):
    """Against the plain reading of the clock on the wall, wherever nobody turned it for three days."""
    if start == end:
        return
    moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minute)
    local = moment.astimezone(ZoneInfo(zone))
    offsets = {(moment + timedelta(hours=h)).astimezone(ZoneInfo(zone)).utcoffset() for h in range(-36, 37, 3)}
    if len(offsets) > 1:
        return
    reading, today, yesterday = f"{local:%H:%M}", f"{local:%a}", f"{local - timedelta(days=1):%a}"
    if start < end:
        wanted = today in days and start <= reading < end
    else:
        wanted = (today in days and reading >= start) or (yesterday in days and reading < end)
    floor = floor_at(scaling(window(start, end, zone=zone, days=tuple(days))), moment.isoformat())
    assert floor.replicas == int(wanted)


@settings(max_examples=60, deadline=None)
@given(start=walls, end=walls, zone=zones, minute=st.integers(0, 366 * 24 * 60 - 1))
def test_nothing_changes_before_the_next_change_and_everything_does_then(start, end, zone, minute):
    if start == end:
        return
    wanted = scaling(window(start, end, zone=zone))
    moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minute)
    floor = floor_at(wanted, moment.isoformat())
    if floor.changes_at is None:
        return
    assert floor_at(wanted, floor.changes_at.isoformat()).replicas == floor.then != floor.replicas
    for part in range(10):
        between = moment + (floor.changes_at - moment) * part / 10
        assert floor_at(wanted, between.isoformat()).replicas == floor.replicas
