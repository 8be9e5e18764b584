"""Does a series of samples grow? A slope that single outliers and waves do not move (Theil and Sen's)."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Bound:
    """How much a series may grow over the time it was watched: a share of its median, and an amount."""

    share: float
    amount: float


@dataclass(frozen=True, kw_only=True)
class Trend:
    """What a series did. ``ratio`` is the last third's median by the first's; ``growth`` the slope's whole rise."""

    first: float
    last: float
    growth: float
    allowed: float

    @property
    def ratio(self) -> float:
        """The last third by the first."""
        return self.last / self.first if self.first else float("inf") if self.last else 1.0

    @property
    def grows(self) -> bool:
        """Whether it rises by more than it may."""
        return self.growth > self.allowed


def trend(times: Sequence[float], values: Sequence[float], bound: Bound) -> Trend:
    """Return the trend of at least three samples; times in seconds, rising."""
    if len(values) < 3 or len(times) != len(values):
        raise ValueError(f"{len(values)} values at {len(times)} times: at least three of each are needed")
    third = len(values) // 3
    return Trend(
        first=statistics.median(values[:third]),
        last=statistics.median(values[-third:]),
        growth=slope(times, values) * (times[-1] - times[0]),
        allowed=bound.share * statistics.median(values) + bound.amount,
    )


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Return the median slope of all pairs of samples, per second."""
    pairs = [
        (values[late] - values[early]) / (times[late] - times[early])
        for late in range(len(values))
        for early in range(late)
        if times[late] > times[early]
    ]
    return statistics.median(pairs) if pairs else 0.0
