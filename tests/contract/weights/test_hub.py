"""hf://: a hub that redirects, refuses, throttles and breaks off; a token that stays where it belongs."""

import threading

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
    UnsignedError,
)
from gptoss_weights.limits import PullLimits
from gptoss_weights.sources import open_source
from gptoss_weights.sources.connections import checked
from gptoss_weights.sources.retry import retrying
from gptoss_weights.sources.settings import SourceSettings
from tests.contract.weights.conftest import SERVED, SHARD, nothing_is_visible
from tests.contract.weights.hub import COMMIT, TOKEN, hub
from tests.contract.weights.proxy import Cut, Refuse, Trickle

__all__ = ["hub"]


@pytest.fixture
def pull(hub, pulled):
    """Pull the model from the hub."""

    def once(limits=None, *, revision=COMMIT, **changes):
        return pulled(hub.uri, revision=revision, settings=hub.settings(**changes), limits=limits)

    return once


def on(name, fault, *, host="files", until=10**6):
    """The fault for the first requests for one file's bytes."""
    same = (host, "GET", name)
    return lambda each: fault if (each.host, each.method, each.name) == same and each.number < until else None


def test_what_a_commit_holds_arrives_once_and_nothing_else_is_asked_for(hub, pull, weights):
    found = pull()
    assert {path.name: path.read_bytes() for path in found.path.rglob("*")} == {n: weights.files[n] for n in SERVED}
    assert {each.name for each in hub.requests} == SERVED | {"model.sig"}
    assert hub.starts(SHARD) == [0]
    assert found.fetched_bytes == found.bytes
    assert pull().fetched_bytes == 0


def test_a_token_goes_to_the_hub_and_to_no_other_host(hub, pull):
    hub.token = TOKEN
    pull(hf_token=TOKEN + "\n")
    sent = {(each.host, each.authorization) for each in hub.requests}
    assert sent == {("hub", f"Bearer {TOKEN}"), ("files", "")}


@pytest.mark.parametrize("token", [None, "another"])
def test_a_hub_that_refuses_says_what_to_check_and_is_asked_once(hub, pull, token):
    hub.token = TOKEN
    with pytest.raises(AccessDeniedError, match="HF_TOKEN of the Secret gptoss-model-credentials") as caught:
        pull(hf_token=token)
    assert "secret-detail" not in str(caught.value)
    assert len(hub.requests) == 1


@pytest.mark.parametrize("token", ["two words", "line\r\nX-Evil: 1", "tök"])
def test_a_token_that_is_none_is_not_sent(hub, pull, token):
    with pytest.raises(AccessDeniedError, match="HF_TOKEN holds characters") as caught:
        pull(hf_token=token)
    assert token not in str(caught.value)
    assert hub.requests == []


def test_a_token_is_never_sent_in_the_clear(pull):
    with pytest.raises(AccessDeniedError, match="over which no token is sent"):
        pull(hf_endpoint="http://192.0.2.1", hf_token=TOKEN)


@pytest.mark.parametrize(
    ("revision", "says"), [(None, "set spec.model.revision"), ("main", "40 hexadecimal"), (COMMIT[:12], "40 hexa")]
)
def test_only_a_commit_is_a_revision(hub, pull, revision, says):
    with pytest.raises(SourceNotAllowedError, match=says):
        pull(revision=revision)
    assert hub.requests == []


def test_what_is_not_there_is_named(hub, pull, tmp_path):
    with open_source(hub.uri, revision=COMMIT, settings=hub.settings()) as source:
        with pytest.raises(MissingFileError, match=r"other\.json is not in the repository"):
            source.stat("other.json")
        with pytest.raises(ForbiddenContentError, match="10 bytes"):
            source.read_small("config.json", limit=10)
    with pytest.raises(SourceError, match=r"correct spec\.model\.revision"):
        pull(revision="f" * 40)
    hub.files.pop("model.sig")
    with pytest.raises(UnsignedError):
        pull()


def test_bytes_that_were_not_signed_are_named(hub, pull, tmp_path):
    hub.files[SHARD] = hub.files[SHARD][:-1] + b"!"
    with pytest.raises(DigestMismatchError, match=SHARD):
        pull()
    assert nothing_is_visible(tmp_path)


# ---- redirects


