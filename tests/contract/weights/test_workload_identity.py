"""Weights fetched as a workload: what KubeRay's pods are given, a stand-in for STS, and a real S3 server.

The stand-in knows the one call that such a pod makes, AssumeRoleWithWebIdentity, and hands out the S3 server's own
keys. Their session token is empty, for that server knows none. It does not check the pod's token as AWS does, but tells
which it was shown.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from gptoss_operator.plan.rayservice.render import render
from gptoss_weights.errors import AccessDeniedError, SourceUnavailableError
from gptoss_weights.materialise import pull
from gptoss_weights.sources import SourceSettings, open_source
from tests.contract.weights.proxy import listening
from tests.unit.operator import rayservices
from tests.unit.weights.builders import MODEL

ROLE = "arn:aws:iam::123456789012:role/gptoss-weights"
GIVEN = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{key}</AccessKeyId>
<SecretAccessKey>{secret}</SecretAccessKey><SessionToken></SessionToken><Expiration>{until}</Expiration>
</Credentials><AssumedRoleUser><Arn>arn:aws:sts::123456789012:assumed-role/gptoss-weights/s</Arn>
<AssumedRoleId>A:s</AssumedRoleId></AssumedRoleUser></AssumeRoleWithWebIdentityResult>
</AssumeRoleWithWebIdentityResponse>"""
REFUSED = """<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>
<Code>{code}</Code><Message>of {token}</Message></Error><RequestId>r</RequestId></ErrorResponse>"""


@dataclass
class TokenService:
    """The stand-in for STS."""

    key: str
    secret: str
    lasts: timedelta = timedelta(hours=1)
    refusals: list[tuple[int, str]] = field(default_factory=list)
    """Answers to the next calls, as status and code."""
    asked: list[dict[str, str]] = field(default_factory=list)
    endpoint: str = ""

    def answer(self, form: dict[str, str]) -> tuple[int, str]:
        self.asked.append(form)
        if self.refusals:
            status, code = self.refusals.pop(0)
            return status, REFUSED.format(code=code, token=form["WebIdentityToken"])
        until = (datetime.now(UTC) + self.lasts).strftime("%Y-%m-%dT%H:%M:%SZ")
        return 200, GIVEN.format(key=self.key, secret=self.secret, until=until)


@pytest.fixture
def token_service(object_store) -> Iterator[TokenService]:
    service = TokenService(key=object_store.access_key, secret=object_store.secret_key)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            status, text = service.answer({name: values[0] for name, values in parse_qs(body).items()})
            self.send_response(status)
            self.send_header("Content-Type", "text/xml")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    with listening(Handler, threading.Event()) as service.endpoint:
        yield service


@pytest.fixture
def pod(object_store, token_service, tmp_path, monkeypatch) -> Path:
    """Put this process into the environment of the fetching container; returns the file of its token."""
    aws = {"roleARN": ROLE, "stsEndpoint": token_service.endpoint}
    entry = {"namespaces": ["ml"], "serviceAccountName": "gptoss-weights", "aws": aws}
    at = rayservices.site(
        settings=rayservices.settings(workloadIdentities=[entry]),
        s3_endpoint=object_store.endpoint,
        s3_region=object_store.region,
    )
    cluster = render(rayservices.workload(), at).rayservice["spec"]["rayClusterConfig"]
    (container,) = cluster["workerGroupSpecs"][0]["template"]["spec"]["initContainers"]
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "identity"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for each in container["env"]:
        monkeypatch.setenv(each["name"], each["value"].replace(mount["mountPath"], str(tmp_path)))
    token = tmp_path / "token"
    token.write_text("the-first-token")
    return token


def stat(uri: str) -> int:
    settings = SourceSettings.from_environment()
    with open_source(uri, settings=settings) as source:
        return source.stat("config.json").size


def test_a_pod_with_an_identity_pulls_without_any_key(object_store, uploaded, weights, token_service, pod, tmp_path):
    found = pull(
        object_store.uri(uploaded),
        manifest_digest=weights.digest,
        subject=MODEL,
        directory=tmp_path / "private",
        settings=SourceSettings.from_environment(),
    )
    assert found.fetched_bytes == found.bytes
    assert token_service.asked == [
        {
            "Action": "AssumeRoleWithWebIdentity",
            "Version": "2011-06-15",
            "RoleArn": ROLE,
            "RoleSessionName": "gptoss.ml.assistant",
            "WebIdentityToken": "the-first-token",
        }
    ]


def test_a_long_pull_goes_on_with_the_token_that_is_there_then(object_store, uploaded, token_service, pod):
    token_service.lasts = timedelta(seconds=30)  # so short that each request asks anew
    with open_source(object_store.uri(uploaded), settings=SourceSettings.from_environment()) as source:
        source.stat("config.json")
        pod.write_text("the-second-token")
        source.stat("config.json")
    assert [token_service.asked[at]["WebIdentityToken"] for at in (0, -1)] == ["the-first-token", "the-second-token"]


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (400, "InvalidIdentityToken")])
def test_a_role_that_is_not_given_says_what_to_check(object_store, uploaded, token_service, pod, status, code):
    token_service.refusals = [(status, code)]
    with pytest.raises(AccessDeniedError, match=f"{code}, status {status}.*trust policy.*audience") as caught:
        stat(object_store.uri(uploaded))
    assert "the-first-token" not in caught.value.message
    assert len(token_service.asked) == 1


@pytest.mark.parametrize(("status", "code"), [(400, "IDPCommunicationError"), (503, "ServiceUnavailable")])
def test_a_token_service_that_is_busy_is_asked_again(object_store, uploaded, token_service, pod, status, code):
    token_service.refusals = [(status, code)] * 2
    assert stat(object_store.uri(uploaded)) > 0
    assert len(token_service.asked) == 3


def test_a_token_service_that_is_not_there_is_unavailable(object_store, uploaded, pod, free_port, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{free_port}")
    with pytest.raises(SourceUnavailableError):
        stat(object_store.uri(uploaded))
