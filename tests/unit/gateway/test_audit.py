"""The audit file: rotated without a loss, and never in anybody's way."""

import json
import threading
from pathlib import Path

import pytest

from gptoss_gateway import audit
from gptoss_gateway.audit import AuditLog, Entry
from gptoss_gateway.errors import SettingsError


def write(log: AuditLog, request: str, *, tenant: str | None = "t") -> None:
    log.record(Entry(request_id=request, tenant=tenant), seconds=0.5)


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


class SlowDisk:
    """An audit log whose first line stays on its way to the file until ``go`` is set."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lost: list[int] = []
        self.log = AuditLog(path, timestamp=lambda: "now", on_loss=lambda: self.lost.append(1))
        self.go = threading.Event()
        stuck, emit = threading.Event(), self.log._file.emit

        def slow(record) -> None:
            stuck.set()
            self.go.wait(60)
            emit(record)

        monkeypatch.setattr(self.log._file, "emit", slow)
        write(self.log, "0")
        assert stuck.wait(60)

    def close(self) -> None:
        self.go.set()
        self.log.close()


def test_lines_that_find_no_room_are_counted_told_once_and_nobody_waits(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(audit, "MAX_QUEUED", 2)
    disk = SlowDisk(tmp_path / "audit", monkeypatch)
    for number in range(1, 6):
        write(disk.log, str(number))
    assert len(disk.lost) == 3
    assert [record.message for record in caplog.records] == ["audit lines are lost"]
    disk.close()
    assert requests(tmp_path / "audit") == ["0", "1", "2"]


def test_whoever_has_no_key_takes_no_tenants_line_away(tmp_path, monkeypatch):
    monkeypatch.setattr(audit, "MAX_QUEUED", 4)
    disk = SlowDisk(tmp_path / "audit", monkeypatch)
    for number in range(100):
        write(disk.log, f"flood-{number}", tenant=None)
    write(disk.log, "1")
    write(disk.log, "2")
    assert len(disk.lost) == 98
    disk.close()
    assert requests(tmp_path / "audit") == ["0", "flood-0", "flood-1", "1", "2"]


def test_a_line_that_the_file_does_not_take_is_counted_too(tmp_path, monkeypatch):
    lost: list[int] = []
    log = AuditLog(tmp_path / "audit", timestamp=lambda: "now", on_loss=lambda: lost.append(1))

    def full(_) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(log._file, "format", full)
    write(log, "0")
    log.close()
    assert len(lost) == 1
