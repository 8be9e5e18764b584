"""Owning processes: whatever dies, nothing of ours stays, and nothing that isn't ours is touched."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gptoss_cli.local import supervisor
from gptoss_cli.local.errors import ProgramError
from gptoss_cli.local.programs import Process, Program, Programs, Record


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    found = Programs(tmp_path / "run", attached=True)
    yield found
    found.stop_all()


def sleeper(*, restart: bool = False, name: str = "sleeper") -> Program:
    return Program(name=name, command=("sleep", "600"), environment={}, restart=restart)


def shell(script: str, *, grace: float = 20.0) -> Program:
    return Program(name="shell", command=("bash", "-c", script), environment={}, grace_seconds=grace)


def test_a_program_that_crashes_is_started_again(programs: Programs):
    before = running(programs.start(sleeper(restart=True)))
    programs.kill("sleeper")
    until(lambda: (programs.record("sleeper") or fail()).restarts == 1 and alive(programs, "sleeper"))
    after = running(programs.record("sleeper"))
    assert after.pid != before.pid


def test_a_program_without_restart_stays_down_and_says_how_it_ended(programs: Programs):
    programs.start(shell("echo no luck; exit 7"))
    with pytest.raises(ProgramError, match=r"(?s)exit code 7.*no luck"):
        programs.wait("shell", lambda: False, seconds=60)


def test_waiting_for_a_program_that_crashes_again_and_again_gives_up(programs: Programs):
    programs.start(Program(name="crashing", command=("false",), environment={}, restart=True))
    with pytest.raises(ProgramError, match="again and again"):
        programs.wait("crashing", lambda: False, seconds=60)


def test_waiting_has_a_deadline(programs: Programs):
    programs.start(sleeper())
    with pytest.raises(ProgramError, match="not ready within 0 s"):
        programs.wait("sleeper", lambda: False, seconds=0.1)


def test_stopping_ends_children_that_stay_behind(programs: Programs, tmp_path: Path):
    children = tmp_path / "child"
    programs.start(shell(f"sleep 600 & echo $! > {children}; wait"))
    until(lambda: children.exists() and children.read_text().strip() != "")
    child = int(children.read_text())
    programs.stop("shell")
    until(lambda: supervisor.start_time(child) == "")  # the kernel takes a moment
    assert programs.records() == []


def test_a_program_that_ignores_sigterm_is_killed_after_its_grace(programs: Programs, tmp_path: Path):
    ready = tmp_path / "ready"
    record = programs.start(shell(f"trap '' TERM; touch {ready}; while true; do sleep 0.05; done", grace=0.3))
    until(ready.exists)
    programs.stop("shell")
    assert not record.alive()


def test_a_killed_supervisor_takes_its_program_along(programs: Programs):
    record = programs.start(sleeper(restart=True))
    os.kill(record.supervisor.pid, signal.SIGKILL)
    until(lambda: not running(record).alive())


def test_a_program_runs_once_under_a_name(programs: Programs):
    programs.start(sleeper())
    with pytest.raises(ProgramError, match="already runs"):
        programs.start(sleeper())


def test_detached_programs_outlive_their_starter_and_are_found_again(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from gptoss_cli.local.programs import *;"
        "Programs(Path(sys.argv[1]), attached=False).start(Program(name='a', command=('sleep', '600'), environment={}))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    later = Programs(tmp_path, attached=False)
    (record,) = later.records()
    assert record.alive()
    later.stop_all()
    assert not record.alive()
    assert later.records() == []


def test_a_stranger_with_a_reused_process_id_is_left_alone(programs: Programs):
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        known = {"pid": stranger.pid, "started": "1"}
        record = {"supervisor": known, "program": known, "exitCode": None, "restarts": 0, "graceSeconds": 1.0}
        (programs.folder / "old.json").write_text(json.dumps(record))
        programs.stop_all()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_programs_end_in_the_reverse_order_of_their_start(programs: Programs, tmp_path: Path):
    order = tmp_path / "order"
    for name in ("first", "second"):
        script = f"trap 'echo {name} >> {order}; exit' TERM; touch {tmp_path / name}; while true; do sleep 0.02; done"
        programs.start(Program(name=name, command=("bash", "-c", script), environment={}))
        until((tmp_path / name).exists)
    programs.stop_all()
    assert order.read_text().split() == ["second", "first"]


def running(record: Record | None) -> Process:
    assert record is not None
    assert record.program is not None
    return record.program


def alive(programs: Programs, name: str) -> bool:
    record = programs.record(name)
    return record is not None and record.program is not None and record.program.alive()


def fail() -> Record:
    raise AssertionError("no record")


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)
