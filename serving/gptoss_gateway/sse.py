"""An engine's event stream as it passes: was its last event seen, and what usage did it report?

Bytes are passed on in whole lines, which no client can tell from the original: half a line is of no
use to it, and an error event can follow whole lines if the stream breaks. A stream cut by HAProxy
looks like a clean end, so only the last event of its kind proves that it is complete.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from gptoss_gateway.errors import Dialect

MAX_LINE_BYTES = 4 * 1024 * 1024
"""Longest line that is kept back; a longer one is passed in pieces."""

_LAST_EVENT = {
    Dialect.OPENAI: re.compile(rb"^data: ?\[DONE\]", re.MULTILINE),
    Dialect.RESPONSES: re.compile(
        rb"^(?:event: ?(?:response\.(?:completed|failed|incomplete)|error)\r?$|data: ?\[DONE\])", re.MULTILINE
    ),
    Dialect.ANTHROPIC: re.compile(rb"^event: ?(?:message_stop|error)\r?$", re.MULTILINE),
}
_USAGE_LINE = re.compile(rb'^data: ?(\{.*"usage": ?\{.*\})\r?$', re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens, as the engine counted them."""

    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0


class EventStream:
    """Follows one stream; feed it every chunk and pass on what it returns."""

    def __init__(self, dialect: Dialect) -> None:
        self._last_event = _LAST_EVENT[dialect]
        self._tail = b""
        self.complete = False
        self.usage: Usage | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Take a chunk; return the bytes that end in a line's end, which may be none."""
        cut = chunk.rfind(b"\n") + 1
        if not cut and len(self._tail) + len(chunk) <= MAX_LINE_BYTES:
            self._tail += chunk
            return b""
        lines = self._tail + chunk[:cut] if cut else self._tail + chunk
        self._tail = chunk[cut:] if cut else b""
        self._look_at(lines)
        return lines

    def finish(self) -> bytes:
        """Return the rest of a stream that ended; empty unless it is complete without a line's end."""
        rest, self._tail = self._tail, b""
        if self._last_event.search(rest):
            self.complete = True
        return rest if self.complete else b""

    def _look_at(self, lines: bytes) -> None:
        if not self.complete and self._last_event.search(lines):
            self.complete = True
        if b'"usage"' in lines:
            for match in _USAGE_LINE.finditer(lines):
                self.usage = usage_of(match.group(1)) or self.usage


def usage_of(document: bytes | dict[str, Any]) -> Usage | None:
    """Return the usage in an answer or an event of any dialect, or None where there is none."""
    if isinstance(document, bytes):
        try:
            document = json.loads(document)
        except ValueError:
            return None
    if not isinstance(document, dict):
        return None
    for holder in (document, document.get("response"), document.get("message")):
        if isinstance(holder, dict) and isinstance(usage := holder.get("usage"), dict):
            given = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
            made = usage.get("completion_tokens_details") or usage.get("output_tokens_details")
            return Usage(
                input=_count(usage, "prompt_tokens", "input_tokens"),
                cached=_count(given, "cached_tokens"),
                output=_count(usage, "completion_tokens", "output_tokens"),
                reasoning=_count(made, "reasoning_tokens"),
            )
    return None


def _count(holder: Any, *names: str) -> int:
    if isinstance(holder, dict):
        for name in names:
            value = holder.get(name)
            if isinstance(value, int) and value > 0:
                return value
    return 0
