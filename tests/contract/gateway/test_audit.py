"""The audit file: a line for every request, whatever became of it, and never a word of what it said."""

import asyncio
import json
import stat
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from gptoss_gateway.server import Server
from tests.contract.gateway.house import KEY, UID, House, client, eventually, hashed, model_object
from tests.contract.gateway.test_passing_through import AUTHORIZED, MESSAGES

DIGEST = "sha256:" + "ab" * 32
CHAT = "/v1/chat/completions"
WORDS = "what-only-the-client-says"
NOBODY = {"tenant": None, "namespace": None, "model": None, "uid": None, "weights": None}
TENANT = {**NOBODY, "tenant": "ml"}
MODEL = {"tenant": "ml", "namespace": "ml", "model": "assistant", "uid": UID, "weights": DIGEST}
SECRET = {**MODEL, "model": "secret", "uid": "u-2"}


def deployed(state: str, **more: Any) -> dict[str, Any]:
    raw = model_object(state, **more)
    raw["status"]["weights"] = {"manifestDigest": DIGEST, "signer": "s", "authority": "a", "policy": "p",
                                "verifiedAt": "2026-11-01T00:00:00Z"}  # fmt: skip
    return raw


async def lines(house: House, server: Server) -> list[dict[str, Any]]:
    """Stop the gateway, which writes all it has, and return what it wrote."""
    await server.stop()
    house.servers.remove(server)
    text = await asyncio.to_thread(Path(server.gateway.settings.audit_file).read_text)
    assert WORDS not in text
    assert KEY not in text
    return [json.loads(line) for line in text.splitlines()]


def chat(**more: Any) -> dict[str, Any]:
    return {"json": {"model": "assistant", "messages": [{"role": "user", "content": WORDS}], **more}}


# What is asked, and what its line says: status, error, whose it was, and at which route.
REFUSED: dict[str, tuple[dict[str, Any], tuple[int, str, dict[str, Any], str | None]]] = {
    "no key": ({"headers": {}, **chat()}, (401, "invalid_api_key", NOBODY, CHAT)),
    "an unknown key": (
        {"headers": {"Authorization": f"Bearer {WORDS}"}, **chat()},
        (401, "invalid_api_key", NOBODY, CHAT),
    ),
    "an unknown model": (chat(model=WORDS), (404, "model_not_found", TENANT, CHAT)),
    "another namespace's model": (chat(model="other/foreign"), (404, "model_not_found", TENANT, CHAT)),
    "a model that its globs exclude": (chat(model="secret"), (403, "model_not_allowed", SECRET, CHAT)),
    "the same by its whole name": (chat(model="ml/secret"), (403, "model_not_allowed", SECRET, CHAT)),
    "a model that is suspended": (
        chat(model="off"),
        (503, "Suspended", {**MODEL, "model": "off", "uid": "u-3"}, CHAT),
    ),
    "a body that is no JSON": ({"data": WORDS, "type": "application/json"}, (400, "invalid_request", TENANT, CHAT)),
    "a body that is too large": (chat(more="x" * 70_000), (413, "request_too_large", TENANT, CHAT)),
    "a body of another type": ({"data": WORDS, "type": "text/plain"}, (415, "unsupported_media_type", TENANT, CHAT)),
    "a stored response": (
        {"path": "/v1/responses", "json": {"model": "assistant", "input": WORDS, "store": True}},
        (400, "responses_not_stored", TENANT, "/v1/responses"),
    ),
    "no such path": ({"path": f"/v1/{WORDS}", **chat()}, (404, "not_found", NOBODY, None)),
    "no such method": ({"method": "DELETE", "path": f"/v1/models/{WORDS}"}, (404, "not_found", NOBODY, None)),
    "a list without a key": (
        {"method": "GET", "path": "/v1/models", "headers": {}},
        (401, "invalid_api_key", NOBODY, "/v1/models"),
    ),
    "a model to be listed that is not there": (
        {"method": "GET", "path": f"/v1/models/{WORDS}"},
        (404, "model_not_found", TENANT, "/v1/models/{id}"),
    ),
}


