"""Blocking work keeps neither the event loop nor the process waiting, and there is never too much of it."""

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gptoss_operator import threads
from gptoss_operator.threads import Threads

PATIENCE = 60.0


async def test_results_and_errors_come_back() -> None:
    built = Threads(2, name="test")
    assert await built.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await built.run(divmod, 7, 0)


async def test_work_that_nobody_waits_for_any_more_keeps_its_turn_until_it_ends() -> None:
    built = Threads(1, name="test")
    begun, end = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        end.wait(PATIENCE)

    first = asyncio.create_task(built.run(hang))
    async with asyncio.timeout(PATIENCE):
        while not begun.is_set():  # noqa: ASYNC110 - a thread's
            await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.wait({first})
    second = asyncio.create_task(built.run(divmod, 7, 2))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not second.done()
    end.set()
    async with asyncio.timeout(PATIENCE):
        assert await second == (3, 1)


def test_work_that_hangs_keeps_no_process_from_ending() -> None:
    program = """
import asyncio, threading
from gptoss_operator.threads import Threads

async def main():
    begun = threading.Event()
    hanging = asyncio.create_task(Threads(1, name="test").run(lambda: (begun.set(), threading.Event().wait())))
    while not begun.is_set():
        await asyncio.sleep(0.01)
    hanging.cancel()

asyncio.run(main())
"""
    home = Path(threads.__file__).parents[1]
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE, env={"PYTHONPATH": str(home)})
