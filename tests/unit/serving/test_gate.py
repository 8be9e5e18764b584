"""Who gets through to a replica, and which routes are left."""

import hashlib
import os
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from gptoss_api.names import GATEWAY_TOKEN_HEADER
from gptoss_serving.errors import NodeMisconfiguredError
from gptoss_serving.gate import GatewayTokens
from gptoss_serving.in_flight import InFlight
from gptoss_serving.routes import restrict

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:starlette.*")


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text(_line("old") + _line("new"))
    return file


def test_accepts_each_listed_token_and_no_other(tokens_file: Path) -> None:
    tokens = GatewayTokens(tokens_file)

    assert tokens.accepts(b"old")
    assert tokens.accepts(b"new")
    assert not tokens.accepts(b"")
    assert not tokens.accepts(hashlib.sha256(b"old").hexdigest().encode())


def test_a_changed_file_counts_at_once(tokens_file: Path) -> None:
    tokens = GatewayTokens(tokens_file)
    assert tokens.accepts(b"old")
    replacement = tokens_file.with_name("replacement")
    replacement.write_text(_line("newest"))
    replacement.rename(tokens_file)

    assert tokens.accepts(b"newest")
    assert not tokens.accepts(b"old")


def test_nobody_gets_through_when_the_file_is_gone(tokens_file: Path) -> None:
    tokens = GatewayTokens(tokens_file)
    tokens_file.unlink()

    assert not tokens.accepts(b"old")


@pytest.mark.parametrize("content", ["", "old\n", "sha256:abc\n"])
def test_refuses_to_start_without_a_token_that_could_be_right(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokens").write_text(content)

    with pytest.raises(NodeMisconfiguredError, match="GPTOSS_GATEWAY_TOKENS_FILE"):
        GatewayTokens(tmp_path / "tokens")


def test_only_the_openai_routes_are_left(client: TestClient) -> None:
    carrying = {GATEWAY_TOKEN_HEADER: "old"}

    assert client.get("/v1/models", headers=carrying).text == "GET /v1/models"
    assert client.post("/v1/chat/completions", headers=carrying).text == "POST /v1/chat/completions"
    assert client.post("/scale_elastic_ep", headers=carrying).status_code == 404
    assert client.get("/metrics", headers=carrying).status_code == 404
    assert client.get("/v1/responses/resp_1", headers=carrying).status_code == 404


@pytest.mark.parametrize("headers", [[], [(GATEWAY_TOKEN_HEADER, "x")], [(GATEWAY_TOKEN_HEADER, "old")] * 2])
def test_without_exactly_one_right_token_the_answer_is_401_in_openais_shape(
    client: TestClient, headers: list[tuple[str, str]]
) -> None:
    for path in ("/v1/models", "/metrics"):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "gateway_token_required"


@pytest.fixture
def client(tokens_file: Path) -> TestClient:
    async def echo(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"{request.method} {request.url.path}")

    routes = [
        Route("/v1/models", echo, methods=["GET"]),
        Route("/v1/chat/completions", echo, methods=["POST"]),
        Route("/v1/responses/{response_id}", echo, methods=["GET"]),
        Route("/scale_elastic_ep", echo, methods=["POST"]),
        Route("/metrics", echo),
    ]
    app = Starlette(routes=routes)
    app.middleware_stack = app.build_middleware_stack()  # as vLLM does
    return TestClient(restrict(app, GatewayTokens(tokens_file), InFlight(tokens_file.parent)))


def _line(token: str) -> str:
    return f"sha256:{hashlib.sha256(token.encode()).hexdigest()}{os.linesep}"
