"""A Ray Serve proxy with engines behind it, as a client of HAProxy sees them, with faults on demand."""

import asyncio
import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from gptoss_api.names import GATEWAY_TOKEN_HEADER
from gptoss_cli.local.ports import free_ports

TOKEN = "gateway-token"
TEXT_404 = "Path '%s' not found. Ping http://127.0.0.1:8000/-/routes for available routes."


@dataclass
class Application:
    """One deployed application. ``faults`` are taken by POSTs, one each, before it answers well."""

    model_id: str
    faults: deque[str] = field(default_factory=deque)
    words: list[str] = field(default_factory=lambda: ["Hello", " world"])
    deploying: bool = False
    paused: asyncio.Event = field(default_factory=asyncio.Event)  # set: streams go on
    before_pause: int = 1  # events of a stream that come while it is paused
    posts: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    streaming: asyncio.Event = field(default_factory=asyncio.Event)  # set once a stream's first event is out
    aborted: asyncio.Event = field(default_factory=asyncio.Event)  # set when a client left

    def __post_init__(self) -> None:
        self.paused.set()


class Engines:
    """The proxy on a port of its own."""

    def __init__(self) -> None:
        self.applications: dict[str, Application] = {}
        self.requests: list[str] = []
        self._runner: web.AppRunner | None = None
        # One that nobody else is given while it is closed, for tests that open it again.
        (self.port,) = free_ports(1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        application = web.Application(client_max_size=2**26)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path}")
        prefix, _, rest = request.path.partition("/v1/")
        app = self.applications.get(prefix)
        if app is None:
            return web.Response(status=404, text=TEXT_404 % request.path)
        if app.deploying:
            await asyncio.sleep(3600)
        if request.headers.get(GATEWAY_TOKEN_HEADER) != TOKEN:
            return web.json_response({"error": {"message": "gateway token"}}, status=401)
        if request.method == "GET":
            return web.json_response({"object": "list", "data": [{"id": app.model_id, "object": "model"}]})
        app.posts.append((rest, dict(request.headers), await request.read()))
        fault = app.faults.popleft() if app.faults else ""
        if fault == "reset":
            request.transport.abort()
            return web.Response()
        if fault == "text-500":
            return web.Response(status=500, text="Internal Server Error")
        if fault == "away":  # and so it stays
            app.deploying = True
        if fault in ("text-503", "away"):
            return web.Response(status=503, text="no replica", headers={"X-Serve-Reason": "no replica"})
        if fault == "text-404":
            return web.Response(status=404, text=TEXT_404 % request.path)
        if fault in ("json-500", "json-501", "json-502", "json-503", "json-504"):
            status = int(fault.removeprefix("json-"))
            error = {"message": f"vLLM says {status}", "type": "InternalServerError", "param": None, "code": status}
            return web.json_response({"error": error}, status=status)
        if fault == "usage-500":
            error = {"message": "lost half-way", "type": "InternalServerError", "param": None, "code": 500}
            return web.json_response({"error": error, "usage": _answer(app, rest)["usage"]}, status=500)
        if fault == "no-usage":
            return web.json_response({**_answer(app, rest), "usage": None})
        if fault == "json-400":
            error = {"message": "max_tokens too large", "type": "BadRequestError"}
            if rest == "messages":
                return web.json_response({"type": "error", "error": error}, status=400)
            return web.json_response({"error": {**error, "param": None, "code": 400}}, status=400)
        if fault == "scaling-503":
            return web.json_response({"error": "The model is currently scaling. Please try again later."}, status=503)
        if fault == "detail-404":
            return web.json_response({"detail": "Not Found"}, status=404)
        if fault == "half-json":
            return web.Response(body=b'{"id": "x", "choices": [', content_type="application/json")
        if fault == "deep-json":
            return web.Response(body=b'{"a":' + b"[" * 100_000, content_type="application/json")
        if fault == "much-json":
            return web.Response(body=b'{"a":[' + b"[],\n" * 500_000 + b"[]]}", content_type="application/json")
        if fault == "endless-usage":
            usage = b'{"prompt_tokens":' + b"9" * 400 + b',"completion_tokens":2}'
            return web.Response(body=b'{"choices":[],"usage":' + usage + b"}", content_type="application/json")
        body = json.loads(app.posts[-1][2])
        try:
            if body.get("stream"):
                return await self._stream(request, app, rest, body, fault)
            await app.paused.wait()
            if fault == "late-reset":
                request.transport.abort()
        except asyncio.CancelledError:
            app.aborted.set()
            raise
        return web.json_response(_answer(app, rest))

    async def _stream(
        self, request: web.Request, app: Application, kind: str, body: dict[str, Any], fault: str
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        events = _events(app, kind, usage=bool((body.get("stream_options") or {}).get("include_usage")))
        if fault == "cut-before-first":
            return response
        for index, event in enumerate(events):
            if fault == "cut-clean" and index == 1:
                return response
            if fault == "cut-inside" and index == 1:
                await response.write(event[: len(event) // 2])
                request.transport.abort()
                return response
            await response.write(event)
            app.streaming.set()
            if index + 1 >= app.before_pause:
                await app.paused.wait()
        return response


def _answer(app: Application, kind: str) -> dict[str, Any]:
    text = "".join(app.words)
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    if kind == "responses":
        return {
            "id": "resp_1", "object": "response", "model": app.model_id, "status": "completed",
            "output": [{"type": "message", "id": "m", "role": "assistant", "status": "completed",
                        "content": [{"type": "output_text", "text": text, "annotations": []}]}],
            "usage": {"input_tokens": 7, "input_tokens_details": {"cached_tokens": 3}, "output_tokens": 2,
                      "output_tokens_details": {"reasoning_tokens": 1}, "total_tokens": 9},
        }  # fmt: skip
    if kind == "messages":
        return {
            "id": "msg_1", "type": "message", "role": "assistant", "model": app.model_id, "stop_reason": "end_turn",
            "content": [{"type": "text", "text": text}],
            "usage": {"input_tokens": 4, "cache_read_input_tokens": 3, "output_tokens": 2},
        }  # fmt: skip
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": app.model_id,
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": usage,
    }  # fmt: skip


def _events(app: Application, kind: str, *, usage: bool) -> list[bytes]:
    if kind == "responses":
        deltas = [
            ("response.output_text.delta",
             {"type": "response.output_text.delta", "delta": word, "sequence_number": n, "item_id": "m",
              "output_index": 0, "content_index": 0, "logprobs": []})
            for n, word in enumerate(app.words)
        ]  # fmt: skip
        last = {"type": "response.completed", "sequence_number": 9, "response": _answer(app, kind)}
        return [
            f"event: {name}\ndata: {json.dumps(data)}\n\n".encode() for name, data in [*deltas, (last["type"], last)]
        ]
    if kind == "messages":
        whole = _answer(app, kind)
        parts: list[dict[str, Any]] = [
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
            for word in app.words
        ]
        begun = {**whole, "content": [], "stop_reason": None, "usage": {"input_tokens": 7, "output_tokens": 0}}
        events = [
            {"type": "message_start", "message": begun},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            *parts,
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": whole["usage"]},
            {"type": "message_stop"},
        ]
        return [
            f"event: {event['type']}\ndata: {json.dumps(event, separators=(',', ':'))}\n\n".encode() for event in events
        ]
    chunks: list[dict[str, Any]] = [
        {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": app.model_id,
         "choices": [{"index": 0, "delta": {"content": word}}]}
        for word in app.words
    ]  # fmt: skip
    if usage:
        chunks.append({**chunks[0], "choices": [], "usage": _answer(app, "chat")["usage"]})
    return [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks] + [b"data: [DONE]\n\n"]
