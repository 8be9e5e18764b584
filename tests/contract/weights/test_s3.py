"""S3: against a real server, and against one that misbehaves."""

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler

import pytest
from click.testing import CliRunner

from gptoss_cli.weights import weights as weights_commands
from gptoss_weights.errors import (
    AccessDeniedError,
    DigestMismatchError,
    ForbiddenContentError,
    MissingFileError,
    SourceChangedError,
    SourceError,
    SourceNotAllowedError,
    SourceUnavailableError,
)
from gptoss_weights.materialise import pull
from gptoss_weights.sources import SourceSettings, open_source
from gptoss_weights.sources.endpoint import check_endpoint
from gptoss_weights.sources.s3 import _client
from gptoss_weights.trust import read_bundle
from tests.contract.weights.conftest import settings_for
from tests.contract.weights.proxy import listening
from tests.unit.weights.builders import MODEL


def test_pulls_from_a_real_server(object_store, uploaded, weights, pulled):
    found = pulled(object_store.uri(uploaded), settings=settings_for(object_store))
    for path in found.path.rglob("*"):
        assert path.read_bytes() == weights.files[path.name]
    assert found.fetched_bytes == found.bytes


def test_a_flipped_byte_in_a_real_server_is_named_and_its_mending_found(object_store, uploaded, weights, pulled):
    name = "model-00002-of-00002.safetensors"
    content = bytearray(weights.files[name])
    content[1_000_000] ^= 1
    client = object_store.client()
    client.put_object(Bucket=object_store.bucket, Key=f"{uploaded}/{name}", Body=bytes(content))
    with pytest.raises(DigestMismatchError, match=name):
        pulled(object_store.uri(uploaded), settings=settings_for(object_store))
    client.put_object(Bucket=object_store.bucket, Key=f"{uploaded}/{name}", Body=weights.files[name])
    assert pulled(object_store.uri(uploaded), settings=settings_for(object_store)).bytes


def test_a_real_server_pins_streams_to_the_etag(object_store, uploaded):
    client = object_store.client()
    with open_source(object_store.uri(uploaded), settings=settings_for(object_store)) as source:
        version = source.stat("config.json")
        assert (
            b"".join(source.stream("config.json", version=version, offset=5))
            == b"".join(source.stream("config.json", version=version))[5:]
        )
        client.put_object(Bucket=object_store.bucket, Key=f"{uploaded}/config.json", Body=b"x" * version.size)
        with pytest.raises(SourceChangedError):
            list(source.stream("config.json", version=version))


def test_a_real_server_refuses_and_lacks_with_a_type(object_store, uploaded):
    with open_source(object_store.uri(uploaded), settings=settings_for(object_store)) as source:
        with pytest.raises(MissingFileError, match="other"):
            source.stat("other.json")
        with pytest.raises(ForbiddenContentError, match="10 bytes"):
            source.read_small("config.json", limit=10)
        assert read_bundle(source)
    with open_source(object_store.uri("nothing-here"), settings=settings_for(object_store)) as source:
        assert read_bundle(source) is None
    theirs = {"AWS_ACCESS_KEY_ID": object_store.access_key, "AWS_SECRET_ACCESS_KEY": object_store.secret_key}
    ours = settings_for(object_store, s3_access_key_id="ours", s3_secret_access_key="wrong")
    with open_source(object_store.uri(uploaded), settings=ours.with_credentials(theirs)) as source:
        assert read_bundle(source), "the keys of a namespace count more than the operator's"
    for wrong in ({"s3_secret_access_key": "wrong"}, {"s3_access_key_id": "stranger"}):
        with (
            open_source(object_store.uri(uploaded), settings=settings_for(object_store, **wrong)) as source,
            pytest.raises(AccessDeniedError),
        ):
            read_bundle(source)
    with (
        open_source("s3://no-such-bucket/x", settings=settings_for(object_store)) as source,
        pytest.raises(MissingFileError, match="bucket"),
    ):
        source.read_small("model.sig", limit=10)


@dataclass
class Misbehaving:
    """An HTTP server that answers what a test says: `answer(handler, number)` handles one request."""

    answer: object
    requests: list[tuple[str, str, dict]] = field(default_factory=list)
    endpoint: str = ""


