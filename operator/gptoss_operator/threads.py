"""Blocking work beside the event loop, a bounded number at a time, that keeps no process from ending.

The threads of an executor are waited for when the interpreter ends: a source that hangs would hold up an
operator that was told to stop. These are not.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")


class Threads:
    """Runs ``at_once`` pieces of work at a time, of one owner ``each`` of them at most; more wait for their turn.

    Work that hangs and that nobody waits for any more counts for its owner alone: it holds up no other's.
    ``name`` is the threads'.
    """

    def __init__(self, at_once: int, *, name: str, each: int | None = None) -> None:
        self._turns = asyncio.Semaphore(at_once)
        self._each = each or at_once
        self._owners: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._name = name

    @contextlib.asynccontextmanager
    async def turn(self, owner: str = "") -> AsyncIterator["Turn"]:
        """Wait for a turn. With work run in it, the owner's next comes when that work ends, whoever still waits."""
        own = self._owners.setdefault(owner, asyncio.Semaphore(self._each))
        await own.acquire()
        turn = Turn(own.release, name=self._name)
        try:
            async with self._turns:
                yield turn
        finally:
            if turn.began is None:
                own.release()


class Turn:
    """Leave to run one piece of work.

    ``began`` is when it did, on the event loop's clock; ``ended`` is set when it ends, whoever still waits. The turn
    is alive until then.
    """

    def __init__(self, over: Callable[[], None], *, name: str) -> None:
        self.began: float | None = None
        self.ended = asyncio.Event()
        self._over = over
        self._name = name

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """Return what the work returns, or raise what it raises.

        Who is cancelled waits no longer; the work goes on.
        """
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            self._over()
            self.ended.set()
            if outcome.done():
                return
            if error is not None:
                outcome.set_exception(error)
            else:
                outcome.set_result(result)

        def in_thread() -> None:
            result, failure = None, None
            try:
                result = work(*arguments)
            except BaseException as error:  # noqa: BLE001 - it is the caller's
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(settle, result, failure)

        # What raises here, for the system has no thread left, has not begun.
        threading.Thread(target=in_thread, name=self._name, daemon=True).start()
        self.began = loop.time()
        return await outcome
