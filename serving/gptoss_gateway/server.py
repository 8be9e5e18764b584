"""The two listeners of a gateway process, and how it ends without losing a request."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from gptoss_gateway.app import Gateway
from gptoss_gateway.certificate import Certificate
from gptoss_gateway.client_listener import ClientListener
from gptoss_gateway.connection import Door
from gptoss_gateway.settings import Listener

_log = logging.getLogger(__name__)

_REFRESH_SECONDS = 1.0
_JOIN_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Sockets:
    """What one of several processes is given instead of addresses of its own.

    Attributes:
        clients: the listening socket, shared with the others.
        admin: path of the socket that health and metrics are asked at.
        lifeline: a file whose end means that the process which shares the socket out is gone.
    """

    clients: socket.socket
    admin: Path
    lifeline: int


class Server:
    """A gateway on its sockets.

    Raises:
        SettingsError: the certificate can't be used.
    """

    def __init__(self, gateway: Gateway, *, sockets: Sockets | None = None) -> None:
        self.gateway = gateway
        self._sockets = sockets
        self.url = ""
        self.admin_url = ""
        settings, metering = gateway.settings, gateway.metering
        self._door = Door(gateway.handle, limits=settings.limits, refused=metering.request_refused)
        self._certificate = Certificate(settings.tls) if settings.tls is not None else None
        if self._certificate is not None:
            metering.watch_certificate(self._certificate)
        self._clients = web.ServerRunner(self._door, shutdown_timeout=1.0)
        self._admin = web.AppRunner(_admin_application(self), access_log=None, shutdown_timeout=1.0)
        self._listener: ClientListener | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._joining: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the gateway's parts and listen; raises OSError where an address can't be bound."""
        settings = self.gateway.settings
        await self.gateway.start()
        self._refreshing = asyncio.create_task(self._keep_fresh(), name="refresh")
        if self._sockets is not None:
            await self._share(self._sockets)
            return
        self.admin_url = await _listen(self._admin, settings.admin)
        await self._clients.setup()
        listener = self._client_listener()
        await listener.start(settings.listen)
        self._listener = listener
        self.gateway.metering.watch_queues(lambda: listener.sockets)
        self.url = url_of(listener.address, tls=settings.tls is not None)
        _log.info("listening", extra={"url": self.url, "admin": self.admin_url})

    async def serve(self, stop: asyncio.Event) -> None:
        """Wait until ``stop``; raises whatever keeps this process from taking connections."""
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            if self._joining is not None:
                await asyncio.wait({stopping, self._joining}, return_when=asyncio.FIRST_COMPLETED)
                if self._joining.done():
                    self._joining.result()
            await stopping
        finally:
            stopping.cancel()

    @property
    def unready(self) -> str | None:
        """Why clients should not be sent here yet, or any more."""
        if self.gateway.closing:
            return "stopping"
        if not self.gateway.is_ready:
            return "the catalogue is not complete yet"
        return "it takes no connections yet" if self._listener is None else None

    async def _share(self, sockets: Sockets) -> None:
        await self._admin.setup()
        await web.UnixSite(self._admin, sockets.admin).start()
        self._joining = asyncio.create_task(self._join(sockets.clients), name="join")

    async def _join(self, clients: socket.socket) -> None:
        """Take connections once they can be served: until then, the others do."""
        while not self.gateway.catalogue.synced:  # noqa: ASYNC110 - a moment, once in a process' life
            await asyncio.sleep(_JOIN_SECONDS)
        await self._clients.setup()
        listener = self._client_listener()
        listener.share(clients)
        self._listener = listener
        _log.info("taking connections")

    async def stop(self, *, hurry: asyncio.Event | None = None) -> None:
        """End: not ready any more, then no new connections, then the open requests, then the report.

        ``hurry`` ends the waiting, as a second signal does.
        """
        hurry = hurry or asyncio.Event()
        shutdown = self.gateway.settings.shutdown
        self.gateway.close_door()
        if self._joining is not None:
            self._joining.cancel()
            await asyncio.wait({self._joining})
        if self._listener is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(shutdown.delay_seconds):
                    await hurry.wait()
            self._listener.stop()
            await self.gateway.finish_open_requests(shutdown.grace_seconds, hurry)
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait({self._refreshing})
        if self._listener is not None:
            await self._listener.close()
        await self._clients.cleanup()
        await self.gateway.stop()
        await self._admin.cleanup()
        _log.info("stopped")

    def _client_listener(self) -> ClientListener:
        seconds, failed = self.gateway.settings.limits.head_seconds, self.gateway.metering.handshake_failed
        return ClientListener(self._door, self._certificate, seconds=seconds, failed=failed)

    async def refresh(self) -> None:
        """Take over changed files, read beside the event loop; called once a second."""
        await self.gateway.refresh()
        if self._certificate is not None:
            await asyncio.to_thread(self._certificate.refresh)

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(_REFRESH_SECONDS)
            try:
                await self.refresh()
            except Exception:  # noqa: BLE001 - the next change must not go unseen for it
                _log.exception("changed files were not all taken over")


def _admin_application(server: Server) -> web.Application:
    async def metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=server.gateway.metering.expose(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def healthy(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(_: web.Request) -> web.Response:
        if (why := server.unready) is not None:
            return web.Response(status=503, text=f"not ready: {why}\n")
        return web.Response(text="ok\n")

    application = web.Application()
    application.add_routes([web.get("/metrics", metrics), web.get("/healthz", healthy), web.get("/readyz", ready)])
    return application


async def _listen(runner: web.BaseRunner, listener: Listener) -> str:
    await runner.setup()
    await web.TCPSite(runner, listener.host, listener.port).start()
    return url_of(runner.addresses[0])


def url_of(address: Sequence[object], *, tls: bool = False) -> str:
    """Return the URL of a socket's address."""
    host, port = str(address[0]), address[1]
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
