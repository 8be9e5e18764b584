"""What the report says, on a clock that the test moves."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gptoss_gateway.demand import LINGER_SECONDS, Claim, Ledger
from tests.unit.gateway.models import model


class Book:
    """A ledger, its clock, and how often it asked to be written."""

    def __init__(self) -> None:
        self.now = 0.0
        self.writes = 0
        self.ledger = Ledger(monotonic=lambda: self.now, timestamp=lambda: f"t{self.now:g}", changed=self._write)

    def _write(self) -> None:
        self.writes += 1

    def says(self) -> dict[str, Any]:
        (demand,) = self.ledger.demands()
        return demand.model_dump(by_alias=True)


def test_the_first_waiting_request_is_urgent_and_those_after_it_are_not():
    book = Book()
    claims = [book.ledger.open(model()) for _ in range(3)]
    for claim in claims:
        claim.wait()
    assert book.writes == 1
    assert book.says() | {"waiting": 3, "inFlight": 0, "lastRequest": "t0"} == book.says()


def test_requests_to_an_awake_model_are_not_urgent():
    book = Book()
    claim = book.ledger.open(model())
    claim.fly()
    book.now = 9
    claim.close()
    assert book.writes == 0
    assert (book.says()["inFlight"], book.says()["lastRequest"]) == (0, "t9")


def test_waiting_for_a_place_of_an_awake_model_is_urgent_only_once_it_failed_somebody():
    book = Book()
    awake = model(engine_ready=True)
    flying, waiting = book.ledger.open(awake), book.ledger.open(awake)
    flying.fly()
    waiting.wait()
    waiting.fly()
    assert book.writes == 0
    flying.wait()
    assert book.writes == 1
    waiting.close()
    flying.close(keep=False)
    book.ledger.follow("u-1", model())
    asleep = book.ledger.open(model())
    asleep.wait()
    assert book.writes == 2


def test_who_leaves_while_waiting_keeps_the_demand_for_a_while():
    book = Book()
    claim = book.ledger.open(model())
    claim.wait()
    claim.close()
    book.now = LINGER_SECONDS - 1
    assert book.says()["waiting"] == 1
    book.now = LINGER_SECONDS
    assert book.says()["waiting"] == 0


def test_refused_requests_leave_nothing():
    book = Book()
    claim = book.ledger.open(model())
    claim.wait()
    claim.close(keep=False)
    assert book.says()["waiting"] == 0


def test_kept_demand_ends_when_the_model_answers_somebody():
    book = Book()
    gone, stays = book.ledger.open(model()), book.ledger.open(model())
    gone.wait()
    stays.wait()
    gone.close()
    stays.fly()
    assert book.says() | {"waiting": 0, "inFlight": 1} == book.says()


def test_a_drain_is_acknowledged_at_once_once_and_every_count_under_it_is_urgent():
    book = Book()
    flying = book.ledger.open(model())
    flying.fly()
    book.ledger.follow("u-1", model(draining_epoch=3))
    assert book.writes == 1
    book.ledger.follow("u-1", model(draining_epoch=3))
    assert book.writes == 1
    assert book.says() | {"drainEpochSeen": 3, "inFlight": 1} == book.says()
    flying.close()
    assert book.writes == 2
    book.ledger.follow("u-1", model())
    book.ledger.open(model()).fly()
    assert book.writes == 2


def test_a_deleted_deployment_leaves_the_report_and_late_claims_do_no_harm():
    book = Book()
    claim = book.ledger.open(model())
    claim.fly()
    book.ledger.follow("u-1", None)
    claim.close()
    assert book.ledger.demands() == ()


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["wait", "fly", "close"])), max_size=40))
def test_every_request_is_counted_in_exactly_one_place(steps):
    book = Book()
    claims: dict[int, Claim] = {}
    places: dict[int, str] = {}
    for number, step in steps:
        if number not in claims:
            claims[number] = book.ledger.open(model())
        elif places.get(number) == "close":
            continue
        getattr(claims[number], step)()
        places[number] = step
        waiting = sum(place == "wait" for place in places.values())
        flying = sum(place == "fly" for place in places.values())
        assert book.ledger.counts("u-1") == (waiting, flying)
