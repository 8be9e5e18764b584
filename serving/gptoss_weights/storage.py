"""A node's private folder for verified copies: who may touch it, and what lies where.

::

    <directory>/                    0700, ours
        ready/<copy>/               verified files, read-only; the only thing an engine is given
        staging/<copy>/             what an unfinished pull left: name, or name.partial
        manifests/<copy>.json       the signed payload, believed only for its digest
        receipts/<copy>.json        evidence of what was pulled from where; read by people only
        locks/<copy>.lock

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from gptoss_weights.errors import BusyError, NoSpaceError, StorageError, WeightsError
from gptoss_weights.location import Location

PARTIAL_SUFFIX: Final = ".partial"
_LOCK_POLL_SECONDS: Final = 0.1
_FOLDERS: Final = ("ready", "staging", "manifests", "receipts", "locks")


class PrivateCopy:
    """The places in a private folder that belong to one manifest from one source."""

    def __init__(self, directory: Path, *, manifest_digest: str, location: Location) -> None:
        origin = hashlib.sha256(str(location).encode()).hexdigest()[:12]
        self._name = f"{manifest_digest.replace(':', '-')}-{origin}"
        self._directory = directory
        self.ready = directory / "ready" / self._name
        self.staging = directory / "staging" / self._name
        self.manifest = directory / "manifests" / f"{self._name}.json"
        self.receipt = directory / "receipts" / f"{self._name}.json"

    @contextmanager
    def locked(self, *, exclusive: bool, timeout_seconds: float) -> Iterator[None]:
        """Hold this copy's lock: shared to verify, exclusive to write.

        Raises:
            BusyError: another process holds it for longer than ``timeout_seconds``.
        """
        path = self._directory / "locks" / f"{self._name}.lock"
        deadline = time.monotonic() + timeout_seconds
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            while not _try_lock(descriptor, exclusive=exclusive):
                if time.monotonic() >= deadline:
                    raise BusyError(
                        f"another process of this node has been pulling the same weights for {timeout_seconds:.0f} s; "
                        "it goes on, and the next try finds what it pulled"
                    )
                time.sleep(_LOCK_POLL_SECONDS)
            yield
        finally:
            os.close(descriptor)

    def demote(self) -> None:
        """Take a ready copy back into staging, where its good files are kept and the others replaced."""
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


def prepare_directory(directory: Path) -> Path:
    """Create the private folder if need be, and make sure that nobody else may write to it.

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
    return directory.resolve()


def check_space(directory: Path, *, needed: int, spare: int) -> None:
    """Check that ``needed`` more bytes fit and ``spare`` stay free.

    Raises:
        NoSpaceError: they don't.
    """
    free = shutil.disk_usage(directory).free
    if free < needed + spare:
        raise NoSpaceError(
            f"the weights need {needed} more bytes and {spare} to spare, but the node's folder for weights has {free} "
            "free; give it a larger volume, or remove copies under ready/ that nothing uses"
        )


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
        code = errno.errorcode.get(error.errno or 0, "unknown")
        raise StorageError(f"the node's folder for weights failed ({code}); check its volume") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a small file: all of it or nothing, also after a power cut."""
    temporary = path.with_name(path.name + PARTIAL_SUFFIX)
    with temporary.open("wb") as stream:
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


def remove_tree(folder: Path) -> None:
    """Remove a folder of ours if it is there, read-only parts included."""
    if folder.is_dir():
        _make_writable(folder)
        shutil.rmtree(folder)


def _make_writable(folder: Path) -> None:
    folder.chmod(0o700)
    for parent, folders, _ in os.walk(folder):
        for name in folders:
            path = Path(parent) / name
            if not path.is_symlink():
                path.chmod(0o700)


def _try_lock(descriptor: int, *, exclusive: bool) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
