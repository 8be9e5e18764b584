"""Azure Blob Storage that answers, fails and lies: every end has a type, says what to do, and shows nothing."""

import logging
import threading
import traceback
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from gptoss_weights.errors import (
    AccessDeniedError,
    DigestMismatchError,
    ForbiddenContentError,
    MissingFileError,
    SourceChangedError,
    SourceError,
    SourceNotAllowedError,
    SourceUnavailableError,
    StalledTransferError,
    ThrottledError,
    WeightsError,
)
from gptoss_weights.limits import PullLimits
from gptoss_weights.sources import ObjectVersion, SourceSettings, open_source
from gptoss_weights.sources.azure import _CHUNK_BYTES, _RANGE_BYTES, _RANGES_AT_ONCE
from gptoss_weights.trust import read_bundle
from tests.contract.weights.blobs import ACCOUNT, KEY, PREFIX, SIGNATURE, blobs, token
from tests.contract.weights.conftest import SERVED, SHARD, nothing_is_visible
from tests.contract.weights.hub import hub
from tests.contract.weights.proxy import Cut, Refuse, Trickle, on

__all__ = ["blobs", "hub"]

LARGE = bytes(range(256)) * (2 * _RANGE_BYTES // 256 + 1)


@pytest.fixture
def pull(blobs, pulled):
    def once(limits=None, **changes):
        return pulled(blobs.uri, settings=blobs.settings(**changes), limits=limits)

    return once


def opened(blobs, **changes):
    return open_source(blobs.uri, settings=blobs.settings(**changes))


def test_only_listed_and_served_files_are_asked_for_and_once(pull, blobs, weights):
    found = pull()
    assert {request.name for request in blobs.requests} == SERVED | {"model.sig"}
    assert {request.method for request in blobs.requests} == {"GET", "HEAD"}
    assert all(blobs.starts(name) == [0] for name in SERVED)
    served = sum(len(weights.files[name]) for name in SERVED)
    signature = (weights.folder / "model.sig").stat().st_size
    assert found.fetched_bytes == found.bytes == served
    assert sum(request.body_bytes for request in blobs.requests) == served + signature
    for path in found.path.rglob("*"):
        assert path.read_bytes() == weights.files[path.name]


def test_a_large_blob_comes_in_ordered_ranges_of_one_version(blobs):
    blobs.files["large"] = LARGE
    with opened(blobs) as source:
        version = source.stat("large")
        assert b"".join(source.stream("large", version=version)) == LARGE
        assert b"".join(source.stream("large", version=version, offset=_RANGE_BYTES - 1)) == LARGE[_RANGE_BYTES - 1 :]
    asked = [request for request in blobs.requests if request.method == "GET"]
    assert [request.start for request in asked] == [
        *(0, _RANGE_BYTES, 2 * _RANGE_BYTES),
        *(_RANGE_BYTES - 1, 2 * _RANGE_BYTES - 1),
    ]
    assert {request.if_match for request in asked} == {version.etag}


def test_so_many_ranges_are_in_memory_at_a_time_however_many_files_are_read(blobs):
    with opened(blobs) as source:
        version = source.stat(SHARD)
        reading = [source.stream(SHARD, version=version) for _ in range(_RANGES_AT_ONCE)]
        assert all(len(next(each)) <= _CHUNK_BYTES for each in reading)
        assert not source._room.acquire(blocking=False)
        (rest,) = (b"".join(each) for each in reading[:1])
        assert rest == blobs.files[SHARD][_CHUNK_BYTES:]
        assert next(source.stream(SHARD, version=version))


def test_a_connection_that_is_cut_goes_on_where_it_was(blobs, weights):
    from gptoss_weights.sources.retry import read_through

    blobs.files["large"] = LARGE
    blobs.fault = lambda request: Cut(1000) if request.method == "GET" and request.number in (1, 3, 4) else None
    with opened(blobs) as source:
        version = source.stat("large")
        assert b"".join(read_through(source, "large", version=version, offset=0, max_attempts=3)) == LARGE
    assert blobs.starts("large") == [0, 0, _RANGE_BYTES, _RANGE_BYTES, _RANGE_BYTES, 2 * _RANGE_BYTES]


def test_a_network_that_is_gone_is_given_up_on_and_the_next_pull_goes_on(pull, blobs, tmp_path):
    blobs.fault = on(SHARD, Cut(0))
    with pytest.raises(SourceUnavailableError, match=SHARD) as caught:
        pull()
    assert caught.value.retryable
    assert len(blobs.starts(SHARD)) == SourceSettings().max_attempts, "the library tries nothing again by itself"
    assert nothing_is_visible(tmp_path)
    blobs.fault = lambda _: None
    before = len(blobs.requests)
    found = pull()
    assert found.fetched_bytes < found.bytes
    assert "config.json" not in {each.name for each in blobs.requests[before:] if each.method == "GET"}


def test_a_blob_that_is_replaced_during_the_pull_is_noticed(pull, blobs, weights, tmp_path):
    other = weights.files[SHARD][:-1] + b"!"
    blobs.fault = on(SHARD, Cut(1000, then=lambda: blobs.files.update({SHARD: other})), until=2)
    with pytest.raises(SourceChangedError, match="replaced while it was being read") as caught:
        pull()
    assert caught.value.retryable
    assert nothing_is_visible(tmp_path)
    with pytest.raises(DigestMismatchError, match=SHARD):
        pull()
    assert nothing_is_visible(tmp_path)


@pytest.mark.parametrize("also_ranges", [False, True])
def test_a_server_that_ignores_conditions_or_ranges_is_noticed(blobs, also_ranges):
    blobs.ignores_conditions, blobs.ignores_ranges = True, also_ranges
    with opened(blobs) as source:
        version = source.stat(SHARD)
        if not also_ranges:
            version = ObjectVersion(size=version.size, etag='"0x1"')
        with pytest.raises(SourceError if also_ranges else SourceChangedError) as caught:
            list(source.stream(SHARD, version=version))
    assert caught.value.retryable is not also_ranges
    assert SHARD in str(caught.value)


@pytest.mark.parametrize(
    ("status", "code"), [(503, "ServerBusy"), (429, "TooManyRequests"), (500, "OperationTimedOut")]
)
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_throttling_is_waited_out(pull, blobs, method, status, code):
    blobs.fault = on(SHARD, Refuse(status, code), until=4, method=method)
    assert pull().bytes
    assert sum((each.method, each.name) == (method, SHARD) for each in blobs.requests) == 4


def test_throttling_without_an_end_says_what_to_change_and_how_long_it_was_asked_to_wait(blobs):
    blobs.fault, blobs.headers = on(SHARD, Refuse(503, "ServerBusy")), {"Retry-After": "7"}
    with opened(blobs) as source:
        version = source.stat(SHARD)
        with pytest.raises(ThrottledError, match="lower GPTOSS_WEIGHTS_PARALLEL_FILES") as caught:
            list(source.stream(SHARD, version=version))
    assert caught.value.seconds == 7


DENIED = Refuse(403, "AuthenticationFailed")


@pytest.mark.parametrize(
    ("changes", "fault", "says"),
    [
        ({"azure_sas_token": token(expiry=timedelta(hours=-1))}, DENIED, "expired; renew AZURE_STORAGE_SAS_TOKEN"),
        ({"azure_sas_token": token(start=timedelta(hours=1))}, DENIED, "counts only later"),
        ({"azure_sas_token": token()}, DENIED, "may read this container"),
        ({"azure_sas_token": token()}, Refuse(403, "AuthorizationPermissionMismatch"), "may read this container"),
        ({}, DENIED, "may read this container"),
        ({}, Refuse(401, "InvalidAuthenticationInfo"), "may read this container"),
    ],
)
@pytest.mark.parametrize("name", ["model.sig", SHARD])
def test_credentials_that_are_refused_say_why(pull, blobs, tmp_path, changes, fault, says, name):
    blobs.fault = on(name, fault)
    with pytest.raises(AccessDeniedError, match=says) as caught:
        pull(**changes)
    assert not caught.value.retryable
    assert "secret" not in str(caught.value)
    assert len(blobs.starts(name)) == 1
    assert nothing_is_visible(tmp_path)


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_wrong_is_told_from_a_key_that_is_wrong(blobs, hours):
    blobs.fault = lambda _: DENIED
    blobs.headers = {"Date": format_datetime(datetime.now(UTC) + timedelta(hours=hours), usegmt=True)}
    with opened(blobs) as source, pytest.raises(AccessDeniedError, match=r"clock differs too much.*NTP"):
        read_bundle(source)


def test_whether_a_token_has_expired_is_judged_by_the_servers_clock(blobs):
    blobs.fault = lambda _: DENIED
    blobs.headers = {"Date": format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True)}
    with opened(blobs, azure_sas_token=token()) as source, pytest.raises(AccessDeniedError, match="expired"):
        read_bundle(source)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"azure_account_key": None}, "set AZURE_STORAGE_SAS_TOKEN or AZURE_STORAGE_ACCOUNT_KEY"),
        ({"azure_account_key": "secret!"}, "AZURE_STORAGE_ACCOUNT_KEY is no key"),
        ({"azure_sas_token": "https://acme.blob.core.windows.net/models"}, "no shared access signature"),
        ({"azure_sas_token": "sv=1&sig="}, "no shared access signature"),
        ({"azure_sas_token": "sv=1&sig=secret with spaces"}, "no shared access signature"),
    ],
)
def test_what_is_no_credential_is_refused_before_anything_is_asked(blobs, changes, says):
    with pytest.raises(AccessDeniedError, match=says) as caught, opened(blobs, **changes):
        pass
    assert "secret" not in str(caught.value)
    assert blobs.requests == []


