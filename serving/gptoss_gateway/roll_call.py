"""What several gateway processes answer as one: ready if all are, and the counts of each beside the others'.

Counts are told apart by the label ``worker`` instead of being added: a worker that is replaced begins at zero,
and only a series of its own shows that as what it is.
"""

import asyncio
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from gptoss_gateway.queues import Queues

ASK_SECONDS = 2.0
"""A worker that takes longer to answer hangs."""


class RollCall:
    """Asks every worker at its socket. ``places`` are the sockets' paths by the workers' names.

    ``clients`` is the listening socket that they share.
    """

    def __init__(self, places: Mapping[str, Path], *, clients: socket.socket, stopping: Callable[[], bool]) -> None:
        self._stopping = stopping
        self._registry = CollectorRegistry()
        self._replacements = Counter(
            "gptoss_gateway_worker_replacements", "Workers that died and were replaced.", registry=self._registry
        )
        self._registry.register(Queues(lambda: (clients,)))
        self._sessions = {
            name: aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(path=str(place)), timeout=aiohttp.ClientTimeout(total=ASK_SECONDS)
            )
            for name, place in places.items()
        }

    def replaced(self) -> None:
        """Count a worker that died."""
        self._replacements.inc()

    def application(self) -> web.Application:
        """Return what answers for all workers, at the paths where a single process answers for itself."""
        application = web.Application()
        application.add_routes(
            [web.get("/metrics", self._metrics), web.get("/healthz", self._healthy), web.get("/readyz", self._ready)]
        )
        return application

    async def close(self) -> None:
        """Hang up."""
        for session in self._sessions.values():
            await session.close()

    async def _metrics(self, _: web.Request) -> web.Response:
        answers = await self._ask("/metrics")
        texts = {name: text for name, (status, text) in answers.items() if status == 200}
        return web.Response(
            body=generate_latest(self._registry) + _together(texts),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    async def _healthy(self, _: web.Request) -> web.Response:
        answers = await self._ask("/healthz")
        if hangs := [name for name, (status, _) in answers.items() if status == 504]:
            return web.Response(status=503, text=f"worker {', '.join(hangs)} does not answer\n")
        return web.Response(text="ok\n")

    async def _ready(self, _: web.Request) -> web.Response:
        if self._stopping():
            return web.Response(status=503, text="not ready: stopping\n")
        for name, (status, text) in (await self._ask("/readyz")).items():
            if status != 200:
                return web.Response(status=503, text=f"worker {name}: {text.strip()}\n")
        return web.Response(text="ok\n")

    async def _ask(self, path: str) -> dict[str, tuple[int, str]]:
        answers = await asyncio.gather(*(_answer(session, path) for session in self._sessions.values()))
        return dict(zip(self._sessions, answers, strict=True))


async def _answer(session: aiohttp.ClientSession, path: str) -> tuple[int, str]:
    try:
        async with session.get(f"http://worker{path}") as response:
            return response.status, await response.text()
    except TimeoutError:
        return 504, "it does not answer"
    except (aiohttp.ClientError, OSError):
        return 502, "it is starting"


def _together(texts: Mapping[str, str]) -> bytes:
    families: dict[str, Metric] = {}
    for name, text in texts.items():
        for family in text_string_to_metric_families(text):
            known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                known.add_sample(sample.name, {**sample.labels, "worker": name}, sample.value)
    registry = CollectorRegistry()
    registry.register(_Told(families.values()))
    return generate_latest(registry)


class _Told(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families
