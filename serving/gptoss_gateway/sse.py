"""An engine's event stream as it passes: was its last event seen, and what usage did it report?

Bytes are passed on in whole lines, which no client can tell from the original: half a line is of no
use to it, and an error event can follow whole lines if the stream breaks. A stream cut by HAProxy
looks like a clean end, so only the last event of its kind proves that it is complete.
"""

import re

from gptoss_gateway.errors import Dialect
from gptoss_gateway.usage import Tally, usage_of

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
    Dialect.ANTHROPIC: (b"_delta\n",),
}
"""What stands in an event that carries a piece of the answer, once; others may be counted with it."""
_USAGE_CHUNK = re.compile(rb'^data: ?\{[^\n]*"choices": ?\[\][^\n]*"usage": ?\{[^\n]*\}\r?\n(\r?\n)?', re.MULTILINE)
"""The extra last chunk of a chat or completion stream. In a text, its quotation marks would be escaped."""
_USAGE_LINE = re.compile(rb'^data: ?(\{.*"usage": ?\{.*\})\r?$', re.MULTILINE)


class EventStream:
    """Follows one stream; feed it every chunk and pass on what it returns. ``tally`` is kept true."""

    def __init__(self, dialect: Dialect, tally: Tally) -> None:
        self._last_event = _LAST_EVENT[dialect]
        self._pieces = _PIECES[dialect]
        self._tail = b""
        self._swallow = False
        self._tally = tally
        self.complete = False

    def feed(self, chunk: bytes) -> bytes:
        """Take a chunk; return the bytes that end in a line's end, which may be none."""
        cut = chunk.rfind(b"\n") + 1
        if not cut and len(self._tail) + len(chunk) <= MAX_LINE_BYTES:
            self._tail += chunk
            return b""
        lines = self._tail + chunk[:cut] if cut else self._tail + chunk
        self._tail = chunk[cut:] if cut else b""
        self._look_at(lines)
        return self._for_the_client(lines) if self._tally.hidden else lines

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
                self._tally.reported = usage_of(match.group(1)) or self._tally.reported
        self._tally.events += sum(lines.count(piece) for piece in self._pieces)

    def _for_the_client(self, lines: bytes) -> bytes:
        """Take out the chunk that the client did not ask for, and the empty line that ends it."""
        if self._swallow:
            self._swallow = False
            lines = lines.removeprefix(b"\r").removeprefix(b"\n")
        if b'"usage"' not in lines or (chunk := _USAGE_CHUNK.search(lines)) is None:
            return lines
        self._swallow = chunk.group(1) is None
        return lines[: chunk.start()] + lines[chunk.end() :]
