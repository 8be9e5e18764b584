"""JSON as a signature needs it: one reading only, and bounded before it is parsed.

Two parsers that disagree about the same signed bytes are a way around a signature, so duplicate
keys, NaN, byte-order marks and invalid UTF-8 are refused; nesting and size are counted first.
"""

import json
import re
from typing import Any, NoReturn

_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


class StrictJSONError(ValueError):
    """The text is not acceptable JSON. The message never quotes it."""


def parse(raw: bytes, *, max_bytes: int, max_depth: int) -> Any:
    """Parse JSON text.

    Raises:
        StrictJSONError: too long, too deep, not UTF-8, not JSON, duplicate keys, or NaN and infinity.
    """
    if len(raw) > max_bytes:
        raise StrictJSONError(f"is longer than {max_bytes} bytes")
    _check_depth(raw, max_depth)
    try:
        text = raw.decode("utf-8", errors="strict")
    except UnicodeDecodeError as error:
        raise StrictJSONError(f"is not UTF-8 (at byte {error.start})") from None
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise StrictJSONError(f"is not JSON (line {error.lineno}, column {error.colno})") from None
    except (RecursionError, ValueError) as error:
        detail = str(error) if isinstance(error, StrictJSONError) else "holds a number that is out of range"
        raise StrictJSONError(detail) from None


def _check_depth(raw: bytes, max_depth: int) -> None:
    depth = 0
    for token in _BRACKETS.finditer(raw):
        first = raw[token.start()]
        if first in b"[{":
            depth += 1
            if depth > max_depth:
                raise StrictJSONError(f"is nested deeper than {max_depth} levels")
        elif first in b"]}":
            depth -= 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise StrictJSONError("names a key twice in one object")
    return found


def _no_constant(_: str) -> NoReturn:
    raise StrictJSONError("holds NaN or Infinity, which JSON has not")
