"""Asks engines whether they answer, beside the reconcile: one that hangs must not delay another's wake."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Set

_log = logging.getLogger(__name__)
_AT_ONCE = 16
_STEADY_SECONDS = 15.0
_UNANSWERED_IS_MUTE = 2
"""One unanswered question may be the network's; two in a row are the engine's."""


class Probes:
    """What is known of each engine, by its application's name.

    ``ask`` gets a route prefix and tells whether its engine answered, within a deadline of its own;
    ``news`` is called when what is known of one has changed.
    """

    def __init__(self, *, ask: Callable[[str], Awaitable[bool]], news: Callable[[], object]) -> None:
        self._ask = ask
        self._news = news
        self._limit = asyncio.Semaphore(_AT_ONCE)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._answered: set[str] = set()
        self._unanswered: dict[str, int] = {}
        self._asked_at: dict[str, float] = {}

    def look(self, prefixes: Mapping[str, str], *, steady: Set[str] = frozenset()) -> None:
        """Begin to ask each of these engines, unless that is under way, and forget all others.

        Args:
            prefixes: route prefixes by application name.
            steady: applications of which no change is expected: while such a one answers, it is asked only now
                and then, so that a wake does not wait behind questions to everything that is awake.
        """
        for name in self._asked_at.keys() - prefixes.keys():
            self.forget(name)
        now = asyncio.get_running_loop().time()
        for name, prefix in prefixes.items():
            due = name not in steady or self._asked_at.get(name, -_STEADY_SECONDS) + _STEADY_SECONDS <= now
            if name not in self._tasks and (due or name not in self._answered or name in self._unanswered):
                self._asked_at[name] = now
                self._tasks[name] = asyncio.create_task(self._question(name, prefix), name=f"probe {name}")

    def answering(self, name: str) -> bool | None:
        """Tell whether an engine answers; None if it was not asked yet."""
        unanswered = self._unanswered.get(name, 0)
        if name in self._answered:
            return unanswered < _UNANSWERED_IS_MUTE
        return False if unanswered else None

    def forget(self, name: str) -> None:
        """Whatever answered under this name is not there any more."""
        if (task := self._tasks.pop(name, None)) is not None:
            task.cancel()
        self._answered.discard(name)
        self._unanswered.pop(name, None)
        self._asked_at.pop(name, None)

    async def close(self) -> None:
        """End every question."""
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _question(self, name: str, prefix: str) -> None:
        try:
            async with self._limit:
                answered = await self._ask(prefix)
        except Exception:  # noqa: BLE001 - or it would count as under way, and as what it last was, for ever
            _log.exception("the question whether %s answers failed", name)
            answered = False
        before = self.answering(name)
        del self._tasks[name]
        if answered:
            self._answered.add(name)
            self._unanswered.pop(name, None)
        else:
            self._unanswered[name] = self._unanswered.get(name, 0) + 1
        if self.answering(name) != before:
            self._news()
