"""kopf's watches in the places where the operator runs."""

import asyncio
import getpass

import pytest

from gptoss_kube.credentials import Connection
from gptoss_operator.cache import Cache
from gptoss_operator.handlers import Watches
from gptoss_operator.intake import Intake
from gptoss_operator.workqueue import WorkQueue
from tests.contract.operator.house import ManualClock


async def test_watches_start_for_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch):
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 65532")

    monkeypatch.setattr(getpass, "getuser", nameless)
    asked = asyncio.Event()

    async def login() -> Connection:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    clock = ManualClock()
    watches = Watches(
        intake=Intake(cache=Cache(), queue=WorkQueue(), clock=clock),
        login=login,
        clock=clock,
        namespaces=(),
        system_namespace="gptoss-system",
        after_start=lambda: None,
    )
    task = asyncio.create_task(watches.forever())
    try:
        async with asyncio.timeout(60):
            await asked.wait()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
