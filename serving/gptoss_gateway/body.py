"""Request bodies: find what the gateway must know, and swap the model's name, touching no other byte.

A body is parsed with the standard library's decoder, member by member, so the position of the
``model`` value is known exactly. What two parsers could read differently is refused: repeated
members, constants that are not JSON, text that is not UTF-8.
"""

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from gptoss_gateway.errors import BadRequestError

MAX_DEPTH = 64
"""Deepest nesting of a body. Tool schemas, the deepest things that clients send, stay under 20."""

_SPACE = " \t\n\r"


@dataclass(frozen=True, kw_only=True)
class RequestBody:
    """A checked body."""

    text: str
    model: str
    model_start: int
    model_end: int
    stream: bool
    size: int

    def addressed_to(self, model: str) -> bytes:
        """Return the body with another model name and every other byte as it was."""
        return (self.text[: self.model_start] + json.dumps(model) + self.text[self.model_end :]).encode()


def parse_body(raw: bytes) -> RequestBody:
    """Check a body and find its model.

    Raises:
        BadRequestError: not a JSON object in UTF-8, a member twice, too deep, or no usable ``model``.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequestError(f"The body is not UTF-8: {error.reason} at byte {error.start}.") from error
    try:
        members = _scan_object(text)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"The body is not a JSON object: {error}.") from error
    for name, (value, _, _) in members.items():
        if _deeper_than(value, MAX_DEPTH - 1):
            raise BadRequestError(f"{name!r} is nested deeper than {MAX_DEPTH} levels.", param=name)
    if "model" not in members:
        raise BadRequestError("The body has no `model`: name one that GET /v1/models lists.", param="model")
    model, start, end = members["model"]
    if not isinstance(model, str) or not model:
        raise BadRequestError("`model` must be a string that names a model.", param="model")
    stream = members.get("stream", (None, 0, 0))[0]
    if stream is not None and not isinstance(stream, bool):
        raise BadRequestError("`stream` must be true or false.", param="stream")
    return RequestBody(text=text, model=model, model_start=start, model_end=end, stream=bool(stream), size=len(raw))


def _scan_object(text: str) -> dict[str, tuple[Any, int, int]]:
    """Return each member's value and the span of its text."""
    members: dict[str, tuple[Any, int, int]] = {}
    at = _expect(text, _skip(text, 0), "{")
    at = _skip(text, at)
    if text[at : at + 1] == "}":
        at += 1
    else:
        while True:
            if text[at : at + 1] != '"':
                raise ValueError(f"a member's name is missing at character {at}")
            name, at = _DECODER.raw_decode(text, at)
            start = _skip(text, _expect(text, _skip(text, at), ":"))
            value, at = _DECODER.raw_decode(text, start)
            if name in members:
                raise ValueError(f"it has the member {name!r} twice")
            members[name] = (value, start, at)
            at = _skip(text, at)
            if text[at : at + 1] == "}":
                at += 1
                break
            at = _skip(text, _expect(text, at, ","))
    if _skip(text, at) != len(text):
        raise ValueError(f"something follows it at character {at}")
    return members


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _expect(text: str, at: int, character: str) -> int:
    if text[at : at + 1] != character:
        raise ValueError(f"{character!r} is missing at character {at}")
    return at + 1


def _deeper_than(value: Any, limit: int) -> bool:
    """Tell whether containers are nested more than ``limit`` deep; level by level, so it can't overflow."""
    level = [value]
    for _ in range(limit + 1):
        level = [item for item in level if isinstance(item, dict | list)]
        if not level:
            return False
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return True


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
