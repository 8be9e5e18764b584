"""Verified copies on a volume that many pods share: worth a fetch, and trusted for nothing.

Who else may write to the volume can change a byte after it was checked. So nobody is given a path in it:
what an engine opens is always a private copy, and each byte of that is hashed as it would be had it come from
the source. Everything that is written to the cache is written before the private
copy is begun, so a link that somebody plants here leads to nothing that was checked already.

A cache may fail in every way that a disk and its other users know, and a pull that could do without it
does: it says so, and fetches from the source.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar

from gptoss_weights.errors import (
    BusyError,
    HungStorageError,
    SourceError,
    StalledTransferError,
    StorageError,
    TrustError,
)
from gptoss_weights.limits import PullLimits
from gptoss_weights.location import Location
from gptoss_weights.materialise import Materialised, PullProgress, pull
from gptoss_weights.sources import SourceSettings
from gptoss_weights.storage import PrivateCopy, prepare_directory, storage_errors
from gptoss_weights.watch import within

_KEEP_SECONDS: Final = 60.0
"""No engine opens a copy of the cache, and who reads one holds its lock: it need not be kept for long."""
_PATIENCE_SECONDS: Final = 120.0
"""Longest wait for somebody else who fills the cache with the same weights and gets no further."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cache:
    """A folder on a shared volume. ``max_bytes`` bounds all copies in it together, None for as much as fits."""

    directory: Path
    max_bytes: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedPull:
    """A pull through a cache.

    ``copy`` is the private one; its ``fetched_bytes`` are those that came from the source. ``problem`` is why the
    cache was left aside, None if the copy was taken from it. ``damaged`` are files of the cache that were changed,
    missing or planted, and were thrown out. ``evicted`` names copies of the cache that made room.
    """

    copy: Materialised
    problem: str | None
    damaged: tuple[str, ...]
    evicted: tuple[str, ...]


def pull_through(
    cache: Cache,
    uri: str,
    *,
    manifest_digest: str,
    subject: str,
    directory: Path,
    settings: SourceSettings,
    revision: str | None = None,
    progress: Callable[[PullProgress], None] | None = None,
    limits: PullLimits | None = None,
    readable: bool = False,
) -> CachedPull:
    """Do what ``pull`` does, with the bytes that the cache has, and leave the others there for the next.

    Raises:
        TrustError, SourceError: as ``pull``, of the source.
        StorageError: the private folder failed. A cache that failed is told in ``CachedPull.problem``.
    """
    begun = time.monotonic()
    bounds = limits or PullLimits.from_environment()
    bring = partial(
        pull,
        uri,
        revision=revision,
        manifest_digest=manifest_digest,
        subject=subject,
        settings=settings,
        progress=progress,
    )
    location = Location.parse(uri, revision=revision)
    take = partial(bring, directory=directory, limits=bounds, readable=readable)
    used = _Use(cache, bring=bring, limits=bounds)
    try:
        copy = used.copy_of(location, manifest_digest=manifest_digest)
        found = used.taken(copy, take=take)
    except StorageError as error:
        # The private folder may be what failed: then it fails again.
        _log.warning("the cache of weights is left aside: %s", error)
        used.problem = str(error)
        found = take()
        used.fetched += found.fetched_bytes
    return CachedPull(
        copy=replace(found, fetched_bytes=used.fetched, seconds=time.monotonic() - begun),
        problem=used.problem,
        damaged=tuple(sorted(used.damaged)),
        evicted=tuple(used.evicted),
    )


class _Bring(Protocol):
    def __call__(self, *, directory: Path, limits: PullLimits) -> Materialised: ...


class _Take(Protocol):
    def __call__(self, *, cached: PrivateCopy) -> Materialised: ...


class _Use:
    """One use of a cache, and what it came to."""

    def __init__(self, cache: Cache, *, bring: _Bring, limits: PullLimits) -> None:
        self._cache = cache
        self._bring = bring
        self._limits = limits
        self.problem: str | None = None
        self.fetched = 0
        self.damaged: set[str] = set()
        self.evicted: list[str] = []

    def copy_of(self, location: Location, *, manifest_digest: str) -> PrivateCopy:
        def found() -> PrivateCopy:
            with storage_errors():
                _close(self._cache.directory)
            directory = prepare_directory(self._cache.directory)
            copy = PrivateCopy.of(directory, manifest_digest=manifest_digest, location=location)
            with storage_errors():
                copy.unplant()
            return copy

        return self._touching(found)

    def taken(self, copy: PrivateCopy, *, take: _Take) -> Materialised:
        """Return the private copy, taken from the cache.

        What it holds is not looked at before: bytes that are hashed on their way need no reading twice. All of it is
        verified, and mended from the source, once they are found to be other ones than were signed.
        """
        if not self._touching(copy.ready.is_dir):
            self._fill(copy)
        try:
            return self._copied(copy, take=take)
        except StalledTransferError as stall:
            raise self._hung() from stall
        except (TrustError, SourceError) as damage:
            _log.warning("the cached copy %s can't be used as it is (%s): verifying it", copy.name, damage.reason)
        self._fill(copy)
        try:
            return self._copied(copy, take=take)
        except (TrustError, SourceError) as damage:
            raise StorageError(f"the cached copy was changed while it was read ({damage.reason})") from damage

    def _fill(self, copy: PrivateCopy) -> None:
        limits = replace(
            self._limits,
            folder_max_bytes=self._cache.max_bytes,
            bound_name="the cache's bound (spec.cache.maxBytes)",
            keep_seconds=_KEEP_SECONDS,
            lock_seconds=min(_PATIENCE_SECONDS, self._limits.lock_seconds),
        )
        deadline = time.monotonic() + self._limits.lock_seconds
        while True:
            before = self._touching(copy.size)
            try:
                filled = self._bring(directory=self._cache.directory, limits=limits)
                break
            except BusyError:
                if self._touching(copy.size) == before or time.monotonic() > deadline:
                    raise
        self.fetched += filled.fetched_bytes
        self.damaged |= set(filled.damaged)
        self.evicted += [gone.name for gone in filled.evicted]

    def _copied(self, copy: PrivateCopy, *, take: _Take) -> Materialised:
        # Under its lock the copy is neither mended nor removed meanwhile, by those who ask.
        with storage_errors(), self._locked(copy):
            self._touching(copy.touch)
            return take(cached=copy)

    @contextmanager
    def _locked(self, copy: PrivateCopy) -> Iterator[None]:
        lock = copy.locked(exclusive=False, timeout_seconds=_PATIENCE_SECONDS)
        self._touching(lock.__enter__, further_seconds=_PATIENCE_SECONDS)
        try:
            yield
        finally:
            self._touching(lambda: lock.__exit__(None, None, None))

    def _touching(self, step: Callable[[], T], *, further_seconds: float = 0.0) -> T:
        """Take a short step in the cache's folder, which may lie on a file server that is away."""
        return within(step, seconds=self._limits.stall_seconds + further_seconds, late=self._hung())

    def _hung(self) -> HungStorageError:
        seconds = self._limits.stall_seconds
        return HungStorageError(f"the cache has not answered for {seconds:.0f} s; look at the file server it lies on")


def _close(directory: Path) -> None:
    """Take back what a pod's fsGroup gave to its group: Kubernetes does so for all of a volume, when it cares to."""
    with suppress(FileNotFoundError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_uid == os.geteuid():
                os.fchmod(descriptor, 0o700)
        finally:
            os.close(descriptor)
