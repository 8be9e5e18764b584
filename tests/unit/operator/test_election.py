"""Of any number of candidates at most one writes, whatever clocks, pauses and lost answers do."""

import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gptoss_kube.leases import LeaseRecord
from gptoss_operator.election import Election, Look, Terms, Wait, Write

TERMS = Terms()


@dataclass
class Server:
    """A linearizable store of one Lease."""

    record: LeaseRecord | None = None
    version: int = 0

    def write(self, step: Write) -> LeaseRecord | None:
        """Store a claim, or return None for a conflict."""
        there, wanted = self.record, step.replaces
        if (there is None) != (wanted is None) or (there and wanted and there.version != wanted.version):
            return None
        self.version += 1
        uid = there.uid if there else f"uid-{self.version}"
        self.record = LeaseRecord(claim=step.claim, uid=uid, version=str(self.version), metadata={})
        return self.record


def elected(identity: str, server: Server, now: float = 0.0) -> Election:
    election = Election(identity=identity, terms=TERMS)
    election.saw(server.record, now=now)
    step = election.next_step(now, f"{identity}@{now}")
    assert isinstance(step, Write)
    stored = server.write(step)
    assert stored is not None
    election.won(stored, sent_at=now, now=now)
    return election


def test_the_first_takes_an_absent_lease_at_once_and_renews_in_time() -> None:
    server = Server()
    election = elected("a", server)
    assert election.write_seconds(7.9) == pytest.approx(2.1)
    assert election.write_seconds(8.0) == 0
    assert election.next_step(1.0, "w") == Wait(seconds=4.0)
    step = election.next_step(5.0, "w")
    assert isinstance(step, Write)
    assert step.claim == replace(server.record.claim, renewed="w")


def test_nothing_is_known_before_the_first_look() -> None:
    assert Election(identity="a", terms=TERMS).next_step(0.0, "w") == Look()


def test_a_standby_waits_a_whole_lease_without_a_sign_of_life_and_never_reads_the_others_clock() -> None:
    server = Server()
    elected("a", server)
    standby = Election(identity="b", terms=TERMS)
    standby.saw(server.record, now=1000.0)
    assert standby.next_step(1011.0, "1970") == Wait(seconds=1.0)
    step = standby.next_step(1012.0, "1970")
    assert isinstance(step, Write)
    assert step.claim.holder == "b"
    assert step.claim.transitions == 1
    assert standby.write_seconds(1012.0) == 0


def test_a_given_back_lease_is_taken_at_once() -> None:
    server = Server()
    leader = elected("a", server)
    released = leader.release("w")
    assert released is not None
    server.write(released)
    assert leader.write_seconds(0.1) == 0
    standby = Election(identity="b", terms=TERMS)
    standby.saw(server.record, now=0.2)
    assert isinstance(standby.next_step(0.2, "w"), Write)


def test_a_lapsed_leader_that_nobody_replaced_leads_again() -> None:
    server = Server()
    leader = elected("a", server)
    assert leader.write_seconds(60.0) == 0
    step = leader.next_step(60.0, "w")
    assert isinstance(step, Write)
    stored = server.write(step)
    assert stored is not None
    leader.won(stored, sent_at=60.0, now=60.1)
    assert leader.write_seconds(60.1) > 0
    assert leader.deposed_by is None


def test_a_replaced_leader_is_deposed_for_good() -> None:
    server = Server()
    leader = elected("a", server)
    standby = Election(identity="b", terms=TERMS)
    standby.saw(server.record, now=0.0)
    step = standby.next_step(12.0, "w")
    assert isinstance(step, Write)
    server.write(step)
    leader.saw(server.record, now=1.0)
    assert leader.deposed_by == "b"
    assert leader.write_seconds(1.0) == 0
    assert leader.release("w") is None


def test_a_namesake_is_a_stranger() -> None:
    server = Server()
    elected("a", server, now=0.0)
    namesake = Election(identity="a", terms=TERMS)
    namesake.saw(server.record, now=1.0)
    assert namesake.next_step(1.0, "later") == Wait(seconds=12.0)


