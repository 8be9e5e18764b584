"""Request bodies: find what the gateway must know, and swap the model's name, touching no other byte.

Only top-level members are looked at. Their values are checked to be JSON but never built, so a hostile
body costs its own size and no more. What two parsers could read differently is refused: repeated
members, constants that are not JSON, text that is not UTF-8.
"""

import codecs
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from gptoss_gateway.errors import BadRequestError

MAX_DEPTH = 64
"""Deepest nesting of a body. Tool schemas, the deepest things that clients send, stay under 20."""
MAX_MEMBERS = 1000
"""Most top-level members. The API knows about fifty."""
MAX_PARTS = 250_000
"""Most strings, lists and objects in a body, by their opening characters. A full context is a tenth of it."""

MAX_NAME = 256
"""Longest `model`. A namespace and a name with a slash between them are 127."""

_SPACE = re.compile(rb"[ \t\n\r]*+")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_ALIKE = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_UTF8_PIECE = 256 * 1024


@dataclass(frozen=True, kw_only=True)
class RequestBody:
    """A checked body. ``spans`` holds where each top-level member's value lies in ``raw``."""

    raw: bytes
    spans: Mapping[str, tuple[int, int]]
    model: str
    stream: bool

    def get(self, name: str) -> Any:
        """Return a top-level member's value, None if it is not there."""
        return _value(self.raw, self.spans, name)

    def addressed_to(self, model: str, members: Mapping[str, bytes] | None = None) -> bytes:
        """Return the body with another model name, ``members`` set to other JSON, and every other byte as it was."""
        wanted = {**(members or {}), "model": json.dumps(model).encode()}
        end = self.raw.rindex(b"}")
        added = b"".join(b"," + json.dumps(name).encode() + b":" + wanted[name] for name in wanted.keys() - self.spans)
        edits = [(*self.spans[name], value) for name, value in wanted.items() if name in self.spans]
        parts, at = [], 0
        for start, stop, value in sorted([*edits, (end, end, added)]):
            parts += [self.raw[at:start], value]
            at = stop
        return b"".join([*parts, self.raw[at:]])


def parse_body(raw: bytes) -> RequestBody:
    """Check a body and find its model.

    Raises:
        BadRequestError: not a JSON object in UTF-8, a member twice, too deep, or no usable ``model``.
    """
    _check_text(raw)
    _check_parts(raw)
    spans = _spans(raw)
    _check_depth(raw, spans)
    if "model" not in spans:
        raise BadRequestError("The body has no `model`: name one that GET /v1/models lists.", param="model")
    model = _value(raw, spans, "model")
    if not isinstance(model, str) or not model:
        raise BadRequestError("`model` must be a string that names a model.", param="model")
    if len(model) > MAX_NAME:
        raise BadRequestError(f"`model` is longer than any name: at most {MAX_NAME} characters.", param="model")
    stream = _value(raw, spans, "stream")
    if stream is not None and not isinstance(stream, bool):
        raise BadRequestError("`stream` must be true or false.", param="stream")
    return RequestBody(raw=raw, spans=spans, model=model, stream=bool(stream))


def _value(raw: bytes, spans: Mapping[str, tuple[int, int]], name: str) -> Any:
    if name not in spans:
        return None
    start, end = spans[name]
    try:
        return json.loads(raw[start:end])
    except ValueError as error:  # a number with thousands of digits
        raise BadRequestError(f"`{name}` can't be read: {error}.", param=name) from error


def _check_text(raw: bytes) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(raw) + 1, _UTF8_PIECE):  # in pieces: one emoji makes a whole text four times as large
        piece = raw[start : start + _UTF8_PIECE]
        try:
            decoder.decode(piece, final=start + _UTF8_PIECE > len(raw))
        except UnicodeDecodeError as error:
            raise BadRequestError(f"The body is not UTF-8: {error.reason} near byte {start + error.start}.") from error


def _check_parts(raw: bytes) -> None:
    if raw.count(b'"') // 2 + raw.count(b"[") + raw.count(b"{") > MAX_PARTS:
        raise BadRequestError(f"The body has more than {MAX_PARTS} strings, lists and objects.")


def _spans(raw: bytes) -> dict[str, tuple[int, int]]:
    """Return where each top-level member's value lies. Values are known by length from the decoder."""
    try:
        values = _MEMBERS.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequestError(f"The body is not a JSON object: {error}.") from error
    if len(values) > MAX_MEMBERS:
        raise BadRequestError(f"The body has more than {MAX_MEMBERS} members.")
    spans: dict[str, tuple[int, int]] = {}
    at = _skip(raw, raw.index(b"{") + 1)
    while raw[at : at + 1] == b'"':
        quoted = _STRING.match(raw, at)
        assert quoted is not None  # noqa: S101 - the decoder has read it
        name = json.loads(quoted[0])
        start = _skip(raw, _skip(raw, quoted.end()) + 1)
        end = start + len(memoryview(values[name]))
        if name in spans or memoryview(raw)[start:end] != memoryview(values[name]):
            # The decoder keeps the last of two, so the first one's length may be another's.
            raise BadRequestError(f"The body is not a JSON object: it has the member {name!r} twice.", param=name)
        spans[name] = (start, end)
        at = _skip(raw, _skip(raw, end) + 1)
    return spans


def _skip(raw: bytes, at: int) -> int:
    space = _SPACE.match(raw, at)
    return at if space is None else space.end()


def _check_depth(raw: bytes, spans: Mapping[str, tuple[int, int]]) -> None:
    if not _deeper_than(raw, MAX_DEPTH):
        return
    for name, (start, end) in spans.items():
        if raw[start : start + 1] in (b"[", b"{") and _deeper_than(raw[start:end], MAX_DEPTH - 1):
            raise BadRequestError(f"{name!r} is nested deeper than {MAX_DEPTH} levels.", param=name)


def _deeper_than(value: bytes, limit: int) -> bool:
    """Tell whether valid JSON nests deeper than ``limit``: each pass takes away the innermost containers."""
    brackets = _STRING.sub(b"", value).translate(_ALIKE, _NO_BRACKETS)
    for _ in range(limit):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)
