"""Running the long commands of a demo: what they say is shown, and an interrupt ends them."""

import io
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from gptoss_cli.local import supervisor
from gptoss_cli.local.errors import StepError
from gptoss_cli.local.steps import Steps


def test_shows_what_a_command_says():
    shown = io.StringIO()
    with Steps(Console(file=shown)) as steps, steps.step("building") as report:
        steps.run(("bash", "-c", "echo half done"), report, seconds=60)
    assert "half done" in shown.getvalue()
    assert "building: done in" in shown.getvalue()


def test_a_failing_command_is_told_with_its_last_words():
    with Steps(Console(file=io.StringIO())) as steps, pytest.raises(StepError, match=r"(?s)\(3\).*disk is full"):
        steps.run(("bash", "-c", "echo disk is full; exit 3"), lambda _: None, seconds=60)


def test_a_command_that_takes_too_long_is_ended():
    with Steps(Console(file=io.StringIO())) as steps, pytest.raises(StepError):
        steps.run(("sleep", "600"), lambda _: None, seconds=0.2)


def test_an_interrupt_ends_commands_and_their_children(tmp_path: Path):
    child = tmp_path / "child"
    failed = threading.Event()

    def work(steps: Steps) -> None:
        try:
            steps.run(("bash", "-c", f"sleep 600 & echo $! > {child}; wait"), lambda _: None, seconds=60)
        except StepError:
            failed.set()

    with Steps(Console(file=io.StringIO())) as steps:
        threading.Thread(target=work, args=(steps,)).start()
        while not (child.exists() and child.read_text().strip()):
            time.sleep(0.01)
        steps.interrupt()
    assert failed.wait(10)
    deadline = time.monotonic() + 60
    while supervisor.start_time(int(child.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.01)
