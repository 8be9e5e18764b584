"""How long newcomers wait at a process that has no time left: uvloop's own server beside the gateway's listener.

One event loop is given more to read than it can. Some clients connect and leave again after a quarter of a second,
as impatient ones do; others wait. Both ways to take connections are tried in turn, in the same run.

    python -m benchmarks.newcomers [--streams N] [--microseconds N] [--seconds S]
"""

import argparse
import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import cast

import uvloop

from gptoss_gateway.acceptor import queue
from gptoss_gateway.client_listener import ClientListener

BACKLOG = 1024
IMPATIENT = 16
IMPATIENCE_SECONDS = 0.25
EVERY_SECONDS = 0.5
"""Between two patient newcomers."""
PACE_SECONDS = 0.01
"""Between two events of a stream."""
WARMING_SECONDS = 1.0
ANSWER_SECONDS = 90.0
_HELLO, _EVENT, _WELCOME = b"N", b"x", b"hi"

Protocols = Callable[[], asyncio.Protocol]


class Busy(asyncio.Protocol):
    """A connection each of whose events takes a while."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        over = time.perf_counter() + self._seconds
        while time.perf_counter() < over:
            pass
        if data.startswith(_HELLO):
            self._transport.write(_WELCOME)


async def with_uvloop(listening: socket.socket, protocols: Protocols) -> None:
    """Take connections as uvloop does."""
    await asyncio.get_running_loop().create_server(protocols, sock=listening, backlog=BACKLOG)


async def with_listener(listening: socket.socket, protocols: Protocols) -> None:
    """Take connections as the gateway does."""
    # Seconds and failures are those of TLS handshakes, which nobody asks for here.
    ClientListener(_OpenDoor(protocols), None, seconds=0, failed=lambda: None).share(listening)


class _OpenDoor:
    """Lets everybody in."""

    def __init__(self, protocols: Protocols) -> None:
        self._protocols = protocols

    def enter(self, client: str) -> None:
        pass

    def leave(self, client: str) -> None:
        pass

    def connection(self, came_in: Callable[[], None] | None = None) -> asyncio.Protocol:  # noqa: ARG002 - no handshakes
        return self._protocols()


WAYS = {"uvloop": with_uvloop, "gateway": with_listener}


async def serve(way: str, options: argparse.Namespace) -> tuple[list[float], int]:
    """Serve clients in a process of their own; return what the patient ones waited, and the longest queue."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    await WAYS[way](listening, lambda: Busy(options.microseconds / 1e6))
    clients = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.newcomers", *sys.argv[1:], "--port", str(listening.getsockname()[1])),
        stdout=subprocess.PIPE,
    )
    reading = asyncio.create_task(clients.communicate())
    longest = 0
    while not reading.done():
        if (told := queue(listening)) is not None:
            longest = max(longest, told.waiting)
        await asyncio.wait({reading}, timeout=0.2)
    out, _ = await reading
    return [float(line) for line in out.split()], longest


async def crowd(options: argparse.Namespace) -> None:
    """Be the clients; print what the patient ones waited, in seconds."""
    loop = asyncio.get_running_loop()
    streams = [asyncio.create_task(_stream(options.port)) for _ in range(options.streams)]
    await asyncio.sleep(WARMING_SECONDS)
    over = loop.time() + options.seconds
    leaving = [asyncio.create_task(_come_and_go(options.port, over)) for _ in range(IMPATIENT)]
    patient = []
    while loop.time() < over:
        patient.append(asyncio.create_task(_wait(options.port)))
        await asyncio.sleep(EVERY_SECONDS)
    for waited in await asyncio.gather(*patient):
        print(waited)
    await asyncio.gather(*leaving)
    for stream in streams:
        stream.cancel()


async def _stream(port: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    while True:
        writer.write(_EVENT)
        await asyncio.sleep(PACE_SECONDS)


async def _come_and_go(port: int, over: float) -> None:
    while asyncio.get_running_loop().time() < over:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_HELLO)
        await asyncio.sleep(IMPATIENCE_SECONDS)
        writer.transport.abort()


async def _wait(port: int) -> float:
    began = asyncio.get_running_loop().time()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(_HELLO)
            await reader.readexactly(len(_WELCOME))
            writer.close()
    return asyncio.get_running_loop().time() - began


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.newcomers", description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=150, help="open connections that send events (150)")
    parser.add_argument("--microseconds", type=float, default=400, help="time that each event takes (400)")
    parser.add_argument("--seconds", type=float, default=20, help="for which newcomers come (20)")
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.port is not None:
        uvloop.run(crowd(options))
        return 0
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{'':10}{'waited p50':>12}{'most':>9}{'longest queue':>15}")
    found = {}
    for way in WAYS:
        waits, longest = uvloop.run(serve(way, options))
        found[way] = statistics.median(waits)
        print(f"{way:10}{found[way]:10.2f} s{max(waits):7.2f} s{longest:15}", flush=True)
    print(f"of uvloop's wait: {found['gateway'] / found['uvloop']:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
