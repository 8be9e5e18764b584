"""The whole path of a replica without an engine: arguments, weights, routes, token, Ray's router and HAProxy."""

import http.client
import json
import time
from collections.abc import Callable
from contextlib import closing
from urllib.parse import urlsplit

import psutil
import pytest

from gptoss_api.names import GATEWAY_TOKEN_HEADER, route_prefix
from gptoss_cli.local.ray_head import RayHead
from gptoss_operator.substrates.failures import failure_of
from gptoss_serving.drain import QUIET_SECONDS, is_replaced_proxy_left, proxy_is_busy, replicas_are_busy
from tests.engine.conftest import SignedFolder
from tests.engine.ray import GATEWAY_TOKEN, SECONDS, Applications, kill_ray, messages
from tests.engine.standin import ANSWER

pytestmark = pytest.mark.timeout(900)
CHAT = {"model": "any", "messages": [{"role": "user", "content": "Hello"}]}


def test_answers_the_openai_routes_and_nothing_else(
    applications: Applications, signed: Callable[..., SignedFolder]
) -> None:
    applications.wait(applications.put("routes", weights=signed("routes").weights), "RUNNING")
    applications.wait_for_answer("routes")

    chat = applications.ask("routes", "/v1/chat/completions", CHAT).json()
    assert chat["choices"][0]["message"]["content"] == ANSWER
    stream = applications.ask("routes", "/v1/chat/completions", {**CHAT, "stream": True, "chunks": 6}).text
    assert stream.endswith("data: [DONE]\n\n")
    parts = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    assert "".join(part["choices"][0]["delta"].get("content", "") for part in parts).startswith(ANSWER)
    output = applications.ask("routes", "/v1/responses", {"input": "Hello"}).json()["output"]
    assert [item["type"] for item in output] == ["reasoning", "message"]

    assert applications.ask("routes", "/metrics").status == 404
    assert applications.ask("routes", "/docs").status == 404
    assert applications.ask("routes", "/v1/models", token=None).status == 401
    assert applications.ask("routes", "/v1/chat/completions", CHAT, token="wrong").status == 401


def test_a_draining_node_waits_for_its_streams_and_not_for_open_connections(
    applications: Applications, signed: Callable[..., SignedFolder]
) -> None:
    applications.wait(applications.put("drained", weights=signed("drained").weights), "RUNNING")
    applications.wait_for_answer("drained")
    logs = applications.head.temporary / "session_latest" / "logs"
    serve = urlsplit(applications.head.serve_url)
    with closing(http.client.HTTPConnection(str(serve.hostname), serve.port, timeout=SECONDS)) as connection:
        # Its pause is longer than what counts as a moment ago.
        body = json.dumps({**CHAT, "stream": True, "chunks": 1, "pace": 4 * QUIET_SECONDS})
        path = f"{route_prefix('ml', 'drained')}/v1/chat/completions"
        connection.request("POST", path, body, {GATEWAY_TOKEN_HEADER: GATEWAY_TOKEN})
        stream = connection.getresponse()
        began = time.monotonic()
        seen = []
        while time.monotonic() < began + 2 * QUIET_SECONDS:
            seen.append((replicas_are_busy(logs), _is_anything_passed_on(applications.head)))
            time.sleep(0.5)
        assert set(seen) == {(True, True)}
        assert stream.read().endswith(b"data: [DONE]\n\n")

    with closing(http.client.HTTPConnection(str(serve.hostname), serve.port, timeout=SECONDS)) as connection:
        connection.request("GET", "/-/healthz")
        assert connection.getresponse().read() == b"success"
        applications.until(lambda: not replicas_are_busy(logs), what="the replica is seen to rest")
        applications.until(lambda: not _is_anything_passed_on(applications.head), what="HAProxy is seen to rest")


def test_a_flipped_byte_fails_the_application_with_a_reason_and_the_files_name(
    applications: Applications, signed: Callable[..., SignedFolder]
) -> None:
    source = signed("flipped")
    source.flip_a_byte("model.safetensors")
    details = applications.wait(applications.put("flipped", weights=source.weights), "DEPLOY_FAILED")

    found = failure_of(details)
    assert found.reason == "DigestMismatch", messages(details)
    assert "model.safetensors" in found.message


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda source: (source.folder / "model.sig").unlink(), "Unsigned"),
        (lambda source: (source.folder / "config.json").unlink(), "MissingFile"),
    ],
)
def test_other_faults_of_the_source_keep_their_reason(
    applications: Applications,
    signed: Callable[..., SignedFolder],
    change: Callable[[SignedFolder], None],
    reason: str,
) -> None:
    source = signed(reason.lower())
    change(source)
    application = applications.put(reason.lower(), weights=source.weights)

    details = applications.wait(application, "DEPLOY_FAILED")
    assert failure_of(details).reason == reason, messages(details)


def test_a_killed_ray_comes_back_without_a_hand_on_it(
    applications: Applications, ray_head: RayHead, signed: Callable[..., SignedFolder]
) -> None:
    source = signed("killed")
    applications.wait(applications.put("killed", weights=source.weights), "RUNNING")
    kill_ray(ray_head).wait_for_the_next()

    assert applications.all() == {}, "a Ray without memory says so; the operator puts its applications again"
    applications.wait(applications.put("killed", weights=source.weights), "RUNNING")
    applications.wait_for_answer("killed")


def _is_anything_passed_on(head: RayHead) -> bool:
    """By this Ray's HAProxy, or by one before it: a replica that comes or goes makes another take its place."""
    lines = ["\0".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    ours = [line.encode() for line in lines if str(head.temporary) in line]
    return proxy_is_busy(head.ports["metrics"]) or is_replaced_proxy_left(ours)
