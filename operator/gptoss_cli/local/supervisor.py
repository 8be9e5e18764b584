"""Own one program from start to end, in a process of its own.

    python supervisor.py --record FILE --log FILE [--restart] [--lifeline] -- PROGRAM ARGUMENTS…

`programs.py` starts one of these per program. It writes down what runs (process ids with start times,
so that a reused id is never mistaken for ours), starts the program in a process group of its own,
starts it again with back-off if `--restart`, and ends the group when it is told to. If it is killed
itself, the kernel ends the program; with `--lifeline` it stops when its standard input closes, that is
when the process that started it is gone. It uses the standard library alone and costs a few megabytes.
"""

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1
GRACE_SECONDS = 20.0
WAITED_FOR = (signal.SIGCHLD, signal.SIGTERM)  # blocked from the start, so that none is ever lost
RESTART_SECONDS = (0.2, 15.0)  # first and longest pause before a program is started again
STEADY_SECONDS = 60.0  # a program that ran this long starts over at the first pause


def start_time(pid: int) -> str:
    """Return when process `pid` started, in the kernel's ticks, or "" if there is none (proc(5), field 22)."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if after_name[0] in {"Z", "X"} else after_name[19]


class Supervisor:
    """One program under supervision; see the module's docstring."""

    def __init__(self, *, command: list[str], record: Path, log: Path, restart: bool, grace: float) -> None:
        self._command = command
        self._record = record
        self._log = log
        self._restart = restart
        self._grace = grace
        self._stopping = False
        self._restarts = 0

    def run(self) -> int:
        """Run the program until it ends for good; return its exit code (0 after an asked-for stop)."""
        pause = RESTART_SECONDS[0]
        while True:
            began = time.monotonic()
            code = self._run_once()
            if self._stopping:
                self._record.unlink(missing_ok=True)
                return 0
            if not self._restart:
                self._write(None, code)
                return code
            if time.monotonic() - began > STEADY_SECONDS:
                pause = RESTART_SECONDS[0]
            self._restarts += 1
            self._say(f"ended with {code}; starting it again in {pause:.1f} s (restart {self._restarts})")
            self._wait(until=time.monotonic() + pause)
            pause = min(pause * 2, RESTART_SECONDS[1])

    def _run_once(self) -> int:
        if self._stopping:
            return 0
        with self._log.open("ab") as log:
            child = subprocess.Popen(  # noqa: S603
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509  the other thread only reads
            )
        self._write(child.pid, None)
        try:
            while child.poll() is None:
                if self._stopping:
                    self._end(child)
                    break
                self._wait_once(60.0)
        finally:
            _signal_group(child.pid, signal.SIGKILL)  # whatever of its group outlived it
        return child.wait()

    def _end(self, child: "subprocess.Popen[bytes]") -> None:
        child.terminate()
        try:
            child.wait(self._grace)
        except subprocess.TimeoutExpired:
            self._say(f"still running {self._grace:.0f} s after SIGTERM: killing it")

    def _wait(self, *, until: float) -> None:
        while not self._stopping and (left := until - time.monotonic()) > 0:
            self._wait_once(left)

    def _wait_once(self, seconds: float) -> None:
        """Sleep until a child ends or someone says stop, at most `seconds`."""
        arrived = signal.sigtimedwait(WAITED_FOR, seconds)
        if arrived and arrived.si_signo == signal.SIGTERM:
            self._stopping = True

    def _write(self, pid: int | None, exit_code: int | None) -> None:
        content = {
            "supervisor": {"pid": os.getpid(), "started": start_time(os.getpid())},
            "program": {"pid": pid, "started": start_time(pid)} if pid else None,
            "exitCode": exit_code,
            "restarts": self._restarts,
            "graceSeconds": self._grace,
            "command": self._command,
        }
        partial = self._record.with_suffix(".partial")
        partial.write_text(json.dumps(content))
        partial.replace(self._record)

    def _say(self, text: str) -> None:
        with self._log.open("a") as log:
            log.write(f"supervisor: {self._record.stem} {text}\n")


def _end_with_parent() -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return


def _watch_lifeline() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main(arguments: list[str]) -> int:
    """Run the supervisor as the module's docstring says."""
    parser = argparse.ArgumentParser(prog="supervisor")
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--restart", action="store_true")
    parser.add_argument("--lifeline", action="store_true")
    parser.add_argument("--grace", type=float, default=GRACE_SECONDS)
    parser.add_argument("command", nargs="+")
    given = parser.parse_args(arguments)
    supervisor = Supervisor(
        command=given.command, record=given.record, log=given.log, restart=given.restart, grace=given.grace
    )
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for whoever started us
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, WAITED_FOR)
    if given.lifeline:
        threading.Thread(target=_watch_lifeline, daemon=True).start()
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
