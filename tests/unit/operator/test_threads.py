"""Blocking work keeps neither the event loop nor the process waiting, and there is never too much of it."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptoss_operator import threads
from gptoss_operator.threads import Threads

PATIENCE = 60.0


async def run(built: Threads, work: Callable[..., Any], *arguments: object, owner: str = "") -> Any:
    async with built.turn(owner) as turn:
        return await turn.run(work, *arguments)


async def test_results_and_errors_come_back() -> None:
    built = Threads(2, name="test")
    assert await run(built, divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await run(built, divmod, 7, 0)


async def test_work_that_nobody_waits_for_any_more_keeps_its_turn_until_it_ends() -> None:
    built = Threads(1, name="test")
    begun, end = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        end.wait(PATIENCE)

    first = asyncio.create_task(run(built, hang))
    async with asyncio.timeout(PATIENCE):
        while not begun.is_set():  # noqa: ASYNC110 - a thread's
            await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.wait({first})
    second = asyncio.create_task(run(built, divmod, 7, 2))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not second.done()
    end.set()
    async with asyncio.timeout(PATIENCE):
        assert await second == (3, 1)


async def test_work_that_hangs_is_its_owners_alone_once_nobody_waits_for_it_any_more() -> None:
    built = Threads(1, name="test", each=1)
    end = threading.Event()
    for owner in ("theirs", "others"):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await run(built, end.wait, 2 * PATIENCE, owner=owner)
    async with asyncio.timeout(PATIENCE):
        assert await run(built, divmod, 7, 2, owner="ours") == (3, 1)
        again = asyncio.create_task(run(built, divmod, 7, 2, owner="theirs"))
        assert await run(built, divmod, 7, 2, owner="ours") == (3, 1)
        assert not again.done()
        end.set()
        assert await again == (3, 1)


async def test_an_owner_whose_work_hangs_leaves_turns_to_others() -> None:
    built = Threads(3, name="test", each=2)
    end = threading.Event()
    hanging = [asyncio.create_task(run(built, end.wait, PATIENCE, owner="theirs")) for _ in range(4)]
    async with asyncio.timeout(PATIENCE):
        for _ in range(3):
            assert await run(built, divmod, 7, 2, owner="ours") == (3, 1)
        assert not any(each.done() for each in hanging)
        end.set()
        assert await asyncio.gather(*hanging) == [True] * 4


async def test_a_turn_that_is_not_used_or_waited_for_in_vain_is_the_next_ones() -> None:
    built = Threads(1, name="test")
    async with asyncio.timeout(PATIENCE):
        async with built.turn("ours"):
            waiting = asyncio.create_task(run(built, divmod, 7, 2, owner="theirs"))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait({waiting})
        assert await run(built, divmod, 7, 2, owner="theirs") == (3, 1)


def test_work_that_hangs_keeps_no_process_from_ending() -> None:
    program = """
import asyncio, threading
from gptoss_operator.threads import Threads

async def hang(begun):
    async with Threads(1, name="test").turn() as turn:
        await turn.run(lambda: (begun.set(), threading.Event().wait()))

async def main():
    begun = threading.Event()
    hanging = asyncio.create_task(hang(begun))
    while not begun.is_set():
        await asyncio.sleep(0.01)
    hanging.cancel()

asyncio.run(main())
"""
    home = Path(threads.__file__).parents[1]
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE, env={"PYTHONPATH": str(home)})
