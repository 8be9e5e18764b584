"""The whole path of a replica without an engine: arguments, weights, routes, token, Ray's router and HAProxy."""

import json
import re
from collections.abc import Callable

import pytest

from gptoss_cli.local.ray_head import RayHead
from tests.engine.conftest import SignedFolder
from tests.engine.ray import Applications, kill_ray, messages
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


def test_a_flipped_byte_fails_the_application_with_a_reason_and_the_files_name(
    applications: Applications, signed: Callable[..., SignedFolder]
) -> None:
    source = signed("flipped")
    source.flip_a_byte("model.safetensors")
    details = applications.wait(applications.put("flipped", weights=source.weights), "DEPLOY_FAILED")

    assert _reason(details) == "DigestMismatch"
    assert "model.safetensors" in messages(details)


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

    assert _reason(applications.wait(application, "DEPLOY_FAILED")) == reason


def test_a_killed_ray_comes_back_without_a_hand_on_it(
    applications: Applications, ray_head: RayHead, signed: Callable[..., SignedFolder]
) -> None:
    source = signed("killed")
    applications.wait(applications.put("killed", weights=source.weights), "RUNNING")
    kill_ray(ray_head).wait_for_the_next()

    assert applications.all() == {}, "a Ray without memory says so; the operator puts its applications again"
    applications.wait(applications.put("killed", weights=source.weights), "RUNNING")
    applications.wait_for_answer("killed")


def _reason(details: dict[str, object]) -> str:
    found = re.search(r"gptoss-reason=([A-Za-z]+); ", messages(details))
    assert found is not None, messages(details)
    return found[1]
