"""Who leads, decided from what was seen when: pure, so that clocks, pauses and lost answers can be tried out.

A candidate never computes with another's time of day. It notes on its own clock when a record changed, and
takes the Lease over only after a whole lease time without a change. A leader counts from *before* it sent the
renewal that succeeded, and only up to the deadline, which is shorter: between the two lies the time in which a
write that was begun in time may still arrive. Every write to the Lease names the version it replaces, so of
two candidates one wins, and a leader that was away learns from the refusal that it was deposed.

A lapse is not yet a loss: if nobody took the Lease meanwhile, the next renewal succeeds and all that this
process remembers is still true. If somebody did, what it remembers is not, and the process has to end.
"""

from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from gptoss_api.model import StrictModel
from gptoss_kube.leases import Claim, LeaseRecord


class Terms(StrictModel):
    """Times of an election, in seconds. All replicas must have the same."""

    lease_seconds: int = Field(default=12, ge=2, le=600, description="How long others wait for a sign of life.")
    deadline_seconds: float = Field(
        default=8.0, gt=0, description="How long a leader writes after its last renewal; shorter than the lease."
    )
    renew_seconds: float = Field(default=5.0, gt=0, description="How often a leader renews; shorter than the deadline.")
    retry_seconds: float = Field(default=1.0, gt=0, description="Pause after an attempt that failed.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.renew_seconds < self.deadline_seconds < self.lease_seconds:
            raise ValueError("renewSeconds < deadlineSeconds < leaseSeconds must hold")
        return self

    @property
    def call_seconds(self) -> float:
        """Longest time that one request about the Lease may take."""
        return max(1.0, self.deadline_seconds - self.renew_seconds)

    @property
    def grace_seconds(self) -> float:
        """How long after the deadline a write may still be under way."""
        return (self.lease_seconds - self.deadline_seconds) / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Wait:
    """There is nothing to do for some seconds, unless something is seen."""

    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """It is not known what is stored: read it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Write:
    """Write this claim in the place of a record; None is a Lease that is not there."""

    claim: Claim
    replaces: LeaseRecord | None


Step = Wait | Look | Write


class Election:
    """One candidate's view. All times are seconds on the candidate's own clock."""

    def __init__(self, *, identity: str, terms: Terms) -> None:
        self._identity = identity
        self._terms = terms
        self._known = False
        self._record: LeaseRecord | None = None
        self._changed_at: float | None = None
        """When the record changed, as far as we saw; None before anything was seen."""
        self._term: str | None = None
        """``acquired`` of our claim, from the first attempt on: it tells our records from a namesake's."""
        self._held = False
        self._renewed_at = float("-inf")
        self._valid_until = float("-inf")
        self.deposed_by: str | None = None
        """Who took the Lease from us (or "nobody" if it was taken away); then this view is of no more use."""

    def write_seconds(self, now: float) -> float:
        """Return within how many seconds a write that starts now must be over; 0 if none may start."""
        left = self._valid_until - now
        return left + self._terms.grace_seconds if left > 0 and self.deposed_by is None else 0.0

    def saw(self, record: LeaseRecord | None, *, now: float, read: bool = True) -> None:
        """Take in what is stored. ``read``: an answer to our own reading, not a watch's news, which may be late."""
        if not read and self._stale(record):
            return
        first, before = self._changed_at is None, self._record
        if first or _life(record) != _life(before):
            self._changed_at = now
        self._known, self._record = True, record
        if record is None:
            # Deleted by somebody: stop at once. Who never saw one may create it without waiting, as at an install.
            self._valid_until = float("-inf")
            if first:
                self._changed_at = float("-inf")
        elif self._held and not self._mine(record):
            self.deposed_by = record.claim.holder or "nobody"
        elif not self._held and not self._mine(record) and before is not None and _office(before) != _office(record):
            self._term = None

    def gone(self, uid: str, *, now: float) -> None:
        """A watch told that a Lease was deleted."""
        if self._record is not None and self._record.uid == uid:
            self.saw(None, now=now)

    def unclear(self) -> None:
        """A write was refused, or its outcome is unknown: what is stored must be read."""
        self._known = False

    def won(self, record: LeaseRecord, *, sent_at: float, now: float) -> None:
        """Our claim was stored; ``sent_at`` is when it was sent."""
        self.saw(record, now=now)
        self._held = True
        self._renewed_at = sent_at
        self._valid_until = sent_at + self._terms.deadline_seconds

    def next_step(self, now: float, wall: str) -> Step:
        """Return what to do now; ``wall`` is the time of day for people, in microseconds."""
        if not self._known:
            return Look()
        record, terms, changed_at = self._record, self._terms, self._changed_at or 0.0
        if record is not None and self._mine(record):
            due = self._renewed_at + terms.renew_seconds
            return self._claim(record, wall) if now >= due else Wait(seconds=due - now)
        if record is not None and not record.claim.holder:
            return self._claim(record, wall)
        patience = record.claim.seconds or terms.lease_seconds if record is not None else terms.lease_seconds
        expires = changed_at + patience
        if now < expires and not (record is None and self._held):
            return Wait(seconds=expires - now)
        return self._claim(record, wall)

    def release(self, wall: str) -> Write | None:
        """Return the write that lets the next one lead at once, None if the Lease is not ours; write no more."""
        self._valid_until = float("-inf")
        record = self._record
        if record is None or not self._mine(record) or self.deposed_by is not None:
            return None
        claim = record.claim
        return Write(
            claim=Claim(
                holder="", acquired=claim.acquired, renewed=wall, seconds=claim.seconds, transitions=claim.transitions
            ),
            replaces=record,
        )

    def _claim(self, record: LeaseRecord | None, wall: str) -> Write:
        self._term = self._term or wall
        transitions = 0
        if record is not None:
            transitions = record.claim.transitions + (not self._mine(record))
        return Write(
            claim=Claim(
                holder=self._identity,
                acquired=self._term,
                renewed=wall,
                seconds=self._terms.lease_seconds,
                transitions=transitions,
            ),
            replaces=record,
        )

    def _mine(self, record: LeaseRecord) -> bool:
        return self._term is not None and _office(record) == (self._identity, self._term)

    def _stale(self, record: LeaseRecord | None) -> bool:
        known = self._record
        if known is None or record is None or known.uid != record.uid:
            return False
        return int(record.version) <= int(known.version)


def _office(record: LeaseRecord) -> tuple[str, str]:
    return record.claim.holder, record.claim.acquired


def _life(record: LeaseRecord | None) -> tuple[str, Claim] | None:
    return (record.uid, record.claim) if record is not None else None