@pytest.fixture
def misbehaving() -> Iterator[Misbehaving]:
    state = Misbehaving(answer=None)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            state.requests.append((self.command, self.path, dict(self.headers)))
            state.answer(self, len(state.requests))

        do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

        def log_message(self, *_):
            pass

    with listening(Handler, threading.Event()) as state.endpoint:
        yield state


def send(handler, status, body=b"", length=None, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    if handler.command == "GET":
        handler.wfile.write(body)


def asks(server, **changes):
    return open_source(
        "s3://models/m",
        settings=SourceSettings(
            s3_endpoint=server.endpoint,
            s3_access_key_id="key",
            s3_secret_access_key="secret",
            **{"read_timeout_seconds": 5.0, **changes},
        ),
    )


CONTENT = bytes(range(256)) * 1000


def partial_content(handler, content=CONTENT, cut=None, etag='"v1"'):
    start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
    rest = content[start:]
    send(
        handler,
        206,
        rest if cut is None else rest[:cut],
        length=len(rest),
        ETag=etag,
        Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}",
    )
    if cut is not None:
        handler.close_connection = True


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_busy_server_is_asked_again(misbehaving, status):
    misbehaving.answer = lambda handler, number: (
        send(handler, status) if number < 3 else send(handler, 200, ETag='"v"', length=7)
    )
    with asks(misbehaving) as source:
        assert source.stat("a").size == 7
    assert len(misbehaving.requests) == 3


def test_a_server_that_stays_busy_is_given_up_on(misbehaving):
    misbehaving.answer = lambda handler, number: send(handler, 503)
    with asks(misbehaving) as source, pytest.raises(SourceUnavailableError, match="503"):
        source.stat("a")
    assert len(misbehaving.requests) == SourceSettings().max_attempts


@pytest.mark.parametrize(("status", "kind"), [(403, AccessDeniedError), (404, MissingFileError), (400, SourceError)])
def test_what_asking_again_can_not_mend_is_asked_once(misbehaving, status, kind):
    misbehaving.answer = lambda handler, number: send(handler, status)
    with asks(misbehaving) as source, pytest.raises(kind) as caught:
        source.read_small("a", limit=10)
    assert not caught.value.retryable
    assert len(misbehaving.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirection_is_not_followed(misbehaving, status):
    misbehaving.answer = lambda handler, number: send(
        handler, status, Location=f"{misbehaving.endpoint}/stolen", x_amz_bucket_region="eu-west-1"
    )
    with asks(misbehaving) as source, pytest.raises(SourceError):
        source.read_small("model.sig", limit=10)
    assert all("stolen" not in path for _, path, _ in misbehaving.requests)


def version_of(source):
    from gptoss_weights.sources import ObjectVersion

    return ObjectVersion(size=len(CONTENT), etag='"v1"')


def test_a_stream_that_breaks_off_is_reported_and_can_go_on(misbehaving):
    from gptoss_weights.sources.retry import read_through

    misbehaving.answer = lambda handler, number: partial_content(handler, cut=1000 if number < 4 else None)
    with asks(misbehaving) as source:
        got = b"".join(read_through(source, "a", version=version_of(source), offset=0, max_attempts=3))
    assert got == CONTENT
    assert [headers["If-Match"] for _, _, headers in misbehaving.requests] == ['"v1"'] * 4


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (lambda handler, _: partial_content(handler, etag='"v2"'), SourceChangedError),
        (lambda handler, _: send(handler, 412), SourceChangedError),
        (lambda handler, _: send(handler, 416), SourceChangedError),
        (lambda handler, _: send(handler, 200, CONTENT, ETag='"v1"'), SourceError),
        (
            lambda handler, _: send(
                handler, 206, CONTENT[10:], ETag='"v1"', Content_Range=f"bytes 0-{len(CONTENT) - 11}/{len(CONTENT)}"
            ),
            SourceError,
        ),
    ],
)
def test_another_version_or_range_than_asked_for_is_noticed(misbehaving, answer, kind):
    misbehaving.answer = answer
    with asks(misbehaving) as source, pytest.raises(kind) as caught:
        list(source.stream("a", version=version_of(source), offset=10))
    assert type(caught.value) is kind


