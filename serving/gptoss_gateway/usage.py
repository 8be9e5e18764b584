"""Tokens of one request: asked of the engine on the client's behalf, and counted here where it tells none.

vLLM tells the usage of a chat or completion stream only to those who ask, in an extra last chunk. It is
asked in the client's place and that chunk taken out again (``sse``), so the account is the engine's own.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import msgspec

MAX_DIGITS = 8
"""Of a count of tokens that is believed: more than any request can use would shut its tenant out for good."""
BYTES_PER_TOKEN = 4
"""Of English text, with gpt-oss' vocabulary; for prompts whose count the engine never told."""
_TELLS_ONLY_IF_ASKED = frozenset({"/v1/chat/completions", "/v1/completions"})


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens, those in the cache as part of the input. ``estimated`` if the engine did not count them.

    ``begun`` if it was told at a stream's beginning, as Anthropic's API does: the output is still to come.
    """

    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0
    estimated: bool = False
    begun: bool = False


@dataclass(kw_only=True)
class Tally:
    """What is known of one request's tokens while it is answered.

    Attributes:
        hidden: the engine's last chunk was asked for by us, and is not for the client.
        reported: what the engine told.
        events: events of the stream that carried a piece of the answer; about one token each.
        sent: the prompt's size in bytes, once an engine has it.
        made: the engine worked for as long as it was let, and what it made was not a stream.
    """

    hidden: bool = False
    reported: Usage | None = None
    events: int = 0
    sent: int | None = None
    made: bool = False

    def begin(self, size: int) -> None:
        """Note that an engine gets the prompt."""
        self.sent = size

    def forget(self) -> None:
        """Note that the attempt failed on the engine's side: whatever it brought, nobody got it."""
        self.reported, self.events, self.sent, self.made = None, 0, None, False

    def usage(self, *, status: int | None) -> Usage | None:
        """Return the tokens of a request that ended with ``status``, None for a client that left.

        An error of the engine costs what the engine says, and nothing if it says nothing. An answer that was made and
        could not be passed on, or that its client did not wait for, costs its prompt and what was seen of it.
        """
        if self.reported is not None:
            return replace(self.reported, output=self.events, estimated=True) if self.reported.begun else self.reported
        if self.sent is None or not (self.events or self.made or status is None):
            return None
        return Usage(input=-(-self.sent // BYTES_PER_TOKEN), output=self.events, estimated=True)


class _Body(Protocol):
    @property
    def stream(self) -> bool: ...
    def get(self, name: str) -> Any: ...


def asking_for_usage(body: _Body, path: str) -> Mapping[str, bytes]:
    """Return the members that a request must get for its stream to end with its usage; none if it does already."""
    if not body.stream or path not in _TELLS_ONLY_IF_ASKED:
        return {}
    options = body.get("stream_options")
    if options is None:
        return {"stream_options": b'{"include_usage":true}'}
    if not isinstance(options, dict) or options.get("include_usage"):
        return {}  # the client asked itself, or the engine will refuse it
    asked = {name: value for name, value in options.items() if name != "continuous_usage_stats"}
    return {"stream_options": json.dumps({**asked, "include_usage": True}).encode()}


def usage_of(document: bytes) -> Usage | None:
    """Return the usage in an answer or an event of any dialect, or None where there is none.

    Only what is looked for is built: an engine's document costs its own size, however it is made up.
    """
    told = _read(_DOCUMENT, document)
    if told is None:
        return None
    nested = [_read(_HOLDER, holder) or _Holder() for holder in (told.response, told.message)]
    for raw in (told.usage, *(holder.usage for holder in nested)):
        if (usage := _read(_USAGE, raw)) is not None:
            given = _read(_DETAILS, usage.prompt_tokens_details) or _read(_DETAILS, usage.input_tokens_details)
            made = _read(_DETAILS, usage.completion_tokens_details) or _read(_DETAILS, usage.output_tokens_details)
            # Anthropic's input leaves out what was read from the cache, or written to it.
            read, written = _count(usage.cache_read_input_tokens), _count(usage.cache_creation_input_tokens)
            return Usage(
                input=_count(usage.prompt_tokens) or _count(usage.input_tokens) + read + written,
                cached=_count(given.cached_tokens) if given is not None else read,
                output=_count(usage.completion_tokens) or _count(usage.output_tokens),
                reasoning=_count(made.reasoning_tokens) if made is not None else 0,
                begun=raw is nested[1].usage,
            )
    return None


def tells_nothing_but_usage(event: bytes) -> bool:
    """Tell whether this is the extra last chunk of a chat or completion stream."""
    chunk = _read(_CHUNK, event)
    return chunk is not None and bytes(chunk.choices)[:1] == b"[" and bytes(chunk.choices)[1:-1].strip() == b""


_NOTHING = msgspec.Raw(b"")


class _Holder(msgspec.Struct):
    usage: msgspec.Raw = _NOTHING


class _Document(_Holder):
    response: msgspec.Raw = _NOTHING
    message: msgspec.Raw = _NOTHING


class _Chunk(msgspec.Struct):
    choices: msgspec.Raw = _NOTHING


class _Usage(msgspec.Struct):
    prompt_tokens: msgspec.Raw = _NOTHING
    input_tokens: msgspec.Raw = _NOTHING
    completion_tokens: msgspec.Raw = _NOTHING
    output_tokens: msgspec.Raw = _NOTHING
    cache_read_input_tokens: msgspec.Raw = _NOTHING
    cache_creation_input_tokens: msgspec.Raw = _NOTHING
    prompt_tokens_details: msgspec.Raw = _NOTHING
    input_tokens_details: msgspec.Raw = _NOTHING
    completion_tokens_details: msgspec.Raw = _NOTHING
    output_tokens_details: msgspec.Raw = _NOTHING


class _Details(msgspec.Struct):
    cached_tokens: msgspec.Raw = _NOTHING
    reasoning_tokens: msgspec.Raw = _NOTHING


_T = TypeVar("_T")
_HOLDER = msgspec.json.Decoder(_Holder)
_DOCUMENT = msgspec.json.Decoder(_Document)
_CHUNK = msgspec.json.Decoder(_Chunk)
_USAGE = msgspec.json.Decoder(_Usage)
_DETAILS = msgspec.json.Decoder(_Details)


def _read(decoder: "msgspec.json.Decoder[_T]", raw: bytes | msgspec.Raw) -> _T | None:
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return None


def _count(raw: msgspec.Raw) -> int:
    digits = bytes(raw)
    return int(digits) if digits.isdigit() and len(digits) <= MAX_DIGITS else 0
