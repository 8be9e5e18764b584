"""What a tenant may ask of one process, and what it is told about it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_gateway.errors import Dialect, RateLimitedError
from gptoss_gateway.keys import Caller, TenantLimits
from gptoss_gateway.limits import Limiter


class Desk:
    """A limiter on a clock that tests set."""

    def __init__(self, **limits: int) -> None:
        self.now = 1000.0
        self.processes = 1
        self.limiter = Limiter(lambda: self.now, processes=lambda: self.processes)
        self.caller = self.tenant("ml", **limits)

    @staticmethod
    def tenant(name: str, **limits: int) -> Caller:
        return Caller(tenant=name, namespaces=frozenset({"*"}), limits=TenantLimits(**limits))

    def ask(self, caller: Caller | None = None) -> dict[str, str]:
        with self.limiter.admitted(caller or self.caller) as headers:
            return headers

    def refused(self, caller: Caller | None = None) -> RateLimitedError:
        with pytest.raises(RateLimitedError) as caught, self.limiter.admitted(caller or self.caller):
            pass
        return caught.value


def test_a_tenant_without_limits_is_told_nothing():
    assert Desk().ask() == {}


def test_requests_are_used_up_and_refill_evenly():
    desk = Desk(requests_per_minute=30)
    standing = desk.ask()
    assert standing == {
        "x-ratelimit-limit-requests": "30",
        "x-ratelimit-remaining-requests": "29",
        "x-ratelimit-reset-requests": "2s",
    }
    for _ in range(29):
        standing = desk.ask()
    assert standing["x-ratelimit-remaining-requests"] == "0"
    assert standing["x-ratelimit-reset-requests"] == "1m0s"
    error = desk.refused()
    assert (error.status, error.error_code, error.headers["Retry-After"]) == (429, "rate_limit_exceeded", "2")
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    assert "limits.requestsPerMinute" in error.body(Dialect.OPENAI)["error"]["message"]
    desk.now += 1.9
    desk.refused()
    desk.now += 0.1
    desk.ask()
    desk.refused()


def test_what_is_refused_costs_nothing():
    desk = Desk(requests_per_minute=1)
    desk.ask()
    for _ in range(100):
        desk.refused()
    desk.now += 60
    desk.ask()


def test_tokens_are_taken_off_afterwards_and_debt_is_made_good_first():
    desk = Desk(tokens_per_minute=60)
    with desk.limiter.admitted(desk.caller) as standing:
        assert standing["x-ratelimit-remaining-tokens"] == "60"
        desk.limiter.charge("ml", 90)
    error = desk.refused()
    assert (error.headers["Retry-After"], error.headers["x-ratelimit-remaining-tokens"]) == ("31", "0")
    desk.limiter.sweep()
    desk.now += 29
    desk.refused()
    desk.now += 2
    desk.ask()
    desk.limiter.charge("nobody", 5)


def test_requests_at_once_are_those_that_are_open():
    desk = Desk(concurrent=2)
    with desk.limiter.admitted(desk.caller) as first:
        assert first == {"x-ratelimit-limit-concurrent": "2", "x-ratelimit-remaining-concurrent": "1"}
        with desk.limiter.admitted(desk.caller):
            error = desk.refused()
            assert (error.error_code, error.headers["Retry-After"]) == ("concurrency_limit_exceeded", "1")
        desk.ask()
    with pytest.raises(ZeroDivisionError), desk.limiter.admitted(desk.caller):
        raise ZeroDivisionError
    assert desk.ask()["x-ratelimit-remaining-concurrent"] == "1"


def test_one_tenants_use_is_not_anothers():
    desk = Desk(requests_per_minute=1)
    other = desk.tenant("lab", requests_per_minute=1)
    desk.ask()
    desk.refused()
    desk.ask(other)


def test_changed_limits_count_at_once_and_forget_nothing():
    desk = Desk(requests_per_minute=10)
    for _ in range(10):
        desk.ask()
    desk.refused(desk.tenant("ml", requests_per_minute=100))  # more of them refill, but none is there yet
    desk.now += 0.7
    desk.ask(desk.tenant("ml", requests_per_minute=100))
    assert desk.ask(desk.tenant("ml")) == {}
    assert desk.ask(desk.tenant("ml", requests_per_minute=2))["x-ratelimit-remaining-requests"] == "1"


def test_a_clock_that_stands_or_runs_back_gives_nothing_away():
    desk = Desk(requests_per_minute=1)
    desk.ask()
    desk.now -= 300
    desk.refused()


def test_tenants_that_owe_nothing_are_forgotten_and_no_others():
    desk = Desk(requests_per_minute=60)
    desk.ask()
    desk.limiter.sweep()
    assert desk.limiter._accounts.keys() == {"ml"}
    desk.now += 2
    with desk.limiter.admitted(desk.tenant("lab", concurrent=1)):
        desk.limiter.sweep()
        assert desk.limiter._accounts.keys() == {"lab"}
    desk.limiter.sweep()
    assert not desk.limiter._accounts


def test_a_share_of_each_limit_is_told_and_held():
    desk = Desk(requests_per_minute=60, tokens_per_minute=1000, concurrent=5)
    desk.processes = 3
    with desk.limiter.admitted(desk.caller) as standing:
        assert standing == {
            "x-ratelimit-limit-requests": "20",
            "x-ratelimit-remaining-requests": "19",
            "x-ratelimit-reset-requests": "3s",
            "x-ratelimit-limit-tokens": "333",
            "x-ratelimit-remaining-tokens": "333",
            "x-ratelimit-reset-tokens": "0ms",
            "x-ratelimit-limit-concurrent": "2",
            "x-ratelimit-remaining-concurrent": "1",
        }
        with desk.limiter.admitted(desk.caller):
            message = desk.refused().body(Dialect.OPENAI)["error"]["message"]
            assert "2 requests of 'ml' are open" in message
            assert "limits.concurrent (5, divided among 3 gateway processes)" in message
    for _ in range(18):
        desk.ask()
    message = desk.refused().body(Dialect.OPENAI)["error"]["message"]
    assert "limits.requestsPerMinute: 60, divided among 3 gateway processes" in message
    desk.now += 2.9
    desk.refused()
    desk.now += 0.2
    desk.ask()


def test_a_share_below_one_still_lets_one_in_and_then_waits_for_it():
    desk = Desk(requests_per_minute=1, concurrent=1)
    desk.processes = 4
    assert desk.ask()["x-ratelimit-limit-requests"] == "1"
    assert desk.refused().headers["Retry-After"] == "240"
    desk.now += 239
    desk.refused()
    desk.now += 1.1
    desk.ask()


def test_when_processes_come_and_go_shares_follow_and_use_is_kept():
    desk = Desk(requests_per_minute=60, concurrent=4)
    for _ in range(30):
        desk.ask()
    desk.processes = 2
    assert desk.ask()["x-ratelimit-remaining-requests"] == "29"
    desk.processes = 6
    assert desk.ask()["x-ratelimit-remaining-requests"] == "9"
    desk.processes = 1
    standing = desk.ask()
    assert (standing["x-ratelimit-limit-requests"], standing["x-ratelimit-remaining-requests"]) == ("60", "8")
    with desk.limiter.admitted(desk.caller), desk.limiter.admitted(desk.caller):
        desk.processes = 4
        desk.refused()  # what is open stays open


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 7)), max_size=150), st.integers(1, 120), st.integers(1, 8))
def test_all_processes_together_let_in_what_one_would(steps: list[tuple[float, int]], limit: int, processes: int):
    desks = [Desk(requests_per_minute=limit) for _ in range(processes)]
    taken, passed = 0, 0.0
    for pause, which in steps:
        passed += pause
        for desk in desks:
            desk.processes, desk.now = processes, desk.now + pause
        try:
            desks[which % processes].ask()
        except RateLimitedError:
            continue
        taken += 1
        assert taken <= max(limit, processes) + passed * limit / 60 + 1e-6


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 5), max_size=100), st.integers(1, 120))
def test_never_more_than_the_limit_and_what_refilled(pauses: list[float], limit: int):
    desk = Desk(requests_per_minute=limit)
    began, taken = desk.now, 0
    for pause in pauses:
        desk.now += pause
        try:
            desk.ask()
        except RateLimitedError:
            continue
        taken += 1
        assert taken <= limit + (desk.now - began) * limit / 60 + 1e-6
