"""JSON as a signature needs it: one reading only, and bounded before it is parsed.

Two parsers that disagree about the same signed bytes are a way around a signature, so duplicate
keys, NaN, numbers beyond a float, byte-order marks, invalid UTF-8 and half surrogate pairs are refused;
nesting and size are counted first, in one pass that no text can slow down.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

import ijson
from ijson.backends import yajl2_c

NESTED: Final = object()

_CHUNK_BYTES: Final = 16 * 1024
_MAX_OPEN: Final = 512
_OPENING: Final = frozenset({"start_map", "start_array"})
_CLOSING: Final = frozenset({"end_map", "end_array"})
_NO_KEYS: Final[set[str]] = set()
_NO_FLOAT: Final = "holds a number that is out of range"
_NO_UTF8: Final = "is not UTF-8"
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
    _check_size(len(raw), max_bytes)
    _check_depth(raw, max_depth)
    document = _load(_text(raw))
    if _SURROGATE_ESCAPE.search(raw):
        _check_text(document)
    return document


def visit(path: Path, member: Callable[[str, Any], None], *, max_bytes: int) -> None:
    """Check a large JSON file, and hand every member of every object over, by key and value.

    A value that is an object or a list is handed over as NESTED: only the keys of open objects are kept in memory.

    Raises:
        StrictJSONError: as ``parse``, but half surrogate pairs and an open string after the end may pass.
    """
    events = ijson.sendable_list()
    parser = yajl2_c.basic_parse_coro(events)
    members = _Members(member)
    size = 0
    with path.open("rb") as stream, _visit_errors():
        while chunk := stream.read(_CHUNK_BYTES):
            size += len(chunk)
            _check_size(size, max_bytes)
            parser.send(chunk)
            members.take(events)
            events.clear()
        parser.close()
        members.take(events)


class _Members:
    """The objects and lists that are open at a place of a document, and the keys that were seen in them."""

    def __init__(self, member: Callable[[str, Any], None]) -> None:
        self._member = member
        self._open: list[set[str]] = []
        self._key: str | None = None

    def take(self, events: Iterable[tuple[str, Any]]) -> None:
        # Two million events for a tokenizer: the frequent ones first, and nothing done twice.
        key = self._key
        for event, value in events:
            if event == "string" and key is None:
                continue
            if key is not None:
                self._member(key, NESTED if event in _OPENING else value)
                key = None
            if event == "map_key":
                keys = self._open[-1]
                if value in keys:
                    raise StrictJSONError("names a key twice in one object")
                keys.add(value)
                key = value
            elif event in _OPENING:
                self._open.append(set() if event == "start_map" else _NO_KEYS)
                if len(self._open) > _MAX_OPEN:
                    raise StrictJSONError(f"is nested deeper than {_MAX_OPEN} levels")
            elif event in _CLOSING:
                self._open.pop()
            elif event == "number" and not math.isfinite(value):
                raise StrictJSONError(_NO_FLOAT)
        self._key = key


@contextmanager
def _visit_errors() -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError:
        raise StrictJSONError(_NO_UTF8) from None
    except ijson.JSONError as error:
        # The parser's own texts quote what it read.
        raise StrictJSONError(_NO_UTF8 if "UTF8" in str(error) else "is not JSON") from None
    except StrictJSONError:
        raise
    except (ValueError, ArithmeticError, SystemError):  # the last where C code met one of the others
        raise StrictJSONError(_NO_FLOAT) from None


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise StrictJSONError(f"is longer than {max_bytes} bytes")


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8", errors="strict")
    except UnicodeDecodeError as error:
        raise StrictJSONError(f"{_NO_UTF8} (at byte {error.start})") from None


def _load(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise StrictJSONError(f"is not JSON (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise StrictJSONError("is nested too deep") from None
    except ValueError as error:
        detail = str(error) if isinstance(error, StrictJSONError) else _NO_FLOAT
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
        raise StrictJSONError(_NO_FLOAT)
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
