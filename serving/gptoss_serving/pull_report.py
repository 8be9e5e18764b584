"""Tells how far a pull is, where the operator can read it: a file among this node's Ray logs, while the pull runs.

Telling is a courtesy to people: what goes wrong with it never stops a pull.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from gptoss_api.application import WeightsArguments
from gptoss_api.pull_report import PullReport, report_name
from gptoss_serving.ray_logs import ray_logs
from gptoss_weights.materialise import PullProgress

_PAUSE_SECONDS: Final = 2.0
_RATE_SECONDS: Final = 20.0
"""A rate is that of the last so many seconds: what came first may have come from the disk."""


@contextmanager
def told(
    weights: WeightsArguments, *, folder: Path | None = None, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[PullProgress], None]]:
    """Yield what a pull tells its progress; the file is gone afterwards. ``folder`` is that of Ray's logs."""
    folder = folder or ray_logs()
    if folder is None:
        yield lambda _: None
        return
    path = folder / report_name(weights.manifest_digest)
    try:
        yield _Teller(path, clock)
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


class _Teller:
    """Writes at most every two seconds, in one step."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._path = path
        self._partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        self._clock = clock
        self._started = datetime.now(UTC)
        self._beat = 0
        self._due = clock()
        self._seen: deque[tuple[float, int]] = deque()

    def __call__(self, now: PullProgress) -> None:
        moment = self._clock()
        if moment < self._due:
            return
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
        with suppress(OSError):
            self._partial.write_text(f"{report.model_dump_json(by_alias=True, exclude_none=True)}\n")
            self._partial.replace(self._path)

    def _rate(self, moment: float, done: int) -> int | None:
        if self._seen and done < self._seen[-1][1]:
            self._seen.clear()  # another pass over the files, or bytes that were worth nothing
        self._seen.append((moment, done))
        while moment - self._seen[0][0] > _RATE_SECONDS and len(self._seen) > 2:
            self._seen.popleft()
        began, before = self._seen[0]
        return round((done - before) / (moment - began)) if moment > began else None
