"""The real engine on a CPU: signed tiny weights in, the taught answers out, and no engine for broken bytes."""

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gptoss_api.names import application_name, engine_model_id
from gptoss_cli.local import tiny_model
from gptoss_gateway.server import Server
from gptoss_operator.substrates.failures import failure_of
from gptoss_serving.node import Node
from gptoss_weights.sign import generate_key
from tests.contract.gateway.house import KEY, House, model_object
from tests.engine.conftest import SignedFolder, signed_copy
from tests.engine.ray import GATEWAY_TOKEN, SECONDS, Applications, messages, new_engines, processes

SERVING = "gptoss_serving.app:build"
ENGINE = {"enable_auto_tool_choice": True, "tool_call_parser": "openai", "max_model_len": 2048, "max_num_seqs": 8}
START_SECONDS = 600
RUNNING, WAITING = "ray_vllm_num_requests_running", "ray_vllm_num_requests_waiting"
GENERATED = "ray_vllm_generation_tokens_total"
LISTENED = 800
"""Tokens, a hundred of each sequence that runs."""
CONTROLLER = "ray::ServeController"
CHANCE = frozenset(
    {"id", "item_id", "created", "created_at", "completed_at", "sequence_number", "signature", "system_fingerprint"}
)
"""Of an event: names, times and counts of one request; the last is in no stream for which a usage is asked."""
TEXTS = frozenset({"content", "reasoning", "reasoning_content", "text", "delta", "thinking"})
ELSEWHERE = ("/health", "/metrics", "/version", "/docs", "/openapi.json", "/load", "/tokenize")

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1500)]


def test_no_engine_process_starts_for_a_flipped_byte(
    applications: Applications, signed: Callable[..., SignedFolder]
) -> None:
    source = signed("broken")
    source.flip_a_byte("model.safetensors")
    with new_engines(applications.head) as engines:
        application = applications.put("broken", weights=source.weights, import_path=SERVING, **ENGINE)
        details = applications.wait(application, "DEPLOY_FAILED", seconds=START_SECONDS)

    found = failure_of(details)
    assert found.reason == "DigestMismatch", messages(details)
    assert "model.safetensors" in found.message
    assert engines == []
    node = Node.from_environment(applications.head.node_environment())
    assert not Path(node.copy_of(source.weights)).exists(), "a copy was given out that never verified"


@pytest.fixture(scope="module")
def tiny(
    _applications: Applications, weights_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Applications]:
    """The tiny model's engine, named ``tiny``, for all who only ask it: its start takes minutes."""
    key = generate_key(tmp_path_factory.mktemp("keys") / "signing.key")
    source = signed_copy(weights_root, "tiny", key=key)
    with new_engines(_applications.head) as engines:
        application = _applications.put("tiny", weights=source.weights, import_path=SERVING, **ENGINE)
        _applications.wait(application, "RUNNING", seconds=START_SECONDS)
    assert engines, "an engine that serves is seen: only then does not seeing one prove anything"
    _applications.wait_for_answer("tiny")
    yield _applications
    _applications.forget_all()
    shutil.rmtree(source.folder)


@pytest.fixture
async def gateway(tiny: Applications, tmp_path: Path) -> AsyncIterator[Server]:
    """A gateway before that engine; of Kubernetes it sees one deployment."""
    house = House(tmp_path)
    token = tmp_path / "token"
    token.write_text(GATEWAY_TOKEN)
    head = tiny.head
    addresses = {"dashboardURL": head.dashboard_url, "serveURL": head.serve_url}
    server = await house.open_gateway(rayClusters=[{"name": "local", **addresses, "gatewayTokenFile": token}])
    house.apply(model_object("serving", name="tiny", uid="uid"))
    yield server
    await house.stop()


