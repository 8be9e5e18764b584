"""A node's private folder for verified copies: who may touch it, and what lies where.

::

    <directory>/                    0700, ours; 0755, like ready/, where others may read copies
        ready/<copy>/               verified files, read-only; the only thing an engine is given
        staging/<copy>/             what an unfinished pull left: name, or name.partial
        manifests/<copy>.json       the signed payload, believed only for its digest
        receipts/<copy>.json        evidence of what was pulled from where; read by people only
        locks/<copy>.lock           held by who pulls (then it says how many bytes that will be) or verifies
        locks/<copy>.use            held by who may open the copy; its time is that of the last use

A copy is named after the manifest's digest and the place it came from, so a place is always judged
by its own bytes.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from gptoss_weights.errors import BusyError, NoSpaceError, StorageError, WeightsError
from gptoss_weights.location import Location

PARTIAL_SUFFIX: Final = ".partial"
_LOCK_POLL_SECONDS: Final = 0.1
# Descriptors that keep copies from being removed while this process lives.
_HELD: Final[dict[Path, int]] = {}
_ADVICE: Final = {
    errno.EROFS: "is read-only; mount its volume writable, or set GPTOSS_WEIGHTS_DIR to another",
    errno.EACCES: "may not be written by this user; chown it, or set GPTOSS_WEIGHTS_DIR to another",
    errno.EPERM: "may not be written by this user; chown it, or set GPTOSS_WEIGHTS_DIR to another",
    errno.EFBIG: "takes no file so large; use a file system and a limit (ulimit -f) that do",
    errno.EIO: "failed to read or write (EIO); look at the node's disk",
}
_NO_FILE: Final = frozenset({errno.ELOOP, errno.EISDIR, errno.ENXIO})
_DIGITS: Final = 18
_FOLDERS: Final = ("ready", "staging", "manifests", "receipts", "locks")


class PrivateCopy:
    """The places in a private folder that belong to one manifest from one source."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self.ready = directory / "ready" / name
        self.staging = directory / "staging" / name
        self.manifest = directory / "manifests" / f"{name}.json"
        self.receipt = directory / "receipts" / f"{name}.json"
        self._lock = directory / "locks" / f"{name}.lock"
        self._use = directory / "locks" / f"{name}.use"

    @classmethod
    def of(cls, directory: Path, *, manifest_digest: str, location: Location) -> "PrivateCopy":
        """Return the copy of a manifest from a place, whether it is there or not."""
        origin = hashlib.sha256(str(location).encode()).hexdigest()[:12]
        return cls(directory, f"{manifest_digest.replace(':', '-')}-{origin}")

    @contextmanager
    def locked(
        self, *, exclusive: bool, timeout_seconds: float, sleep: Callable[[float], None] = time.sleep
    ) -> Iterator[None]:
        """Hold this copy's lock: shared to verify, exclusive to write.

        Raises:
            BusyError: another process holds it for longer than ``timeout_seconds``.
        """
        with locked_file(self._lock, exclusive=exclusive, timeout_seconds=timeout_seconds, sleep=sleep):
            yield

    def hold(self) -> None:
        """Keep this copy from being removed for as long as this process lives."""
        if self._use in _HELD:
            return
        descriptor = open_own(self._use)
        # Exclusive only ever for the moment of a removal, and then the copy is gone: nothing to wait for.
        if _try_lock(descriptor, exclusive=False):
            _HELD[self._use] = descriptor
        else:
            os.close(descriptor)

    def touch(self) -> None:
        """Note that the copy was given out now."""
        descriptor = open_own(self._use)
        try:
            os.utime(descriptor)
        finally:
            os.close(descriptor)

    def used_at(self) -> float:
        """Return when the copy was last given out, in seconds since the epoch; 0 for never."""
        try:
            return self._use.lstat().st_mtime
        except FileNotFoundError:
            return 0.0

    def reserve(self, total: int) -> None:
        """Note how large the copy will be. Counts for as long as its lock is held exclusively."""
        with os.fdopen(open_own(self._lock), "wb") as stream:
            stream.truncate()
            stream.write(str(total).encode())

    def reserved(self) -> int:
        """Return how large the copy will be if it is being pulled now, else 0."""
        try:
            with locked_file(self._lock, exclusive=False, timeout_seconds=0):
                return 0
        except BusyError:
            noted = _small(self._lock, limit=_DIGITS) or b""
            return int(noted) if noted.isdigit() else 0

    def payload(self, *, limit: int) -> bytes | None:
        """Return the signed payload; None if there is none, or what goes by its name is longer or no file."""
        return _small(self.manifest, limit=limit)

    def size(self) -> int:
        """Return how many bytes lie in the copy, finished or not."""
        total = 0
        # In this order a copy that is published meanwhile counts once or twice, never not at all.
        for top in (self.staging, self.ready):
            if top.is_symlink():
                continue
            for parent, _, files in os.walk(top):
                for name in files:
                    # A pull at work renames its files meanwhile.
                    with suppress(FileNotFoundError):
                        total += (Path(parent) / name).lstat().st_size
        return total

    def unplant(self) -> None:
        """Remove what stands in the place of this copy's folders and is none: somebody else put it there."""
        for place in (self.ready, self.staging):
            if place.is_symlink() or not place.is_dir():
                place.unlink(missing_ok=True)

    def remove_unless_used(self) -> bool:
        """Remove the copy; False if somebody pulls, verifies or holds it."""
        try:
            with (
                locked_file(self._lock, timeout_seconds=0),
                locked_file(self._use, timeout_seconds=0),
            ):
                self.unplant()
                if self.ready.is_dir():
                    self.demote()
                remove_tree(self.staging)
                self.manifest.unlink(missing_ok=True)
                self.receipt.unlink(missing_ok=True)
        except BusyError:
            return False
        return True

    def demote(self) -> None:
        """Take a ready copy back into staging, in one step: nobody ever sees half of it."""
        remove_tree(self.staging)
        _make_writable(self.ready)
        self.ready.rename(self.staging)

    def publish(self) -> None:
        """Make the staged files the ready copy, read-only, in one step."""
        for folder, _, _ in os.walk(self.staging):
            sync_folder(Path(folder))
        self.staging.rename(self.ready)
        for folder, _, _ in os.walk(self.ready):
            Path(folder).chmod(0o555)
        sync_folder(self.ready.parent)