def without(header):
    """Answer as S3 does, but for one header."""

    def answer(handler, number):
        handler.send_response(206 if "Range" in handler.headers else 200)
        for name, value in {"ETag": '"v1"', "Content-Length": str(len(CONTENT))}.items():
            if name != header:
                handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(CONTENT)
        handler.close_connection = True

    return answer


@pytest.mark.parametrize("header", ["ETag", "Content-Length"])
@pytest.mark.parametrize(
    "ask",
    [lambda source: source.stat("a"), lambda source: list(source.stream("a", version=version_of(source)))],
    ids=["stat", "stream"],
)
def test_an_answer_without_what_s3_always_says_is_named(misbehaving, header, ask):
    misbehaving.answer = without(header)
    with asks(misbehaving) as source, pytest.raises(SourceError, match=f"does not say the {header} of a; check") as got:
        ask(source)
    assert not got.value.retryable
    assert len(misbehaving.requests) == 1


@pytest.mark.parametrize("header", ["ETag", "Content-Length"])
def test_a_small_file_is_read_and_bounded_whatever_its_answer_says(misbehaving, header):
    misbehaving.answer = without(header)
    with asks(misbehaving) as source:
        assert source.read_small("a", limit=len(CONTENT)) == CONTENT
        with pytest.raises(ForbiddenContentError):
            source.read_small("a", limit=len(CONTENT) - 1)


def test_a_small_file_that_breaks_off_is_asked_for_again(misbehaving):
    misbehaving.answer = lambda handler, number: partial_content(handler, cut=1000 if number < 3 else None)
    with asks(misbehaving) as source:
        assert source.read_small("a", limit=2 * len(CONTENT)) == CONTENT
    assert len(misbehaving.requests) == 3


def test_a_server_that_stops_sending_times_out(misbehaving):
    released = threading.Event()

    def answer(handler, number):
        handler.send_response(206)
        handler.send_header("ETag", '"v1"')
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        handler.wfile.write(CONTENT[:100])
        released.wait(10)

    misbehaving.answer = answer
    with asks(misbehaving, read_timeout_seconds=0.3) as source, pytest.raises(SourceUnavailableError):
        list(source.stream("a", version=version_of(source)))
    released.set()


def test_nobody_listening_is_unavailable_and_no_credentials_is_denied(free_port, monkeypatch, tmp_path):
    dead = SourceSettings(
        s3_endpoint=f"http://127.0.0.1:{free_port}", s3_access_key_id="a", s3_secret_access_key="b", max_attempts=2
    )
    with open_source("s3://models/m", settings=dead) as source, pytest.raises(SourceUnavailableError):
        source.stat("a")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    bare = SourceSettings(s3_endpoint=dead.s3_endpoint)
    with open_source("s3://models/m", settings=bare) as source, pytest.raises(AccessDeniedError, match="AWS_ACCESS"):
        source.stat("a")


HALVES = [{"AWS_ACCESS_KEY_ID": "AKIA"}, {"AWS_SECRET_ACCESS_KEY": "secret"}]


@pytest.fixture
def no_keys(monkeypatch, tmp_path):
    """An environment in which boto3 finds no credentials of its own."""
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))


