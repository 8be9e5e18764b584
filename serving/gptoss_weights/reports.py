"""What a running pull tells of itself to whoever asks: on Ray nodes by a file, in pods by a port."""

import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from gptoss_api.pull_report import PullReport
from gptoss_weights.materialise import PullProgress

_PAUSE_SECONDS: Final = 2.0
_RATE_SECONDS: Final = 20.0
"""A rate is that of the last so many seconds: what came first may have come from the disk."""


class PullReports:
    """The reports of one pull, at most one every two seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = datetime.now(UTC)
        self._beat = 0
        self._due = clock()
        self._seen: deque[tuple[float, int]] = deque()

    def of(self, now: PullProgress) -> str | None:
        """Return what is to be told now, one line of JSON; None if the last one still holds."""
        moment = self._clock()
        if moment < self._due:
            return None
        self._due = moment + _PAUSE_SECONDS
        self._beat += 1
        report = PullReport(
            started_at=self._started,
            beat=self._beat,
            files_done=now.files_done,
            files_total=now.files_total,
            bytes_done=now.bytes_done,
            bytes_total=now.bytes_total,
            bytes_per_second=self._rate(moment, now.bytes_done),
        )
        return f"{report.model_dump_json(by_alias=True, exclude_none=True)}\n"

    def _rate(self, moment: float, done: int) -> int | None:
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()  # another pass over the files, or bytes that were worth nothing
        self._seen.append((moment, done))
        while moment - self._seen[0][0] > _RATE_SECONDS and len(self._seen) > 2:
            self._seen.popleft()
        began, before = self._seen[0]
        return round((done - before) / (moment - began)) if moment > began else None
