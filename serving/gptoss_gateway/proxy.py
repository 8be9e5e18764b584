"""One request to an engine and its answer back: bytes as they are, failures as what they are.

An attempt that fails before a byte of the answer was sent raises UpstreamUnavailableError and may be made
again. HAProxy and Ray Serve speak plain text where an engine speaks JSON (docs/ray-serve.md), which tells
their errors from the engine's; no such text ever reaches a client.
"""

import asyncio
import json
from dataclasses import dataclass

import msgspec

from gptoss_api.names import MAX_REQUEST_SECONDS
from gptoss_gateway.errors import (
    EngineAnswer,
    EngineLostError,
    RequestError,
    RequestTooLongError,
    UpstreamFailedError,
    UpstreamUnavailableError,
)
from gptoss_gateway.exchange import Exchange
from gptoss_gateway.intake import Parcel
from gptoss_gateway.lines import Answer, Lines
from gptoss_gateway.sse import EventStream
from gptoss_gateway.usage import usage_of
from gptoss_gateway.vigil import Attempt, Cut, Vigil

MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""Largest answer that is not a stream. It is read whole before it is sent, so a cut can be mended."""
MAX_ERROR_BYTES = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an answer ended: whether it broke."""

    broken: bool = False


async def relay(
    lines: Lines,
    attempt: Attempt,
    path: str,
    *,
    parcel: Parcel,
    headers: dict[str, str],
    vigil: Vigil,
    within: float,
) -> Outcome:
    """Make one attempt, and answer the client unless nothing of an answer came.

    The parcel is dropped with the first byte of an answer: no other attempt can be made then. ``within`` is how many
    seconds are left for it, of those that all attempts at one request have together.

    Raises:
        UpstreamUnavailableError: no byte of an answer reached the client; another attempt may be made.
        UpstreamFailedError, RequestTooLongError: it failed for good before a byte was sent.
        ClientLeftError: the client went away; the engine's connection is closed with it.
    """
    vigil.begin(attempt)
    try:
        async with asyncio.timeout(within) as attempt.patience:
            return await _attempt(lines, attempt, path, parcel=parcel, headers=headers)
    except TimeoutError as error:
        attempt.exchange.tally.made = attempt.cut is None
        failure = _cut_short(attempt)
        if not attempt.exchange.answered:
            raise failure from error
        await attempt.exchange.fail(failure if isinstance(failure, RequestError) else _cut_off())
        return Outcome(broken=True)
    finally:
        vigil.finish(attempt)


def _cut_short(attempt: Attempt) -> RequestError | UpstreamUnavailableError:
    match attempt.cut:
        case Cut.HANGS:
            return UpstreamUnavailableError("the engine shows no sign of life", reached_engine=True)
        case Cut.IDLE:
            return RequestTooLongError(
                "The engine's stream was silent for too long (the gateway's limits.idleSeconds). Ask again.",
                code="upstream_stream_idle",
            )
        case None:
            return RequestTooLongError(
                f"The answer took longer than {MAX_REQUEST_SECONDS} s, the most that any may take, with all attempts "
                "that failed on the engine's side."
            )


async def _attempt(lines: Lines, attempt: Attempt, path: str, *, parcel: Parcel, headers: dict[str, str]) -> Outcome:
    try:
        answer = await lines.post(attempt.upstream.url + path, {**headers, **attempt.upstream.headers}, parcel.body)
    except EngineLostError as error:
        raise UpstreamUnavailableError(f"connection lost: {error}", reached_engine=True) from error
    attempt.hear(asyncio.get_running_loop().time())
    try:
        if answer.status != 200:
            return await _pass_failure(answer, attempt.exchange, parcel)
        if answer.content_type == "text/event-stream":
            attempt.streaming = True
            return await _pass_stream(answer, attempt, parcel)
        return await _pass_document(answer, attempt.exchange, parcel)
    finally:
        answer.close()  # a connection is kept only where the answer was read to its end