def test_a_token_counts_more_than_a_key_and_is_never_sent_in_the_clear(blobs, monkeypatch):
    with opened(blobs, azure_sas_token="?" + token()) as source:
        assert read_bundle(source)
    (request,) = blobs.requests
    assert SIGNATURE in request.path
    assert request.authorization == ""
    monkeypatch.setattr("gptoss_weights.sources.endpoint.socket.getaddrinfo", lambda *_, **__: [])
    blobs.endpoint = "http://store.example.com"
    with pytest.raises(AccessDeniedError, match="no token is sent"), opened(blobs, azure_sas_token=token()):
        pass


def test_a_signature_stands_in_no_message_and_no_log(blobs, caplog):
    """Whatever goes wrong, with every logger talking as much as it can."""
    caplog.set_level(logging.DEBUG)
    faults = [Cut(10), DENIED, Refuse(503, "ServerBusy"), Refuse(302, "x"), Refuse(412, "x"), Refuse(400, "x"), None]
    said = []
    for fault in faults:
        blobs.fault = lambda request, fault=fault: fault if request.method == "GET" else None
        with opened(blobs, azure_sas_token=token(), max_attempts=2) as source:
            try:
                list(source.stream(SHARD, version=source.stat(SHARD)))
            except WeightsError as error:
                said += [*traceback.format_exception(error), repr(error)]
    refused = blobs.settings(azure_endpoint="http://127.0.0.1:1/acme", azure_sas_token=token(), max_attempts=1)
    with open_source(blobs.uri, settings=refused) as source, suppress(SourceUnavailableError):
        source.stat(SHARD)
    assert len(said) > len(faults)
    assert "urllib3.connectionpool" in {record.name for record in caplog.records}
    everything = "\n".join([*said, caplog.text, repr(refused)])
    assert SIGNATURE not in everything
    assert "secret" not in everything


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirection_is_not_followed(blobs, status):
    blobs.fault, blobs.headers = lambda _: Refuse(status, "x"), {"Location": f"{blobs.endpoint}/stolen/x"}
    with opened(blobs, azure_sas_token=token()) as source:
        for ask in (lambda: source.stat(SHARD), lambda: source.read_small("model.sig", limit=10)):
            with pytest.raises(SourceNotAllowedError, match="redirects"):
                ask()
    assert len(blobs.requests) == 2
    assert not any("stolen" in request.path for request in blobs.requests)