def test_a_host_that_nobody_allows_is_not_asked(hub, pull, tmp_path):
    with pytest.raises(SourceNotAllowedError, match=r"no administrator allows: 127\.0\.0\.1:\d+; add it to") as caught:
        pull(hf_download_hosts=("cdn.example.com",))
    assert "sig=" not in str(caught.value)
    assert {each.host for each in hub.requests} == {"hub"}
    assert nothing_is_visible(tmp_path)


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("https://evil.example.com/x", "allows: evil.example.com;"),
        ("https://cdn.example.com.evil.test/x", "allows: cdn.example.com.evil.test;"),
        ("https://evilcdn.example.com/x", "allows: evilcdn.example.com;"),
        ("https://cdn.example.com:8443/x", "allows: cdn.example.com:8443;"),
        ("https://user:password@cdn.example.com/x", "allows: cdn.example.com;"),
        ("http://cdn.example.com/x", "allows: http://cdn.example.com;"),
        ("ftp://cdn.example.com/x", "allows: ftp://cdn.example.com;"),
        ("//evil.example.com/x", "allows: evil.example.com;"),
        ("https://[broken/x", "to what is no address"),
        ("https://cdn.example.com:broken/x", "allows: cdn.example.com;"),
    ],
)
def test_an_address_that_only_looks_allowed_is_refused_and_named(hub, pull, place, named):
    hub.elsewhere = lambda name: place if name == SHARD else None
    allowed = (hub.download.removeprefix("https://"), "cdn.example.com", "*.files.example.com")
    with pytest.raises(SourceNotAllowedError) as caught:
        pull(hf_download_hosts=allowed, max_attempts=1)
    assert named in caught.value.message
    assert "password" not in str(caught.value)
    assert all(each.name != "x" for each in hub.requests)


@pytest.mark.parametrize(
    "place", ["/evil/gpt-oss-tiny/resolve/{commit}/{name}", "/acme/gpt-oss-tiny/resolve/main/{name}",
              "/acme/gpt-oss-tiny/{commit}/../../../evil/{name}", "/x"],
)  # fmt: skip
def test_another_repository_or_commit_of_the_hub_is_no_place_to_go_to(hub, pull, place):
    hub.elsewhere = lambda name: place.format(commit=COMMIT, name=name) if name == SHARD else None
    with pytest.raises(SourceNotAllowedError, match=r"redirects .* to another repository"):
        pull()


def test_redirects_without_an_end_are_left(hub, pull):
    round_and_round = f"/acme/gpt-oss-tiny/resolve/{COMMIT}/{SHARD}"
    hub.elsewhere = lambda name: round_and_round if name == SHARD else None
    with pytest.raises(SourceError, match="redirects more than 5 times"):
        pull()


@pytest.mark.parametrize("address", ["169.254.169.254", "fe80::1%eth0", "::ffff:169.254.169.254", "fd00:ec2::254"])
def test_a_connection_that_reached_a_metadata_service_sends_nothing(address):
    class Connected:
        closed = False

        def getpeername(self):
            return (address, 443)

        def close(self):
            self.closed = True

    connected = Connected()
    with pytest.raises(SourceNotAllowedError, match="link-local or metadata"):
        checked(connected)
    assert connected.closed


def test_a_server_that_is_no_hub_is_told_from_one(hub, pull):
    for commit, says in ((None, "does not say which commit"), ("f" * 40, "another commit")):
        hub.commit = commit
        with pytest.raises(SourceError, match=says):
            pull()


def test_a_certificate_of_an_unknown_authority_is_refused(hub, pull, monkeypatch, tmp_path):
    (tmp_path / "none.pem").write_text("")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    with pytest.raises(SourceError, match=r"is not trusted .*SSL_CERT_FILE") as caught:
        pull()
    assert not caught.value.retryable


# ---- a network that fails


def test_a_connection_that_is_cut_goes_on_where_it_was_with_a_new_address(hub, pull, weights):
    hub.fault = on(SHARD, Cut(1_000_000), until=3)
    found = pull()
    assert (found.path / SHARD).read_bytes() == weights.files[SHARD]
    starts = hub.starts(SHARD)
    assert starts[0] == 0 < starts[1] < starts[2]
    assert len(starts) == 3


def test_what_a_broken_pull_left_is_not_fetched_again(hub, pull, tmp_path):
    hub.fault = on(SHARD, Cut(0))
    with pytest.raises(SourceUnavailableError, match=SHARD) as caught:
        pull()
    assert caught.value.retryable
    assert nothing_is_visible(tmp_path)
    hub.fault = lambda _: None
    found = pull()
    assert found.fetched_bytes < found.bytes


def test_a_trickle_is_a_stall_and_leaves_no_thread_behind(hub, pull, tmp_path):
    hub.fault = on(SHARD, Trickle(100_000))
    with pytest.raises(StalledTransferError, match=SHARD):
        pull(PullLimits(spare_bytes=0, stall_seconds=0.5))
    assert nothing_is_visible(tmp_path)
    left = [thread for thread in threading.enumerate() if thread.name.startswith("gptoss-weights")]
    for thread in left:
        thread.join(60)
    assert not any(thread.is_alive() for thread in left)


