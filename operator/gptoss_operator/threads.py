"""Blocking work beside the event loop, a bounded number at a time, that keeps no process from ending.

The threads of an executor are waited for when the interpreter ends: a source that hangs would hold up an
operator that was told to stop. These are not.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Threads:
    """Runs ``at_once`` pieces of work at a time; more wait for their turn. ``name`` is the threads'."""

    def __init__(self, at_once: int, *, name: str) -> None:
        self._turns = asyncio.Semaphore(at_once)
        self._name = name

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """Return what the work returns, or raise what it raises.

        Who is cancelled waits no longer; the work goes on, and its turn is over only when it ends.
        """
        await self._turns.acquire()
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            self._turns.release()
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

        try:
            threading.Thread(target=in_thread, name=self._name, daemon=True).start()
        except RuntimeError:  # the system has no thread left
            self._turns.release()
            raise
        return await outcome