@pytest.mark.parametrize("address", ["169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]", "100.100.100.200"])
def test_metadata_services_are_refused_as_endpoints(blobs, address):
    with (
        pytest.raises(SourceNotAllowedError, match="link-local"),
        opened(blobs, azure_endpoint=f"http://{address}/acme"),
    ):
        pass


def test_an_address_is_looked_at_again_when_it_is_reached(blobs, monkeypatch):
    with opened(blobs) as source:
        monkeypatch.setattr("gptoss_weights.sources.connections.is_forbidden", lambda _: True)
        with pytest.raises(SourceNotAllowedError, match="link-local"):
            source.stat(SHARD)
    assert blobs.requests == []


def test_a_proxy_of_the_environment_gets_nothing(blobs, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with opened(blobs) as source:
        assert read_bundle(source)


def test_a_certificate_that_nobody_vouches_for_is_said_and_one_that_is_named_accepted(hub, weights, monkeypatch):
    # What answers is a hub, over TLS: it knows no such blob.
    settings = SourceSettings(azure_account=ACCOUNT, azure_endpoint=hub.endpoint, azure_sas_token=token())
    with open_source("az://models/x", settings=settings) as source, pytest.raises(MissingFileError):
        source.stat(SHARD)
    monkeypatch.delenv("SSL_CERT_FILE")
    with (
        open_source("az://models/x", settings=settings) as source,
        pytest.raises(SourceError, match="SSL_CERT_FILE") as caught,
    ):
        source.stat(SHARD)
    assert not caught.value.retryable


def test_what_is_missing_has_a_type(blobs):
    with opened(blobs) as source:
        for ask in (lambda: source.stat("other.json"), lambda: source.read_small("other.json", limit=10)):
            with pytest.raises(MissingFileError, match=r"other\.json"):
                ask()
        with pytest.raises(ForbiddenContentError, match="10 bytes"):
            source.read_small("config.json", limit=10)
        blobs.files["empty"] = b""
        assert source.read_small("empty", limit=10) == b""
    for code, says in (("ContainerNotFound", "container"), ("BlobNotFound", SHARD)):
        blobs.fault = lambda _, code=code: Refuse(404, code)
        with opened(blobs) as source, pytest.raises(MissingFileError, match=says):
            source.stat(SHARD)
    blobs.fault = lambda _: Refuse(409, "BlobArchived")
    with opened(blobs) as source, pytest.raises(SourceError, match="archive tier"):
        source.read_small(SHARD, limit=10)


@pytest.mark.parametrize("account", [None, "acme.blob.core.windows.net/x?", "Acme", "ab"])
def test_without_an_account_of_the_administrators_nothing_is_asked(account):
    with (
        pytest.raises(SourceNotAllowedError, match=r"weightSources\.azure\.account"),
        open_source("az://models/x", settings=SourceSettings(azure_account=account, azure_account_key=KEY)),
    ):
        pass


def test_the_public_cloud_is_the_default(monkeypatch):
    from gptoss_weights.sources.azure import _endpoint

    monkeypatch.setattr("gptoss_weights.sources.endpoint.socket.getaddrinfo", lambda *_, **__: [])
    assert _endpoint(SourceSettings(azure_account="acme")) == "https://acme.blob.core.windows.net"


def test_a_trickle_is_a_stall_and_leaves_no_thread_behind(pull, blobs, tmp_path):
    blobs.fault = on(SHARD, Trickle(100_000))
    with pytest.raises(StalledTransferError, match=SHARD) as caught:  # it trickles for ever
        pull(PullLimits(spare_bytes=0, stall_seconds=0.5))
    assert caught.value.retryable
    assert nothing_is_visible(tmp_path)
    left = [thread for thread in threading.enumerate() if thread.name.startswith("gptoss-weights")]
    for thread in left:
        thread.join(60)
    assert [thread for thread in left if thread.is_alive()] == []


def test_a_source_that_was_closed_says_so(blobs):
    with opened(blobs, max_attempts=1) as source:
        version = source.stat(SHARD)
        source.close()
        with pytest.raises(SourceUnavailableError, match="closed"):
            list(source.stream(SHARD, version=version))


def test_settings_come_from_the_environment_and_credentials_of_a_namespace_instead_of_ours():
    variables = {
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
        "AZURE_STORAGE_ENDPOINT": "https://store.example.com",
        "AZURE_STORAGE_SAS_TOKEN": "ours",
        "AZURE_STORAGE_ACCOUNT_KEY": "ours",
    }
    found = SourceSettings.from_environment(variables)
    assert (found.azure_account, found.azure_endpoint) == (ACCOUNT, "https://store.example.com")
    assert (found.azure_sas_token, found.azure_account_key) == ("ours", "ours")
    theirs = found.with_credentials({"AZURE_STORAGE_ACCOUNT_KEY": "theirs", "AZURE_STORAGE_ACCOUNT_NAME": "theirs"})
    assert (theirs.azure_sas_token, theirs.azure_account_key, theirs.azure_account) == (None, "theirs", ACCOUNT)
    assert found.with_credentials({"HF_TOKEN": "theirs"}).azure_sas_token == "ours"
    assert "ours" not in repr(found)


def test_spaces_and_signs_in_names_are_encoded_once(blobs):
    blobs.files["a+b=c.json"] = b"{}"
    with opened(blobs) as source:
        assert source.read_small("a+b=c.json", limit=10) == b"{}"
    assert f"/models/{PREFIX}/" in blobs.requests[0].path
