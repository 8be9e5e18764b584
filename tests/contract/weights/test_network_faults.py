"""A real S3 server behind a network that fails: every end has a type, says what to do, and shows nothing half-done."""

import threading
from dataclasses import replace

import pytest

from gptoss_weights.errors import (
    AccessDeniedError,
    DigestMismatchError,
    SourceChangedError,
    SourceUnavailableError,
    StalledTransferError,
)
from gptoss_weights.limits import PullLimits
from tests.contract.weights.conftest import SERVED, SHARD, nothing_is_visible, settings_for
from tests.contract.weights.proxy import Cut, Refuse, Trickle, on


@pytest.fixture(params=["one stream", "ranges"])
def pull(request, object_store, uploaded, pulled, proxy):
    """Pull the uploaded model through the proxy, large files in one stream or by ranges ahead."""
    mode = PullLimits(spare_bytes=0) if request.param == "one stream" else request.getfixturevalue("ranged")

    def once(**limits):
        settings = settings_for(object_store, s3_endpoint=proxy.endpoint)
        return pulled(object_store.uri(uploaded), settings=settings, limits=replace(mode, **limits))

    return once


def test_only_listed_and_served_files_are_asked_for_and_once(pull, proxy, weights):
    found = pull()
    assert {request.name for request in proxy.requests} == SERVED | {"model.sig"}
    assert {request.method for request in proxy.requests} == {"GET", "HEAD"}
    assert all(len(set(proxy.starts(name))) == len(proxy.starts(name)) for name in SERVED)
    served = sum(len(weights.files[name]) for name in SERVED)
    assert found.bytes == served
    signature = (weights.folder / "model.sig").stat().st_size
    assert sum(request.body_bytes for request in proxy.requests) == served + signature


@pytest.mark.parametrize("pull", ["one stream"], indirect=True)
def test_a_connection_that_is_cut_goes_on_where_it_was(pull, proxy, weights):
    proxy.fault = on(SHARD, Cut(1_000_000), until=4)
    found = pull()
    assert (found.path / SHARD).read_bytes() == weights.files[SHARD]
    # A cut loses at most the chunk that was being read.
    starts = proxy.starts(SHARD)
    assert starts[0] == 0 < len(starts) == 4
    assert starts == sorted(starts)
    assert sum(request.body_bytes for request in proxy.requests) <= found.bytes + 4 * 1024 * 1024


def test_a_network_that_is_gone_is_given_up_on_and_the_next_pull_goes_on(pull, proxy, tmp_path, weights):
    proxy.fault = lambda request: Cut(0) if request.name == SHARD and request.method == "GET" else None
    with pytest.raises(SourceUnavailableError, match=SHARD) as caught:
        pull()
    assert caught.value.retryable
    assert nothing_is_visible(tmp_path)
    proxy.fault = lambda _: None
    before = len(proxy.requests)
    found = pull()
    assert found.fetched_bytes < found.bytes
    again = {request.name for request in proxy.requests[before:] if request.method == "GET"}
    assert "config.json" not in again


def test_an_object_that_is_replaced_during_the_pull_is_noticed(pull, proxy, object_store, uploaded, weights, tmp_path):
    other = weights.files[SHARD][:-1] + b"!"

    def replace():
        object_store.client().put_object(Bucket=object_store.bucket, Key=f"{uploaded}/{SHARD}", Body=other)

    # Within the first request of either way: what is read after it, is read of the other object.
    proxy.fault = on(SHARD, Cut(100_000, then=replace), until=2)
    with pytest.raises(SourceChangedError, match="replaced while it was being read") as caught:
        pull()
    assert caught.value.retryable
    assert nothing_is_visible(tmp_path)
    with pytest.raises(DigestMismatchError, match=SHARD):
        pull()
    assert nothing_is_visible(tmp_path)


@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (429, "TooManyRequests"), (400, "RequestTimeout")])
def test_throttling_is_waited_out(pull, proxy, status, code):
    proxy.fault = on(SHARD, Refuse(status, code), until=4)
    assert pull().bytes
    starts = proxy.starts(SHARD)
    assert len(starts) - len(set(starts)) == 3


def test_throttling_without_an_end_says_what_to_change(pull, proxy, tmp_path):
    proxy.fault = on(SHARD, Refuse(503, "SlowDown"))
    with pytest.raises(SourceUnavailableError, match="lower GPTOSS_WEIGHTS_PARALLEL_FILES") as caught:
        pull()
    assert caught.value.retryable
    assert nothing_is_visible(tmp_path)


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (400, "ExpiredToken", "expired; renew them"),
        (403, "RequestTimeTooSkewed", "clock"),
        (403, "AccessDenied", "may read this prefix"),
    ],
)
@pytest.mark.parametrize("name", ["model.sig", SHARD])
def test_credentials_that_are_refused_say_why(pull, proxy, tmp_path, status, code, says, name):
    proxy.fault = on(name, Refuse(status, code))
    with pytest.raises(AccessDeniedError, match=says) as caught:
        pull()
    assert not caught.value.retryable
    assert "secret-detail" not in str(caught.value)
    assert len(proxy.starts(name)) == 1
    assert nothing_is_visible(tmp_path)


def test_a_trickle_is_a_stall_and_leaves_no_thread_behind(pull, proxy, tmp_path):
    proxy.fault = on(SHARD, Trickle(100_000))
    before = threading.active_count()
    with pytest.raises(StalledTransferError, match=SHARD) as caught:  # it trickles for ever
        pull(stall_seconds=0.5)
    assert caught.value.retryable
    assert nothing_is_visible(tmp_path)
    # Those of the proxy aside, which still trickles.
    left = [thread for thread in threading.enumerate() if thread.name.startswith("gptoss-weights")]
    for thread in left:
        thread.join(60)
    left = [thread for thread in left if thread.is_alive()]
    assert left == [], before
