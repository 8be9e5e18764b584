"""One file: fetch, hash and write in one pass; compare; only then give it its name.

Where source and target are on one file system that can share blocks, a file is cloned instead of copied, and the clone
is read and hashed as a whole: nothing that is later done to the source changes it, and the source vouches for nothing.

A partial file is resumed by hashing again what is there. What it holds is believed only when the
whole file's hash fits, so a partial that a crash damaged costs one more fetch and no more.
"""

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gptoss_weights.errors import DigestMismatchError
from gptoss_weights.hashing import absorb, hash_file
from gptoss_weights.manifest import ManifestFile
from gptoss_weights.sources import ObjectVersion, Source
from gptoss_weights.sources.ahead import Lanes, read_in_order
from gptoss_weights.sources.protocol import CloningSource
from gptoss_weights.storage import PARTIAL_SUFFIX, open_own, storage_errors
from gptoss_weights.watch import Watch

SLOW: Final = 10
"""How many times as patient a watch is with what takes its time, such as a large file's fsync or check of contents."""
_READ_ONLY: Final = 0o444


class Tally:
    """Counts of a running pull, kept by its workers and read by whoever watches them."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._lock = threading.Lock()
        self._done = 0
        self._fetched = 0
        self._files = 0

    def counts(self) -> tuple[int, int, int]:
        """Return bytes that are hashed, bytes that were fetched, and files that are finished."""
        with self._lock:
            return self._done, self._fetched, self._files

    def hashed(self, count: int) -> None:
        """Count bytes that were hashed from disk."""
        self._watch.check()
        with self._lock:
            self._done += count

    def fetched(self, count: int) -> None:
        """Count bytes that came from the source."""
        self._watch.check()
        with self._lock:
            self._done += count
            self._fetched += count

    def finished(self) -> None:
        """Count a file that is verified and in place."""
        with self._lock:
            self._files += 1

    def forget(self, count: int) -> None:
        """Take back bytes that turned out to be worth nothing."""
        with self._lock:
            self._done -= count


@dataclass(frozen=True, kw_only=True, slots=True)
class Transfer:
    """Brings listed files of one source into one staging folder. Used by several threads."""

    source: Source
    staging: Path
    tally: Tally
    watch: Watch
    lanes: Lanes
    max_attempts: int

    def bring(self, file: ManifestFile, version: ObjectVersion) -> None:
        """Have a verified, read-only file in staging, whatever was there before.

        Raises:
            DigestMismatchError: the source's bytes are not what was signed.
            SourceError, StorageError: it can't be read or written.
        """
        target = self.staging / file.name
        with storage_errors(), self.watch.folder(patience=SLOW):
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._is_there(target, file):
                partial = target.with_name(target.name + PARTIAL_SUFFIX)
                if not self._fetch(partial, file, version):
                    self._fetch(partial, file, version)
                self.watch.check()
                partial.chmod(_READ_ONLY)
                partial.rename(target)
        self.tally.finished()

    def _is_there(self, target: Path, file: ManifestFile) -> bool:
        if not target.exists():
            return False
        before = target.stat().st_size
        if hash_file(target, advance=self.tally.hashed, waiting=self.watch.folder) == file.sha256:
            return True
        self.tally.forget(before)
        target.unlink()
        return False

    def _fetch(self, partial: Path, file: ManifestFile, version: ObjectVersion) -> bool:
        """Fetch into a partial file. False when what it had held was damaged: now it is empty."""
        descriptor = open_own(partial)
        try:
            cloned = os.fstat(descriptor).st_size == 0 and self._clone(descriptor, file.name, version)
            if os.fstat(descriptor).st_size > version.size:
                os.ftruncate(descriptor, 0)
            running = hashlib.sha256()
            count = self.tally.fetched if cloned else self.tally.hashed
            held = absorb(descriptor, running, advance=count, waiting=self.watch.folder)
            for chunk in self._chunks(file.name, version, held):
                running.update(chunk)
                with self.watch.folder():
                    _write_all(descriptor, chunk)
                self.tally.fetched(len(chunk))
            if running.hexdigest() == file.sha256:
                os.fsync(descriptor)
                return True
            self.tally.forget(version.size)
            os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)
        if held and not cloned:
            return False
        partial.unlink()
        raise DigestMismatchError(
            f"{file.name} at the source is not the file that was signed; "
            "upload the signed file again, or sign the folder as it is now",
            file=file.name,
        )

    def _clone(self, descriptor: int, name: str, version: ObjectVersion) -> bool:
        if not isinstance(self.source, CloningSource):
            return False
        with self.watch.source(name):
            return self.source.clone(name, version=version, into=descriptor)

    def _chunks(self, name: str, version: ObjectVersion, offset: int) -> Iterator[bytes]:
        stream = read_in_order(
            self.source,
            name,
            version=version,
            offset=offset,
            lanes=self.lanes,
            max_attempts=self.max_attempts,
            sleep=self.watch.sleep,
        )
        with closing(stream):
            while True:
                with self.watch.source(name):
                    chunk = next(stream, None)
                if chunk is None:
                    return
                yield chunk


def _write_all(descriptor: int, chunk: bytes) -> None:
    remaining = memoryview(chunk)
    while remaining:
        remaining = remaining[os.write(descriptor, remaining) :]
