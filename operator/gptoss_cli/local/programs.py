"""Start, watch and end the programs of a stack, each under a supervisor of its own.

A folder of records (`<name>.json`, written by `supervisor.py`) is the truth about what runs: whoever
opens the same folder later finds the same programs and can end them. A record names process ids with
their start times, so a stranger that was given a reused id is never touched.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptoss_cli.local import supervisor
from gptoss_cli.local.errors import ProgramError
from gptoss_cli.local.folders import private_folder

POLL_SECONDS = 0.05
HOPELESS_RESTARTS = 3
RECORD_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Program:
    """How to start one program; `environment` is added to this process's own."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    restart: bool = False
    grace_seconds: float = supervisor.GRACE_SECONDS


@dataclass(frozen=True, kw_only=True)
class Process:
    """One operating-system process, told apart from a later one with the same id by its start time."""

    pid: int
    started: str

    def alive(self) -> bool:
        """Return whether exactly this process still runs."""
        return bool(self.started) and supervisor.start_time(self.pid) == self.started

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal to this process (or its whole group) unless it is gone."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(self.pid, number)


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a supervisor wrote down about its program."""

    name: str
    supervisor: Process
    program: Process | None
    exit_code: int | None
    restarts: int
    grace_seconds: float

    def alive(self) -> bool:
        """Return whether the program runs or its supervisor is there to start it again."""
        return self.supervisor.alive() or (self.program is not None and self.program.alive())


class Programs:
    """The programs whose records lie in one folder.

    With `attached`, they end when this process ends, however it ends (tests); otherwise they outlive it.
    """

    def __init__(self, folder: Path, *, attached: bool) -> None:
        self.folder = private_folder(folder)
        self._attached = attached
        self._lifelines: dict[str, subprocess.Popen[bytes]] = {}

    def log(self, name: str) -> Path:
        """Return the file that holds the program's output."""
        return self.folder / f"{name}.log"

    def start(self, program: Program) -> Record:
        """Start a program and return its record. Raises ProgramError if its supervisor does not report."""
        if (known := self.record(program.name)) and known.alive():
            raise ProgramError(f"{program.name} already runs (process {known.supervisor.pid})")
        self._record_file(program.name).unlink(missing_ok=True)
        command = [
            *(sys.executable, "-I", "-S", supervisor.__file__),
            *("--record", str(self._record_file(program.name))),
            *("--log", str(self.log(program.name))),
            *("--grace", str(program.grace_seconds)),
            *(["--restart"] if program.restart else []),
            *(["--lifeline"] if self._attached else []),
            *("--", *program.command),
        ]
        # A Ctrl-C between the start and the record would leave a process that nobody knows of.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            started = subprocess.Popen(  # noqa: S603
                command,
                env={**os.environ, **program.environment},
                stdin=subprocess.PIPE if self._attached else subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.log(program.name).open("ab"),
                start_new_session=True,
            )
            self._lifelines[program.name] = started
            return self._first_record(program.name, started)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def record(self, name: str) -> Record | None:
        """Return what is written down about a program, or None if nothing is."""
        try:
            raw = json.loads(self._record_file(name).read_text())
        except (OSError, ValueError):
            return None
        return Record(
            name=name,
            supervisor=Process(**raw["supervisor"]),
            program=Process(**raw["program"]) if raw["program"] else None,
            exit_code=raw["exitCode"],
            restarts=raw["restarts"],
            grace_seconds=raw["graceSeconds"],
        )

    def records(self) -> list[Record]:
        """Return all records, oldest start first."""
        names = (path.stem for path in self.folder.glob("*.json"))
        found = [record for name in names if (record := self.record(name))]
        return sorted(found, key=lambda record: int(record.supervisor.started or 0))

    def wait(self, name: str, ready: Callable[[], bool], *, seconds: float, what: str = "ready") -> None:
        """Wait until `ready()`; raises ProgramError if the program ends first or time is up."""
        deadline = time.monotonic() + seconds
        while not ready():
            record = self.record(name)
            if record is None or not record.alive():
                code = record.exit_code if record else None
                raise ProgramError(f"{name} ended (exit code {code}) before it was {what}:\n{self.last_lines(name)}")
            if record.restarts >= HOPELESS_RESTARTS:
                raise ProgramError(f"{name} ends again and again before it is {what}:\n{self.last_lines(name)}")
            if time.monotonic() > deadline:
                raise ProgramError(f"{name} was not {what} within {seconds:.0f} s:\n{self.last_lines(name)}")
            time.sleep(POLL_SECONDS)

    def stop(self, name: str) -> None:
        """End a program and everything in its process group; returns once they are gone."""
        record = self.record(name)
        if record is not None:
            record.supervisor.signal(signal.SIGTERM)
            if not _until_gone(record, record.grace_seconds + 5):
                record = self.record(name) or record
                record.supervisor.signal(signal.SIGKILL)
                if record.program:
                    record.program.signal(signal.SIGKILL, group=True)
                _until_gone(record, 5.0)
            self._record_file(name).unlink(missing_ok=True)
        self._reap(name)

    def kill(self, name: str) -> None:
        """SIGKILL the program itself (not its supervisor), as a crash would."""
        record = self.record(name)
        if record and record.program:
            record.program.signal(signal.SIGKILL)
            while record.program.alive():
                time.sleep(0.005)

    def stop_all(self) -> None:
        """End all programs of this folder, the last one started first."""
        for record in reversed(self.records()):
            self.stop(record.name)

    def last_lines(self, name: str, count: int = 20) -> str:
        """Return the end of a program's log, for messages."""
        try:
            lines = self.log(name).read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(["…" if len(lines) > count else "", *lines[-count:], f"(log: {self.log(name)})"]).strip()

    def _first_record(self, name: str, started: "subprocess.Popen[bytes]") -> Record:
        deadline = time.monotonic() + RECORD_SECONDS
        while time.monotonic() < deadline:
            if record := self.record(name):
                return record
            if started.poll() is not None:
                break
            time.sleep(0.005)
        started.kill()
        self._reap(name)
        raise ProgramError(f"{name} could not be started:\n{self.last_lines(name)}")

    def _reap(self, name: str) -> None:
        if started := self._lifelines.pop(name, None):
            if started.stdin:
                started.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.wait(5.0)

    def _record_file(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def _until_gone(record: Record, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while record.alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
