"""The real engine on a CPU: signed tiny weights in, the taught answers out, and no engine for broken bytes."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from gptoss_cli.local import tiny_model
from gptoss_serving.node import Node
from tests.engine.conftest import SignedFolder
from tests.engine.ray import Applications, messages, new_engines

SERVING = "gptoss_serving.app:build"
ENGINE = {"enable_auto_tool_choice": True, "tool_call_parser": "openai", "max_model_len": 2048, "max_num_seqs": 8}
START_SECONDS = 600
ELSEWHERE = ("/health", "/metrics", "/version", "/docs", "/openapi.json", "/load", "/tokenize")

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1500)]


def test_serves_verified_weights_through_the_openai_routes(
    applications: Applications, signed: Callable[..., SignedFolder]
) -> None:
    with new_engines(applications.head) as engines:
        application = applications.put("tiny", weights=signed("tiny").weights, import_path=SERVING, **ENGINE)
        applications.wait(application, "RUNNING", seconds=START_SECONDS)
    assert engines, "an engine that serves is seen: only then does not seeing one prove anything"
    applications.wait_for_answer("tiny")
    model = applications.ask("tiny", "/v1/models").json()["data"][0]["id"]
    ask = {"model": model, "temperature": 0}

    chat = {**ask, "messages": [{"role": "user", "content": tiny_model.QUESTION}]}
    reply = applications.ask("tiny", "/v1/chat/completions", chat)
    assert reply.status == 200, reply.text
    message = reply.json()["choices"][0]["message"]
    assert (message["content"], message["reasoning"]) == (tiny_model.ANSWER, tiny_model.REASONING)

    stream = applications.ask("tiny", "/v1/chat/completions", {**chat, "stream": True}).text
    parts = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    deltas = [part["choices"][0]["delta"] for part in parts if part["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == tiny_model.ANSWER
    assert "".join(delta.get("reasoning") or "" for delta in deltas) == tiny_model.REASONING
    assert stream.rstrip().endswith("data: [DONE]")

    response = applications.ask("tiny", "/v1/responses", {**ask, "input": tiny_model.QUESTION}).json()
    assert [item["type"] for item in response["output"]] == ["reasoning", "message"]
    assert response["output"][1]["content"][0]["text"] == tiny_model.ANSWER
    assert response["usage"]["output_tokens"] > 0

    tool = {"tools": [{"type": "function", "function": tiny_model.TOOL}]}
    called = applications.ask(
        "tiny",
        "/v1/chat/completions",
        {**ask, **tool, "messages": [{"role": "user", "content": tiny_model.TOOL_QUESTION}]},
    ).json()["choices"][0]
    assert called["finish_reason"] == "tool_calls"
    call = called["message"]["tool_calls"][0]["function"]
    assert (call["name"], json.loads(call["arguments"])) == ("get_weather", tiny_model.TOOL_ARGUMENTS)

    ask_claude = {"model": model, "max_tokens": 200, "temperature": 0, "messages": chat["messages"]}
    message = applications.ask("tiny", "/v1/messages", ask_claude)
    assert message.status == 200, message.text
    assert tiny_model.ANSWER in [part.get("text") for part in message.json()["content"]]
    events = applications.ask("tiny", "/v1/messages", {**ask_claude, "stream": True}).text
    assert "event: message_stop" in events

    assert {path: applications.ask("tiny", path).status for path in ELSEWHERE} == dict.fromkeys(ELSEWHERE, 404)
    assert applications.ask("tiny", "/v1/chat/completions", chat, token=None).status == 401


def test_no_engine_process_starts_for_a_flipped_byte(
    applications: Applications, signed: Callable[..., SignedFolder]
) -> None:
    source = signed("broken")
    source.flip_a_byte("model.safetensors")
    with new_engines(applications.head) as engines:
        application = applications.put("broken", weights=source.weights, import_path=SERVING, **ENGINE)
        details = applications.wait(application, "DEPLOY_FAILED", seconds=START_SECONDS)

    found = re.search(r"gptoss-reason=([A-Za-z]+); ([^\n]*)", messages(details))
    assert found is not None, messages(details)
    assert found[1] == "DigestMismatch"
    assert "model.safetensors" in found[2]
    assert engines == []
    node = Node.from_environment(applications.head.node_environment())
    assert not Path(node.copy_of(source.weights)).exists(), "a copy was given out that never verified"