async def _pass_stream(answer: Answer, attempt: Attempt, parcel: Parcel) -> Outcome:
    exchange = attempt.exchange
    events = EventStream(exchange.dialect, exchange.tally)
    now = asyncio.get_running_loop().time
    reason = "the engine's stream ended without its last event"

    def pass_on(piece: bytes) -> bool:
        attempt.hear(now())
        lines = events.feed(piece)
        return exchange.push(lines) if lines else True

    try:
        while not exchange.answered and (piece := await answer.read()):
            attempt.hear(now())
            if lines := events.feed(piece):
                parcel.drop()
                await exchange.write(lines)
        while not await answer.pour(pass_on):
            await exchange.catch_up()
    except EngineLostError as error:
        reason = f"the engine's stream broke: {error}"
    if rest := events.finish():
        await exchange.write(rest)
    if events.complete:
        await exchange.finish()
        return Outcome()
    if not exchange.answered:
        raise UpstreamUnavailableError(reason, reached_engine=True)
    await exchange.fail(_cut_off())
    return Outcome(broken=True)


def _cut_off() -> UpstreamFailedError:
    return UpstreamFailedError(
        "The answer was cut short: the engine's stream ended before its last event. Ask again.",
        code="upstream_stream_broken",
    )


async def _pass_document(answer: Answer, exchange: Exchange, parcel: Parcel) -> Outcome:
    exchange.tally.made = True
    body = await _read(answer, MAX_ANSWER_BYTES, parcel)
    if not _is_object(body):
        raise UpstreamUnavailableError("the engine's answer is not a whole JSON object", reached_engine=True)
    exchange.tally.reported = usage_of(body)
    await exchange.answer(200, body)
    return Outcome()


async def _pass_failure(answer: Answer, exchange: Exchange, parcel: Parcel) -> Outcome:
    status = answer.status
    body = await _read(answer, MAX_ERROR_BYTES, parcel)
    document = _json_object(body)
    if status in (401, 403):
        raise UpstreamFailedError(
            "The engine does not accept this gateway's token: an administrator compares gatewayTokenFile "
            "with the nodes' GPTOSS_GATEWAY_TOKENS_FILE.",
            code="upstream_refused_gateway",
        )
    if document is not None and not isinstance(document.get("error"), dict):
        document = {
            "error": {
                "message": str(document.get("message") or document.get("detail") or f"status {status}"),
                "type": "invalid_request_error" if status < 500 else "server_error",
                "param": None,
                "code": status,
            }
        }
        body = json.dumps(document).encode()
    # An engine that answers has answered, also that it failed on this request; only its 503 asks for patience.
    if status == 503 or (document is None and (status >= 500 or status == 404)):
        raise UpstreamUnavailableError(
            f"the engine's side answered {status} {'JSON' if document else 'text'}",
            # What never found an engine: HAProxy knows no such application (404), Ray Serve has no replica (503).
            reached_engine=document is not None or status not in (404, 503),
            answer=None if document is None else EngineAnswer(status=status, body=body),
        )
    if document is None or status < 400:
        raise UpstreamFailedError(f"The engine's side answered {status} in a form that is not the API's.")
    exchange.tally.reported = usage_of(body)
    await exchange.answer(status, body)
    return Outcome()


async def _read(answer: Answer, limit: int, parcel: Parcel) -> bytes:
    """Read an answer whole; it takes of the same memory as the request's body."""
    parts: list[bytes] = []
    size = 0
    try:
        while piece := await answer.read():
            size += len(piece)
            if size > limit:
                raise UpstreamFailedError(f"The engine's answer is larger than {limit} bytes.")
            parcel.grow(len(piece))
            parts.append(piece)
    except EngineLostError as error:
        raise UpstreamUnavailableError(f"the engine's answer broke: {error}", reached_engine=True) from error
    return b"".join(parts)


def _is_object(body: bytes) -> bool:
    """Tell whether something is a JSON object, without building it: an engine may send what it likes."""
    try:
        _OBJECT.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _json_object(body: bytes) -> dict[str, object] | None:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


class _Object(msgspec.Struct):
    """Any object: what it holds is passed over."""


_OBJECT = msgspec.json.Decoder(_Object)
