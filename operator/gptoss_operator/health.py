"""/metrics, /healthz and /readyz on a listener of their own."""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest


class HealthServer:
    """Serves metrics and health.

    Args:
        registry: what /metrics shows.
        sick: returns why the process should be restarted, or None.
        not_ready: returns why it isn't working yet, or None.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        registry: CollectorRegistry,
        sick: Callable[[], str | None],
        not_ready: Callable[[], str | None],
    ) -> None:
        self._host = host
        self._port = port
        self._registry = registry
        self._sick = sick
        self._not_ready = not_ready
        self._runner: web.AppRunner | None = None
        self.port = port
        """Port that is listened on, once started."""

    async def start(self) -> None:
        """Listen."""
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", lambda _: self._answer(self._sick()))
        app.router.add_get("/readyz", lambda _: self._answer(self._not_ready()))
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Listen no more."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @staticmethod
    async def _answer(trouble: str | None) -> web.Response:
        return web.Response(status=200 if trouble is None else 503, text=(trouble or "ok") + "\n")