async def test_a_client_that_leaves_stops_the_engine(tiny: Applications, gateway: Server) -> None:
    """By vLLM's own count nothing runs or waits any more, and what it generated after the client left is a trifle.

    How fast it stops is measured in tokens, which a busy machine makes as slowly as everything else: it goes on for
    less than half as long as the client had listened. An idle one of two cores makes some hundred in a second.
    """
    choices, tokens = 64, 1900
    body = {
        "model": "tiny",
        "prompt": "Once upon a time",
        "n": choices,
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    received: dict[int, int] = {}

    async def read(response: aiohttp.ClientResponse) -> None:
        async for line in response.content:
            if line.startswith(b"data: {"):
                piece = json.loads(line[6:])
                received.update({each["index"]: piece["usage"]["completion_tokens"] for each in piece["choices"]})

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2 * SECONDS)) as session:

        async def told() -> dict[str, float]:
            return await _told_by_vllm(session, tiny)

        assert (await told()).get(GENERATED, 0) == 0, "another test asked this engine before: its tokens would count"
        url, headers = gateway.url + "/v1/completions", {"Authorization": f"Bearer {KEY}"}
        async with session.post(url, json=body, headers=headers) as response:
            assert response.status == 200, await response.text()
            reading = asyncio.create_task(read(response))
            running = await _until(
                told,
                lambda told: told.get(RUNNING, 0) > 0 and sum(received.values()) >= LISTENED,
                what="vLLM works, and the client has heard enough",
            )
            reading.cancel()
            response.close()
        left = await _until(told, lambda told: told[RUNNING] + told[WAITING] == 0, what="vLLM works on nothing")
    heard = sum(received.values())
    assert (running[RUNNING], running[WAITING]) == (ENGINE["max_num_seqs"], choices - ENGINE["max_num_seqs"])
    assert heard < choices * tokens / 2, "it would have come to its end by itself"
    assert left[GENERATED] - heard < heard / 2


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
async def test_a_stream_comes_through_the_gateway_as_the_engine_makes_it(
    tiny: Applications, gateway: Server, path: str
) -> None:
    """But for what the engine says of a request alone: its id and its time. How many tokens an event has is chance.

    The gateway asks for the usage in the client's place, which must not show.
    """
    messages = [{"role": "user", "content": tiny_model.QUESTION}]
    asked: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": messages, "max_completion_tokens": 60},
        "/v1/completions": {"prompt": "Once upon a time", "max_tokens": 20},
        "/v1/responses": {"input": tiny_model.QUESTION, "max_output_tokens": 60},
        "/v1/messages": {"messages": messages, "max_tokens": 60},
    }
    body = {**asked[path], "temperature": 0, "stream": True}
    engine_id = engine_model_id("ml", "tiny", "uid")
    for _ in range(2):  # from the second on, all of the prompt that the cache takes comes from there
        direct = await asyncio.to_thread(tiny.ask, "tiny", path, {**body, "model": engine_id})
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS)) as session,
        session.post(
            gateway.url + path, json={**body, "model": "tiny"}, headers={"Authorization": f"Bearer {KEY}"}
        ) as response,
    ):
        through = await response.text()
    assert (direct.status, response.status) == (200, 200), (direct.text, through)
    assert _story(through) == _story(direct.text)
    assert '"usage":{' not in through or path in ("/v1/responses", "/v1/messages")


async def test_tokens_from_the_engines_cache_are_told_and_counted(tiny: Applications, gateway: Server) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    labels = {"namespace": "ml", "model": "tiny", "tenant": "ml", "source": "engine"}

    def counted(kind: str) -> float:
        name = "gptoss_gateway_tokens_total"
        return gateway.gateway.metering.registry.get_sample_value(name, {**labels, "kind": kind}) or 0.0

    long = "Once upon a time there was a king. " * 40
    message = {"messages": [{"role": "user", "content": long}], "max_tokens": 2}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", message),
        ("/v1/chat/completions", {**message, "stream": True}),
        ("/v1/completions", {"prompt": long, "max_tokens": 2}),
        ("/v1/completions", {"prompt": long, "max_tokens": 2, "stream": True}),
        ("/v1/messages", message),
        ("/v1/messages", {**message, "stream": True}),
        ("/v1/responses", {"input": long, "max_output_tokens": 2}),
    ]
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS)) as session:
        for path, body in asked:
            for again in (False, True):
                before = {kind: counted(kind) for kind in ("input", "cached")}
                async with session.post(gateway.url + path, json={**body, "model": "tiny"}, headers=headers) as answer:
                    assert answer.status == 200, await answer.text()
                    await answer.read()
                assert counted("input") - before["input"] > 300, f"{path} was asked with a long prompt"
                if again:
                    assert 200 < counted("cached") - before["cached"] < counted("input") - before["input"], path


