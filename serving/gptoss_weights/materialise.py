"""From a place and a digest to a folder that an engine may open: pull, verify, publish.

The manifest is fetched and compared with the digest that the operator pinned; only the files it
lists are fetched; each is hashed while it is downloaded; contents are checked; and only then does
the whole folder get the name under which it is given out, read-only. A copy that is there already
is hashed again at every call, and repaired from the source where it is damaged.
"""

import json
import logging
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

from gptoss_weights.content import TENSORS_SUFFIX, Contents, check_size, largest
from gptoss_weights.errors import (
    ForbiddenContentError,
    ManifestChangedError,
    SubjectMismatchError,
    UnsignedError,
)
from gptoss_weights.eviction import Evicted, make_room
from gptoss_weights.hashing import hash_file
from gptoss_weights.limits import PullLimits
from gptoss_weights.location import Location
from gptoss_weights.manifest import MAX_PAYLOAD_BYTES, SIGNATURE_FILE, Manifest, ManifestFile, parse_manifest
from gptoss_weights.manifest import manifest_digest as digest_of
from gptoss_weights.signature import parse_bundle
from gptoss_weights.sources import ObjectVersion, Source, SourceSettings, open_source
from gptoss_weights.sources.ahead import Lanes
from gptoss_weights.sources.file import FileSource
from gptoss_weights.storage import (
    PARTIAL_SUFFIX,
    PrivateCopy,
    listing,
    prepare_directory,
    remove,
    storage_errors,
    write_atomically,
)
from gptoss_weights.transfer import SLOW, Tally, Transfer
from gptoss_weights.trust import read_bundle
from gptoss_weights.watch import FAREWELL_SECONDS, LOOK_SECONDS, Watch, in_threads, watched

_TRIES: Final = 3
"""How many times as patient a watch is with a whole request, which is tried several times, as with a stream's bytes."""
_NAMED: Final = 5
_SMALL_BYTES: Final = 1024 * 1024

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PullProgress:
    """How far a pull is. ``bytes_done`` are hashed, whether fetched now or found on disk."""

    bytes_done: int
    bytes_total: int
    files_done: int
    files_total: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Materialised:
    """A verified private copy.

    ``bytes`` is its size, ``fetched_bytes`` what came from the source for it (0 when it was there),
    ``receipt`` the path of the evidence. ``damaged`` are the files of a copy that was there already
    which were changed, missing or planted: they were thrown out and, where they belong, fetched again.
    ``evicted`` are other copies that made room.
    """

    path: Path
    manifest_digest: str
    subject: str
    bytes: int
    fetched_bytes: int
    seconds: float
    receipt: Path
    damaged: tuple[str, ...] = ()
    evicted: tuple[Evicted, ...] = ()


def pull(
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
    cached: PrivateCopy | None = None,
) -> Materialised:
    """Return a private, read-only folder that holds exactly the served files of a pinned manifest.

    Blocks; safe to call from several processes and threads of a node at once. ``revision`` is the commit of
    an ``hf://`` source. ``progress`` is called from the calling thread. Interrupted pulls go on where they
    were. What hangs in a dead mount is left behind in its thread, which holds the copy's lock for as long as it
    does. ``limits`` are the environment's unless given. Where room is needed, copies that nobody used for an
    hour go. ``readable`` lets other users of the node read the copy; nobody else may ever write to it. ``cached`` is a
    copy in another folder that is read in the place of the source, and believed no more than one.

    Raises:
        TrustError: the source holds something else than was pinned; DigestMismatchError names the file.
        SourceError, StorageError: the source or the node's folder failed; see ``retryable``.
    """
    begun = time.monotonic()
    job = _Pull(
        uri=uri,
        revision=revision,
        manifest_digest=manifest_digest,
        subject=subject,
        directory=directory,
        readable=readable,
        settings=settings,
        limits=limits or PullLimits.from_environment(),
        cached=cached,
    )
    size, fetched = job.run(progress or (lambda _: None))
    return Materialised(
        path=job.copy.ready,
        manifest_digest=manifest_digest,
        subject=subject,
        bytes=size,
        fetched_bytes=fetched,
        seconds=time.monotonic() - begun,
        receipt=job.copy.receipt,
        damaged=job.damaged,
        evicted=tuple(job.evicted),
    )


