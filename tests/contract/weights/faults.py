"""A source over a dictionary that does whatever goes wrong with object stores."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from gptoss_weights.errors import MissingFileError, SourceChangedError, SourceUnavailableError
from gptoss_weights.sources import ObjectVersion


@dataclass
class FaultySource:
    """Counts what is asked of it. ``fault(name, offset, position, attempt)`` runs before every chunk.

    A fault raises, or returns how many bytes to send before the stream ends as if it were complete.
    """

    files: dict[str, bytes]
    chunk: int = 64 * 1024
    fault: Callable[[str, int, int, int], int | None] | None = None
    opened: dict[str, list[int]] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    revision: int = 1
    lock: threading.Lock = field(default_factory=threading.Lock)

    def stat(self, name):
        self.asked.add(name)
        if name not in self.files:
            raise MissingFileError(f"{name} is not at the source", file=name)
        return ObjectVersion(size=len(self.files[name]), etag=f"{name}-{self.revision}")

    def read_small(self, name, *, limit):
        self.stat(name)
        return self.files[name][: limit + 1]

    def stream(self, name, *, version, offset=0) -> Iterator[bytes]:
        with self.lock:
            starts = self.opened.setdefault(name, [])
            starts.append(offset)
            attempt = len(starts)
        if self.stat(name) != version:
            raise SourceChangedError(f"{name} was replaced", file=name)
        position = offset
        content = self.files[name]
        while position < len(content):
            end = position + self.chunk
            if self.fault is not None:
                limit = self.fault(name, offset, position, attempt)
                if limit is not None:
                    if limit:
                        yield content[position : position + limit]
                    return
            with self.lock:
                self.sent[name] = self.sent.get(name, 0) + len(content[position:end])
            yield content[position:end]
            position = end

    def close(self):
        pass


def from_folder(folder, **changes) -> FaultySource:
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return FaultySource(files, **changes)


@pytest.fixture
def served_by(monkeypatch):
    """Have pulls of this process read from a source of the test's."""

    def serve(source):
        @contextmanager
        def opened(uri, *, revision=None, settings):
            yield source

        monkeypatch.setattr("gptoss_weights.materialise.open_source", opened)
        return source

    return serve


def breaks(message="the connection broke"):
    return SourceUnavailableError(message)
