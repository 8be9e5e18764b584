"""The audit file: rotated without a loss, and never in anybody's way."""

import json
import threading
from pathlib import Path

import pytest

from gptoss_gateway import audit
from gptoss_gateway.audit import AuditLog
from gptoss_gateway.errors import SettingsError
from tests.unit.gateway.models import model


def write(log: AuditLog, request: str) -> None:
    log.record(model(), tenant="t", request_id=request, route="/", status=None, usage=None, seconds=0.5)


def requests(path: Path) -> list[str]:
    return [json.loads(line)["requestId"] for line in path.read_text().splitlines()]


def test_a_file_that_was_moved_away_is_made_anew(tmp_path):
    path = tmp_path / "audit"
    log = AuditLog(path, timestamp=lambda: "now", on_loss=lambda: None)
    write(log, "one")
    while not path.read_text():
        pass
    path.rename(tmp_path / "old")
    write(log, "two")
    log.close()
    assert (requests(tmp_path / "old"), requests(path)) == (["one"], ["two"])


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"auditFile .*/none/audit"):
        AuditLog(tmp_path / "none" / "audit", timestamp=lambda: "now", on_loss=lambda: None)


def test_lines_that_find_no_room_are_counted_and_nobody_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(audit, "MAX_QUEUED", 2)
    lost: list[int] = []
    log = AuditLog(tmp_path / "audit", timestamp=lambda: "now", on_loss=lambda: lost.append(1))
    stuck, go = threading.Event(), threading.Event()
    emit = log._file.emit

    def slow(record) -> None:
        stuck.set()
        go.wait(5)
        emit(record)

    monkeypatch.setattr(log._file, "emit", slow)
    write(log, "0")
    assert stuck.wait(5)
    for number in range(1, 6):
        write(log, str(number))
    assert len(lost) == 3
    go.set()
    log.close()
    assert requests(tmp_path / "audit") == ["0", "1", "2"]


def test_a_line_that_the_file_does_not_take_is_counted_too(tmp_path, monkeypatch):
    lost: list[int] = []
    log = AuditLog(tmp_path / "audit", timestamp=lambda: "now", on_loss=lambda: lost.append(1))

    def full(_) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(log._file, "format", full)
    write(log, "0")
    log.close()
    assert len(lost) == 1
