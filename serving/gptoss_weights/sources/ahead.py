"""Several ranges of one file at a time, handed out in their order: where a store limits one stream, not all of them.

A file's hash takes its bytes one after the other, so ranges that are ahead wait in memory: at most ``most_ahead``
of ``RANGE_BYTES`` each, of all files of a pull together, whatever their size.

Where the store limits no stream, ranges only cost something: requests, threads, and cores that hash. So a file begins
with one stream, whose rate is measured, and its ranges go on only if the first of them came clearly faster than that.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from gptoss_weights.sources.protocol import ObjectVersion, RangedSource, Source
from gptoss_weights.sources.retry import Breaks, read_through

RANGE_BYTES: Final = 8 * 1024 * 1024
_LARGE_BYTES: Final = 8 * RANGE_BYTES
_PROBE_BYTES: Final = 2 * RANGE_BYTES
_TRIAL_BYTES: Final = 8 * RANGE_BYTES
_ALONE_BYTES: Final = 32 * RANGE_BYTES
"""What is read in one request before it is seen again whether ranges may go ahead: so long that asking costs little."""
_WORTH: Final = 1.3
"""How many times as fast as one stream ranges must be to go on. A store that limits streams makes it 2 and more."""
_LOOK_SECONDS: Final = 1.0

_Read = Callable[[int, int, Callable[[float], None]], Generator[bytes]]


class Lanes:
    """What one pull may read at a time: a lane for each file under way, and the rest for ranges ahead."""

    def __init__(self, total: int, *, most_ahead: int) -> None:
        self._total = total
        self._most_ahead = most_ahead
        self._lock = threading.Lock()
        self._files = 0
        self._ahead = 0

    @property
    def possible(self) -> bool:
        """Whether a range can ever go ahead."""
        return self._total > 1 and self._most_ahead > 0

    @contextmanager
    def file(self) -> Iterator[None]:
        """Be a file under way. It never waits: those who read ahead make room as they go on."""
        with self._lock:
            self._files += 1
        try:
            yield
        finally:
            with self._lock:
                self._files -= 1

    def take(self, *, own: bool) -> bool:
        """Take a lane for a range ahead, if there is one. ``own``: this file's own lane is idle, for it has ranges."""
        with self._lock:
            free = self._files + self._ahead < self._total + own and self._ahead < self._most_ahead
            self._ahead += free
            return free

    def give(self) -> None:
        """Give a lane back."""
        with self._lock:
            self._ahead -= 1


def read_in_order(
    source: Source,
    name: str,
    *,
    version: ObjectVersion,
    offset: int,
    lanes: Lanes,
    max_attempts: int,
    sleep: Callable[[float], None],
    clock: Callable[[], float] = time.monotonic,
) -> Generator[bytes]:
    """Yield a file's bytes from ``offset`` to its end, by several ranges at a time where that is faster.

    Raises:
        SourceError: as ``read_through``.
    """
    breaks = Breaks()

    def read(start: int, end: int, sleep: Callable[[float], None] = sleep) -> Generator[bytes]:
        return read_through(
            source, name, version=version, offset=start, end=end, max_attempts=max_attempts, breaks=breaks, sleep=sleep
        )

    position, length = offset, _PROBE_BYTES
    if not isinstance(source, RangedSource) or not lanes.possible or version.size - offset < _LARGE_BYTES:
        length = version.size
    while position < version.size:
        begun, end = clock(), min(version.size, position + length)
        yield from read(position, end)
        alone = _Pace(end - position, clock() - begun)
        position = end
        if position < version.size and lanes.take(own=False):
            position, worth = yield from _by_ranges(read, position, version.size, lanes, alone, sleep, clock)
            length = _ALONE_BYTES if worth else version.size
        else:
            length = _ALONE_BYTES


@dataclass(frozen=True, slots=True)
class _Pace:
    """How long some bytes took to come."""

    count: int
    seconds: float

    def is_worth(self, alone: "_Pace") -> bool:
        """Whether this is clearly faster than the pace of one stream."""
        return self.count * alone.seconds >= _WORTH * alone.count * self.seconds


def _by_ranges(
    read: _Read,
    start: int,
    size: int,
    lanes: Lanes,
    alone: _Pace,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> Generator[bytes, None, tuple[int, bool]]:
    """Yield bytes by ranges, for the first of which a lane is taken; return where they end, and if they were worth it.

    They end with the file, where other files need the lanes, or where they turn out to be no faster.
    """
    ahead: deque[_Range] = deque()
    begun, position, wanted, worth = clock(), start, start, True
    taken = True
    try:
        while True:
            while taken:
                ahead.append(_Range(read, wanted, min(size, wanted + RANGE_BYTES), lanes.give, sleep))
                wanted = ahead[-1].end
                taken = wanted < size and worth and lanes.take(own=True)
            if not ahead:
                return position, worth
            for chunk in ahead[0].chunks():
                yield chunk
                position += len(chunk)
            ahead.popleft().leave()
            if position - start == _TRIAL_BYTES:
                worth = _Pace(position - start, clock() - begun).is_worth(alone)
            taken = wanted < size and worth and lanes.take(own=bool(ahead))
    finally:
        for each in ahead:
            each.leave()


class _LeftError(Exception):
    """Nobody wants the rest of a range. Never leaves its thread."""


class _Range:
    """A range that a thread of its own reads into memory, and its lane."""

    def __init__(
        self,
        read: _Read,
        start: int,
        end: int,
        give: Callable[[], None],
        sleep: Callable[[float], None],
    ) -> None:
        self.end = end
        self._stream = read(start, end, self._pause)
        self._give = give
        self._sleep = sleep
        self._changed = threading.Condition()
        self._chunks: deque[bytes] = deque()
        self._error: BaseException | None = None
        self._over = False
        self._left = threading.Event()
        # Of a source that is closed every read ends; one that hangs all the same must not keep the process from ending.
        threading.Thread(target=self._fetch, name="gptoss-weights-ahead", daemon=True).start()

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes as they come; raise what went wrong with them."""
        while True:
            with self._changed:
                while not self._changed.wait_for(lambda: self._chunks or self._over, timeout=_LOOK_SECONDS):
                    self._sleep(0)  # ends a pull that was given up
                if not self._chunks:
                    if self._error is not None:
                        raise self._error
                    return
                chunk = self._chunks.popleft()
            yield chunk

    def leave(self) -> None:
        """Nobody wants the rest. The lane is free again."""
        self._left.set()
        with self._changed:
            self._chunks.clear()
        self._give()

    def _fetch(self) -> None:
        try:
            for chunk in self._stream:
                with self._changed:
                    if self._left.is_set():
                        return
                    self._chunks.append(chunk)
                    self._changed.notify()
        except BaseException as error:  # noqa: BLE001 - raised where the bytes are wanted
            self._error = error
        finally:
            self._stream.close()
            with self._changed:
                self._over = True
                self._changed.notify()

    def _pause(self, seconds: float) -> None:
        """Wait before a retry, unless nobody wants the range any more."""
        if self._left.wait(seconds):
            raise _LeftError
        self._sleep(0)
