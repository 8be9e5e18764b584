"""The house that every gateway test lives in."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.gateway.house import House


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """Engines and a Kubernetes without objects; gateways are opened by the test."""
    house = House(tmp_path)
    await house.start()
    yield house
    await house.stop()
