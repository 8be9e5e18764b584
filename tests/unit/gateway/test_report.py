"""When a report is written, and what follows when it can't be."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from gptoss_gateway import report
from gptoss_gateway.report import COALESCE_SECONDS, FENCE_SECONDS, Reporter


class Store:
    def __init__(self) -> None:
        self.written: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        self.deleted: list[str] = []
        self.refuse = False

    async def apply(self, name: str, spec: Mapping[str, Any], *, deadline: float) -> None:
        if self.refuse:
            raise TimeoutError("no answer")
        await self.written.put(spec)

    async def delete(self, name: str, *, deadline: float) -> None:
        if self.refuse:
            raise TimeoutError("no answer")
        self.deleted.append(name)

    async def next(self) -> Mapping[str, Any]:
        return await asyncio.wait_for(self.written.get(), 60)


@pytest.fixture
def clock():
    class Clock:
        now = 100.0

    return Clock()


def reporting(store, clock, *, demands=tuple):
    return Reporter(
        identity="gateway-0",
        store=store,
        demands=demands,
        timestamp=lambda: "now",
        closing=lambda: False,
        clock=lambda: clock.now,
    )


@pytest.fixture
async def started(clock):
    store = Store()
    reporter = reporting(store, clock)
    assert not reporter.may_report
    reporter.start()
    yield reporter, store
    await reporter.stop()


async def test_it_is_written_at_the_start_and_again_when_told_to(started):
    reporter, store = started
    assert (await store.next())["heartbeat"] == 1
    reporter.notify()
    assert (await store.next())["heartbeat"] == 2


async def test_it_ends_though_it_was_told_to_write_at_that_moment(started):
    reporter, store = started
    await store.next()
    await asyncio.sleep(2 * COALESCE_SECONDS)  # it waits for the next reason now
    reporter.notify()
    ended, _ = await asyncio.wait({asyncio.create_task(reporter.stop())}, timeout=60)
    assert ended


async def test_many_reasons_are_few_writes(started):
    reporter, store = started
    await store.next()
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(50):
        reporter.notify()
        await asyncio.sleep(0.001)
    await store.next()
    assert store.written.qsize() <= (loop.time() - began) / report.COALESCE_SECONDS + 1


async def test_it_beats_without_a_reason(monkeypatch, clock):
    monkeypatch.setattr(report, "HEARTBEAT_SECONDS", 0.06)
    store = Store()
    reporter = reporting(store, clock)
    reporter.start()
    assert [(await store.next())["heartbeat"] for _ in range(3)] == [1, 2, 3]
    await reporter.stop()
    assert store.deleted == ["gateway-0"]


async def test_a_gateway_that_is_not_heard_fences_itself_and_recovers(started, clock):
    reporter, store = started
    await store.next()
    assert reporter.may_report
    clock.now += FENCE_SECONDS - 0.1
    assert reporter.may_report
    store.refuse = True
    clock.now += 0.1
    assert not reporter.may_report
    store.refuse = False
    reporter.notify()
    await store.next()
    assert reporter.may_report


async def test_a_failed_urgent_write_is_tried_again_soon(started):
    reporter, store = started
    await store.next()
    store.refuse = True
    reporter.notify()
    await asyncio.sleep(0.1)
    store.refuse = False
    await store.next()


async def test_a_report_that_cannot_be_deleted_does_not_stop_the_end(started):
    reporter, store = started
    await store.next()
    store.refuse = True
    await reporter.stop()
    store.refuse = False


async def test_a_report_that_cannot_be_put_together_is_tried_again(clock):
    broken = [ValueError("a count below nought")]

    def demands() -> tuple[()]:
        if broken:
            raise broken.pop()
        return ()

    store = Store()
    reporter = reporting(store, clock, demands=demands)
    reporter.start()
    async with asyncio.timeout(30):
        assert (await store.written.get())["heartbeat"] == 2
    assert reporter.may_report
    await reporter.stop()
