"""Watches over open requests: an engine that fell silent, a client that stopped reading.

Nothing below us ends such a request: HAProxy waits for a server as long as it takes, and Ray's fallback
proxy lets requests hang for an application that starts or has no replica. Long answers are silent
too, until they are complete, so an engine that is silent is asked whether it is there, and only one
that does not answer that either is given up. However much it has to do: replicas take more requests than
gateways send, so the question never queues behind them.
"""

import asyncio
import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from gptoss_gateway.exchange import Exchange
from gptoss_gateway.upstream import Upstream

QUIET_SECONDS = 5.0
"""Silence of a request after which its engine is asked."""
ASK_EVERY_SECONDS = 3.0
HANG_SECONDS = 20.0
"""Silence of a request and of its engine after which the attempt is given up."""
SWEEP_SECONDS = 1.0

Ask = Callable[[Upstream, str], Awaitable[bool]]
"""Asks the engine at an address for a model id; true if it answers."""


class Cut(enum.Enum):
    """Why an attempt was ended from here."""

    HANGS = "neither the request nor the engine answers"
    IDLE = "the stream is idle"


@dataclass(eq=False, kw_only=True)
class Attempt:
    """One request on its way to an engine."""

    uid: str
    engine_id: str
    upstream: Upstream
    exchange: Exchange
    heard: float
    streaming: bool = False
    spoke: bool = False
    cut: Cut | None = None
    patience: asyncio.Timeout | None = None

    def hear(self, now: float) -> None:
        """Note that bytes of the engine came."""
        self.heard = now
        self.spoke = True

    def end(self, cut: Cut, now: float) -> None:
        """Have the attempt end with a time-out."""
        if self.patience is not None and self.cut is None:
            self.cut = cut
            self.patience.reschedule(now)


@dataclass(kw_only=True)
class _Engine:
    sign: float = 0.0
    asked: float = 0.0
    asking: asyncio.Task[None] | None = field(default=None, repr=False)


class Vigil:
    """Looks at every open request once a second."""

    def __init__(self, *, ask: Ask, idle_seconds: float, stall_seconds: float) -> None:
        self._ask = ask
        self._idle_seconds = idle_seconds
        self._stall_seconds = stall_seconds
        self._attempts: set[Attempt] = set()
        self._exchanges: set[Exchange] = set()
        self._engines: dict[str, _Engine] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._run(), name="vigil")

    async def stop(self) -> None:
        """Stop looking."""
        tasks = [engine.asking for engine in self._engines.values() if engine.asking is not None]
        if self._task is not None:
            tasks.append(self._task)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def follow(self, exchange: Exchange) -> None:
        """Watch over a client."""
        self._exchanges.add(exchange)

    def leave(self, exchange: Exchange) -> None:
        """A client's request ended."""
        self._exchanges.discard(exchange)

    def begin(self, attempt: Attempt) -> None:
        """Watch over an attempt."""
        self._attempts.add(attempt)

    def finish(self, attempt: Attempt) -> None:
        """An attempt ended."""
        self._attempts.discard(attempt)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = loop.time()
            self._look_at_clients(now)
            self._look_at_engines(now)

    def _look_at_clients(self, now: float) -> None:
        for exchange in tuple(self._exchanges):
            if exchange.blocked_since is not None and now - exchange.blocked_since > self._stall_seconds:
                exchange.abort()

    def _look_at_engines(self, now: float) -> None:
        for uid in self._engines.keys() - {attempt.uid for attempt in self._attempts}:
            engine = self._engines.pop(uid)
            if engine.asking is not None:
                engine.asking.cancel()
        for attempt in tuple(self._attempts):
            engine = self._engines.setdefault(attempt.uid, _Engine())
            if attempt.exchange.blocked_since is not None:
                attempt.heard = now  # the client is in the way, not the engine
            elif attempt.spoke:
                engine.sign = max(engine.sign, attempt.heard)
        for attempt in tuple(self._attempts):
            self._look_at(attempt, now)

    def _look_at(self, attempt: Attempt, now: float) -> None:
        silent = now - attempt.heard
        if attempt.streaming and silent > self._idle_seconds:
            attempt.end(Cut.IDLE, now)
        elif silent > QUIET_SECONDS:
            engine = self._engines[attempt.uid]
            if engine.asking is None and now - engine.asked >= ASK_EVERY_SECONDS:
                engine.asked = now
                engine.asking = asyncio.create_task(self._ask_engine(engine, attempt), name=f"ask {attempt.uid}")
            if min(silent, now - engine.sign) > HANG_SECONDS:
                attempt.end(Cut.HANGS, now)

    async def _ask_engine(self, engine: _Engine, attempt: Attempt) -> None:
        try:
            if await self._ask(attempt.upstream, attempt.engine_id):
                engine.sign = asyncio.get_running_loop().time()
        finally:
            engine.asking = None
