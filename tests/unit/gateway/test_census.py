"""How many gateway processes share tenants' limits, by what one of them sees of the others' reports."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_gateway.census import Census, pulse
from gptoss_gateway.report import FENCE_SECONDS, HEARTBEAT_SECONDS


class Fleet:
    """Reports as an API server shows them to the process that is called ``me``."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.beats: dict[str, int] = {}
        self.census = Census(identity="me", clock=lambda: self.now)

    @staticmethod
    def report(name: str, heartbeat: int, **more: Any) -> dict[str, Any]:
        spec = {"gateway": name, "heartbeat": heartbeat, "renewedAt": "2026-01-01T00:00:00Z", **more}
        return {"metadata": {"name": name, "resourceVersion": "1"}, "spec": spec}

    def beat(self, *names: str, **more: Any) -> None:
        for name in names:
            self.beats[name] = self.beats.get(name, 0) + 1
            self.census.on_change(self.report(name, self.beats[name], **more))

    def live(self, seconds: float, *names: str) -> None:
        """Let the processes with these names write their reports for a while."""
        end = self.now + seconds
        while self.now < end:
            self.now += HEARTBEAT_SECONDS
            self.beat(*names)


def test_alone_it_is_one_whether_its_report_was_seen_or_not() -> None:
    fleet = Fleet()
    assert fleet.census.processes == 1
    fleet.beat("me")
    assert fleet.census.processes == 1


def test_whoever_is_there_counts_from_the_first_look_on() -> None:
    fleet = Fleet()
    fleet.beat("a", "me", "b")
    assert fleet.census.processes == 3


def test_one_that_ends_or_says_that_it_will_counts_no_more() -> None:
    fleet = Fleet()
    fleet.beat("me", "a", "b")
    fleet.beat("a", closing=True)
    assert fleet.census.processes == 2
    fleet.live(3 * FENCE_SECONDS, "me", "b")
    fleet.census.on_delete(fleet.report("b", 1))
    assert fleet.census.processes == 1


def test_one_that_ends_counts_among_senders_while_it_finishes_what_is_open() -> None:
    fleet = Fleet()
    fleet.beat("me", "a", "b")
    for _ in range(20):
        fleet.beat("a", closing=True)
        fleet.live(HEARTBEAT_SECONDS, "me", "b")
    assert (fleet.census.processes, fleet.census.senders) == (2, 3)
    fleet.census.on_delete(fleet.report("a", 1))
    assert fleet.census.senders == 2
    fleet.live(FENCE_SECONDS, "me")
    assert fleet.census.senders == 1, "b was killed"


def test_one_whose_heartbeat_stands_still_counts_for_a_while() -> None:
    fleet = Fleet()
    fleet.beat("me", "dead", "alive")
    fleet.live(FENCE_SECONDS - HEARTBEAT_SECONDS, "me", "alive")
    assert fleet.census.processes == 3
    fleet.census.on_change(fleet.report("dead", 1))  # listed again: it is the same heartbeat
    fleet.live(HEARTBEAT_SECONDS, "me", "alive")
    assert fleet.census.processes == 2


@pytest.mark.parametrize("first", ["me", "other"])
def test_nobody_is_gone_because_the_api_server_was_away(first: str) -> None:
    fleet = Fleet()
    fleet.live(20, "me", "other")
    fleet.now += 3600
    assert fleet.census.processes == 2
    fleet.beat(first)
    assert fleet.census.processes == 2
    fleet.beat("me" if first == "other" else "other")
    fleet.live(20, "me", "other")
    assert fleet.census.processes == 2


def test_many_reports_in_a_row_are_not_much_time() -> None:
    fleet = Fleet()
    fleet.beat("me", "other")
    for _ in range(1000):
        fleet.now += 0.01
        fleet.beat("me")
    assert fleet.census.processes == 2


def test_what_is_kept_of_a_report_does_not_grow_with_it() -> None:
    report = Fleet.report("a", 7, closing=True, deployments=[{"uid": "x"}] * 5000)
    assert pulse(report) == {"metadata": report["metadata"], "spec": {"heartbeat": 7, "closing": True}}
    assert pulse(pulse(report)) == pulse(report)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-300, 300), min_size=1, max_size=6),
    st.lists(st.sampled_from([HEARTBEAT_SECONDS, HEARTBEAT_SECONDS, 1.0, 60.0]), max_size=40),
)
def test_all_who_live_count_whatever_their_clocks_say_and_however_long_nobody_was_heard(
    skews: list[float], pauses: list[float]
) -> None:
    fleet = Fleet()
    names = [f"other-{number}" for number in range(len(skews))]
    for pause in [0.0, *pauses]:
        fleet.now += pause
        for name, skew in zip(names, skews, strict=True):
            fleet.beat(name, renewedAt=str(fleet.now + skew))
        fleet.beat("me")
        assert fleet.census.processes == 1 + len(names)
