"""A stand-in engine that emits events at a fixed pace: what a gateway adds is seen against it. No model, no tokens.

    python -m benchmarks.paced_engine --port P

``max_tokens`` of a request is its number of events; ``metadata.pace`` and ``metadata.first`` are the seconds
between events and before the first one; without ``stream`` the whole answer comes when the last event would.
Applications answer, but for those whose prefix ends in ``/asleep``: they are unknown until ``POST /up``, and again
after ``POST /down``. ``GET /open`` counts the answers that it works on, ``GET /left`` tells when the clients of
unfinished ones left, in seconds of the machine's monotonic clock. Written on the protocol, so that it takes
little of the machine that the measured proxy runs on too.
"""

import argparse
import asyncio
import json
import time

import uvloop

from gptoss_api.names import engine_model_id

_EVENT = (
    b'data: {"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk","created":1790000000,'
    b'"model":"gpt-oss","choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]}\n\n'
)
_DONE = b"data: [DONE]\n\n"
_ANSWER = {
    "id": "chatcmpl-0123456789abcdef0123456789abcdef",
    "object": "chat.completion",
    "created": 1790000000,
    "model": "gpt-oss",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "word"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8},
}
_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
_UNKNOWN = b"HTTP/1.1 404 Not Found\r\ncontent-type: text/plain\r\ncontent-length: 9\r\n\r\nnot found"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


_EVENT_CHUNK = _chunk(_EVENT)
_END = _chunk(_DONE) + b"0\r\n\r\n"


class Engine:
    """What all connections share."""

    def __init__(self) -> None:
        self.awake = False
        self.open = 0
        self.left: list[float] = []
        self.models: dict[str, str] = {}


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._buffer = b""
        self._left = 0
        self._pace = 0.0
        self._next = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport
        self._loop = asyncio.get_running_loop()

    def connection_lost(self, _: BaseException | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._engine.open -= 1
            self._engine.left.append(time.monotonic())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if len(rest) < length:
            return
        self._buffer = b""
        method, path, _ = head.split(b"\r\n")[0].decode().split()
        self._answer(method, path, rest)

    def _answer(self, method: str, path: str, body: bytes) -> None:
        if path in ("/up", "/down"):
            self._engine.awake = path == "/up"
            self._document({})
            return
        if path == "/open":
            self._document({"open": self._engine.open})
            return
        if path == "/left":
            self._document(self._engine.left)
            return
        if path == "/models":
            self._engine.models = json.loads(body)
            self._document({})
            return
        prefix = path.partition("/v1/")[0]
        if prefix.endswith("/asleep") and not self._engine.awake:
            self._write(_UNKNOWN)
        elif method == "GET":
            self._document({"object": "list", "data": [{"id": self._engine.models.get(prefix, ""), "object": "model"}]})
        else:
            self._begin(json.loads(body))

    def _document(self, document: object) -> None:
        body = json.dumps(document).encode()
        self._write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        )

    def _begin(self, body: dict[str, object]) -> None:
        asked = body.get("metadata")
        asked = asked if isinstance(asked, dict) else {}
        self._left = int(str(body.get("max_tokens", 1)))
        self._pace = float(asked.get("pace", 0.02))
        self._engine.open += 1
        self._next = self._loop.time() + float(asked.get("first", 0.1))
        if body.get("stream"):
            self._write(_STREAM)
            self._timer = self._loop.call_at(self._next, self._emit)
        else:
            self._timer = self._loop.call_at(self._next + self._pace * (self._left - 1), self._finish)

    def _emit(self) -> None:
        self._left -= 1
        if self._left:
            self._write(_EVENT_CHUNK)
            self._next += self._pace
            self._timer = self._loop.call_at(self._next, self._emit)
        else:
            self._end()
            self._write(_EVENT_CHUNK + _END)

    def _finish(self) -> None:
        self._end()
        self._document(_ANSWER)

    def _end(self) -> None:
        self._timer = None
        self._engine.open -= 1

    def _write(self, data: bytes) -> None:
        self._transport.write(data)


def model_ids(objects: list[tuple[str, str, str, str]]) -> dict[str, str]:
    """Return what ``POST /models`` takes, from (prefix, namespace, name, uid)."""
    return {prefix: engine_model_id(namespace, name, uid) for prefix, namespace, name, uid in objects}


async def serve(port: int) -> None:
    """Listen until killed."""
    engine = Engine()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(engine), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(parser.parse_args().port))
