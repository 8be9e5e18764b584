"""Blobs fetched as a workload: what KubeRay's pods are given, stand-ins for Entra ID and a storage account, over TLS.

The stand-in for Entra ID knows the one request that such a pod makes. It does not check the token as the real one does,
but tells which it was shown.
"""

import json
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from gptoss_operator.plan.rayservice.render import render
from gptoss_weights.errors import AccessDeniedError, SourceUnavailableError
from gptoss_weights.sources import SourceSettings, open_source
from gptoss_weights.sources.azure_identity import WorkloadCredential
from tests.contract.gateway.certificates import Authority
from tests.contract.weights.blobs import ACCOUNT, BEARER, KEY, Blobs, storing
from tests.contract.weights.proxy import listening
from tests.unit.operator import rayservices

CLIENT, TENANT = "11111111-2222-3333-4444-555555555555", "99999999-8888-7777-6666-555555555555"
GIVEN = {"token_type": "Bearer", "expires_in": 3599, "access_token": BEARER}


@dataclass
class Entra:
    """The stand-in for Entra ID."""

    endpoint: str = ""
    answers: list[tuple[int, Any]] = field(default_factory=list)
    """To the next requests, as status and document; then tokens are given."""
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)


@pytest.fixture
def certificate(tmp_path, monkeypatch) -> ssl.SSLContext:
    """A server's context, which this process trusts."""
    authority = Authority()
    pair = authority.issue("127.0.0.1")
    (tmp_path / "tls.pem").write_bytes(pair.certificate + pair.key)
    (tmp_path / "authority.pem").write_bytes(authority.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.pem")
    return context


@pytest.fixture
def blobs(weights, certificate) -> Iterator[Blobs]:
    with storing(weights.folder, certificate) as state:
        yield state


@pytest.fixture
def entra(certificate) -> Iterator[Entra]:
    state = Entra()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            state.asked.append((self.path, {name: values[0] for name, values in form.items()}))
            status, document = state.answers.pop(0) if state.answers else (200, GIVEN)
            body = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if status == 302:
                self.send_header("Location", f"{state.endpoint}/elsewhere")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with listening(Handler, threading.Event(), certificate) as url:
        state.endpoint = url
        yield state


@pytest.fixture
def pod(blobs, entra, tmp_path, monkeypatch) -> Path:
    """Put this process into the environment of the fetching container; returns the file of its token."""
    azure = {"clientID": CLIENT, "tenantID": TENANT, "authorityHost": entra.endpoint}
    entry = {"namespaces": ["ml"], "serviceAccountName": "gptoss-weights", "azure": azure}
    at = rayservices.site(
        settings=rayservices.settings(workloadIdentities=[entry]),
        azure_account=ACCOUNT,
        azure_endpoint=blobs.endpoint,
    )
    made = render(rayservices.workload(weights_uri=blobs.uri), at).rayservice["spec"]["rayClusterConfig"]
    (container,) = made["workerGroupSpecs"][0]["template"]["spec"]["initContainers"]
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "identity"]
    for each in container["env"]:
        monkeypatch.setenv(each["name"], each["value"].replace(mount["mountPath"], str(tmp_path)))
    token = tmp_path / "token"
    token.write_text("the-first-token\n")
    return token


def stat(blobs: Blobs) -> int:
    with open_source(blobs.uri, settings=SourceSettings.from_environment()) as source:
        return source.stat("config.json").size


def test_a_pod_with_an_identity_pulls_without_any_key(blobs, entra, pod, pulled):
    found = pulled(blobs.uri, settings=SourceSettings.from_environment())
    assert found.fetched_bytes == found.bytes
    assert {request.authorization for request in blobs.requests} == {f"Bearer {BEARER}"}
    assert entra.asked == [
        (
            f"/{TENANT}/oauth2/v2.0/token",
            {
                "grant_type": "client_credentials",
                "client_id": CLIENT,
                "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
                "client_assertion": "the-first-token",
                "scope": "https://storage.azure.com/.default",
            },
        )
    ]


def test_a_key_of_the_namespace_counts_more_than_the_operators_identity(blobs, entra, pod):
    settings = SourceSettings.from_environment().with_credentials({"AZURE_STORAGE_ACCOUNT_KEY": KEY})
    with open_source(blobs.uri, settings=settings) as source:
        assert source.stat("config.json").size
    assert entra.asked == []


def test_a_long_pull_goes_on_with_the_token_that_is_there_then(blobs, entra, pod):
    entra.answers = [(200, {**GIVEN, "expires_in": 60})]  # so short that the next request asks anew
    with open_source(blobs.uri, settings=SourceSettings.from_environment()) as source:
        source.stat("config.json")
        pod.write_text("the-second-token")
        source.stat("config.json")
        source.stat("config.json")
    assert [form["client_assertion"] for _, form in entra.asked] == ["the-first-token", "the-second-token"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, {"error": "x", "error_description": "AADSTS700213: no match for the-first-token"}), "AADSTS700213"),
        ((400, b"<html>"), "status 400"),
        ((302, b""), "status 302"),
        ((200, b"{}"), "status 200"),
        ((200, b"[1]"), "status 200"),
    ],
)
def test_an_identity_that_is_not_given_says_what_to_check(blobs, entra, pod, answer, said):
    entra.answers = [answer]
    with pytest.raises(AccessDeniedError, match=f"{said}.*federated credential") as caught:
        stat(blobs)
    assert "the-first-token" not in caught.value.message
    assert len(entra.asked) == 1


def test_a_busy_entra_is_asked_again(blobs, entra, pod):
    entra.answers = [(503, b"busy"), (429, {"error": "slow down"})]
    assert stat(blobs) > 0
    assert len(entra.asked) == 3


def test_an_entra_that_is_not_there_is_unavailable(blobs, pod, free_port, monkeypatch):
    monkeypatch.setenv("AZURE_AUTHORITY_HOST", f"https://127.0.0.1:{free_port}")
    with pytest.raises(SourceUnavailableError, match="Entra ID does not answer"):
        stat(blobs)


def test_a_token_that_can_not_be_read_names_its_variable(blobs, pod):
    pod.unlink()
    with pytest.raises(AccessDeniedError, match="AZURE_FEDERATED_TOKEN_FILE"):
        stat(blobs)


def test_a_token_is_for_blobs_alone_and_sent_over_tls_alone(blobs, entra, pod, monkeypatch):
    settings = SourceSettings.from_environment()
    assert settings.azure_workload is not None
    credential = WorkloadCredential(settings.azure_workload, settings)
    with pytest.raises(AccessDeniedError, match="something else"):
        credential.get_token("https://management.azure.com/.default")
    credential.close()
    monkeypatch.setenv("AZURE_AUTHORITY_HOST", "http://login.example.com")
    with pytest.raises(AccessDeniedError, match="https"):
        stat(blobs)
    monkeypatch.setenv("AZURE_AUTHORITY_HOST", entra.endpoint)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", blobs.endpoint.replace("https", "http"))
    with pytest.raises(AccessDeniedError, match="https"):
        stat(blobs)
    assert entra.asked == []
