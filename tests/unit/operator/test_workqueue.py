"""The queue of keys: no duplicates, one worker per key, changes first, growing pauses."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_operator.workqueue import Priority, QueueClosedError, WorkQueue


async def drain(queue: WorkQueue[str]) -> list[str]:
    taken = []
    while len(queue):
        key = await queue.get()
        taken.append(key)
        queue.done(key)
    return taken


async def test_a_key_waits_at_most_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for _ in range(3):
        queue.add("a")
    assert await drain(queue) == ["a"]


async def test_a_change_overtakes_the_resync() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a", Priority.RESYNC)
    queue.add("b", Priority.RESYNC)
    queue.add("c")
    queue.add("b")
    assert await drain(queue) == ["c", "b", "a"]


async def test_a_key_is_worked_on_by_one_worker_and_looked_at_again_if_it_changed_meanwhile() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    key = await queue.get()
    queue.add("a")
    assert len(queue) == 0
    queue.done(key)
    assert await drain(queue) == ["a"]


async def test_a_failed_key_comes_back_with_growing_pauses() -> None:
    queue: WorkQueue[str] = WorkQueue(first_delay=1, last_delay=5, chance=lambda: 1.0)
    pauses = []
    for _ in range(4):
        queue.add("a")
        pauses.append(queue.failed(await queue.get()))
    assert pauses == [1, 2, 4, 5]
    queue.close()


async def test_success_ends_the_pauses() -> None:
    queue: WorkQueue[str] = WorkQueue(first_delay=1, chance=lambda: 1.0)
    for _ in range(3):
        queue.add("a")
        queue.failed(await queue.get())
    queue.add("a")
    queue.done(await queue.get())
    queue.add("a")
    assert queue.failed(await queue.get()) == 1
    queue.close()


async def test_what_the_server_asks_for_is_waited_for() -> None:
    queue: WorkQueue[str] = WorkQueue(first_delay=0.001)
    queue.add("a")
    assert queue.failed(await queue.get(), again_after=30) == 30
    queue.close()


async def test_a_change_overtakes_the_pause_and_a_resync_does_not() -> None:
    queue: WorkQueue[str] = WorkQueue(first_delay=60)
    queue.add("a")
    queue.failed(await queue.get())
    queue.add("a", Priority.RESYNC)
    assert len(queue) == 0
    queue.add("a")
    assert await drain(queue) == ["a"]


async def test_a_delayed_key_comes_when_it_is_due_and_the_earliest_wish_counts() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 60)
    queue.add_after("a", 0.01)
    queue.add_after("a", 30)
    assert await asyncio.wait_for(queue.get(), 60) == "a"
    queue.close()


async def test_a_full_queue_refuses_the_resync_but_never_a_change() -> None:
    queue: WorkQueue[str] = WorkQueue(capacity=1)
    assert queue.add("a", Priority.RESYNC)
    assert not queue.add("b", Priority.RESYNC)
    assert queue.add("c")


async def test_closing_ends_every_waiting_worker() -> None:
    queue: WorkQueue[str] = WorkQueue()
    worker = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.close()
    with pytest.raises(QueueClosedError):
        await worker
    assert not queue.add("a")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["add", "resync", "work"])), max_size=40))
def test_no_news_is_ever_lost_and_no_key_runs_twice_at_once(steps: list[tuple[str, str]]) -> None:
    async def play() -> None:
        queue: WorkQueue[str] = WorkQueue()
        owed: set[str] = set()
        held: list[str] = []
        for key, step in steps:
            if step == "work":
                if held:
                    queue.done(held.pop(0))
                if len(queue):
                    taken = await queue.get()
                    assert taken not in held
                    held.append(taken)
                    owed.discard(taken)
            else:
                queue.add(key, Priority.CHANGE if step == "add" else Priority.RESYNC)
                owed.add(key)
        for key in held:
            queue.done(key)
        assert owed <= set(await drain(queue))
        queue.close()

    asyncio.run(play())
