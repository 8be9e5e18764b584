"""Tells how far a pull is, where the operator can read it: a file among this node's Ray logs, while the pull runs.

Telling is a courtesy to people: what goes wrong with it never stops a pull.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gptoss_api.application import WeightsArguments
from gptoss_api.pull_report import report_name
from gptoss_serving.ray_logs import ray_logs
from gptoss_weights.materialise import PullProgress
from gptoss_weights.reports import PullReports


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
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    reports = PullReports(clock=clock)

    def tell(now: PullProgress) -> None:
        report = reports.of(now)
        if report is not None:
            with suppress(OSError):
                partial.write_text(report)
                partial.replace(path)

    try:
        yield tell
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
