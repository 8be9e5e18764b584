"""A file system that shares blocks spares the copy of a local file, and nothing else: the clone is hashed as a whole.

Btrfs and XFS can. Where the tests' folder is on neither, the kernel's answer to the request is made up, by a copy;
`--basetemp` on one of them runs the same tests with the kernel's own.
"""

import errno
import fcntl
import os

import pytest

from gptoss_weights.errors import DigestMismatchError, SourceChangedError
from gptoss_weights.location import Location
from gptoss_weights.sources import SourceSettings
from gptoss_weights.sources.file import _FICLONE, FileSource
from tests.contract.weights.conftest import SERVED, SHARD, nothing_is_visible


@pytest.fixture(autouse=True)
def _no_cloning():
    """Cloning is what these are about."""


@pytest.fixture
def requests(monkeypatch, tmp_path) -> list[str]:
    """What becomes of each request to clone a file: the error's name, or `cloned`."""
    answers: list[str] = []
    real = fcntl.ioctl
    shares = _shares_blocks(tmp_path)

    def ioctl(target, request, source):
        assert request == _FICLONE
        try:
            if shares:
                real(target, request, source)
            else:
                # As the kernel does it: positions of either descriptor stay where they are.
                os.pwrite(target, os.pread(source, os.fstat(source).st_size, 0), 0)
        except OSError as error:
            answers.append(errno.errorcode[error.errno or 0])
            raise
        answers.append("cloned")

    monkeypatch.setattr("gptoss_weights.sources.file.fcntl.ioctl", ioctl)
    return answers


@pytest.fixture
def streamed(monkeypatch) -> list[str]:
    """Names of files that were read byte by byte."""
    names: list[str] = []
    stream = FileSource.stream

    def counted(self, name, **more):
        names.append(name)
        return stream(self, name, **more)

    monkeypatch.setattr(FileSource, "stream", counted)
    return names


def _shares_blocks(folder) -> bool:
    source, target = folder / "one", folder / "other"
    source.write_bytes(b"x" * 4096)
    with source.open("rb") as read, target.open("wb") as write:
        try:
            fcntl.ioctl(write.fileno(), _FICLONE, read.fileno())
        except OSError:
            return False
    return True


def test_a_file_is_cloned_and_its_copy_is_its_own(weights, pulled, requests, streamed):
    seen = []
    found = pulled(progress=seen.append)
    assert requests == ["cloned"] * len(SERVED)
    assert streamed == []
    # It came from the source, and was hashed to its last byte.
    assert found.fetched_bytes == found.bytes == seen[-1].bytes_done
    was = (weights.folder / SHARD).read_bytes()
    (weights.folder / SHARD).write_bytes(bytes(len(was)))
    with (weights.folder / SHARD).open("r+b") as file:
        file.write(b"changed in place")
    assert (found.path / SHARD).read_bytes() == was
    assert (found.path / SHARD).stat().st_mode & 0o777 == 0o444
    assert pulled().fetched_bytes == 0, "it is verified as it lies there, without the source"


def test_a_clone_is_believed_no_more_than_a_copy(weights, pulled, requests, streamed, tmp_path):
    shard = weights.folder / SHARD
    good = shard.read_bytes()
    shard.write_bytes(good[:-1] + b"!")
    with pytest.raises(DigestMismatchError, match=SHARD):
        pulled()
    assert nothing_is_visible(tmp_path)
    assert "cloned" in requests
    shard.write_bytes(good)
    again = pulled()
    assert (again.path / SHARD).read_bytes() == good


def test_a_clone_that_is_not_the_version_that_was_looked_at_is_not_taken(weights, tmp_path, requests):
    place = Location.parse(f"file://{weights.folder}")
    source = FileSource(place, settings=SourceSettings(file_roots=(tmp_path,)))
    version = source.stat(SHARD)
    (weights.folder / SHARD).write_bytes(b"another")
    with (tmp_path / "target").open("wb") as target, pytest.raises(SourceChangedError):
        source.clone(SHARD, version=version, into=target.fileno())
    assert requests == []


def test_a_partial_file_is_gone_on_with_and_not_cloned_over(weights, pulled, requests, streamed, tmp_path):
    shard = weights.folder / SHARD
    good = shard.read_bytes()
    shard.write_bytes(good[:-1] + b"!")
    with pytest.raises(DigestMismatchError):
        pulled()
    shard.write_bytes(good)
    (partial,) = (tmp_path / "private" / "staging").iterdir()
    (partial / (SHARD + ".partial")).write_bytes(good[:1000])
    requests.clear()
    found = pulled()
    assert SHARD in streamed
    assert (found.path / SHARD).read_bytes() == good


@pytest.mark.parametrize("code", ["EOPNOTSUPP", "EXDEV", "EINVAL", "ENOTTY", "EPERM", "ENOSPC"])
def test_a_file_system_that_can_not_gets_a_copy(pulled, monkeypatch, streamed, code):
    def refuse(*_):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr("gptoss_weights.sources.file.fcntl.ioctl", refuse)
    found = pulled()
    assert found.fetched_bytes == found.bytes
    assert set(streamed) == SERVED


def test_this_machines_file_systems_answer_as_expected(weights, pulled, streamed):
    """Whatever the kernel says to the request as it really is, the copy is whole."""
    found = pulled()
    assert found.fetched_bytes == found.bytes
    assert set(streamed) in (set(), SERVED)
    assert (found.path / SHARD).read_bytes() == (weights.folder / SHARD).read_bytes()
