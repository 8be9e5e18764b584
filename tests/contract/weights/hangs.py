"""Files whose readers hang in the kernel, as those of a file server that does not answer.

fanotify asks this process for leave whenever somebody opens or reads a marked file, and it never answers. Who waits
for that sleeps in the kernel and is woken by nothing but a fatal signal, as with NFS. It takes Linux, and root.
"""

import ctypes
import os
import select
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_CLASS_CONTENT = 0x4
_CLOEXEC = 0x1
_MARK_ADD = 0x1
_OPEN_PERM = 0x10000
_ACCESS_PERM = 0x20000
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass
class Hangs:
    """Has those hang who read marked files; ``asked`` is set once somebody does."""

    group: int
    asked: threading.Event = field(default_factory=threading.Event)

    def mark(self, path: Path, *, opening: bool = False) -> None:
        """Have those hang who read a file, or who open it."""
        mask = ctypes.c_uint64(_OPEN_PERM if opening else _ACCESS_PERM)
        if _LIBC.fanotify_mark(self.group, _MARK_ADD, mask, -1, os.fsencode(path)) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))


@pytest.fixture
def hangs() -> Iterator[Hangs]:
    """Those who hang are let go at the end: closing the group answers for it."""
    group = _LIBC.fanotify_init(_CLASS_CONTENT | _CLOEXEC, os.O_RDONLY | os.O_CLOEXEC)
    if group < 0:
        pytest.skip("fanotify with permission events is not permitted here")
    state = Hangs(group)
    over, stop = os.pipe()

    def notice() -> None:
        if group in select.select([group, over], [], [])[0]:
            state.asked.set()

    thread = threading.Thread(target=notice)
    thread.start()
    try:
        yield state
    finally:
        os.close(stop)
        thread.join()
        os.close(over)
        os.close(group)