def test_a_write_whose_answer_was_lost_is_recognised() -> None:
    server = Server()
    candidate = Election(identity="a", terms=TERMS)
    candidate.saw(None, now=0.0)
    step = candidate.next_step(0.0, "w0")
    assert isinstance(step, Write)
    server.write(step)
    candidate.unclear()
    assert candidate.next_step(3.0, "w3") == Look()
    candidate.saw(server.record, now=3.0)
    assert candidate.write_seconds(3.0) == 0, "when it was stored is not known"
    again = candidate.next_step(3.0, "w3")
    assert isinstance(again, Write)
    assert again.claim.transitions == 0


def test_late_news_of_a_watch_depose_nobody() -> None:
    server = Server()
    elected("a", server)
    old = server.record
    standby = Election(identity="b", terms=TERMS)
    standby.saw(old, now=0.0)
    step = standby.next_step(12.0, "w")
    assert isinstance(step, Write)
    stored = server.write(step)
    assert stored is not None
    standby.won(stored, sent_at=12.0, now=12.0)
    standby.saw(old, now=12.1, read=False)
    assert standby.deposed_by is None
    assert standby.write_seconds(12.1) > 0


def test_a_deleted_lease_stops_its_holder_at_once_and_is_not_taken_by_a_standby_that_knew_it() -> None:
    server = Server()
    leader = elected("a", server)
    standby = Election(identity="b", terms=TERMS)
    standby.saw(server.record, now=0.0)
    uid = server.record.uid
    server.record = None
    leader.gone(uid, now=1.0)
    standby.gone(uid, now=1.0)
    assert leader.write_seconds(1.0) == 0
    assert standby.next_step(1.0, "w") == Wait(seconds=12.0)
    assert isinstance(leader.next_step(1.0, "w"), Write)


@pytest.mark.parametrize("wrong", [{"renew_seconds": 8}, {"deadline_seconds": 12}, {"lease_seconds": 8}])
def test_times_out_of_order_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="renewSeconds < deadlineSeconds < leaseSeconds"):
        Terms(**wrong)


@dataclass
class Process:
    """A candidate in the simulation: its clock is off, it stalls, and its requests are late or lost."""

    name: str
    offset: float
    election: Election
    busy_until: float = 0.0
    writes: list[tuple[float, float]] = field(default_factory=list)


@given(st.integers(min_value=0, max_value=2**32))
@settings(max_examples=150, deadline=None)
def test_two_never_write_at_the_same_time(seed: int) -> None:
    chance = random.Random(seed)
    server = Server()
    processes = [
        Process(name, chance.uniform(-1e6, 1e6), Election(identity=name, terms=TERMS)) for name in ("a", "b", "c")
    ]
    # Requests under way: (when they arrive, process, what happens there, whether the answer comes back).
    arrivals: list[tuple[float, Process, Write, float, bool]] = []
    stored_by: list[tuple[float, float, str]] = []
    now = 0.0
    for _ in range(600):
        now += chance.uniform(0.05, 0.6)
        for arrival in sorted((each for each in arrivals if each[0] <= now), key=lambda each: each[0]):
            arrivals.remove(arrival)
            _, process, step, sent_at, answered = arrival
            stored = server.write(step)
            if not answered:
                continue
            if stored is None:
                process.election.unclear()
            else:
                process.election.won(stored, sent_at=sent_at, now=now + process.offset)
        for index, process in enumerate(processes):
            if process.busy_until > now:
                continue
            if process.election.deposed_by is not None:  # it ends, and another starts in its place
                processes[index] = process = Process(
                    process.name, chance.uniform(-1e6, 1e6), Election(identity=process.name, terms=TERMS)
                )
            local = now + process.offset
            if chance.random() < 0.03:  # suspended, with whatever it was about to do
                process.busy_until = now + chance.uniform(1, 40)
                continue
            if (seconds := process.election.write_seconds(local)) > 0:
                stored_by.append((now, now + seconds, process.name))
            step = process.election.next_step(local, f"{process.name}{local:.6f}")
            if isinstance(step, Look):
                process.election.saw(server.record, now=local)
            elif isinstance(step, Write):
                delay = chance.choice((0.01, 0.3, 2.9))
                answered = chance.random() < 0.8
                arrivals.append((now + delay, process, step, local, answered))
                process.busy_until = now + delay + 0.01
                if not answered:
                    process.election.unclear()
            elif chance.random() < 0.5:  # a watch's news, sometimes
                process.election.saw(server.record, now=local, read=False)
    for began, ended, name in stored_by:
        for other_began, _, other in stored_by:
            assert other == name or not began <= other_began < ended, (name, began, ended, other, other_began)
    assert stored_by, "somebody led"