class _Pull:
    """One call of ``pull``."""

    def __init__(
        self,
        *,
        uri: str,
        revision: str | None,
        manifest_digest: str,
        subject: str,
        directory: Path,
        readable: bool,
        settings: SourceSettings,
        limits: PullLimits,
        cached: PrivateCopy | None,
    ) -> None:
        self._uri = uri
        self._revision = revision
        self._location = Location.parse(uri, revision=revision)
        self._digest = manifest_digest
        self._subject = subject
        self._directory = directory
        self._readable = readable
        self._settings = settings
        self._limits = limits
        self._cached = cached
        self._watch = Watch()
        self._source: Source | None = None
        self._counts: Callable[[], PullProgress | None] = lambda: None
        self.copy: PrivateCopy
        self.damaged: tuple[str, ...] = ()
        self.evicted: list[Evicted] = []

    def run(self, progress: Callable[[PullProgress], None]) -> tuple[int, int]:
        """Return the size of the ready copy and how many bytes were fetched for it, watching how far it is."""

        def look() -> None:
            now = self._counts()
            if now is not None:
                progress(now)

        return watched(
            self._run, watch=self._watch, seconds=self._limits.stall_seconds, look=look, give_up=self._close_source
        )

    def _run(self) -> tuple[int, int]:
        with storage_errors(), self._watch.folder():
            self._directory = prepare_directory(self._directory, readable=self._readable)
            self.copy = PrivateCopy.of(self._directory, manifest_digest=self._digest, location=self._location)
            with self._locked(exclusive=False):
                size = self._verified_size()
                if size is not None:
                    self.copy.touch()
                    return size, 0
            with self._locked(exclusive=True):
                # Somebody else may have finished it while this call waited.
                size = self._verified_size()
                done = (size, 0) if size is not None else self._pull()
                self.copy.touch()
                return done

    @contextmanager
    def _locked(self, *, exclusive: bool) -> Iterator[None]:
        def sleep(seconds: float) -> None:
            self._watch.sleep(seconds)
            self._watch.alive()

        with self.copy.locked(exclusive=exclusive, timeout_seconds=self._limits.lock_seconds, sleep=sleep):
            yield

    def _close_source(self) -> None:
        if self._source is not None:
            self._source.close()

    def _verified_size(self) -> int | None:
        """Hash and check a ready copy; None when there is none, or it is not exactly the manifest's files."""
        self.damaged = ()
        if not self.copy.ready.is_dir():
            return None
        payload = self.copy.payload(limit=MAX_PAYLOAD_BYTES)
        if payload is None or digest_of(payload) != self._digest:
            return None
        manifest = self._accepted(parse_manifest(payload))
        found = listing(self.copy.ready)
        listed = {file.name for file in manifest.served}
        # A file that is too large by far would be hashed for hours.
        regular = [
            file
            for file in manifest.served
            if (entry := found.get(file.name)) and stat.S_ISREG(entry.st_mode) and entry.st_size <= largest(file.name)
        ]
        total = sum(entry.st_size for entry in found.values())
        tally = Tally(self._watch)

        # Signed bytes may still be such that no engine may load them, and who put them here may have asked nobody:
        # an earlier release with fewer rules, or somebody else than a pull.
        contents = Contents(listed)

        def verify(file: ManifestFile) -> bool:
            path = self.copy.ready / file.name
            if hash_file(path, advance=tally.hashed, waiting=self._watch.folder) != file.sha256:
                return False
            with self._watch.folder(patience=SLOW):
                contents.check(path, name=file.name)
            return True

        largest_first = sorted(regular, key=lambda file: found[file.name].st_size, reverse=True)
        self._tell(tally, total=total, files_total=len(regular))
        good = self._in_parallel(largest_first, verify)
        kept = {file.name for file, fits in zip(largest_first, good, strict=True) if fits}
        self.damaged = tuple(sorted((listed | found.keys()) - (kept & listed)))
        if self.damaged:
            return None
        contents.check_together()
        return total

    def _pull(self) -> tuple[int, int]:
        begun = datetime.now(UTC)
        with self._watch.folder(patience=SLOW), self._opened() as (source, manifest, payload):
            write_atomically(self.copy.manifest, payload)
            if self.copy.ready.is_dir():
                self._throw_out()
            self.copy.staging.mkdir(mode=0o700, exist_ok=True)
            self._clear_strangers(manifest)
            versions = self._versions(source, manifest)
            total = sum(version.size for version in versions.values())
            self.evicted = make_room(self._directory, self.copy, total=total, limits=self._limits)
            tally = Tally(self._watch)
            transfer = Transfer(
                source=source,
                staging=self.copy.staging,
                tally=tally,
                watch=self._watch,
                lanes=Lanes(self._limits.parallel_files, most_ahead=self._limits.ranges_ahead),
                max_attempts=self._settings.max_attempts,
            )
            self._bring_all(transfer, manifest, versions, total)
            fetched = tally.counts()[1]
            self.copy.publish()
            self._write_receipt(manifest, versions, begun=begun, fetched=fetched)
        return total, fetched

    @contextmanager
    def _opened(self) -> Iterator[tuple[Source, Manifest, bytes]]:
        """Yield the source, and the manifest that it holds with its text."""
        with ExitStack() as stack:
            with self._request(SIGNATURE_FILE):
                if self._cached is None:
                    opened = open_source(self._uri, revision=self._revision, settings=self._settings)
                    self._source = source = stack.enter_context(opened)
                    manifest, payload = self._manifest(source)
                else:
                    folder = self._cached.ready
                    place = Location(scheme="file", bucket="", segments=folder.parts[1:])
                    source = FileSource(place, settings=SourceSettings(file_roots=(folder,)))
                    manifest, payload = self._cached_manifest(self._cached)
            yield source, manifest, payload

    def _request(self, name: str) -> AbstractContextManager[None]:
        """Watch a whole request, which is tried several times unless it is one to a file system."""
        local = self._cached is not None or self._location.scheme == "file"
        return self._watch.source(name, patience=1 if local else _TRIES)

    def _cached_manifest(self, cached: PrivateCopy) -> tuple[Manifest, bytes]:
        payload = cached.payload(limit=MAX_PAYLOAD_BYTES)
        if payload is None or digest_of(payload) != self._digest:
            raise ManifestChangedError("the manifest beside the cached copy is missing, or not the pinned one")
        return self._accepted(parse_manifest(payload)), payload

    def _manifest(self, source: Source) -> tuple[Manifest, bytes]:
        raw = read_bundle(source)
        if raw is None:
            raise UnsignedError("there is no model.sig beside the weights; it was removed since it was checked")
        bundle = parse_bundle(raw)
        if bundle.manifest_digest != self._digest:
            raise ManifestChangedError(
                f"the manifest at the source is {bundle.manifest_digest}, not the pinned {self._digest}; "
                "the weights were signed again since they were checked"
            )
        return self._accepted(parse_manifest(bundle.payload)), bundle.payload

    def _accepted(self, manifest: Manifest) -> Manifest:
        if manifest.subject != self._subject:
            raise SubjectMismatchError(f"the weights are signed as another model than {self._subject}")
        return manifest

    def _throw_out(self) -> None:
        """Take a copy that is not what it should be out of sight, and drop what is wrong with it."""
        self.copy.demote()
        for name in self.damaged:
            remove(self.copy.staging / name)
        if self.damaged:
            _log.warning(
                "%d files of the verified copy %s were changed, missing or planted since; replacing them: %s",
                len(self.damaged),
                self.copy.name,
                ", ".join(ascii(name) for name in self.damaged[:_NAMED]),
            )

    def _clear_strangers(self, manifest: Manifest) -> None:
        expected = {file.name for file in manifest.served}
        for name, entry in listing(self.copy.staging).items():
            known = name in expected or name.removesuffix(PARTIAL_SUFFIX) in expected
            if not known or not stat.S_ISREG(entry.st_mode):
                (self.copy.staging / name).unlink()

    def _versions(self, source: Source, manifest: Manifest) -> dict[str, ObjectVersion]:
        def look(file: ManifestFile) -> ObjectVersion:
            with self._request(file.name):
                return source.stat(file.name)

        found = self._in_parallel(manifest.served, look)
        versions = {file.name: version for file, version in zip(manifest.served, found, strict=True)}
        for name, version in versions.items():
            check_size(name, version.size)
        total = sum(version.size for version in versions.values())
        if total > self._limits.max_bytes:
            raise ForbiddenContentError(f"the listed files are longer than {self._limits.max_bytes} bytes in all")
        return versions

    def _bring_all(
        self, transfer: Transfer, manifest: Manifest, versions: dict[str, ObjectVersion], total: int
    ) -> None:
        # Small files first: a config that asks for code is refused before gigabytes come. Then vocabularies, which
        # take a second to check, beside the tensors; of those the largest first, so that none is alone at the end.
        served = sorted(
            manifest.served,
            key=lambda file: (file.name.endswith(TENSORS_SUFFIX), -versions[file.name].size),
        )
        contents = Contents(file.name for file in served)

        def bring(file: ManifestFile) -> None:
            with transfer.lanes.file():
                transfer.bring(file, versions[file.name])
                with self._watch.folder(patience=SLOW):
                    contents.check(transfer.staging / file.name, name=file.name)

        self._tell(transfer.tally, total=total, files_total=len(served))

        for group in (
            [file for file in served if _comes_first(file, versions)],
            [file for file in served if not _comes_first(file, versions)],
        ):
            self._in_parallel(group, bring)
        contents.check_together()

    def _in_parallel(self, files: Sequence[ManifestFile], work: Callable[[ManifestFile], T]) -> list[T]:
        """Do the work for every file, a few at a time. The first failure ends all."""
        tasks = in_threads(work, files, threads=self._limits.parallel_files)
        try:
            pending: set[Future[T]] = set(tasks)
            while pending:
                done, pending = wait(pending, timeout=LOOK_SECONDS, return_when=FIRST_COMPLETED)
                for task in done:
                    task.result()
                self._watch.alive()  # it is the workers that are watched
            return [task.result() for task in tasks]
        finally:
            if not all(task.done() for task in tasks):
                self._watch.cancelled.set()
                self._close_source()
                # Workers notice at their next chunk, of which closing the source rids them. One that hangs in a dead
                # mount writes no more either.
                begun = [task for task in tasks if not task.cancel()]
                wait(begun, timeout=FAREWELL_SECONDS)

    def _tell(self, tally: Tally, *, total: int, files_total: int) -> None:
        """Have whoever watches count by this tally from now on."""

        def counts() -> PullProgress | None:
            done, _, files_done = tally.counts()
            if not total:
                return None
            return PullProgress(bytes_done=done, bytes_total=total, files_done=files_done, files_total=files_total)

        self._counts = counts

    def _write_receipt(
        self, manifest: Manifest, versions: dict[str, ObjectVersion], *, begun: datetime, fetched: int
    ) -> None:
        receipt = {
            "schema": 1,
            "uri": self._uri,
            "revision": self._revision,
            "fromCache": self._cached is not None,
            "manifestDigest": manifest.digest,
            "subject": manifest.subject,
            "begunAt": begun.isoformat(),
            "verifiedAt": datetime.now(UTC).isoformat(),
            "fetchedBytes": fetched,
            "replacedFiles": list(self.damaged),
            "files": [
                {
                    "name": file.name,
                    "sha256": file.sha256,
                    "bytes": versions[file.name].size,
                    "etag": versions[file.name].etag,
                }
                for file in manifest.served
            ],
        }
        write_atomically(self.copy.receipt, json.dumps(receipt, indent=1, sort_keys=True).encode())


def _comes_first(file: ManifestFile, versions: dict[str, ObjectVersion]) -> bool:
    return not file.name.endswith(TENSORS_SUFFIX) and versions[file.name].size <= _SMALL_BYTES
