"""Weights in a folder of the node, below a root that an administrator allows."""

import errno
import fcntl
import os
import stat as modes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from gptoss_weights.errors import (
    AccessDeniedError,
    ForbiddenContentError,
    MissingFileError,
    SourceChangedError,
    SourceNotAllowedError,
    SourceUnavailableError,
)
from gptoss_weights.location import Location
from gptoss_weights.sources.protocol import ObjectVersion
from gptoss_weights.sources.settings import SourceSettings

_CHUNK_BYTES: Final = 1024 * 1024
_FICLONE: Final = 0x40049409
"""The request that has one file share another's blocks. Source: ``FICLONE`` in Linux' ``linux/fs.h``."""


class FileSource:
    """A folder. Links are followed only as long as they stay below the permitted root."""

    def __init__(self, location: Location, *, settings: SourceSettings) -> None:
        folder = Path("/", *location.segments)
        roots = [root for root in settings.file_roots if folder.is_relative_to(root)]
        if not roots:
            raise SourceNotAllowedError(
                "the folder of a file:// URI lies below no permitted root; "
                "an administrator adds roots in weightSources.fileRoots and GPTOSS_WEIGHTS_FILE_ROOTS"
            )
        self._root = Path(os.path.realpath(roots[0]))
        if not self._root.is_dir():
            raise SourceUnavailableError(
                f"{roots[0]}, below which the folder of a file:// URI may lie, is not there; mount it where weights "
                "are read"
            )
        self._folder = folder

    def stat(self, name: str) -> ObjectVersion:
        """Return size and identity of a file."""
        with self._open(name) as stream:
            return _version(stream)

    def read_small(self, name: str, *, limit: int) -> bytes:
        """Return a whole file of at most ``limit`` bytes."""
        with self._open(name) as stream:
            content = stream.read(limit + 1)
        if len(content) > limit:
            raise ForbiddenContentError(f"{name} is longer than {limit} bytes", file=name)
        return content

    def stream(self, name: str, *, version: ObjectVersion, offset: int = 0) -> Iterator[bytes]:
        """Yield a file's bytes from ``offset`` on."""
        with self._open(name) as stream:
            if _version(stream) != version:
                raise _changed(name)
            stream.seek(offset)
            while chunk := stream.read(_CHUNK_BYTES):
                yield chunk
            if _version(stream) != version:
                raise _changed(name)

    def clone(self, name: str, *, version: ObjectVersion, into: int) -> bool:
        """Have the file of a descriptor share this file's blocks, as Btrfs and XFS can within one file system.

        What is written to either of them later is nothing to the other, so it is a copy; what it holds is as little
        known as of any. False where the file system can't: then the bytes are to be copied.

        Raises:
            MissingFileError, AccessDeniedError, SourceUnavailableError
            SourceChangedError: the file is not this version any more.
        """
        with self._open(name) as stream:
            if _version(stream) != version:
                raise _changed(name)
            try:
                fcntl.ioctl(into, _FICLONE, stream.fileno())
            except OSError:
                # Another file system, one that shares no blocks, a full one: what is wrong with either file, a copy
                # finds too.
                return False
        return True

    def close(self) -> None:
        """Nothing is held open between calls."""

    @contextmanager
    def _open(self, name: str) -> Iterator[BinaryIO]:
        with _source_errors(name):
            path = Path(os.path.realpath(self._folder / name, strict=True))
            if not path.is_relative_to(self._root):
                raise SourceNotAllowedError(f"{name} is a link that leaves the permitted root", file=name)
            descriptor = _open_beneath(self._root, path.relative_to(self._root).parts)
            with os.fdopen(descriptor, "rb", buffering=0) as stream:
                if not modes.S_ISREG(os.fstat(descriptor).st_mode):
                    raise MissingFileError(f"{name} is not a regular file", file=name)
                yield stream


def _open_beneath(root: Path, parts: tuple[str, ...]) -> int:
    # The path was resolved, so a link met here appeared since: O_NOFOLLOW refuses it at every step.
    current = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        # O_NONBLOCK: opening a pipe would wait for a writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_NONBLOCK if last else os.O_DIRECTORY)
        try:
            following = os.open(part, flags, dir_fd=current)
        finally:
            os.close(current)
        current = following
    return current


def _version(stream: BinaryIO) -> ObjectVersion:
    found = os.fstat(stream.fileno())
    return ObjectVersion(size=found.st_size, etag=f"{found.st_ino:x}-{found.st_size:x}-{found.st_mtime_ns:x}")


def _changed(name: str) -> SourceChangedError:
    return SourceChangedError(f"{name} was replaced while it was being read", file=name)


@contextmanager
def _source_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFileError(f"{name} is not in the folder", file=name) from error
    except PermissionError as error:
        raise AccessDeniedError(f"{name} may not be read by this process", file=name) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise SourceNotAllowedError(f"{name} became a link while it was opened", file=name) from error
        code = errno.errorcode.get(error.errno or 0, "unknown")
        raise SourceUnavailableError(f"{name} can't be read ({code})", file=name) from error