@pytest.mark.parametrize(("asked", "told"), REFUSED.values(), ids=REFUSED.keys())
async def test_a_refusal_leaves_a_line(house, tmp_path, asked, told):
    house.write_keys([{"name": "ml", "keys": [hashed(KEY)], "namespaces": ["ml"], "models": ["assistant", "off"]}])
    house.apply(deployed("serving"))
    house.apply(deployed("serving", name="secret", uid="u-2"))
    house.apply(deployed("suspended", name="off", uid="u-3"))
    house.apply(deployed("serving", name="foreign", namespace="other", uid="u-4"))
    server = await house.open_gateway(auditFile=tmp_path / "audit.jsonl", limits={"maxBodyBytes": 65536})
    asked = {"method": "POST", "path": CHAT, "headers": AUTHORIZED, **asked}
    if "type" in asked:
        asked["headers"] = {**asked["headers"], "Content-Type": asked.pop("type")}
    url = server.url + asked.pop("path")
    async with aiohttp.ClientSession() as session, session.request(asked.pop("method"), url, **asked) as response:
        status, request = response.status, response.headers["x-request-id"]
        await response.read()
    (line,) = await lines(house, server)
    assert house.engines.requests == []
    assert line.pop("seconds") < 60
    assert line.pop("time").endswith("Z")
    expected_status, error, whose, route = told
    assert status == expected_status
    assert line == {
        "requestId": request, **whose, "route": route, "status": status, "error": error, "tokens": None
    }  # fmt: skip


async def test_a_request_beyond_its_tenants_limits_leaves_a_line(house, tmp_path):
    house.apply(deployed("serving"))
    application = house.deploy()
    limits = {"requestsPerMinute": 2, "concurrent": 1}
    house.write_keys([{"name": "ml", "keys": [hashed(KEY)], "namespaces": ["ml"], "limits": limits}])
    server = await house.open_gateway(auditFile=tmp_path / "audit.jsonl")
    async with client(server) as api:

        async def ask() -> None:
            await api.chat.completions.create(model="assistant", messages=MESSAGES)

        application.paused.clear()
        first = asyncio.create_task(ask())
        await eventually(lambda: len(application.posts) == 1)
        with pytest.raises(openai.RateLimitError):
            await ask()
        application.paused.set()
        await first
        await ask()
        with pytest.raises(openai.RateLimitError):
            await ask()
    found = [(line["status"], line["error"], line["tenant"], line["model"]) for line in await lines(house, server)]
    assert found == [
        (429, "concurrency_limit_exceeded", "ml", None),
        (200, None, "ml", "assistant"),
        (200, None, "ml", "assistant"),
        (429, "rate_limit_exceeded", "ml", None),
    ]


async def test_an_answer_leaves_a_line_without_content(house, tmp_path):
    house.apply(deployed("serving"))
    application = house.deploy()
    application.words = [WORDS]
    application.faults.append("json-400")
    path = tmp_path / "audit.jsonl"
    server = await house.open_gateway(auditFile=path)
    async with client(server) as api:

        def ask(**more: Any):
            messages = [{"role": "user", "content": WORDS}]
            return api.chat.completions.with_raw_response.create(model="assistant", messages=messages, **more)

        with pytest.raises(openai.BadRequestError):
            await ask()
        answer = await ask(stream=True)
        async for _ in answer.parse():
            pass
        assert [model.id async for model in api.models.list()] == ["assistant"]
        assert (await api.models.retrieve("assistant")).id == "assistant"
    refused, answered, listed, shown = await lines(house, server)
    assert (refused["status"], refused["error"], refused["tokens"]) == (400, None, None)
    assert answered.pop("seconds") < 60
    assert answered.pop("time").endswith("Z")
    assert answered == {
        "requestId": answer.headers["x-request-id"],
        **MODEL,
        "route": CHAT,
        "status": 200,
        "error": None,
        "tokens": {"input": 7, "cached": 0, "output": 2, "reasoning": 0, "estimated": False},
    }
    assert (listed["status"], listed["route"], listed["tenant"], listed["model"]) == (200, "/v1/models", "ml", None)
    assert (shown["status"], shown["route"], shown["model"]) == (200, "/v1/models/{id}", "assistant")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_leaves_one_line(house, tmp_path, stream):
    house.apply(deployed("serving"))
    application = house.deploy()
    application.paused.clear()
    server = await house.open_gateway(auditFile=tmp_path / "audit.jsonl")
    async with aiohttp.ClientSession() as session:
        body = {"model": "assistant", "messages": MESSAGES, "stream": stream}
        asking = asyncio.create_task(session.post(server.url + CHAT, json=body, headers=AUTHORIZED))
        await eventually(lambda: len(application.posts) == 1)
        if stream:
            await asking
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await asyncio.wait_for(application.aborted.wait(), 60)
    (line,) = await lines(house, server)
    assert (line["status"], line["error"], line["tenant"], line["model"]) == (None, None, "ml", "assistant")
    assert line["tokens"]["estimated"]
