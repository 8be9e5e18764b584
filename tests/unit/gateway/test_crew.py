"""Who keeps a worker's place in a crew, and for how long."""

from collections.abc import Iterator
from typing import Any, cast

import pytest

from gptoss_gateway import crew
from gptoss_gateway.crew import _Worker
from gptoss_gateway.errors import SettingsError
from gptoss_gateway.worker import CANNOT_START, Orders

NO_FORK = BlockingIOError(11, "Resource temporarily unavailable")
KILLED = -9


class Place(_Worker):
    """A place in which processes end as told, and the last one is told to."""

    def __init__(self, *ends: int | OSError) -> None:
        self.replaced = 0
        super().__init__("0", cast("Orders", None), replaced=self._count)
        self._ends: Iterator[int | OSError] = iter(ends)

    def _count(self) -> None:
        self.replaced += 1

    async def _run(self) -> int:
        match next(self._ends, None):
            case OSError() as error:
                raise error
            case None:
                self.end()
                return 0
            case status:
                return status


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_PAUSE_SECONDS", (0.0,))


@pytest.mark.parametrize("ends", [(KILLED,), (KILLED, NO_FORK, NO_FORK), (KILLED, CANNOT_START)])
async def test_whoever_dies_is_replaced_as_soon_as_there_is_a_process_to_be_had(ends: tuple[Any, ...]) -> None:
    place = Place(*ends)
    await place.keep()
    assert place.replaced == len(ends)


@pytest.mark.parametrize(("end", "error"), [(NO_FORK, OSError), (CANNOT_START, SettingsError)])
async def test_a_crew_that_cannot_begin_does_not(end: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        await Place(end).keep()
