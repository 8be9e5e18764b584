"""The queue between events and reconciles.

A key waits in it at most once and is worked on by one worker at a time. A user's change overtakes
the slow resync and any back-off. Nothing that is put in can fail, because watch handlers put.
"""

import asyncio
import random
from collections.abc import Callable, Hashable
from enum import Enum
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Priority(Enum):
    """Who waits for the result."""

    CHANGE = 0
    RESYNC = 1


class QueueClosedError(Exception):
    """The queue was shut down while a worker waited for a key."""


class WorkQueue(Generic[K]):
    """Deduplicated, serial per key, bounded, with delays and jittered back-off.

    Args:
        capacity: most keys that may wait; a resync is refused beyond it, a change never is, for the
            number of objects bounds those.
        first_delay: seconds before the first retry of a failed key; doubles with every failure.
        last_delay: longest such delay.
        chance: returns a number in [0, 1); a delay is multiplied by 0.5 to 1.
    """

    def __init__(
        self,
        *,
        capacity: int = 20_000,
        first_delay: float = 0.25,
        last_delay: float = 60.0,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._capacity = capacity
        self._first_delay = first_delay
        self._last_delay = last_delay
        self._chance = chance
        # Dictionaries keep insertion order: each is a queue without duplicates.
        self._waiting: dict[Priority, dict[K, None]] = {priority: {} for priority in Priority}
        self._running: set[K] = set()
        self._again: dict[K, Priority] = {}
        self._timers: dict[K, tuple[float, asyncio.TimerHandle]] = {}
        self._failures: dict[K, int] = {}
        self._wake_up = asyncio.Event()
        self._closed = False

    def add(self, key: K, priority: Priority = Priority.CHANGE) -> bool:
        """Ask for a look at the key as soon as a worker is free. False if the queue is full."""
        if self._closed:
            return False
        if key in self._running:
            self._again[key] = min(priority, self._again.get(key, priority), key=lambda each: each.value)
            return True
        if key in self._waiting[Priority.CHANGE]:
            return True
        if priority is Priority.RESYNC:
            if key in self._waiting[Priority.RESYNC] or (key in self._failures and key in self._timers):
                return True
            if len(self) >= self._capacity:
                return False
        else:
            self._waiting[Priority.RESYNC].pop(key, None)
            self._cancel_timer(key)
        self._waiting[priority][key] = None
        self._wake_up.set()
        return True

    def add_after(self, key: K, seconds: float) -> None:
        """Ask for a look at the key after some time; of several such wishes the earliest counts."""
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + max(0.0, seconds)
        timer = self._timers.get(key)
        if timer is not None:
            if timer[0] <= due:
                return
            timer[1].cancel()
        self._timers[key] = (due, loop.call_at(due, self._due, key))

    async def get(self) -> K:
        """Wait for the next key. The caller owes a `done` or `failed` for it."""
        while True:
            if self._closed:
                raise QueueClosedError
            for priority in Priority:
                for key in self._waiting[priority]:
                    del self._waiting[priority][key]
                    self._running.add(key)
                    return key
            self._wake_up.clear()
            await self._wake_up.wait()

    def done(self, key: K, *, again_after: float | None = None) -> None:
        """The key was looked at; optionally look again after some seconds."""
        self._failures.pop(key, None)
        self._cancel_timer(key)
        self._release(key)
        if again_after is not None:
            self.add_after(key, again_after)

    def failed(self, key: K, *, again_after: float | None = None) -> float:
        """The look failed: look again with back-off, or after what the server asked for. Returns the delay."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay = min(self._last_delay, self._first_delay * 2.0 ** min(failures, 30)) * (0.5 + self._chance() / 2)
        delay = max(delay, again_after or 0.0)
        self._cancel_timer(key)
        self._release(key)
        self.add_after(key, delay)
        return delay

    def forget(self, key: K) -> None:
        """Drop what is remembered of a key whose object is gone."""
        self._failures.pop(key, None)
        self._cancel_timer(key)

    def close(self) -> None:
        """Take no more keys, and end every waiting worker."""
        self._closed = True
        for _, handle in self._timers.values():
            handle.cancel()
        self._timers.clear()
        self._wake_up.set()

    def __len__(self) -> int:
        return sum(len(waiting) for waiting in self._waiting.values())

    @property
    def running(self) -> int:
        """Keys that workers hold now."""
        return len(self._running)

    def _release(self, key: K) -> None:
        self._running.discard(key)
        priority = self._again.pop(key, None)
        if priority is not None:
            self.add(key, priority)

    def _due(self, key: K) -> None:
        self._timers.pop(key, None)
        self.add(key)

    def _cancel_timer(self, key: K) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer[1].cancel()