def copies(directory: Path) -> list[PrivateCopy]:
    """Return every copy in a private folder, finished or not."""
    # Twice, so that one that moves from one to the other meanwhile is seen.
    folders = ("staging", "ready", "staging")
    names = {entry.name for folder in folders for entry in (directory / folder).iterdir()}
    return [PrivateCopy(directory, name) for name in sorted(names)]


@contextmanager
def locked_file(
    path: Path, *, exclusive: bool = True, timeout_seconds: float, sleep: Callable[[float], None] = time.sleep
) -> Iterator[None]:
    """Hold the lock that a file stands for. It ends with the process, however that ends.

    Raises:
        BusyError: another process, or another call in this one, holds it for longer than ``timeout_seconds``.
        StorageError: what goes by its name is no regular file.
    """
    deadline = time.monotonic() + timeout_seconds
    descriptor = open_own(path)
    try:
        while not _try_lock(descriptor, exclusive=exclusive):
            if time.monotonic() >= deadline:
                raise BusyError(
                    f"another process of this node has been pulling the same weights for {timeout_seconds:.0f} s; "
                    "it goes on, and the next try finds what it pulled"
                )
            sleep(_LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def open_own(path: Path) -> int:
    """Open a regular file to read and write, made if need be, and return its descriptor.

    In a folder that others share, a link could lead elsewhere and a pipe would be waited for.

    Raises:
        StorageError: something else than a regular file goes by its name.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise _planted(path) from error
        raise
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise _planted(path)


def prepare_directory(directory: Path, *, readable: bool = False) -> Path:
    """Create the private folder if need be, and make sure that nobody else may write to it.

    ``readable`` lets other users read finished copies, where an engine runs as another one.

    Raises:
        StorageError: it is a link, belongs to somebody else, or others may write to it.
    """
    with storage_errors():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise StorageError("the folder for weights is a link or no folder; set GPTOSS_WEIGHTS_DIR to a real one")
        if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise StorageError(
                "the folder for weights must belong to this user, and nobody else may write to it: "
                "chown it and chmod it to 0700"
            )
        for name in _FOLDERS:
            (directory / name).mkdir(mode=0o700, exist_ok=True)
            if (directory / name).is_symlink():
                raise StorageError(f"{name} in the folder for weights is a link, which nobody of us made; delete it")
        if readable:
            for folder in (directory, directory / "ready"):
                folder.chmod(0o755)
    return directory.resolve()


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn errors of the local file system into typed ones."""
    try:
        yield
    except WeightsError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError("the node's folder for weights is full; give it a larger volume") from error
        if error.errno in _ADVICE:
            raise StorageError(f"the node's folder for weights {_ADVICE[error.errno]}") from error
        code = errno.errorcode.get(error.errno or 0, "unknown")
        raise StorageError(f"the node's folder for weights failed ({code}); check its volume") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a small file: all of it or nothing, also after a power cut."""
    temporary = path.with_name(path.name + PARTIAL_SUFFIX)
    # Left by a pull that was killed, or planted: a link would be followed, and a pipe waited for.
    try:
        temporary.unlink(missing_ok=True)
    except IsADirectoryError as error:
        raise _planted(temporary) from error
    # Who may read it is the umask's to say: a signature goes to others with the folder that it signs.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def listing(folder: Path) -> dict[str, os.stat_result]:
    """Return every entry below a folder that is not a folder, links included, by relative name."""
    found: dict[str, os.stat_result] = {}
    for parent, folders, files in os.walk(folder, followlinks=False):
        for name in (*files, *(name for name in folders if (Path(parent) / name).is_symlink())):
            path = Path(parent) / name
            found[path.relative_to(folder).as_posix()] = path.lstat()
    return found


def remove(path: Path) -> None:
    """Remove whatever of ours goes by this name, if anything does."""
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)


def remove_tree(folder: Path) -> None:
    """Remove a folder of ours if it is there, read-only parts included."""
    if folder.is_dir():
        _make_writable(folder)
        shutil.rmtree(folder)


def _planted(path: Path) -> StorageError:
    return StorageError(
        f"{path.parent.name}/{path.name} in the folder for weights is no regular file, "
        "which nobody of us made; delete it"
    )


def _make_writable(folder: Path) -> None:
    folder.chmod(0o700)
    for parent, folders, _ in os.walk(folder):
        for name in folders:
            path = Path(parent) / name
            if not path.is_symlink():
                path.chmod(0o700)


def _small(path: Path, *, limit: int) -> bytes | None:
    # In a folder that others share, a link could lead elsewhere and a pipe would be waited for.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        content = stream.read(limit + 1)
    return content if len(content) <= limit else None


def _try_lock(descriptor: int, *, exclusive: bool) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
