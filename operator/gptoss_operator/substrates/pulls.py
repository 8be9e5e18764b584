"""Follows pulls where replicas start, on nodes of Ray or in pods, beside the reconcile.

What is told counts only once it was seen to change, and while it goes on changing, on our own
clock: a file that a killed process left behind says nothing.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Set
from dataclasses import dataclass, replace
from datetime import UTC
from typing import Any

from pydantic import ValidationError

from gptoss_api.deployment_status import PullStatus
from gptoss_api.pull_report import PullReport, report_name

_log = logging.getLogger(__name__)
PAUSE_SECONDS = 5.0
"""Between two looks, and so between two writes of a status for this."""
STALE_SECONDS = 20.0
_MOST_NODES = 16
_AT_ONCE = 16
_GIB = 1024**3


@dataclass(frozen=True, kw_only=True)
class Pulling:
    """Where replicas of an application start, and the manifest that they are pinned to.

    ``nodes`` are ids of Ray's nodes, or addresses of pods.
    """

    manifest_digest: str
    nodes: Set[str]

    @classmethod
    def of(cls, application: Mapping[str, Any] | None, nodes: Set[str]) -> "Pulling | None":
        """Return what is pulled for Ray's configuration of an application; None if nothing is known to be."""
        digest = (((application or {}).get("args") or {}).get("weights") or {}).get("manifestDigest")
        return cls(manifest_digest=str(digest), nodes=nodes) if nodes and digest else None


@dataclass(frozen=True, kw_only=True)
class _Sighting:
    text: str
    changed_at: float | None = None


class Pulls:
    """What is known of each application's pulls.

    ``read`` gets a node and the name of a report, and returns its text, None if there is none, within a deadline of
    its own; ``news`` is called when what is known of one has changed.
    """

    def __init__(
        self,
        *,
        read: Callable[[str, str], Awaitable[str | None]],
        news: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._news = news
        self._clock = clock
        self._limit = asyncio.Semaphore(_AT_ONCE)
        self._task: asyncio.Task[None] | None = None
        self._due = clock()
        self._starting: dict[str, Pulling] = {}
        self._sightings: dict[tuple[str, str], _Sighting] = {}
        self._told: dict[str, PullStatus] = {}

    def look(self, starting: Mapping[str, Pulling]) -> None:
        """Begin to look at these applications' pulls, unless that is under way or too early, and forget all others."""
        self._starting = dict(starting)
        self._told = {name: told for name, told in self._told.items() if name in starting}
        now = self._clock()
        if starting and now >= self._due and (self._task is None or self._task.done()):
            self._due = now + PAUSE_SECONDS
            self._task = asyncio.create_task(self._follow(), name="pulls of weights")

    def of(self, application: str) -> PullStatus | None:
        """Return how far an application's slowest pull is, None if none is known to run."""
        return self._told.get(application)

    async def close(self) -> None:
        """End a look that is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        try:
            told = await self._looked(dict(self._starting))
        except Exception:  # noqa: BLE001 - or what is known now would be told for ever
            _log.exception("the look at pulls failed")
            told = {}
        told = {name: pull for name, pull in told.items() if name in self._starting}
        if told != self._told:
            self._told = told
            self._news()

    async def _looked(self, starting: Mapping[str, Pulling]) -> dict[str, PullStatus]:
        wanted = sorted(
            {
                (node, report_name(each.manifest_digest))
                for each in starting.values()
                for node in sorted(each.nodes)[:_MOST_NODES]
            }
        )
        texts = await asyncio.gather(*(self._text(*place) for place in wanted))
        now = self._clock()
        self._sightings = {
            place: _seen(self._sightings.get(place), text, now)
            for place, text in zip(wanted, texts, strict=True)
            if text is not None
        }
        found = {}
        for name, each in starting.items():
            places = ((node, report_name(each.manifest_digest)) for node in each.nodes)
            reports = [report for place in places if (report := _report(self._sightings.get(place), now)) is not None]
            if reports:
                # The start waits for the last of them.
                found[name] = pull_status(min(reports, key=lambda report: report.bytes_done / report.bytes_total))
        return found

    async def _text(self, node: str, name: str) -> str | None:
        async with self._limit:
            return await self._read(node, name)


def pull_status(report: PullReport) -> PullStatus:
    """Return what the deployment's status says of a report."""
    done, total = min(report.bytes_done, report.bytes_total), report.bytes_total
    rate = report.bytes_per_second
    return PullStatus(
        started_at=report.started_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        progress=f"{100 * done // total}% of {total / _GIB:.1f} GiB",
        files_done=report.files_done,
        files_total=report.files_total,
        bytes_done=done,
        bytes_total=total,
        bytes_per_second=rate,
        seconds_left=math.ceil((total - done) / rate) if rate else None,
    )


def _seen(before: _Sighting | None, text: str, now: float) -> _Sighting:
    if before is None:
        return _Sighting(text=text)
    return before if before.text == text else replace(before, text=text, changed_at=now)


def _report(seen: _Sighting | None, now: float) -> PullReport | None:
    if seen is None or seen.changed_at is None or now - seen.changed_at > STALE_SECONDS:
        return None
    try:
        return PullReport.model_validate_json(seen.text)
    except ValidationError:
        return None
