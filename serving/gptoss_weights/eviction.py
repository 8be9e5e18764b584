"""Room for a new copy: the least recently used ones go, never one that is in use.

A verified copy is worth a fetch and no more, so it may go whenever its place is needed: because all
copies together would pass the administrator's bound, or because the volume is too full. One that is
being pulled or verified, that a replica of this node holds, or that was given out a short while ago,
stays. Whoever makes room holds one lock, and says what it will need before it lets go, so that two pulls
at once don't count on the same bytes.
"""

import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gptoss_weights.errors import NoSpaceError
from gptoss_weights.limits import PullLimits
from gptoss_weights.storage import PrivateCopy, copies, locked_file

_LOCK: Final = "room.lock"
_LOCK_SECONDS: Final = 600.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evicted:
    """A copy that made room. ``bytes`` is what it took on the volume."""

    name: str
    bytes: int


def make_room(directory: Path, copy: PrivateCopy, *, total: int, limits: PullLimits) -> list[Evicted]:
    """Have room for a copy of ``total`` bytes, and note that it will be taken. The caller holds the copy's lock.

    Raises:
        NoSpaceError: there is not enough, whatever may go.
        BusyError: another process has been making room for minutes.
    """
    evicted: list[Evicted] = []
    with locked_file(directory / "locks" / _LOCK, timeout_seconds=_LOCK_SECONDS):
        others = sorted((each for each in copies(directory) if each.name != copy.name), key=lambda each: each.used_at())
        _check_possible(total, limits)
        while problem := _problem(directory, copy, others, total=total, limits=limits):
            gone = _evict_first(others, keep_seconds=limits.keep_seconds)
            if gone is None:
                raise NoSpaceError(problem)
            evicted.append(gone)
        copy.reserve(total)
    return evicted


def _check_possible(total: int, limits: PullLimits) -> None:
    if limits.folder_max_bytes is not None and total > limits.folder_max_bytes:
        raise NoSpaceError(
            f"the weights have {total} bytes, and {limits.bound_name} allows {limits.folder_max_bytes} for all "
            "copies; raise it"
        )


def _problem(
    directory: Path, copy: PrivateCopy, others: list[PrivateCopy], *, total: int, limits: PullLimits
) -> str | None:
    # What is promised before what is there: a pull that ends in between has all its bytes by then.
    sizes = [(each.reserved(), each.size()) for each in others]
    taken = sum(max(found) for found in sizes)
    if limits.folder_max_bytes is not None and taken + total > limits.folder_max_bytes:
        return (
            f"the weights need {total} bytes, and {taken} of the {limits.folder_max_bytes} that "
            f"{limits.bound_name} allows are taken by copies that are in use; raise it, or serve fewer models here"
        )
    promised = sum(max(0, reserved - size) for reserved, size in sizes)
    free = shutil.disk_usage(directory).free - promised
    needed = max(0, total - copy.size())
    if free < needed + limits.spare_bytes:
        return (
            f"the weights need {needed} more bytes and {limits.spare_bytes} to spare, but the node's folder for "
            f"weights has {max(0, free)} free, and every other copy there is in use; give it a larger volume"
        )
    return None


def _evict_first(others: list[PrivateCopy], *, keep_seconds: float) -> Evicted | None:
    for each in list(others):
        if time.time() - each.used_at() < keep_seconds:
            continue
        size = each.size()
        if each.remove_unless_used():
            others.remove(each)
            _log.warning("removed %s (%d bytes), the least recently used copy, to make room", each.name, size)
            return Evicted(name=each.name, bytes=size)
    return None
