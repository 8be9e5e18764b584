"""What the pinned vLLM registers, and which of it a client can reach."""

import ast
import functools
import gc
import importlib.util
import json
from pathlib import Path

import aiohttp
import pytest

from gptoss_gateway.inference import ROUTES
from gptoss_serving.routes import ALLOWED
from tests.contract.gateway.house import KEY, model_object
from tests.contract.gateway.test_passing_through import AUTHORIZED, MESSAGES

REGISTER = {
    "get", "post", "put", "patch", "delete", "head", "options", "websocket", "mount", "Mount", "route", "api_route",
    "add_api_route", "add_route", "add_websocket_route", "add_api_websocket_route",
}  # fmt: skip
FASTAPI = {"/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect"}
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
OFFERED = {("POST", path) for path in ROUTES} | {("GET", "/v1/models")}


@functools.cache
def registered_routes() -> frozenset[str]:
    """Every path that vLLM's source registers anywhere, in whichever mode; read, since importing it takes minutes."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations
    found = set(FASTAPI)
    for file in (Path(spec.submodule_search_locations[0]) / "entrypoints").rglob("*.py"):
        for node in ast.walk(_parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            path = getattr(node.args[0], "value", None) if name in REGISTER and node.args else None
            if isinstance(path, str) and path.startswith("/"):
                found.add(path)
    return frozenset(found)


def _parse(source: str) -> ast.Module:
    """Parse without a garbage collection in between.

    What one logs of an earlier test's leftovers is a traceback, which parses too, and before 3.11.8 a parser
    within a parser is a SystemError (gh-106905).
    """
    gc.disable()
    try:
        return ast.parse(source)
    finally:
        gc.enable()


def test_the_pinned_engine_has_every_route_that_is_offered_and_replicas_let_it_pass():
    routes = registered_routes()
    assert len(routes) > 60
    assert {"/tokenize", "/v1/load_lora_adapter", "/collective_rpc", "/metrics", "/scale_elastic_ep"} <= routes
    assert set(ROUTES) <= routes
    assert {("POST", path) for path in ROUTES} == {route for route in ALLOWED if route[0] == "POST"}


async def test_every_other_route_of_the_engine_is_404_before_anybody_is_asked(house):
    house.apply(model_object("serving"))
    house.deploy()
    server = await house.open_gateway()
    body = json.dumps({"model": "assistant", "messages": MESSAGES})
    headers = {**AUTHORIZED, "Content-Type": "application/json"}
    answers = {}
    async with aiohttp.ClientSession() as session:
        for path in sorted(registered_routes()):
            path = path.replace("{", "").replace("}", "")
            for method in METHODS:
                if (method, path) not in OFFERED:
                    async with session.request(method, server.url + path, data=body, headers=headers) as response:
                        answers[method, path] = response.status
    assert len(answers) > 400
    assert {route: status for route, status in answers.items() if status != 404} == {}
    assert house.engines.requests == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/responses/resp_1"),
        ("DELETE", "/v1/responses/resp_1"),
        ("POST", "/v1/responses/resp_1/cancel"),
        ("GET", "/v1/responses/resp_1/input_items"),
    ],
)
async def test_stored_responses_are_404_and_the_message_says_why(house, method, path):
    server = await house.open_gateway()
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, server.url + path, headers=AUTHORIZED) as response,
    ):
        assert response.status == 404
        assert "not stored here" in (await response.json())["error"]["message"]


async def test_a_response_to_store_is_refused_and_wakes_nothing(house):
    house.apply(model_object("idle"))
    server = await house.open_gateway()
    body = {"model": "assistant", "input": "Hi", "store": True}
    async with (
        aiohttp.ClientSession() as session,
        session.post(server.url + "/v1/responses", json=body, headers=AUTHORIZED) as response,
    ):
        assert response.status == 400
        error = (await response.json())["error"]
    assert (error["param"], error["code"]) == ("store", "responses_not_stored")
    assert server.gateway.ledger.demands() == ()


async def test_anthropic_messages_pass_whole_and_streamed(house):
    house.apply(model_object("serving"))
    house.deploy()
    server = await house.open_gateway()
    body = {"model": "assistant", "max_tokens": 9, "messages": MESSAGES}
    headers = {"x-api-key": KEY, "anthropic-version": "2023-06-01"}
    async with aiohttp.ClientSession() as session:
        async with session.post(server.url + "/v1/messages", json=body, headers=headers) as response:
            assert (await response.json())["content"] == [{"type": "text", "text": "Hello world"}]
        async with session.post(
            server.url + "/v1/messages", json={**body, "stream": True}, headers=headers
        ) as response:
            assert (await response.read()).endswith(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')
