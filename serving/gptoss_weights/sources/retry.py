"""One retry policy for object stores: short waits with jitter, a few tries, and only for what passes.

A stream that breaks is opened again where it broke, at the same version; every chunk that arrives
starts the count of tries anew, and a whole file has a bound too.
"""

import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Final

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from gptoss_weights.errors import SourceChangedError, SourceUnavailableError, ThrottledError
from gptoss_weights.sources.protocol import ObjectVersion, Source

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
    max_attempts: int,
    sleep: Callable[[float], None] = time.sleep,
) -> Generator[bytes]:
    """Yield a file's bytes from ``offset`` to its end, however often the connection breaks.

    Raises:
        SourceUnavailableError: no byte came in ``max_attempts`` tries.
        SourceChangedError: the file is not this version any more.
        SourceError: anything else that the source raises, at once.
    """
    cursor = _Cursor(source, name, version, offset)
    policy = retrying(max_attempts, sleep=sleep)
    try:
        while cursor.position < version.size:
            yield policy(cursor.advance)
    finally:
        cursor.close()


def asked_wait(headers: Mapping[str, str]) -> float:
    """Return how many seconds an answer asks to be left alone for; 0 if it does not say, or says a date."""
    asked = headers.get("Retry-After", "")
    return float(asked) if _SECONDS.fullmatch(asked) else 0.0


class _Cursor:
    """A position in one version of a file, and the stream that is open there."""

    def __init__(self, source: Source, name: str, version: ObjectVersion, offset: int) -> None:
        self._source = source
        self._name = name
        self._version = version
        self._stream: Iterator[bytes] | None = None
        self._breaks = 0
        self.position = offset

    def advance(self) -> bytes:
        if self._stream is None:
            self._stream = self._source.stream(self._name, version=self._version, offset=self.position)
        try:
            chunk = next(self._stream, b"")
        except SourceUnavailableError as error:
            self._broke(error)
            raise
        if not chunk:
            ended = SourceUnavailableError(
                f"{self._name} ended after {self.position} of {self._version.size} bytes", file=self._name
            )
            self._broke(ended)
            raise ended
        if self.position + len(chunk) > self._version.size:
            raise SourceChangedError(f"{self._name} is longer than when the pull began", file=self._name)
        self.position += len(chunk)
        return chunk

    def close(self) -> None:
        close = getattr(self._stream, "close", None)
        if close is not None:
            close()
        self._stream = None

    def _broke(self, error: SourceUnavailableError) -> None:
        self.close()
        self._breaks += 1
        if self._breaks > _MAX_BREAKS_PER_FILE:
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
