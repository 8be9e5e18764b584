"""What minutes at full load leave behind in a gateway: one process and a crew of two, side by side.

A real API server, a paced stand-in engine, and clients of every kind at once: streams, whole answers, clients
that give up at any moment, and bursts for a model that is put to sleep and woken again and again by the
protocol of drains (no operator: the benchmark writes the status). API keys change every few seconds.
Memory, descriptors, threads and tasks are sampled; the first fifth of the samples, while pools and caches fill, does
not count. It fails when one of them grows (a robust slope, ``BOUNDS``), when an answer is lost, or when
something is still counted as open once the load is gone.

    SOAK_MINUTES=10 python -m benchmarks.soak [--gateways 1 2] [--streams N]
"""

import argparse
import asyncio
import os
import resource
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.crowd import Crowd, Keys, Sleeper
from benchmarks.jobs import say
from benchmarks.stage import Stage, Way, get, rss, status_field
from benchmarks.trend import Bound, trend
from gptoss_kube.client import Kube

WARMING = 0.2
"""The share of the samples, from the first, that does not count."""
MIB = 2**20
BOUNDS = {
    "memory": Bound(share=0.03, amount=4 * MIB),
    "descriptors": Bound(share=0.05, amount=8),
    "threads": Bound(share=0.0, amount=2),
    "tasks": Bound(share=0.05, amount=8),
}
"""What each process (tasks: each gateway) may grow by over the samples that count."""
SETTLE_SECONDS = 90.0
"""Time to forget: demand of clients that left while they were held lingers for 60 s, idle connections for less."""
LATE_SECONDS = 10.0
LEFT_OVER = 8
"""Descriptors and tasks more than before the load that are nobody's leak: idle connections to the API server."""


@dataclass(kw_only=True)
class Series:
    """Samples of one thing of one process."""

    what: str
    where: str
    values: list[float] = field(default_factory=list)


@dataclass(kw_only=True)
class Watched:
    """A gateway and what was seen of its processes. ``before`` is what it had before the load."""

    way: Way
    crowd: Crowd
    processes: tuple[int, ...]
    before: dict[str, float] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    series: dict[tuple[str, str], Series] = field(default_factory=dict)

    def note(self, time: float, sample: dict[tuple[str, str], float]) -> None:
        """Keep what was seen at one time."""
        self.times.append(time)
        for (what, where), value in sample.items():
            self.series.setdefault((what, where), Series(what=what, where=where)).values.append(value)


async def run(options: argparse.Namespace, *, minutes: float) -> int:
    """Run everything and print what was seen; 1 if something grew, was lost or stayed."""
    with tempfile.TemporaryDirectory(prefix="gptoss-soak-") as folder:
        stage = Stage(Path(folder))
        try:
            say("starting etcd, kube-apiserver, engine and gateways")
            ways = await asyncio.to_thread(_open, stage, options.gateways)
            async with Kube(kubeconfig=stage.plane.kubeconfig, user_agent="soak") as kube:
                return await _soak(stage, kube, ways, options, seconds=minutes * 60)
        finally:
            await asyncio.to_thread(stage.stop)


def _open(stage: Stage, gateways: Sequence[int]) -> list[Way]:
    stage.write_keys([])
    stage.start()
    return [
        stage.open_gateway(f"gateway-x{workers}", workers=workers, auditFile=f"{stage.keys_file}.{number}.audit")
        for number, workers in enumerate(gateways)
    ]


async def _soak(stage: Stage, kube: Kube, ways: list[Way], options: argparse.Namespace, *, seconds: float) -> int:
    keys = Keys(stage, ways)
    await keys.begin()
    watched = [
        Watched(way=way, crowd=Crowd(way, keys, streams=options.streams), processes=way.processes) for way in ways
    ]
    for each in watched:
        await each.crowd.meet()
        each.before = _totals(await asyncio.to_thread(_sample, each))
    sleeper = Sleeper(kube, stage.engine, [each.crowd for each in watched])
    loop = asyncio.get_running_loop()
    began = loop.time()
    over = began + seconds
    say(f"{seconds / 60:g} minutes of load")
    async with asyncio.TaskGroup() as group:
        for each in watched:
            group.create_task(each.crowd.run(over))
        group.create_task(keys.run(over))
        group.create_task(sleeper.run(over))
        group.create_task(_watch(watched, began, over))
        group.create_task(_tell_of_late_answers(watched, over))
    say("the load is gone: waiting until nothing is counted as open")
    left = await _settle(watched, sleeper, stage.engine)
    return _verdict(watched, sleeper, keys, left)


async def _watch(watched: Sequence[Watched], began: float, over: float) -> None:
    loop = asyncio.get_running_loop()
    pause = min(5.0, max(0.5, (over - began) / 200))
    shown = -1
    while (now := loop.time()) < over:
        for each in watched:
            each.note(now - began, await asyncio.to_thread(_sample, each))
        if (tenth := int(10 * (now - began) / (over - began))) > shown:
            shown = tenth
            for each in watched:
                _show(each, now - began)
        await asyncio.sleep(max(0.0, now + pause - loop.time()))


async def _tell_of_late_answers(watched: Sequence[Watched], over: float) -> None:
    """Show where requests are that should have been answered, for as long as there are any."""
    await asyncio.sleep(over + LATE_SECONDS - asyncio.get_running_loop().time())
    while any(each.crowd.open for each in watched):
        for each in watched:
            counted = await asyncio.to_thread(_counted, each.way)
            held, flying = (counted[f"gptoss_gateway_{name}_requests"] for name in ("held", "in_flight"))
            say(f"{each.way.name}: {each.crowd.open} answers are late; {held:.0f} held, {flying:.0f} in flight there")
        await asyncio.sleep(LATE_SECONDS)


