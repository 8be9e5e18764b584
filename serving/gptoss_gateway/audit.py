"""An audit line per request: who asked which model, made of which weights, and what came of it. Never content.

Nothing in a line is in a client's own words, so each is as long as its tenant's and model's names at most.
A thread writes, so a slow disk delays no request. Its queue is bounded; a line that finds no room is lost,
counted and reported in the log. The file may be rotated by moving it away.
"""

import json
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from logging.handlers import WatchedFileHandler
from pathlib import Path

from gptoss_gateway.catalogue import ServedModel
from gptoss_gateway.errors import RequestError, SettingsError
from gptoss_gateway.usage import Usage

_log = logging.getLogger(__name__)

MAX_QUEUED = 10_000
"""Half of it for requests of nobody who is known: a flood of them takes no tenant's line away."""
CLOSE_SECONDS = 5.0
TELL_SECONDS = 10.0
"""Least time between two complaints of the log about lost lines; each is counted."""


@dataclass(kw_only=True)
class Entry:
    """What is known of one request; filled in on its way.

    Attributes:
        route: the path that was asked for, if there is such a one.
        tenant: who asked, once the key is known.
        model: what was asked for, once it was found; also if the tenant may not use it.
        status: what was answered; None if the client left.
        error: the code of the gateway's own error, if it came to one.
        usage: what was used, if anything was.
    """

    request_id: str
    route: str | None = None
    tenant: str | None = None
    model: ServedModel | None = None
    status: int | None = None
    error: str | None = None
    usage: Usage | None = None

    def failed(self, error: RequestError) -> None:
        """Take over the error that a request came to."""
        self.status, self.error = error.status, error.error_code


class AuditLog:
    """Writes JSON lines to a file until it is closed."""

    def __init__(self, path: Path, *, timestamp: Callable[[], str], on_loss: Callable[[], None]) -> None:
        try:
            path.touch(mode=0o600)
            self._file = _File(path, self._lose)
        except OSError as error:
            raise SettingsError(f"auditFile {path}: can't be written: {error}") from error
        self._timestamp = timestamp
        self._on_loss = on_loss
        self._told = -TELL_SECONDS
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._thread = threading.Thread(target=self._write, name="audit", daemon=True)
        self._thread.start()

    def record(self, entry: Entry, *, seconds: float) -> None:
        """Write down one request, which took so long."""
        if self._lines.qsize() >= (MAX_QUEUED if entry.tenant is not None else MAX_QUEUED // 2):
            self._lose("the file takes them too slowly")
            return
        model = entry.model
        line = {
            "time": self._timestamp(),
            "requestId": entry.request_id,
            "tenant": entry.tenant,
            "namespace": model.namespace if model is not None else None,
            "model": model.name if model is not None else None,
            "uid": model.uid if model is not None else None,
            "weights": model.manifest_digest if model is not None else None,
            "route": entry.route,
            "status": entry.status,
            "error": entry.error,
            "seconds": round(seconds, 3),
            "tokens": None if entry.usage is None else _tokens(entry.usage),
        }
        self._lines.put(json.dumps(line, ensure_ascii=False, separators=(",", ":")))

    def close(self) -> None:
        """Write what is queued, for a few seconds at most, and end the thread."""
        self._lines.put(None)
        self._thread.join(CLOSE_SECONDS)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            self._file.emit(logging.makeLogRecord({"msg": line}))
        self._file.close()

    def _lose(self, why: str) -> None:
        self._on_loss()
        if (now := time.monotonic()) - self._told >= TELL_SECONDS:
            self._told = now
            _log.error("audit lines are lost", extra={"error": why})


class _File(WatchedFileHandler):
    """A file that is opened anew when it was moved away; what can't be written is a loss."""

    def __init__(self, path: Path, lose: Callable[[str], None]) -> None:
        super().__init__(path, encoding="utf-8")
        self._lose = lose

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, ARG002 - as logging has it
        """Count a line that the file did not take."""
        self._lose(str(sys.exception()))


def _tokens(usage: Usage) -> dict[str, int | bool]:
    return {
        "input": usage.input,
        "cached": usage.cached,
        "output": usage.output,
        "reasoning": usage.reasoning,
        "estimated": usage.estimated,
    }