def test_serves_verified_weights_through_the_openai_routes(tiny: Applications) -> None:
    model = tiny.ask("tiny", "/v1/models").json()["data"][0]["id"]
    ask = {"model": model, "temperature": 0}

    chat = {**ask, "messages": [{"role": "user", "content": tiny_model.QUESTION}]}
    reply = tiny.ask("tiny", "/v1/chat/completions", chat)
    assert reply.status == 200, reply.text
    message = reply.json()["choices"][0]["message"]
    assert (message["content"], message["reasoning"]) == (tiny_model.ANSWER, tiny_model.REASONING)

    stream = tiny.ask("tiny", "/v1/chat/completions", {**chat, "stream": True}).text
    parts = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    deltas = [part["choices"][0]["delta"] for part in parts if part["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == tiny_model.ANSWER
    assert "".join(delta.get("reasoning") or "" for delta in deltas) == tiny_model.REASONING
    assert stream.rstrip().endswith("data: [DONE]")

    response = tiny.ask("tiny", "/v1/responses", {**ask, "input": tiny_model.QUESTION}).json()
    assert [item["type"] for item in response["output"]] == ["reasoning", "message"]
    assert response["output"][1]["content"][0]["text"] == tiny_model.ANSWER
    assert response["usage"]["output_tokens"] > 0

    tool = {"tools": [{"type": "function", "function": tiny_model.TOOL}]}
    called = tiny.ask(
        "tiny",
        "/v1/chat/completions",
        {**ask, **tool, "messages": [{"role": "user", "content": tiny_model.TOOL_QUESTION}]},
    ).json()["choices"][0]
    assert called["finish_reason"] == "tool_calls"
    call = called["message"]["tool_calls"][0]["function"]
    assert (call["name"], json.loads(call["arguments"])) == ("get_weather", tiny_model.TOOL_ARGUMENTS)

    ask_claude = {"model": model, "max_tokens": 200, "temperature": 0, "messages": chat["messages"]}
    message = tiny.ask("tiny", "/v1/messages", ask_claude)
    assert message.status == 200, message.text
    assert tiny_model.ANSWER in [part.get("text") for part in message.json()["content"]]
    events = tiny.ask("tiny", "/v1/messages", {**ask_claude, "stream": True}).text
    assert "event: message_stop" in events

    assert {path: tiny.ask("tiny", path).status for path in ELSEWHERE} == dict.fromkeys(ELSEWHERE, 404)
    assert tiny.ask("tiny", "/v1/chat/completions", chat, token=None).status == 401


def test_an_engine_on_a_cpu_sleeps_while_its_worker_computes(tiny: Applications) -> None:
    model = tiny.ask("tiny", "/v1/models").json()["data"][0]["id"]
    (core,) = processes(tiny.head, "VLLM::EngineCore")
    before = psutil.Process(core).num_ctx_switches()
    body = {"model": model, "prompt": "Once upon a time", "max_tokens": 500, "ignore_eos": True}
    assert tiny.ask("tiny", "/v1/completions", body).status == 200
    after = psutil.Process(core).num_ctx_switches()
    # A loop that only yields never sleeps: the kernel takes the CPU from it, thousands of times a second.
    assert after.voluntary - before.voluntary > after.involuntary - before.involuntary


def test_an_engine_outlives_serves_controller(tiny: Applications) -> None:
    """Also what a new head needs, where Ray's state outlived the old one: its controller recovers the replicas."""
    model = tiny.ask("tiny", "/v1/models").json()["data"][0]["id"]
    (controller,) = processes(tiny.head, CONTROLLER)
    engines, replicas = processes(tiny.head, "VLLM::"), _replicas(tiny)
    assert engines
    os.kill(controller, signal.SIGKILL)
    body = {"model": model, "prompt": "Once upon a time", "max_tokens": 1000, "ignore_eos": True, "stream": True}
    stream = tiny.ask("tiny", "/v1/completions", body)
    tiny.until(
        lambda: processes(tiny.head, CONTROLLER).keys() - {controller} and _replicas(tiny) == replicas,
        seconds=START_SECONDS,
        what="another controller found the same replica",
    )
    assert processes(tiny.head, "VLLM::") == engines
    assert (stream.status, stream.text.rstrip()[-12:]) == (200, "data: [DONE]")
    assert tiny.ask("tiny", "/v1/models").status == 200


def _story(stream: str) -> list[tuple[str, Any, str]]:
    """Return what a stream tells: its events in order, without names and times, neighbours of one kind as one text."""
    told: list[tuple[str, Any, str]] = []
    for block in stream.split("\n\n"):
        name, _, data = block.rpartition("data: ")
        words: list[str] = []
        event = _without_chance(json.loads(data), words) if data.startswith("{") else data
        if told and told[-1][:2] == (name, event):
            words.insert(0, told.pop()[2])
        told.append((name, event, "".join(words)))
    return told


def _without_chance(value: Any, words: list[str]) -> Any:
    """Return a copy without what differs between two answers to the same request; texts are moved to ``words``."""
    if isinstance(value, list):
        return [_without_chance(each, words) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {}
    for name, each in value.items():
        if name in CHANCE:
            continue
        if name in TEXTS and isinstance(each, str):
            words.append(each)
            each = "…"
        kept[name] = _without_chance(each, words)
    return kept


def _replicas(applications: Applications) -> dict[str, tuple[str, int]]:
    """Return state and process of each replica of the engine, by its id."""
    application = applications.all().get(application_name("test", "ml", "tiny"), {})
    return {
        replica["replica_id"]: (replica["state"], replica["pid"])
        for name, deployment in application.get("deployments", {}).items()
        if name.startswith("GptOssServer")
        for replica in deployment["replicas"]
    }


async def _told_by_vllm(session: aiohttp.ClientSession, applications: Applications) -> dict[str, float]:
    """Return what the engine says of itself, as Ray passes it on to Prometheus."""
    async with session.get(f"http://127.0.0.1:{applications.head.ports['export']}/metrics") as response:
        lines = (await response.text()).splitlines()
    # All of it takes long to parse, and client and gateway would wait meanwhile.
    text = "".join(f"{line}\n" for line in lines if line.startswith((RUNNING, WAITING, GENERATED)))
    model = engine_model_id("ml", "tiny", "uid")
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("model_name") == model
    }


async def _until(
    told: Callable[[], Awaitable[dict[str, float]]], reached: Callable[[dict[str, float]], bool], *, what: str
) -> dict[str, float]:
    found: dict[str, float] = {}
    try:
        async with asyncio.timeout(SECONDS):
            while not reached(found := await told()):  # noqa: ASYNC110 - it happens in another process
                await asyncio.sleep(0.5)
    except TimeoutError:
        raise AssertionError(f"not within {SECONDS:.0f} s: {what}; it tells {found}") from None
    return found