def test_a_file_that_changes_under_the_same_commit_is_noticed(hub, pull, tmp_path):
    def replace():
        hub.files[SHARD] = hub.files[SHARD][:-1] + b"!"

    hub.fault = on(SHARD, Cut(1_000_000, then=replace), until=2)
    with pytest.raises(SourceChangedError, match="replaced while it was being read"):
        pull()
    assert nothing_is_visible(tmp_path)


@pytest.mark.parametrize(("host", "status"), [("hub", 429), ("hub", 503), ("hub", 500), ("files", 403), ("files", 503)])
def test_what_passes_is_waited_out(hub, pull, host, status):
    hub.fault = on(SHARD, Refuse(status, ""), host=host, until=4)
    hub.retry_after = "0"
    assert pull().bytes


def test_throttling_without_an_end_says_what_to_change(hub, pull, tmp_path):
    hub.fault = on(SHARD, Refuse(429, ""), host="hub")
    with pytest.raises(SourceUnavailableError, match="lower GPTOSS_WEIGHTS_PARALLEL_FILES") as caught:
        pull()
    assert caught.value.retryable
    assert nothing_is_visible(tmp_path)


@pytest.mark.parametrize(("asked", "least", "most"), [("7", 7, 17), ("100000", 30, 40), ("soon", 0, 10)])
def test_a_hub_is_left_alone_for_as_long_as_it_asks_within_reason(hub, asked, least, most):
    hub.fault, hub.retry_after = on("config.json", Refuse(429, ""), host="hub"), asked
    waited = []

    def ask():
        list(source.stream("config.json", version=source.stat("config.json")))

    with open_source(hub.uri, revision=COMMIT, settings=hub.settings()) as source, pytest.raises(ThrottledError):
        retrying(2, sleep=waited.append)(ask)
    (seconds,) = waited
    assert least <= seconds <= most


@pytest.mark.parametrize(
    "wrong",
    ["https://cdn.example.com", "*", "*example.com", "Files.Example.com", "cdn.example.com;x.example",
     "cdn.example.com:0", "cdn.example.com:65536", "cdn.example.com/path", "[::1]", "-cdn.example.com"],
)  # fmt: skip
def test_a_download_host_that_is_none_is_named_before_anything_is_asked_for(hub, pull, wrong):
    read = SourceSettings.from_environment({"GPTOSS_WEIGHTS_HF_DOWNLOAD_HOSTS": f"*.hf.co, {wrong}"})
    with pytest.raises(SourceNotAllowedError) as told:
        pull(hf_download_hosts=read.hf_download_hosts)
    assert "GPTOSS_WEIGHTS_HF_DOWNLOAD_HOSTS" in told.value.message
    assert repr(wrong) in told.value.message
    assert "write host, host:port or *.domain" in told.value.message
    assert not hub.requests


# ---- ranges


def test_a_large_file_comes_by_ranges_and_the_hub_is_asked_for_its_address_once(hub, pull, weights, ranged):
    hub.token = TOKEN
    found = pull(ranged, hf_token=TOKEN)
    assert (found.path / SHARD).read_bytes() == weights.files[SHARD]
    starts = hub.starts(SHARD)
    assert len(set(starts)) == len(starts) > 1
    assert found.fetched_bytes == found.bytes == sum(len(weights.files[name]) for name in SERVED)
    asked = [each for each in hub.of(SHARD) if (each.host, each.method) == ("hub", "GET")]
    assert len(asked) == 1
    assert {each.authorization for each in hub.requests if each.host == "files"} == {""}


def test_an_address_that_is_good_no_more_is_asked_for_again(hub, pull, weights, ranged):
    def ends(request):
        if (request.host, request.name) == ("files", SHARD) and request.number in (3, 7):
            hub.signatures.clear()

    hub.fault = ends
    found = pull(ranged)
    assert (found.path / SHARD).read_bytes() == weights.files[SHARD]
    assert len([each for each in hub.of(SHARD) if (each.host, each.method) == ("hub", "GET")]) > 1


def test_a_range_that_is_cut_goes_on_where_it_was(hub, pull, weights, ranged):
    hub.fault = on(SHARD, Cut(100_000), until=4)
    found = pull(ranged)
    assert (found.path / SHARD).read_bytes() == weights.files[SHARD]
    assert len(hub.starts(SHARD)) == len(set(hub.ranges(SHARD)))


def test_a_download_host_that_answers_another_range_is_noticed(hub, pull, ranged, tmp_path):
    def shifted(request):
        first, _, last = request.range.removeprefix("bytes=").partition("-")
        if (request.host, request.name) == ("files", SHARD) and request.start and last:
            request.start += 1
            request.range = f"bytes={int(first) + 1}-{int(last) + 1}"

    hub.fault = shifted
    with pytest.raises(SourceError, match="another range"):
        pull(ranged)
    assert nothing_is_visible(tmp_path)
