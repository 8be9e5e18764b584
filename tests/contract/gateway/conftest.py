"""The house that every gateway test lives in."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.gateway.house import House


@pytest.fixture(scope="session")
def _little_to_collect() -> Iterator[None]:
    """What is there before the first test is no test's garbage: collecting after each one then costs nothing."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
async def _no_error_goes_unread(_little_to_collect: None) -> AsyncIterator[None]:
    """Fail the test whose task or future ended with an error that nobody looked at.

    The event loop tells that when the garbage is collected, in whichever test that happens.
    """
    unread: list[str] = []

    def note(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        loop.default_exception_handler(context)
        if "was never retrieved" in context["message"]:
            unread.append(f"{context['message']}: {context.get('future')!r}")

    asyncio.get_running_loop().set_exception_handler(note)
    yield
    gc.collect()
    assert not unread, "\n".join(unread)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """Engines and a Kubernetes without objects; gateways are opened by the test."""
    house = House(tmp_path)
    await house.start()
    yield house
    await house.stop()
