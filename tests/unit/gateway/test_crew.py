"""Who keeps a worker's place in a crew, and for how long."""

import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest

from gptoss_gateway import crew
from gptoss_gateway.crew import _listening, _Worker
from gptoss_gateway.errors import SettingsError
from gptoss_gateway.settings import Listener
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


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_crew_shares_the_socket_of_one_address(host: str) -> None:
    with _listening(Listener(host=host, port=0)) as listening:
        assert listening.getsockname()[0] == host


def test_a_name_of_several_addresses_is_refused_rather_than_half_served(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(SettingsError, match=r"'localhost', which is ::1 and 127\.0\.0\.1.*workers"):
        _listening(Listener(host="localhost", port=0))
