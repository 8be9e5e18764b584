"""One retry policy for object stores: short waits with jitter, a few tries, and only for what passes.

A stream that breaks is opened again where it broke, at the same version; every chunk that arrives
starts the count of tries anew, and a whole file has a bound too, by however many ranges it comes.
"""

import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Final

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from gptoss_weights.errors import SourceChangedError, SourceUnavailableError, ThrottledError
from gptoss_weights.sources.protocol import ObjectVersion, RangedSource, Source

_FIRST_WAIT_SECONDS: Final = 0.2
_LONGEST_WAIT_SECONDS: Final = 10.0
_LONGEST_RETRY_AFTER_SECONDS: Final = 30.0
_MAX_BREAKS_PER_FILE: Final = 200
_SECONDS: Final = re.compile(r"\d{1,6}")


def retrying(max_attempts: int, *, sleep: Callable[[float], None] = time.sleep) -> Retrying:
    """Return the policy: call it with a function to have that tried up to ``max_attempts`` times."""
    return Retrying(
        retry=retry_if_exception(_passes),
        stop=stop_after_attempt(max_attempts),
        wait=_wait,
        sleep=sleep,
        reraise=True,
    )


def read_through(
    source: Source,
    name: str,
    *,
    version: ObjectVersion,
    offset: int,
    end: int | None = None,
    max_attempts: int,
    breaks: "Breaks | None" = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Generator[bytes]:
    """Yield a file's bytes from ``offset`` to its end, however often the connection breaks.

    ``end`` stops before, at a source that has ranges; those of one file share their ``breaks``.

    Raises:
        SourceUnavailableError: no byte came in ``max_attempts`` tries.
        SourceChangedError: the file is not this version any more.
        SourceError: anything else that the source raises, at once.
    """
    cursor = _Cursor(source, name, version, offset, version.size if end is None else end, breaks or Breaks())
    policy = retrying(max_attempts, sleep=sleep)
    try:
        while cursor.position < cursor.end:
            yield policy(cursor.advance)
    finally:
        cursor.close()


def asked_wait(headers: Mapping[str, str]) -> float:
    """Return how many seconds an answer asks to be left alone for; 0 if it does not say, or says a date."""
    asked = headers.get("Retry-After", "")
    return float(asked) if _SECONDS.fullmatch(asked) else 0.0


class Breaks:
    """How often connections broke while one file was read. Used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def another(self) -> bool:
        """Count one; False if that is one too many."""
        with self._lock:
            self._count += 1
            return self._count <= _MAX_BREAKS_PER_FILE


class _Cursor:
    """A position in one version of a file, and the stream that is open there."""

    def __init__(
        self, source: Source, name: str, version: ObjectVersion, offset: int, end: int, breaks: Breaks
    ) -> None:
        self._source = source
        self._name = name
        self._version = version
        self._stream: Iterator[bytes] | None = None
        self._breaks = breaks
        self.position = offset
        self.end = end

    def advance(self) -> bytes:
        if self._stream is None:
            self._stream = self._open()
        try:
            chunk = next(self._stream, b"")
        except SourceUnavailableError as error:
            self._broke(error)
            raise
        if not chunk:
            ended = SourceUnavailableError(
                f"{self._name} ended after {self.position} of {self.end} bytes", file=self._name
            )
            self._broke(ended)
            raise ended
        if self.position + len(chunk) > self.end:
            raise SourceChangedError(f"{self._name} is longer than when the pull began", file=self._name)
        self.position += len(chunk)
        return chunk

    def _open(self) -> Iterator[bytes]:
        if self.end < self._version.size and isinstance(self._source, RangedSource):
            return self._source.stretch(self._name, version=self._version, offset=self.position, end=self.end)
        return self._source.stream(self._name, version=self._version, offset=self.position)

    def close(self) -> None:
        close = getattr(self._stream, "close", None)
        if close is not None:
            close()
        self._stream = None

    def _broke(self, error: SourceUnavailableError) -> None:
        self.close()
        if not self._breaks.another():
            raise _GaveUpError(f"{self._name} broke off more than {_MAX_BREAKS_PER_FILE} times") from error


class _GaveUpError(SourceUnavailableError):
    """Too many breaks in one file, however much progress was made in between."""


def _wait(state: RetryCallState) -> float:
    """Wait as long as the source asks, within reason, and a random time that grows beside."""
    ours = wait_random_exponential(multiplier=_FIRST_WAIT_SECONDS, max=_LONGEST_WAIT_SECONDS)(state)
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.seconds if isinstance(error, ThrottledError) else 0.0
    return ours + min(asked, _LONGEST_RETRY_AFTER_SECONDS)


def _passes(error: BaseException) -> bool:
    return isinstance(error, SourceUnavailableError) and not isinstance(error, SourceChangedError | _GaveUpError)
