"""Which requests a node's replicas work on, for whoever waits until there are none: ``gptoss_serving.drain``.

Only a replica knows. HAProxy keeps idle connections to it open for a minute and a half, and from outside
nothing tells those from a stream whose next token takes its time. So each replica holds a shared lock on one
file of its node while it works, which the kernel takes back when a replica dies.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_FILE_NAME: Final = "gptoss-in-flight.lock"


class InFlight:
    """The requests that this process works on. For one event loop."""

    def __init__(self, folder: Path) -> None:
        """Open the file in the folder of the node's Ray logs, or make it."""
        self._descriptor = os.open(folder / _FILE_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._count = 0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Show that a request is worked on."""
        if self._count == 0:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1
            if self._count == 0:
                os.utime(self._descriptor)
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)


def seconds_without_request(folder: Path) -> float:
    """Return for how long no replica of a node has worked on anything: 0 while one does, endless if none ever did.

    ``folder`` is that of the node's Ray logs.
    """
    try:
        descriptor = os.open(folder / _FILE_NAME, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return float("inf")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return max(0.0, time.time() - os.fstat(descriptor).st_mtime)
    except BlockingIOError:
        return 0.0
    finally:
        os.close(descriptor)
