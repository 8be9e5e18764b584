"""An engine's event stream as it passes: was its last event seen, and what usage did it report?

Bytes are passed on in whole lines, which no client can tell from the original: half a line is of no
use to it, and an error event can follow whole lines if the stream breaks. A stream cut by HAProxy
looks like a clean end, so only the last event of its kind proves that it is complete.
"""

import re
from collections.abc import Iterator

from gptoss_gateway.errors import Dialect
from gptoss_gateway.usage import Tally, tells_nothing_but_usage, usage_of

MAX_LINE_BYTES = 4 * 1024 * 1024
"""Longest line that is kept back; a longer one is passed in pieces."""

_LAST_EVENT = {
    Dialect.OPENAI: re.compile(rb"^data: ?\[DONE\]", re.MULTILINE),
    Dialect.RESPONSES: re.compile(
        rb"^(?:event: ?(?:response\.(?:completed|failed|incomplete)|error)\r?$|data: ?\[DONE\])", re.MULTILINE
    ),
    Dialect.ANTHROPIC: re.compile(rb"^event: ?(?:message_stop|error)\r?$", re.MULTILINE),
}
_PIECES = {
    Dialect.OPENAI: (b'data: {"',),
    Dialect.RESPONSES: (b".delta\n", b".delta\r\n"),
    Dialect.ANTHROPIC: (b"block_delta\n",),
}
"""What stands in an event that carries a piece of the answer, once; others may be counted with it."""
_LAST_SIGNS = {
    Dialect.OPENAI: (b"[DONE]",),
    Dialect.RESPONSES: (b"response.completed", b"response.failed", b"response.incomplete", b"error", b"[DONE]"),
    Dialect.ANTHROPIC: (b"message_stop", b"error"),
}
"""One of these stands in every last event. Looking for them costs a tenth of what an expression does."""
_USAGE_SIGNS = (b'"usage":{', b'"usage": {')
"""One of these stands in an event that tells usage. In a text, their quotation marks would be escaped."""


class EventStream:
    """Follows one stream; feed it every chunk and pass on what it returns. ``tally`` is kept true."""

    def __init__(self, dialect: Dialect, tally: Tally) -> None:
        self._last_event = _LAST_EVENT[dialect]
        self._last_signs = _LAST_SIGNS[dialect]
        self._pieces = _PIECES[dialect]
        self._tail = bytearray()
        self._swallow = False
        self._tally = tally
        self.complete = False

    def feed(self, chunk: bytes) -> bytes:
        """Take a chunk; return the bytes that end in a line's end, which may be none."""
        cut = chunk.rfind(b"\n") + 1
        if not cut:
            if len(self._tail) + len(chunk) <= MAX_LINE_BYTES:
                self._tail += chunk
                return b""
            cut = len(chunk)
        lines = chunk[:cut]
        if self._tail:
            lines = bytes(self._tail) + lines
            self._tail.clear()
        if cut < len(chunk):
            self._tail += chunk[cut:]
        told = any(sign in lines for sign in _USAGE_SIGNS)
        self._look_at(lines, told=told)
        return self._for_the_client(lines, told=told) if self._tally.hidden else lines

    def finish(self) -> bytes:
        """Return the rest of a stream that ended; empty unless it is complete without a line's end."""
        rest, self._tail = bytes(self._tail), bytearray()
        if self._last_event.search(rest):
            self.complete = True
        return rest if self.complete else b""

    def _look_at(self, lines: bytes, *, told: bool) -> None:
        for sign in self._last_signs:
            if sign in lines and self._last_event.search(lines):
                self.complete = True
        if told:
            for start, end in _lines_with_usage(lines):
                self._tally.reported = usage_of(_data(lines[start:end])) or self._tally.reported
        for piece in self._pieces:
            self._tally.events += lines.count(piece)

    def _for_the_client(self, lines: bytes, *, told: bool) -> bytes:
        """Take out the chunk that the client did not ask for, and the empty line that ends it."""
        if self._swallow:
            self._swallow = False
            lines = lines.removeprefix(b"\r").removeprefix(b"\n")
        if not told:
            return lines
        for start, end in _lines_with_usage(lines):
            if tells_nothing_but_usage(_data(lines[start:end])):
                rest = lines[end:]
                self._swallow = not rest
                return lines[:start] + rest.removeprefix(b"\r").removeprefix(b"\n")
        return lines


def _lines_with_usage(lines: bytes) -> Iterator[tuple[int, int]]:
    """Find the whole lines that may tell usage, each once: an engine can't make this take longer than they are long."""
    at = lines.find(b'"usage"')
    while at >= 0 and (end := lines.find(b"\n", at) + 1):
        yield lines.rfind(b"\n", 0, at) + 1, end
        at = lines.find(b'"usage"', end)


def _data(line: bytes) -> bytes:
    return line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
