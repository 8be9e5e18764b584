"""The operator's own clock, so that a sleeping machine and a wrong wall clock change no decision."""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Tells how much time has passed, and the time of day for people."""

    def now(self) -> float:
        """Return seconds since an arbitrary start; counts suspended time too."""
        ...

    def wall(self) -> str:
        """Return the time of day in RFC 3339, whole seconds, UTC."""
        ...


class SystemClock:
    """The machine's clock: CLOCK_BOOTTIME for durations, because a suspended machine's leases go on."""

    def now(self) -> float:
        """Return seconds since boot, suspended time included."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> str:
        """Return the time of day in RFC 3339, whole seconds, UTC."""
        return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