@pytest.mark.parametrize("half", HALVES)
def test_half_of_a_pair_of_keys_is_denied_and_told_what_to_set(no_keys, free_port, monkeypatch, half):
    ours = SourceSettings(s3_endpoint=f"http://127.0.0.1:{free_port}", max_attempts=1)

    def asked(settings):
        with (
            pytest.raises(AccessDeniedError, match="set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
            open_source("s3://models/m", settings=settings) as source,
        ):
            read_bundle(source)

    asked(ours.with_credentials(half))
    for name, value in half.items():
        monkeypatch.setenv(name, value)
    asked(ours)


@pytest.mark.parametrize("half", HALVES)
def test_a_pull_with_half_of_a_pair_of_keys_leaves_its_reason(no_keys, free_port, monkeypatch, tmp_path, half):
    for name, value in {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{free_port}", **half}.items():
        monkeypatch.setenv(name, value)
    log = tmp_path / "log"
    pinned = ["--model", MODEL, "--manifest-digest", "sha256:" + "0" * 64]
    arguments = ["pull", "s3://models/m", *pinned, "--to", str(tmp_path / "to"), "--termination-log", str(log)]
    found = CliRunner().invoke(weights_commands, [*arguments, "--json"], catch_exceptions=False)
    assert found.exit_code == 1
    for told in (json.loads(log.read_text()), json.loads(found.stdout)):
        assert told["error"]["reason"] == "AccessDenied"
        assert "AWS_SECRET_ACCESS_KEY" in told["error"]["message"]
        assert told["error"]["retryable"] is False


@pytest.mark.parametrize(
    "settings", [{"AWS_PROFILE": "nobodys"}, {"AWS_CONFIG_FILE": "passwd"}, {"AWS_REGION": "no region"}]
)
def test_settings_of_which_no_client_can_be_made_are_told(no_keys, free_port, monkeypatch, tmp_path, settings):
    (tmp_path / "passwd").write_text("root:x:0")
    monkeypatch.chdir(tmp_path)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    ours = replace(SourceSettings.from_environment(), s3_endpoint=f"http://127.0.0.1:{free_port}")
    with pytest.raises(SourceError, match=next(iter(settings))), open_source("s3://models/m", settings=ours):
        pass


def test_the_environment_does_not_move_the_endpoint(misbehaving, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", misbehaving.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", misbehaving.endpoint)
    aws = SourceSettings(s3_region="us-east-1", s3_access_key_id="key", s3_secret_access_key="secret")
    with closing(_client(aws)) as client:
        assert client.meta.endpoint_url.endswith(".amazonaws.com")


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://169.254.169.254",
        "http://169.254.169.254:80/latest",
        "http://2852039166",
        "http://0xa9fea9fe",
        "http://[fe80::1]",
        "http://[::ffff:169.254.169.254]",
        "http://[fd00:ec2::254]",
        "http://100.100.100.200",
        "http://0.0.0.0:9000",
        "http://224.0.0.1",
        "ftp://store",
        "file:///etc",
        "http://key:secret@127.0.0.1",
        "http://",
        "http://[::1",
        "http://127.0.0.1:notaport",
    ],
)
def test_metadata_services_and_strange_endpoints_are_refused(endpoint):
    with pytest.raises(SourceNotAllowedError):
        check_endpoint(endpoint)


def test_ordinary_endpoints_are_accepted():
    check_endpoint("http://127.0.0.1:9000")
    check_endpoint("https://10.0.0.5")


def test_secrets_are_in_no_repr():
    assert "hunter2" not in repr(SourceSettings(s3_access_key_id="hunter2", s3_secret_access_key="hunter2"))


def test_settings_come_from_the_environment():
    found = SourceSettings.from_environment(
        {"GPTOSS_WEIGHTS_FILE_ROOTS": "/a:/b", "AWS_ENDPOINT_URL_S3": "http://x", "AWS_REGION": "r"}
    )
    assert [str(root) for root in found.file_roots] == ["/a", "/b"]
    assert (found.s3_endpoint, found.s3_region) == ("http://x", "r")


def test_a_node_pulls_with_its_own_environment(object_store, uploaded, weights, tmp_path, monkeypatch):
    for name, value in object_store.environment().items():
        monkeypatch.setenv(name, value)
    found = pull(
        object_store.uri(uploaded),
        manifest_digest=weights.digest,
        subject=MODEL,
        directory=tmp_path / "private",
        settings=SourceSettings.from_environment(),
    )
    assert found.fetched_bytes == found.bytes


def test_credentials_of_a_namespace_are_taken_whole_or_not_at_all():
    ours = SourceSettings(s3_access_key_id="ours", s3_secret_access_key="ours", s3_session_token="ours")
    assert ours.with_credentials({}) == ours.with_credentials({"AWS_ACCESS_KEY_ID": ""}) == ours
    theirs = ours.with_credentials({"AWS_ACCESS_KEY_ID": "theirs", "AWS_SECRET_ACCESS_KEY": "theirs"})
    assert (theirs.s3_access_key_id, theirs.s3_secret_access_key, theirs.s3_session_token) == ("theirs", "theirs", None)
    half = ours.with_credentials({"AWS_SECRET_ACCESS_KEY": "theirs"})
    assert half.s3_access_key_id == "", "half of them are wrong, and not completed by ours"
    session = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": "hunter2"}
    assert ours.with_credentials(session).s3_session_token == "hunter2"
    assert "hunter2" not in repr(ours.with_credentials(session))
