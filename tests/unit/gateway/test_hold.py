"""The waiting room's bounds and order."""

import pytest

from gptoss_gateway.errors import ModelRefusedError, TooManyHeldError
from gptoss_gateway.hold import WaitingRoom
from tests.unit.gateway.models import model


def room(*, requests: int = 100, size: int = 1000) -> WaitingRoom:
    return WaitingRoom(max_requests=requests, max_bytes=size)


async def test_first_come_first_served_and_those_who_return_before_them():
    hall = room()
    first, second = (hall.enter(model(), size=1, retry_after=1) for _ in range(2))
    back = hall.enter(model(), size=1, retry_after=1, returning=True)
    assert hall.call("u-1", 2) == 1
    assert (back.called.done(), first.called.done(), second.called.done()) == (True, True, False)


async def test_each_model_has_its_bound_and_does_not_take_anothers():
    hall = room()
    small, other = model(max_held_requests=2), model(uid="u-2", name="other")
    for _ in range(2):
        hall.enter(small, size=1, retry_after=1)
    with pytest.raises(TooManyHeldError, match="maxHeldRequests") as caught:
        hall.enter(small, size=1, retry_after=41.2)
    assert caught.value.headers["Retry-After"] == "42"
    hall.enter(other, size=1, retry_after=1)


@pytest.mark.parametrize(("requests", "size"), [(2, 1000), (100, 25)])
async def test_requests_and_bytes_are_bounded_over_all_models(requests, size):
    hall = room(requests=requests, size=size)
    hall.enter(model(), size=10, retry_after=1)
    ticket = hall.enter(model(uid="u-2"), size=10, retry_after=1)
    with pytest.raises(TooManyHeldError, match="gateway"):
        hall.enter(model(uid="u-3"), size=10, retry_after=1)
    hall.enter(model(uid="u-3"), size=10, retry_after=1, returning=True)
    hall.call("u-3", 1)
    hall.leave(ticket)
    hall.leave(ticket)
    hall.enter(model(uid="u-3"), size=10, retry_after=1)


async def test_everyone_is_told_why_they_wait_in_vain():
    hall = room()
    tickets = [hall.enter(model(), size=1, retry_after=1) for _ in range(3)]
    hall.refuse("u-1", lambda: ModelRefusedError("no"))
    errors = [ticket.called.result() for ticket in tickets]
    assert [str(error) for error in errors] == ["no"] * 3
    assert len({id(error) for error in errors}) == 3
    assert hall.waiting("u-1") == 0
