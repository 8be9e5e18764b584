"""What a source of weights can do."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectVersion:
    """One version of a file. ``size`` in bytes; ``etag`` changes whenever the file does."""

    size: int
    etag: str


class Source(Protocol):
    """A folder of weights somewhere. Names are relative to it and were checked by the manifest.

    Safe to use from several threads at once.
    """

    def stat(self, name: str) -> ObjectVersion:
        """Return the present version of a file.

        Raises:
            MissingFileError, AccessDeniedError, SourceUnavailableError
        """

    def read_small(self, name: str, *, limit: int) -> bytes:
        """Return a whole file of at most ``limit`` bytes.

        Raises:
            MissingFileError, AccessDeniedError, SourceUnavailableError
            ForbiddenContentError: it is longer.
        """

    def stream(self, name: str, *, version: ObjectVersion, offset: int = 0) -> Iterator[bytes]:
        """Yield a file's bytes from ``offset`` on, in chunks, of exactly this version.

        Ends early or raises where the connection breaks; the caller counts.

        Raises:
            MissingFileError, AccessDeniedError, SourceUnavailableError
            SourceChangedError: the file is not this version any more.
        """

    def close(self) -> None:
        """Close the connections. Streams that other threads read end early. May be called twice."""


@runtime_checkable
class RangedSource(Source, Protocol):
    """A source of which several ranges of one file may come faster than one stream."""

    def stretch(self, name: str, *, version: ObjectVersion, offset: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from ``offset`` up to ``end``, as ``stream`` does."""


@runtime_checkable
class CloningSource(Source, Protocol):
    """A source on a file system that may give a whole file out without copying it."""

    def clone(self, name: str, *, version: ObjectVersion, into: int) -> bool:
        """Make an empty, open file a copy of exactly this version, of its own from then on. False: it can't.

        Raises:
            MissingFileError, AccessDeniedError, SourceUnavailableError
            SourceChangedError: the file is not this version any more.
        """
