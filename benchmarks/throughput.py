"""Ways to one engine, asked in turns: what each lets through, how soon, and what processor time it takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.jobs import say
from benchmarks.load import closed_loop
from benchmarks.stage import Way


@dataclass
class Row:
    """One way to the engine at one concurrency. Times are seconds."""

    events: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    failures: int = 0
    first: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.events / self.seconds


async def in_turns(ways: Mapping[Way, bytes], *, workers: int, seconds: float, rounds: int) -> dict[str, Row]:
    """Have so many workers send each way's question over and over, for some seconds a round; rows by ways' names."""
    rows = {way.name: Row() for way in ways}
    for turn in range(rounds):
        for way, wire in ways.items():
            say(f"{workers} streams, {way.name}, round {turn + 1} of {rounds}")
            row, before = rows[way.name], way.cpu
            seen, took = await closed_loop(way.url, wire, workers=workers, seconds=seconds)
            row.cpu += way.cpu - before
            row.events += seen.events
            row.seconds += took
            row.failures += seen.failures
            row.first += seen.first
    return rows


def print_table(rows: Mapping[str, Row]) -> None:
    """Print each way beside ``direct``."""
    direct = rows["direct"]
    titles = {"": 12, "events/s": 10, "of direct": 11, "first p50": 11, "p95": 8}
    titles |= {"p50 +ms": 9, "p95 x": 7, "CPU s/M": 9, "lost": 6}
    print("".join(f"{title:>{width}}" for title, width in titles.items()))
    for name, row in rows.items():
        p50, p95 = quantile(row.first, 0.5), quantile(row.first, 0.95)
        print(
            f"{name:12}{row.rate:10.0f}{row.rate / direct.rate:10.1%} {p50 * 1000:10.1f}{p95 * 1000:8.1f}"
            f"{(p50 - quantile(direct.first, 0.5)) * 1000:9.2f}{p95 / quantile(direct.first, 0.95):7.2f}"
            f"{row.cpu / row.events * 1e6:9.1f}{row.failures:6}"
        )


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of all values does not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
