"""JSON as a signature needs it: one reading only, and bounded before it is parsed.

Two parsers that disagree about the same signed bytes are a way around a signature, so duplicate
keys, NaN, numbers beyond a float, byte-order marks, invalid UTF-8 and half surrogate pairs are refused;
nesting and size are counted first, in one pass that no text can slow down.
"""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

# Up to the next bracket outside a string, or the end. Possessive, and an open string counts up to the end: backtracking
# over hostile text would take hours.
_TO_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+(?:"|\\?\Z))*+([\[{\]}]|\Z)', re.DOTALL)
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


class StrictJSONError(ValueError):
    """The text is not acceptable JSON. The message never quotes it."""


def parse(raw: bytes, *, max_bytes: int, max_depth: int) -> Any:
    """Parse JSON text.

    Raises:
        StrictJSONError: too long, too deep, not UTF-8, not JSON, duplicate keys, or NaN and infinity.
    """
    _check_size(raw, max_bytes)
    _check_depth(raw, max_depth)
    document = _load(_text(raw), _unique)
    if _SURROGATE_ESCAPE.search(raw):
        _check_text(document)
    return document


def visit(path: Path, members: Callable[[dict[str, Any]], None], *, max_bytes: int) -> None:
    """Check a large JSON file, and hand the members of every object over, in memory of a few times its size.

    Objects are forgotten once they were visited: a member that is an object is handed over as None. Depth is
    bounded by Python's own parser, at about a thousand levels: counting it would double the time.

    Raises:
        StrictJSONError: as ``parse``, half surrogate pairs aside.
    """

    def forget(pairs: list[tuple[str, Any]]) -> None:
        members(_unique(pairs))

    with path.open("rb") as stream:
        # No name for the bytes: they are as large as the file, and of no use once they are text.
        _load(_text(_check_size(stream.read(max_bytes + 1), max_bytes)), forget)


def _check_size(raw: bytes, max_bytes: int) -> bytes:
    if len(raw) > max_bytes:
        raise StrictJSONError(f"is longer than {max_bytes} bytes")
    return raw


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8", errors="strict")
    except UnicodeDecodeError as error:
        raise StrictJSONError(f"is not UTF-8 (at byte {error.start})") from None


def _load(text: str, pairs_hook: Callable[[list[tuple[str, Any]]], Any]) -> Any:
    try:
        return json.loads(text, object_pairs_hook=pairs_hook, parse_constant=_no_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise StrictJSONError(f"is not JSON (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise StrictJSONError("is nested too deep") from None
    except ValueError as error:
        detail = str(error) if isinstance(error, StrictJSONError) else "holds a number that is out of range"
        raise StrictJSONError(detail) from None


def _check_depth(raw: bytes, max_depth: int) -> None:
    depth = 0
    for token in _TO_BRACKET.finditer(raw):
        if token[1] in (b"[", b"{"):
            depth += 1
            if depth > max_depth:
                raise StrictJSONError(f"is nested deeper than {max_depth} levels")
        elif token[1]:
            depth -= 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise StrictJSONError("names a key twice in one object")
    return found


def _no_constant(_: str) -> NoReturn:
    raise StrictJSONError("holds NaN or Infinity, which JSON has not")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise StrictJSONError("holds a number that is out of range")
    return value


def _check_text(document: Any) -> None:
    remaining = [document]
    while remaining:
        value = remaining.pop()
        if isinstance(value, dict):
            remaining.extend(value)
            remaining.extend(value.values())
        elif isinstance(value, list):
            remaining.extend(value)
        elif isinstance(value, str) and any(0xD800 <= ord(character) <= 0xDFFF for character in value):
            raise StrictJSONError("holds half a surrogate pair, which is no text")
