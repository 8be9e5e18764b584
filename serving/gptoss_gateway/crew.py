"""Several gateway processes behind one socket: starts them, replaces who dies, and ends them together.

They share a listening socket that this process opens, so a connection that waits in it is lost with no
worker: another takes it. Beyond that they know nothing of each other, like gateways in pods of their own.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from aiohttp import web

from gptoss_gateway.acceptor import BACKLOG
from gptoss_gateway.errors import SettingsError
from gptoss_gateway.roll_call import RollCall
from gptoss_gateway.server import url_of
from gptoss_gateway.settings import GatewaySettings, Listener
from gptoss_gateway.worker import CANNOT_START, Orders

_log = logging.getLogger(__name__)

END_SECONDS = 12.0
"""What a worker may take to end beyond its delay and grace."""
STEADY_SECONDS = 60.0
"""A worker that lived so long is replaced as quickly as if none had died before it."""
_PAUSE_SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0)


async def run(settings: GatewaySettings, *, kubeconfig: Path | None, log_level: str) -> None:
    """Serve with ``settings.workers`` processes until SIGTERM or SIGINT; a second signal ends the grace.

    Raises:
        SettingsError, OSError: the workers can't start; they have said why.
    """
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    with tempfile.TemporaryDirectory(prefix="gptoss-gateway-") as folder, _listening(settings.listen) as clients:
        places = {str(number): Path(folder, str(number)) for number in range(settings.workers)}
        roll_call = RollCall(places, clients=clients, stopping=stop.is_set)
        workers = [
            _Worker(
                name,
                Orders(
                    settings=settings,
                    kubeconfig=kubeconfig,
                    log_level=log_level,
                    listen_fd=clients.fileno(),
                    admin_socket=place,
                ),
                replaced=roll_call.replaced,
            )
            for name, place in places.items()
        ]
        admin = web.AppRunner(roll_call.application(), access_log=None, shutdown_timeout=1.0)
        await admin.setup()
        try:
            await web.TCPSite(admin, settings.admin.host, settings.admin.port).start()
            url = url_of(clients.getsockname(), tls=settings.tls is not None)
            _log.info("listening", extra={"url": url, "admin": url_of(admin.addresses[0])})
            keeping = [asyncio.create_task(worker.keep()) for worker in workers]
            stopping = asyncio.create_task(_wait(stop))
            await asyncio.wait({*keeping, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stop.set()
            clients.close()  # the workers have theirs for as long as they take connections
            shutdown = settings.shutdown
            await _end(workers, keeping, hurry, within=shutdown.delay_seconds + shutdown.grace_seconds + END_SECONDS)
        finally:
            await admin.cleanup()
            await roll_call.close()


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def _end(
    workers: "Sequence[_Worker]", keeping: Sequence[asyncio.Task[None]], hurry: asyncio.Event, *, within: float
) -> None:
    """Have every worker end, and the process with the first error if one could not start."""

    async def pass_on() -> None:
        await hurry.wait()
        for worker in workers:
            worker.end()

    for worker in workers:
        worker.end()
    hurrying = asyncio.create_task(pass_on(), name="hurry")
    await asyncio.wait(keeping, timeout=within)
    hurrying.cancel()
    for worker in workers:
        worker.kill()
    outcomes = await asyncio.gather(*keeping, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome


class _Worker:
    """One place in the crew, and the process that holds it."""

    def __init__(self, name: str, orders: Orders, *, replaced: Callable[[], None]) -> None:
        self._name = name
        self._orders = orders
        self._replaced = replaced
        self._ending = asyncio.Event()
        self._program: asyncio.subprocess.Process | None = None

    async def keep(self) -> None:
        """Have a process in this place until ``end``; raises SettingsError if the first one can't start."""
        now = asyncio.get_running_loop().time
        deaths = 0
        while not self._ending.is_set():
            began = now()
            status: int | str
            try:
                status = await self._run()
            except OSError as error:  # there is no process to be had; the others go on meanwhile
                if deaths == 0:
                    raise
                status = str(error)
            if self._ending.is_set():
                return
            if deaths == 0 and status == CANNOT_START:
                raise SettingsError("a worker can't start; its own message says why")
            deaths = 1 if now() - began >= STEADY_SECONDS else deaths + 1
            _log.error("worker died, another takes its place", extra={"worker": self._name, "status": status})
            self._replaced()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE_SECONDS[min(deaths, len(_PAUSE_SECONDS)) - 1]):
                    await self._ending.wait()

    def end(self) -> None:
        """Have the process drain and end; the second time, without waiting for what is open."""
        self._ending.set()
        if self._program is not None and self._program.returncode is None:
            self._program.terminate()

    def kill(self) -> None:
        """End the process now."""
        if self._program is not None and self._program.returncode is None:
            self._program.kill()

    async def _run(self) -> int:
        flags = ["-P"] if sys.flags.safe_path else []
        program = await asyncio.create_subprocess_exec(
            sys.executable, *flags, "-m", "gptoss_gateway.worker",
            stdin=asyncio.subprocess.PIPE,  # it stays open: its end tells a worker that nobody keeps it
            pass_fds=(self._orders.listen_fd,),
            start_new_session=True,  # a terminal's Ctrl-C is passed on once, not twice
        )  # fmt: skip
        self._program = program
        try:
            if self._ending.is_set():
                program.terminate()
            assert program.stdin is not None  # noqa: S101 - asked for
            with contextlib.suppress(ConnectionError):
                program.stdin.write(self._orders.model_dump_json(by_alias=True).encode() + b"\n")
                await program.stdin.drain()
            return await program.wait()
        finally:
            self._program = None


def _listening(listener: Listener) -> socket.socket:
    found = socket.getaddrinfo(listener.host, listener.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found)
    if len(addresses) > 1:
        raise SettingsError(
            f"listen.host is {listener.host!r}, which is {' and '.join(text for _, text in addresses)}, and several "
            "workers share one socket: give one of them, or set workers to 1"
        )
    family, host = next(iter(addresses))
    return socket.create_server((host, listener.port), family=family, backlog=BACKLOG)
