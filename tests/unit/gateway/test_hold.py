"""The waiting room's bounds and order."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_gateway.errors import Limit, ModelRefusedError, TooManyHeldError
from gptoss_gateway.hold import Ticket, WaitingRoom
from tests.unit.gateway.models import model


def room(*, requests: int = 100, size: int = 1000) -> WaitingRoom:
    return WaitingRoom(max_requests=requests, max_bytes=size)


async def test_first_come_first_served_and_those_who_return_before_them():
    hall = room()
    first, second = (hall.enter(model(), size=1, retry_after=lambda: 1) for _ in range(2))
    back = hall.enter(model(), size=1, retry_after=lambda: 1, returning=True)
    assert hall.call("u-1", 2) == 1
    assert (back.called.done(), first.called.done(), second.called.done()) == (True, True, False)


async def test_each_model_has_its_bound_and_does_not_take_anothers():
    hall = room()
    small, other = model(max_held_requests=2), model(uid="u-2", name="other")
    for _ in range(2):
        hall.enter(small, size=1, retry_after=lambda: 1)
    with pytest.raises(TooManyHeldError, match="maxHeldRequests") as caught:
        hall.enter(small, size=1, retry_after=lambda: 41.2)
    assert caught.value.headers["Retry-After"] == "42"
    hall.enter(other, size=1, retry_after=lambda: 1)


@pytest.mark.parametrize(("requests", "size"), [(2, 1000), (100, 25)])
async def test_requests_and_bytes_are_bounded_over_all_models(requests, size):
    hall = room(requests=requests, size=size)
    hall.enter(model(), size=10, retry_after=lambda: 1)
    ticket = hall.enter(model(uid="u-2"), size=10, retry_after=lambda: 1)
    with pytest.raises(TooManyHeldError, match="gateway"):
        hall.enter(model(uid="u-3"), size=10, retry_after=lambda: 1)
    hall.enter(model(uid="u-3"), size=10, retry_after=lambda: 1, returning=True)
    hall.call("u-3", 1)
    hall.leave(ticket)
    hall.leave(ticket)
    hall.enter(model(uid="u-3"), size=10, retry_after=lambda: 1)


async def test_everyone_is_told_why_they_wait_in_vain():
    hall = room()
    tickets = [hall.enter(model(), size=1, retry_after=lambda: 1) for _ in range(3)]
    hall.refuse("u-1", lambda: ModelRefusedError("no"))
    errors = [ticket.called.result() for ticket in tickets]
    assert [str(error) for error in errors] == ["no"] * 3
    assert len({id(error) for error in errors}) == 3
    assert hall.waiting("u-1") == 0


def names(hall: WaitingRoom, tickets: dict[Ticket, str], count: int) -> list[str]:
    """Call one after the other and return who they were."""
    order = []
    for _ in range(count):
        waiting = {ticket for ticket in tickets if not ticket.called.done()}
        hall.call("u-1", 1)
        (called,) = [ticket for ticket in waiting if ticket.called.done()]
        order.append(tickets[called])
    return order


def enter(hall: WaitingRoom, tickets: dict[Ticket, str], tenant: str, count: int, priority: int = 1) -> None:
    for number in range(count):
        ticket = hall.enter(model(), size=1, retry_after=lambda: 1, tenant=tenant, priority=priority)
        tickets[ticket] = f"{tenant}{number}"


async def test_turns_go_round_by_priority_and_within_a_tenant_by_arrival():
    hall, tickets = room(), {}
    enter(hall, tickets, "a", 6)
    enter(hall, tickets, "b", 6, priority=2)
    enter(hall, tickets, "c", 2)
    assert names(hall, tickets, 14) == [
        "a0", "b0", "c0", "b1", "a1", "b2", "c1", "b3", "a2", "b4", "b5", "a3", "a4", "a5",
    ]  # fmt: skip


async def test_who_comes_late_has_saved_up_no_turns_and_who_came_before_lost_none():
    hall, tickets = room(), {}
    enter(hall, tickets, "a", 6)
    assert names(hall, tickets, 3) == ["a0", "a1", "a2"]
    enter(hall, tickets, "b", 3)
    assert names(hall, tickets, 4) == ["b0", "a3", "b1", "a4"]


async def test_who_was_called_counts_until_it_left():
    hall = room()
    ticket, other = (hall.enter(model(), size=1, retry_after=lambda: 1) for _ in range(2))
    hall.call("u-1", 1)
    assert (hall.waiting("u-1"), hall.called("u-1"), hall.called("u-2")) == (1, 1, 0)
    hall.leave(ticket)
    hall.leave(ticket)
    hall.leave(other)
    assert (hall.waiting("u-1"), hall.called("u-1")) == (0, 0)
    assert not hall._called


async def test_a_full_queue_is_shared_and_the_newest_of_the_largest_makes_room():
    hall, tickets = room(), {}
    small = model(max_held_requests=4)
    greedy = [hall.enter(small, size=1, retry_after=lambda: 7, tenant="a") for _ in range(4)]
    with pytest.raises(TooManyHeldError):
        hall.enter(small, size=1, retry_after=lambda: 7, tenant="a")
    mine = [hall.enter(small, size=1, retry_after=lambda: 7, tenant="b") for _ in range(2)]
    assert [ticket.called.done() for ticket in greedy] == [False, False, True, True]
    assert isinstance(greedy[3].called.result(), TooManyHeldError)
    for tenant in ("a", "b"):
        with pytest.raises(TooManyHeldError):
            hall.enter(small, size=1, retry_after=lambda: 7, tenant=tenant)
    assert (hall.waiting("u-1"), [ticket.called.done() for ticket in mine]) == (4, [False, False])
    heavy = hall.enter(small, size=1, retry_after=lambda: 7, tenant="c", priority=3)
    assert not heavy.called.done()
    assert hall.waiting("u-1") == 4
    assert tickets == {}


async def test_who_makes_room_is_told_what_is_left_by_then():
    hall, left = room(), 600
    small = model(max_held_requests=2)
    newest = [hall.enter(small, size=1, retry_after=lambda: left, tenant="a") for _ in range(2)][1]
    left = 60
    hall.enter(small, size=1, retry_after=lambda: 60, tenant="b")
    told = newest.called.result()
    assert isinstance(told, TooManyHeldError)
    assert told.headers["Retry-After"] == "60"


async def test_nobody_is_displaced_for_one_that_the_gateway_cannot_take():
    hall = room(size=3)
    small = model(max_held_requests=2)
    held = [hall.enter(small, size=1, retry_after=lambda: 1, tenant="a") for _ in range(2)]
    with pytest.raises(TooManyHeldError, match="gateway"):
        hall.enter(small, size=3, retry_after=lambda: 1, tenant="b")
    assert not any(ticket.called.done() for ticket in held)


async def test_a_full_room_is_shared_between_tenants_of_different_models():
    hall = room(requests=4)
    models = [model(uid=f"u-{number}", name=f"m{number}") for number in range(5)]
    greedy = [
        hall.enter(each, size=1, retry_after=lambda number=number: 30 + number, tenant="a")
        for number, each in enumerate(models[:4])
    ]
    with pytest.raises(TooManyHeldError, match="gateway") as caught:
        hall.enter(models[4], size=1, retry_after=lambda: 7, tenant="a")
    assert (caught.value.tenant, caught.value.limit) == ("a", Limit.HELD_IN_ALL)
    mine = [hall.enter(models[4], size=1, retry_after=lambda: 7, tenant="b") for _ in range(2)]
    assert [ticket.called.done() for ticket in greedy] == [False, False, True, True]
    told = greedy[3].called.result()
    assert isinstance(told, TooManyHeldError)
    assert (told.tenant, told.limit, told.retry_after) == ("a", Limit.HELD_IN_ALL, 33), "its own model's estimate"
    with pytest.raises(TooManyHeldError):
        hall.enter(models[4], size=1, retry_after=lambda: 7, tenant="b")
    assert not any(ticket.called.done() for ticket in mine)
    for ticket in (*greedy, *mine):
        hall.leave(ticket)
    assert (hall._requests, hall._bytes, hall._users) == (0, 0, {})


async def test_a_large_request_displaces_as_many_as_it_needs_of_a_tenant_that_takes_up_more_bytes_or_none():
    hall = room(size=100)
    small = [hall.enter(model(), size=10, retry_after=lambda: 1, tenant="a") for _ in range(9)]
    with pytest.raises(TooManyHeldError):
        hall.enter(model(uid="u-2"), size=60, retry_after=lambda: 1, tenant="b")
    assert not any(ticket.called.done() for ticket in small), "it would have taken up more than what is left"
    hall.enter(model(uid="u-2"), size=30, retry_after=lambda: 1, tenant="b")
    assert [ticket.called.done() for ticket in small] == [False] * 7 + [True] * 2


async def test_who_came_back_after_a_failed_attempt_is_never_displaced_and_takes_up_nobodys_place():
    hall = room(requests=2, size=2)
    small = model(max_held_requests=1)
    back = [hall.enter(small, size=1, retry_after=lambda: 1, tenant="a", returning=True) for _ in range(3)]
    hall.enter(small, size=1, retry_after=lambda: 1, tenant="b")
    with pytest.raises(TooManyHeldError, match="maxHeldRequests"):
        hall.enter(small, size=1, retry_after=lambda: 1, tenant="b")
    hall.enter(model(uid="u-2"), size=1, retry_after=lambda: 1, tenant="c")
    with pytest.raises(TooManyHeldError, match="gateway"):
        hall.enter(model(uid="u-3"), size=1, retry_after=lambda: 1, tenant="c")
    assert not any(ticket.called.done() for ticket in back)
    for ticket in back:
        hall.leave(ticket)
    assert (hall._requests, hall._bytes) == (2, 2)


async def test_a_model_that_holds_nothing_refuses_at_once():
    with pytest.raises(TooManyHeldError):
        room().enter(model(max_held_requests=0), size=1, retry_after=lambda: 1)


moves = st.lists(
    st.tuples(
        st.sampled_from(["enter", "enter", "return", "leave", "call"]), st.sampled_from("abc"), st.integers(0, 9)
    ),
    max_size=60,
)


@settings(max_examples=100, deadline=None)
@given(moves)
def test_whatever_happens_bounds_hold_and_everyone_is_called_refused_or_waits(steps):
    async def run() -> None:
        hall, small = WaitingRoom(max_requests=6, max_bytes=1000), model(max_held_requests=4)
        waiting: list[Ticket] = []
        extra = 0
        for what, tenant, number in steps:
            if what in ("enter", "return"):
                returning = what == "return"
                try:
                    ticket = hall.enter(
                        small,
                        size=1,
                        retry_after=lambda: 1,
                        tenant=tenant,
                        priority=ord(tenant) - 96,
                        returning=returning,
                    )
                except TooManyHeldError:
                    assert not returning
                else:
                    extra += returning
                    waiting.append(ticket)
            elif what == "leave" and waiting:
                hall.leave(waiting.pop(number % len(waiting)))
            elif what == "call":
                hall.call("u-1", number % 3)
            for ticket in [each for each in waiting if each.called.done()]:
                waiting.remove(ticket)
                hall.leave(ticket)
            assert hall.waiting("u-1") == len(waiting) <= 4 + extra
            assert hall.called("u-1") == 0
        hall.call("u-1", 100)
        assert all(ticket.called.result() is None for ticket in waiting)
        assert hall._requests == 0 == hall._bytes

    asyncio.run(run())
