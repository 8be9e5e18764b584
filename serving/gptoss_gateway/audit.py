"""An audit line per request: who asked which model, made of which weights, and what came of it. Never content.

A thread writes, so a slow disk delays no request. Its queue is bounded; a line that finds no room is lost,
counted and reported in the log. The file may be rotated by moving it away.
"""

import json
import logging
import queue
import threading
from collections.abc import Callable
from logging.handlers import WatchedFileHandler
from pathlib import Path

from gptoss_gateway.catalogue import ServedModel
from gptoss_gateway.errors import SettingsError
from gptoss_gateway.usage import Usage

_log = logging.getLogger(__name__)

MAX_QUEUED = 10_000
CLOSE_SECONDS = 5.0


class AuditLog:
    """Writes JSON lines to a file until it is closed."""

    def __init__(self, path: Path, *, timestamp: Callable[[], str], on_loss: Callable[[], None]) -> None:
        try:
            path.touch(mode=0o600)
            self._file = _File(path, on_loss)
        except OSError as error:
            raise SettingsError(f"auditFile {path}: can't be written: {error}") from error
        self._timestamp = timestamp
        self._on_loss = on_loss
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._thread = threading.Thread(target=self._write, name="audit", daemon=True)
        self._thread.start()

    def record(
        self,
        model: ServedModel,
        *,
        tenant: str,
        request_id: str,
        route: str,
        status: int | None,
        usage: Usage | None,
        seconds: float,
    ) -> None:
        """Write down one request; ``status`` is None if its client left before one."""
        line = {
            "time": self._timestamp(),
            "requestId": request_id,
            "tenant": tenant,
            "namespace": model.namespace,
            "model": model.name,
            "uid": model.uid,
            "weights": model.manifest_digest,
            "route": route,
            "status": status,
            "seconds": round(seconds, 3),
            "tokens": None if usage is None else _tokens(usage),
        }
        if self._lines.qsize() >= MAX_QUEUED:
            _log.error("audit line lost, its file takes them too slowly", extra={"request": request_id})
            self._on_loss()
            return
        self._lines.put(json.dumps(line, ensure_ascii=False, separators=(",", ":")))

    def close(self) -> None:
        """Write what is queued, for a few seconds at most, and end the thread."""
        self._lines.put(None)
        self._thread.join(CLOSE_SECONDS)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            self._file.emit(logging.makeLogRecord({"msg": line}))
        self._file.close()


class _File(WatchedFileHandler):
    """A file that is opened anew when it was moved away; what can't be written is a loss."""

    def __init__(self, path: Path, on_loss: Callable[[], None]) -> None:
        super().__init__(path, encoding="utf-8")
        self._on_loss = on_loss

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, ARG002 - as logging has it
        """Count a line that the file did not take."""
        _log.exception("audit line lost, its file does not take it")
        self._on_loss()


def _tokens(usage: Usage) -> dict[str, int | bool]:
    return {
        "input": usage.input,
        "cached": usage.cached,
        "output": usage.output,
        "reasoning": usage.reasoning,
        "estimated": usage.estimated,
    }
