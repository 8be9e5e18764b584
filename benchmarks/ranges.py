"""One large file from a store that limits each connection, and from one that does not: one stream, and ranges ahead.

The limit is this benchmark's own: a proxy before a real S3 server (versitygw) that lets so many MiB a second
through each connection. Real stores do that too, each in its way; nothing here says how fast any of them is.
Every job runs in a process of its own, so that its peak memory is its own. Jobs take turns; ratios are of medians.

    python -m benchmarks.ranges [--mib 256] [--limit 16 --limit 0] [--parallel 8] [--rounds 3] [--folder DIR]

`--limit 0` is the server itself on loopback, without a proxy: there ranges can only cost something.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from benchmarks.jobs import in_process, misses, peak_mib, say
from benchmarks.weights import MIB, MODEL, remove, signed_model
from gptoss_cli.local.assets import object_store_program
from gptoss_cli.local.object_store import ObjectStore
from gptoss_cli.local.programs import Programs

ONE, AHEAD, PLAIN = "pull, one stream", "pull, ranges ahead", "boto3, its own ranges"
_BLOCK = 64 * 1024

Figures = dict[str, list[dict[str, float]]]


def work(told: dict[str, str]) -> None:
    """Run one job and print its figures."""
    import boto3
    from boto3.s3.transfer import TransferConfig
    from botocore.config import Config

    from gptoss_weights.limits import PullLimits
    from gptoss_weights.materialise import pull
    from gptoss_weights.sources import SourceSettings

    target, parallel = Path(told["target"]), int(told["parallel"])
    access = {name: told[name] for name in ("endpoint", "region", "key", "secret", "bucket")}
    begun = time.monotonic()
    if told["job"] == PLAIN:
        client = boto3.client(
            "s3",
            endpoint_url=access["endpoint"],
            region_name=access["region"],
            aws_access_key_id=access["key"],
            aws_secret_access_key=access["secret"],
            config=Config(s3={"addressing_style": "path"}, max_pool_connections=parallel),
        )
        name = "model-00001-of-00001.safetensors"
        options = TransferConfig(max_concurrency=parallel, preferred_transfer_client="classic")
        client.download_file(access["bucket"], f"{MODEL}/{name}", str(target), Config=options)
    else:
        limits = PullLimits(parallel_files=parallel)
        if told["job"] == ONE:
            limits = replace(limits, ranges_ahead=0)
        pull(
            f"s3://{access['bucket']}/{MODEL}",
            manifest_digest=told["digest"],
            subject=MODEL,
            directory=target,
            settings=SourceSettings(
                s3_endpoint=access["endpoint"],
                s3_region=access["region"],
                s3_access_key_id=access["key"],
                s3_secret_access_key=access["secret"],
            ),
            limits=limits,
        )
    print(json.dumps({"seconds": time.monotonic() - begun, "peak": peak_mib()}))


def run(*, mib: int, limits: list[float], parallel: int, rounds: int, folder: Path | None) -> int:
    """Run everything and print a table for each limit; 1 if ranges ahead miss a bar."""
    with tempfile.TemporaryDirectory(prefix="gptoss-bench-", dir=folder) as temporary:
        root = Path(temporary)
        say(f"writing and signing one tensor file of {mib} MiB")
        digest = signed_model(root, gib=mib / 1024, files=1)
        programs = Programs(root / "run", attached=True)
        store = ObjectStore(root / "store", binary=object_store_program(), programs=programs)
        store.start()
        try:
            store.upload(root / MODEL, MODEL)
            access = store.access
            told = {"region": access.region, "key": access.access_key, "secret": access.secret_key}
            told |= {"bucket": access.bucket, "digest": digest}
            told |= {"parallel": str(parallel), "target": str(root / "target")}
            measured = {limit: _rounds(told, access.endpoint, limit=limit, rounds=rounds) for limit in limits}
        finally:
            store.stop()
    missed = [_report(figures, mib=mib, limit=limit, parallel=parallel) for limit, figures in measured.items()]
    return int(any(missed))


def _rounds(told: dict[str, str], endpoint: str, *, limit: float, rounds: int) -> Figures:
    figures: Figures = {ONE: [], AHEAD: [], PLAIN: []}
    target = Path(told["target"])
    with throttled(endpoint, bytes_per_second=limit * MIB) if limit else nullcontext(endpoint) as reached:
        for number in range(rounds):
            for job, found in figures.items():
                say(f"{_named(limit)}, round {number + 1} of {rounds}: {job}")
                found.append(in_process("benchmarks.ranges", {**told, "endpoint": reached, "job": job}))
                target.unlink() if target.is_file() else remove(target)
    return figures


def _report(figures: Figures, *, mib: int, limit: float, parallel: int) -> bool:
    median = {job: statistics.median(each["seconds"] for each in found) for job, found in figures.items()}
    print(f"\none file of {mib} MiB, {parallel} at a time; {_named(limit)}, load {os.getloadavg()[0]:.1f}")
    print(f"{'':24}{'seconds':>10}{'fastest':>10}{'slowest':>10}{'MiB/s':>10}{'peak MiB':>10}{'times one':>12}")
    for job, found in figures.items():
        seconds, peak = [one["seconds"] for one in found], max(one["peak"] for one in found)
        cells = (median[job], min(seconds), max(seconds), mib / median[job], peak, median[ONE] / median[job])
        print(f"{job:24}" + "".join(f"{cell:{12 if at == 5 else 10}.2f}" for at, cell in enumerate(cells)))
    values = {
        "times as fast as one stream": (median[ONE] / median[AHEAD], ">=", 1.5 if limit else 0.95),
        "peak memory, MiB": (max(one["peak"] for one in figures[AHEAD]), "<=", 256.0),
    }
    return misses(values) > 0


def _named(limit: float) -> str:
    return f"each connection at {limit:g} MiB/s by a proxy" if limit else "no limit, loopback"


@contextmanager
def throttled(upstream: str, *, bytes_per_second: float) -> Iterator[str]:
    """Run a proxy that lets so many bytes a second through each connection; yield its URL."""
    host, _, port = upstream.removeprefix("http://").partition(":")
    loop = asyncio.new_event_loop()
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            connections.add(task)
            task.add_done_callback(connections.discard)
        with suppress(OSError):
            to, back = await asyncio.open_connection(host, int(port))
            ways = [(reader, back, None), (to, writer, bytes_per_second)]
            relays = {asyncio.create_task(_relay(*way)) for way in ways}
            try:
                await asyncio.wait(relays, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for relay in relays:
                    relay.cancel()
                for each in (writer, back):
                    each.close()

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.run_until_complete(_ended(connections))
        loop.close()


async def _ended(tasks: set[asyncio.Task[None]]) -> None:
    for task in tuple(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rate: float | None) -> None:
    due = 0.0
    with suppress(OSError):
        while block := await reader.read(_BLOCK):
            writer.write(block)
            await writer.drain()
            if rate is not None:
                # Time that a connection was idle is not saved up.
                now = time.monotonic()
                due = max(due, now) + len(block) / rate
                await asyncio.sleep(due - now)


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranges", description=__doc__.partition("\n")[0])
    parser.add_argument("--mib", type=int, default=256, help="size of the tensor file (default 256)")
    parser.add_argument(
        "--limit",
        dest="limits",
        type=float,
        action="append",
        help="MiB a second for each connection, 0 for none; may be given several times (default 16 and 0)",
    )
    parser.add_argument("--parallel", type=int, default=8, help="connections at a time, theirs and ours (default 8)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of every job (default 3)")
    parser.add_argument("--folder", type=Path, help="where to put 4 times the size (default: the temporary folder)")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(json.load(sys.stdin))
        return 0
    return run(
        mib=options.mib,
        limits=options.limits or [16.0, 0.0],
        parallel=options.parallel,
        rounds=options.rounds,
        folder=options.folder,
    )


if __name__ == "__main__":
    raise SystemExit(main())
