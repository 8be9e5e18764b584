"""SHA-256 of files, for copies that are already here."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK_BYTES: Final = 1024 * 1024


def hash_file(path: Path, *, advance: Callable[[int], None] = lambda _: None) -> str:
    """Return a file's SHA-256 as hex. ``advance`` is told of every chunk and may raise to stop."""
    # O_NONBLOCK: opening a pipe would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        running = hashlib.sha256()
        absorb(stream.fileno(), running, advance=advance)
        return running.hexdigest()


def absorb(descriptor: int, running: "_Hash", *, advance: Callable[[int], None]) -> int:
    """Hash from a descriptor's position to its end; return how many bytes that were."""
    total = 0
    buffer = memoryview(bytearray(CHUNK_BYTES))
    while count := os.readv(descriptor, [buffer]):
        running.update(buffer[:count])
        total += count
        advance(count)
    return total
