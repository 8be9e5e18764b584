"""Large files come by several ranges at a time, and not a byte of them out of order, twice, or of another version."""

import os
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_weights.errors import SourceChangedError, SourceUnavailableError
from gptoss_weights.sources import ObjectVersion, ahead, retry
from gptoss_weights.sources.ahead import Lanes, read_in_order
from gptoss_weights.watch import CancelledTransferError, Watch
from tests.contract.weights.blobs import blobs
from tests.contract.weights.conftest import SHARD, settings_for, small_ranges
from tests.contract.weights.proxy import Cut, on

__all__ = ["blobs"]

RANGE = 1000
CONTENT = os.urandom(40 * RANGE + 7)
SECONDS = 30


@dataclass
class Ranged:
    """A source with ranges. ``fault(offset, attempt)`` runs before each, and may raise or wait."""

    content: bytes = CONTENT
    chunk: int = 300
    fault: object = None
    opened: list[tuple[int, int]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def version(self):
        return ObjectVersion(size=len(self.content), etag="1")

    def stat(self, name):
        return self.version

    def read_small(self, name, *, limit):
        raise NotImplementedError

    def stream(self, name, *, version, offset=0):
        return self.stretch(name, version=version, offset=offset, end=len(self.content))

    def stretch(self, name, *, version, offset, end):
        with self.lock:
            self.opened.append((offset, end))
            attempt = sum(start == offset for start, _ in self.opened)
        if self.fault is not None:
            self.fault(offset, attempt)
        for at in range(offset, end, self.chunk):
            yield self.content[at : min(end, at + self.chunk)]

    def close(self):
        pass


@pytest.fixture(autouse=True)
def _small_ranges(monkeypatch):
    small_ranges(monkeypatch, RANGE)


def lanes_for(total, *, most_ahead=16):
    return Lanes(total, most_ahead=most_ahead)


def reading(source, *, offset=0, lanes=None, total=4, watch=None, clock=time.monotonic):
    sleep = (watch or Watch()).sleep
    return read_in_order(
        source,
        "a",
        version=source.version,
        offset=offset,
        lanes=lanes or lanes_for(total),
        max_attempts=3,
        sleep=sleep,
        clock=clock,
    )


@settings(max_examples=30, deadline=None)
@given(
    size=st.integers(0, len(CONTENT)),
    offset=st.integers(0, len(CONTENT)),
    chunk=st.integers(1, 3 * RANGE),
    total=st.integers(1, 20),
    files=st.integers(0, 3),
)
def test_every_byte_comes_once_and_in_order(size, offset, chunk, total, files):
    source, lanes = Ranged(CONTENT[:size], chunk=max(chunk, size // 200)), lanes_for(total)
    offset = min(offset, size)
    with ExitStack() as others:
        for _ in range(files):
            others.enter_context(lanes.file())
        assert b"".join(reading(source, offset=offset, lanes=lanes)) == CONTENT[offset:size]
    extents = sorted(source.opened)
    assert [start for start, _ in extents] == [offset, *(end for _, end in extents)][: len(extents)]
    assert lanes._ahead == 0


def test_the_ranges_of_one_file_run_at_the_same_time():
    together = threading.Barrier(4)

    def meet(offset, attempt):
        if RANGE <= offset < 5 * RANGE:
            together.wait(SECONDS)

    source, lanes = Ranged(fault=meet), lanes_for(4)
    with lanes.file():
        assert b"".join(reading(source, lanes=lanes)) == CONTENT


@pytest.mark.parametrize("lanes", [lanes_for(1), lanes_for(8, most_ahead=0)])
def test_where_nothing_may_go_ahead_a_file_comes_in_one_stream(lanes):
    source = Ranged()
    with lanes.file():
        assert b"".join(reading(source, lanes=lanes)) == CONTENT
    assert source.opened == [(0, len(CONTENT))]


def test_a_small_file_comes_in_one_stream():
    source = Ranged(CONTENT[: 2 * RANGE - 1])
    assert b"".join(reading(source)) == source.content
    assert len(source.opened) == 1


def test_while_other_files_need_the_lanes_it_is_read_in_long_stretches():
    source, lanes = Ranged(), lanes_for(2)
    with lanes.file(), lanes.file():
        assert b"".join(reading(source, lanes=lanes)) == CONTENT
    assert source.opened[:3] == [(0, RANGE), (RANGE, 9 * RANGE), (9 * RANGE, 17 * RANGE)]


@pytest.mark.parametrize(("seconds", "worth"), [(3, True), (30, False)])
def test_ranges_go_on_only_if_they_are_faster_than_one_stream(monkeypatch, seconds, worth):
    """One stream takes 100 s for a range. The clock is of this test: it goes on as ranges are asked for."""
    monkeypatch.setattr(ahead, "_WORTH", 1.3)
    now, lock = [0.0], threading.Lock()

    def takes(offset, attempt):
        with lock:
            now[0] += seconds * 3 if offset else 100

    source, lanes = Ranged(fault=takes), lanes_for(4)
    with lanes.file():
        assert b"".join(reading(source, lanes=lanes, clock=lambda: now[0])) == CONTENT
    longest = max(end - start for start, end in source.opened)
    ranges = sum(end - start == RANGE for start, end in source.opened)
    if worth:
        assert (longest, ranges) == (RANGE, 40)
    else:
        # What was under way when that was known is not thrown away; the rest comes in one piece.
        assert 5 <= ranges <= 9
        assert source.opened[-1] == (ranges * RANGE, len(CONTENT))
    assert lanes._ahead == 0


class Noting(Lanes):
    """Lanes that note the most ranges that were ahead."""

    most = 0

    def take(self, *, own):
        taken = super().take(own=own)
        self.most = max(self.most, self._ahead)
        return taken


@pytest.mark.parametrize(("total", "allowed", "most"), [(4, 16, 4), (64, 16, 16), (64, 3, 3)])
def test_what_is_ahead_in_memory_is_bounded(total, allowed, most):
    source, lanes = Ranged(), Noting(total, most_ahead=allowed)
    with lanes.file():
        assert b"".join(reading(source, lanes=lanes)) == CONTENT
    assert lanes.most == most
    assert lanes._ahead == 0


def test_a_range_that_breaks_goes_on_where_it_was_and_disturbs_no_other():
    def breaks(offset, attempt):
        if offset == 3 * RANGE and attempt == 1:
            raise SourceUnavailableError("the connection broke")

    source = Ranged(fault=breaks)
    assert b"".join(reading(source)) == CONTENT
    starts = [start for start, _ in source.opened]
    assert starts.count(3 * RANGE) == 2
    assert len(starts) == len(set(starts)) + 1


def test_an_object_that_changes_ends_the_stream_where_it_changed():
    def changes(offset, attempt):
        if offset == 3 * RANGE:
            raise SourceChangedError("a was replaced while it was being read", file="a")

    source, lanes, got = Ranged(fault=changes), lanes_for(4), []
    with pytest.raises(SourceChangedError):
        got.extend(reading(source, lanes=lanes))
    assert lanes._ahead == 0


def test_what_came_before_a_change_was_handed_out():
    def changes(offset, attempt):
        if offset == 3 * RANGE:
            raise SourceChangedError("a was replaced while it was being read", file="a")

    stream = reading(Ranged(fault=changes, chunk=RANGE))
    assert b"".join(next(stream) for _ in range(3)) == CONTENT[: 3 * RANGE]
    with pytest.raises(SourceChangedError):
        next(stream)


def test_a_file_has_one_bound_of_breaks_for_all_its_ranges(monkeypatch):
    monkeypatch.setattr(retry, "_MAX_BREAKS_PER_FILE", 6)
    source = Ranged(fault=lambda offset, attempt: breaks() if attempt == 1 else None)
    with pytest.raises(SourceUnavailableError, match="broke off more than 6 times"):
        b"".join(reading(source))


def breaks():
    raise SourceUnavailableError("the connection broke")


def test_a_range_that_nobody_wants_is_not_tried_again(monkeypatch):
    for bound in ("_FIRST_WAIT_SECONDS", "_LONGEST_WAIT_SECONDS"):
        monkeypatch.setattr(retry, bound, 100 * SECONDS)
    failing = threading.Event()

    def fails(offset, attempt):
        if offset >= 2 * RANGE:
            failing.set()
            breaks()

    stream, read = reading(Ranged(fault=fails)), b""
    while len(read) <= RANGE:
        read += next(stream)
    assert failing.wait(SECONDS)
    ours = [thread for thread in threading.enumerate() if thread.name == "gptoss-weights-ahead"]
    stream.close()
    for thread in ours:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in ours)


def test_a_pull_that_is_given_up_waits_for_no_range_that_hangs():
    released, watch = threading.Event(), Watch()

    def hangs(offset, attempt):
        if offset:
            released.wait(SECONDS)

    stream = reading(Ranged(fault=hangs), watch=watch)
    try:
        read = b""
        while len(read) < RANGE:
            read += next(stream)
        watch.cancelled.set()
        with pytest.raises(CancelledTransferError):
            next(stream)
    finally:
        released.set()


def came_once_by_ranges(found, server) -> bool:
    """How many ranges there are depends on how many other files were under way."""
    starts = server.starts(SHARD)
    return len(set(starts)) == len(starts) > 1 and found.fetched_bytes == found.bytes


def test_a_pull_from_s3_by_ranges_asks_for_each_byte_once(pulled, proxy, object_store, uploaded, weights, ranged):
    settings = settings_for(object_store, s3_endpoint=proxy.endpoint)
    found = pulled(f"s3://{object_store.bucket}/{uploaded}", settings=settings, limits=ranged)
    assert (found.path / SHARD).read_bytes() == weights.files[SHARD]
    assert came_once_by_ranges(found, proxy)


def test_ranges_that_are_cut_go_on_where_they_were(pulled, proxy, object_store, uploaded, weights, ranged):
    proxy.fault = on(SHARD, Cut(100_000), until=3)
    settings = settings_for(object_store, s3_endpoint=proxy.endpoint)
    found = pulled(f"s3://{object_store.bucket}/{uploaded}", settings=settings, limits=ranged)
    assert (found.path / SHARD).read_bytes() == weights.files[SHARD]


def test_a_pull_from_azure_by_ranges_asks_for_each_byte_once(pulled, blobs, weights, ranged):
    found = pulled(blobs.uri, settings=blobs.settings(), limits=ranged)
    assert (found.path / SHARD).read_bytes() == weights.files[SHARD]
    assert came_once_by_ranges(found, blobs)
    assert len({request.if_match for request in blobs.requests if request.name == SHARD and request.if_match}) == 1
