"""Schedules: how many replicas must stay up at a moment, and when that changes next.

A window is a pair of instants, made from wall times of its own zone. On a day on which the clock is
changed, a wall time that does not exist is read with the offset before the change, and one that
exists twice is its first occurrence (RFC 5545, 3.3.5) — but for an end, whose last occurrence counts, so
that a change of the clock never shortens a window that it does not swallow.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from gptoss_api.scaling import Scaling, Schedule

_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_BEHIND, _AHEAD = 2, 8
"""Days around today that matter: a window may have begun yesterday, in a zone where today is tomorrow."""


@dataclass(frozen=True, kw_only=True)
class Floor:
    """The replicas that must stay up.

    Attributes:
        replicas: how many, now.
        schedules: names of the schedules whose window is open now.
        changes_at: when ``replicas`` changes next, in UTC; None if not within a week.
        then: how many from then on.
        problem: why a schedule can't be followed; empty if all can.
    """

    replicas: int
    schedules: tuple[str, ...] = ()
    changes_at: datetime | None = None
    then: int | None = None
    problem: str = ""


def floor_at(scaling: Scaling, moment: str) -> Floor:
    """Return the floor at a moment (RFC 3339)."""
    if not scaling.schedules:
        return Floor(replicas=scaling.min_replicas)
    now = datetime.fromisoformat(moment)
    problem = ""
    windows: list[_Window] = []
    for index, schedule in enumerate(scaling.schedules):
        try:
            zone = ZoneInfo(schedule.time_zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            problem = (
                f"spec.scaling.schedules[{index}].timeZone {schedule.time_zone!r} is not known here: use a name of "
                "the IANA time zone database, such as Europe/Berlin or UTC"
            )
            continue
        windows += _windows(schedule, zone, now)
    replicas = _replicas(scaling, windows, now)
    changes_at, then = _next_change(scaling, windows, now, replicas)
    return Floor(
        replicas=replicas,
        schedules=tuple(sorted({window.schedule.name for window in windows if window.is_open(now)})),
        changes_at=changes_at,
        then=then,
        problem=problem,
    )


@dataclass(frozen=True, kw_only=True)
class _Window:
    schedule: Schedule
    start: datetime
    end: datetime

    def is_open(self, moment: datetime) -> bool:
        return self.start <= moment < self.end


def _windows(schedule: Schedule, zone: tzinfo, now: datetime) -> Iterator[_Window]:
    today = now.astimezone(zone).date()
    for offset in range(-_BEHIND, _AHEAD + 1):
        day = today + timedelta(days=offset)
        if _WEEKDAYS[day.weekday()] not in schedule.days:
            continue
        last_day = day if schedule.end > schedule.start else day + timedelta(days=1)
        yield _Window(
            schedule=schedule,
            start=_first(_wall(day, schedule.start), zone),
            end=_last(_wall(last_day, schedule.end), zone),
        )


def _wall(day: date, text: str) -> datetime:
    if text == "24:00":
        return datetime.combine(day + timedelta(days=1), time())
    return datetime.combine(day, time.fromisoformat(text))


def _first(wall: datetime, zone: tzinfo) -> datetime:
    return wall.replace(tzinfo=zone, fold=0).astimezone(UTC)


def _last(wall: datetime, zone: tzinfo) -> datetime:
    return max(wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))


def _replicas(scaling: Scaling, windows: Iterable[_Window], moment: datetime) -> int:
    open_now = (window.schedule.min_replicas for window in windows if window.is_open(moment))
    return min(max([scaling.min_replicas, *open_now]), scaling.max_replicas)


def _next_change(
    scaling: Scaling, windows: Sequence[_Window], now: datetime, replicas: int
) -> tuple[datetime | None, int | None]:
    edges = {edge for window in windows for edge in (window.start, window.end)}
    for edge in sorted(edge for edge in edges if now < edge <= now + timedelta(days=7)):
        if (then := _replicas(scaling, windows, edge)) != replicas:
            return edge, then
    return None, None
