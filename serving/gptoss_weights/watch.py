"""Work that may hang, in threads that nothing has to wait for, and a watch on who waits for what since when.

A read from a file server that does not answer hangs in the kernel, and its thread with it: nobody can end that. So
neither whoever asked for the work waits for it, nor does the interpreter when it ends, as it would for an executor's
threads. When the process ends, the kernel lets go of such reads too.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager
from typing import Final, NamedTuple, TypeVar

from gptoss_weights.errors import HungStorageError, StalledTransferError, WeightsError

LOOK_SECONDS: Final = 0.1
FAREWELL_SECONDS: Final = 10.0
"""How long whoever gives work up waits for its end, which closing its source brings about as a rule."""

T = TypeVar("T")
Item = TypeVar("Item")


class CancelledTransferError(Exception):
    """Somebody gave up on the work. Never leaves this package."""


class _Wait(NamedTuple):
    what: str | None
    """The file at the source whose bytes are waited for; None for our own folder."""
    since: float
    patience: int


class Watch:
    """Who of several threads waits for something that may never come, and whether anybody still wants it."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.cancelled = threading.Event()
        self._clock = clock
        self._lock = threading.Lock()
        self._waits: dict[int, _Wait] = {}

    def source(self, name: str, *, patience: int = 1) -> AbstractContextManager[None]:
        """Note that the calling thread waits for a file at the source, ``patience`` times as long as others may."""
        return _Waiting(self, name, patience)

    def folder(self, *, patience: int = 1) -> AbstractContextManager[None]:
        """Note that the calling thread waits for the folder that copies are kept in."""
        return _Waiting(self, None, patience)

    def check(self) -> None:
        """Stop the calling thread if nobody wants what it does any more."""
        if self.cancelled.is_set():
            raise CancelledTransferError

    def alive(self) -> None:
        """Note that the calling thread gets on; stop it if nobody wants that any more."""
        self.check()
        mine = threading.get_ident()
        with self._lock:
            present = self._waits.get(mine)
            if present is not None:
                self._waits[mine] = present._replace(since=self._clock())

    def sleep(self, seconds: float) -> None:
        """Wait for another try, unless nobody wants that any more."""
        self.cancelled.wait(seconds)
        self.check()

    def late(self, seconds: float) -> WeightsError | None:
        """Return what has been waited for in vain for longer than ``seconds``, as the error that it is."""
        now = self._clock()
        with self._lock:
            late = [each for each in self._waits.values() if now - each.since > seconds * each.patience]
        if not late:
            return None
        longest = max(late, key=lambda each: now - each.since)
        limit = seconds * longest.patience
        if longest.what is None:
            return HungStorageError(
                f"the folder for weights has not answered for {limit:.0f} s; look at its disk, or at the file server "
                "that it lies on"
            )
        return StalledTransferError(
            f"no byte of {longest.what} came for {limit:.0f} s; check the network to the source", file=longest.what
        )

    def begin(self, what: str | None, patience: int) -> _Wait | None:
        """Note what the calling thread waits for from now on; return what that was before."""
        mine = threading.get_ident()
        with self._lock:
            outer = self._waits.get(mine)
            self._waits[mine] = _Wait(what, self._clock(), patience)
            return outer

    def end(self, outer: _Wait | None) -> None:
        """Note that the wait of the calling thread is over, and the one around it goes on from now."""
        mine = threading.get_ident()
        with self._lock:
            if outer is None:
                del self._waits[mine]
            else:
                self._waits[mine] = _Wait(outer.what, self._clock(), outer.patience)


class _Waiting(AbstractContextManager[None]):
    """A wait, which may stand in another. It is entered for every chunk, so it is no generator."""

    __slots__ = ("_outer", "_patience", "_watch", "_what")

    def __init__(self, watch: Watch, what: str | None, patience: int) -> None:
        self._watch, self._what, self._patience = watch, what, patience
        self._outer: _Wait | None = None

    def __enter__(self) -> None:
        self._outer = self._watch.begin(self._what, self._patience)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._watch.end(self._outer)
        if kind is None:
            # After the wait: whoever gave up may have let others begin.
            self._watch.check()


def watched(
    work: Callable[[], T],
    *,
    watch: Watch,
    seconds: float,
    look: Callable[[], None] = lambda: None,
    give_up: Callable[[], None] = lambda: None,
) -> T:
    """Return what the work returns, which runs in another thread; ``look`` is called now and then meanwhile.

    Raises:
        StalledTransferError, HungStorageError: it has waited in vain for longer than ``seconds``. It is told to give
            up, and left behind if it does not.
    """
    (task,) = in_threads(lambda _: work(), [None], threads=1)
    try:
        while not wait([task], timeout=LOOK_SECONDS).done:
            look()
            late = watch.late(seconds)
            if late is not None:
                raise late
        found = task.result()
        look()
        return found
    finally:
        if not task.done():
            watch.cancelled.set()
            give_up()
            wait([task], timeout=FAREWELL_SECONDS)


def within(work: Callable[[], T], *, seconds: float, late: WeightsError) -> T:
    """Return what the work returns, which is one short step in another thread.

    Raises:
        WeightsError: ``late``, if it takes longer.
    """
    (task,) = in_threads(lambda _: work(), [None], threads=1)
    if not wait([task], timeout=seconds).done:
        raise late
    return task.result()


def in_threads(work: Callable[[Item], T], items: Sequence[Item], *, threads: int) -> list[Future[T]]:
    """Begin the work for every item, so many at a time and in this order; return what will come of each."""
    tasks: list[Future[T]] = [Future() for _ in items]
    left = deque(zip(tasks, items, strict=True))

    def go_on() -> None:
        while left:
            try:
                task, item = left.popleft()
            except IndexError:  # another thread has taken the last
                return
            if not task.set_running_or_notify_cancel():
                continue
            try:
                found = work(item)
            except BaseException as error:  # noqa: BLE001 - it is raised where the result is wanted
                task.set_exception(error)
            else:
                task.set_result(found)

    for _ in range(min(threads, len(items))):
        threading.Thread(target=go_on, name="gptoss-weights", daemon=True).start()
    return tasks