def _sample(watched: Watched) -> dict[tuple[str, str], float]:
    """Return what each process has, by what it is and where."""
    if watched.way.processes != watched.processes:
        raise RuntimeError(f"{watched.way.name}: a worker died and was replaced; its log says why")
    sample: dict[tuple[str, str], float] = {}
    for number, pid in enumerate(watched.processes):
        where = f"{watched.way.name}/{number}"
        sample["memory", where] = rss(pid)
        sample["descriptors", where] = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - a pseudo file
        sample["threads", where] = status_field(pid, "Threads")
    counted = _counted(watched.way)
    sample["tasks", watched.way.name] = counted["gptoss_gateway_tasks"]
    return sample


def _counted(way: Way) -> dict[str, float]:
    """Return a gateway's counters and gauges, each name's series added up."""
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(get(f"{way.admin}/metrics")):
        for sample in family.samples:
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    return totals


def _totals(sample: dict[tuple[str, str], float]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for (what, _), value in sample.items():
        totals[what] = totals.get(what, 0.0) + value
    return totals


def _show(watched: Watched, time: float) -> None:
    latest = _totals({at: series.values[-1] for at, series in watched.series.items()})
    seen = watched.crowd.tally
    print(
        f"{time:6.0f} s {watched.way.name:12}{latest['memory'] / MIB:7.1f} MiB {latest['descriptors']:6.0f} descriptors"
        f" {latest['threads']:4.0f} threads {latest['tasks']:6.0f} tasks {seen.answered:9} answered"
        f" {seen.left:7} gave up {len(seen.lost):4} lost",
        flush=True,
    )


async def _settle(watched: Sequence[Watched], sleeper: Sleeper, engine: Way) -> list[str]:
    """Wait until everything is given back; return what is not, in words."""
    deadline = asyncio.get_running_loop().time() + SETTLE_SECONDS
    while left := [*await sleeper.open_demand(), *await asyncio.to_thread(_left, watched, engine)]:
        if asyncio.get_running_loop().time() > deadline:
            return left
        await asyncio.sleep(1.0)
    return []


def _left(watched: Sequence[Watched], engine: Way) -> Iterable[str]:
    if '"open": 0}' not in (answer := get(f"{engine.url}/open")):
        yield f"the engine works on {answer}"
    for each in watched:
        counted = _counted(each.way)
        for name in ("held_requests", "in_flight_requests", "tenant_requests"):
            if open_ := counted.get(f"gptoss_gateway_{name}", 0.0):
                yield f"{each.way.name}: {name} is {open_:.0f}"
        now = _totals(_sample(each))
        for what in ("descriptors", "tasks"):
            if now[what] > each.before[what] + LEFT_OVER * len(each.processes):
                yield f"{each.way.name}: {now[what]:.0f} {what}, {each.before[what]:.0f} before the load"


def _verdict(watched: Sequence[Watched], sleeper: Sleeper, keys: Keys, left: Sequence[str]) -> int:
    wrongs = list(left)
    print(f"\n{'':26}{'first third':>12}{'last third':>12}{'ratio':>8}{'slope * time':>14}{'bound':>9}")
    for each in watched:
        skipped = int(WARMING * len(each.times))
        for (what, where), series in each.series.items():
            found = trend(each.times[skipped:], series.values[skipped:], BOUNDS[what])
            unit = MIB if what == "memory" else 1
            cells = (found.first / unit, found.last / unit)
            print(
                f"{where:14}{what:12}{cells[0]:12.1f}{cells[1]:12.1f}{found.ratio:8.3f}"
                f"{found.growth / unit:+14.1f}{found.allowed / unit:9.1f}{'  GROWS' if found.grows else ''}"
            )
            if found.grows:
                wrongs.append(f"{where}: {what} grows by {found.growth / unit:.1f}")
    print()
    for each in watched:
        seen, counted = each.crowd.tally, _counted(each.way)
        noted = int(counted.get("gptoss_gateway_requests_total", 0))
        print(
            f"{each.way.name}: {seen.asked} asked, {seen.answered} answered ({seen.held} of them held first), "
            f"{seen.left} gave up, {len(seen.lost)} lost; the gateway counted {noted}"
        )
        wrongs += [f"{each.way.name}: lost: {why}" for why in seen.lost[:10]]
        if len(seen.lost) > 10:
            wrongs.append(f"{each.way.name}: {len(seen.lost) - 10} more were lost")
        if not seen.answered <= noted <= seen.asked:  # of a client that left at once it may not have heard
            wrongs.append(f"{each.way.name}: it counted {noted} requests")
        if broken := counted.get("gptoss_gateway_upstream_breaks_total", 0):
            wrongs.append(f"{each.way.name}: {broken:.0f} answers of the engine were cut short")
    print(f"{sleeper.wakes} wakes, {sleeper.drains} drains; keys changed {keys.changes} times")
    wrongs += keys.wrongs
    print("\n".join(["flat, nothing lost, nothing left"] if not wrongs else ["FAILED", *wrongs]))
    return 1 if wrongs else 0


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--gateways", type=int, nargs="*", default=[1, 2], help="workers of each gateway (1 2)")
    parser.add_argument("--streams", type=int, default=64, help="streams at once through each gateway (64)")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run(options, minutes=float(os.environ.get("SOAK_MINUTES", "10"))))


if __name__ == "__main__":
    raise SystemExit(main())
