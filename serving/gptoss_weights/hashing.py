"""SHA-256 of files, for copies that are already here."""

import hashlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK_BYTES: Final = 1024 * 1024

Waiting = Callable[[], AbstractContextManager[None]]
"""Notes, for whoever watches, that a thread waits for a file: entered before each call that may hang."""


def hash_file(path: Path, *, advance: Callable[[int], None] = lambda _: None, waiting: Waiting = nullcontext) -> str:
    """Return a file's SHA-256 as hex. ``advance`` is told of every chunk and may raise to stop."""
    with waiting():
        # O_NONBLOCK: opening a pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        running = hashlib.sha256()
        absorb(stream.fileno(), running, advance=advance, waiting=waiting)
        return running.hexdigest()


def absorb(descriptor: int, running: "_Hash", *, advance: Callable[[int], None], waiting: Waiting = nullcontext) -> int:
    """Hash from a descriptor's position to its end; return how many bytes that were."""
    total = 0
    buffer = memoryview(bytearray(CHUNK_BYTES))
    while True:
        with waiting():
            count = os.readv(descriptor, [buffer])
        if not count:
            return total
        running.update(buffer[:count])
        total += count
        advance(count)
