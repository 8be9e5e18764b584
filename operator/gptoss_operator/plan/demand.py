"""Demand, from what gateways report, judged on the operator's own clock.

A time that a gateway wrote is never compared with a time of ours: what counts is when *we* saw a
value change. A gateway whose heartbeat stands still for longer than it would go on admitting
requests is gone. While no living gateway is known, demand is unknown, and nothing is put to sleep.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gptoss_api.report import GatewayReportSpec

FRESH_SECONDS = 45.0
"""A gateway stops admitting requests for sleepy models 30 s after its last heartbeat; we wait longer."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one gateway says of one deployment, and when that last changed on our clock."""

    waiting: int
    in_flight: int
    last_request: str
    drain_epoch: int
    activity_at: float | None


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """One gateway's report as followed over time.

    Attributes:
        heartbeat: its last value.
        first_seen: when this process first saw the report.
        beat_at: when the heartbeat was last seen to change; None until it has.
        deployments: what it says, by deployment uid.
    """

    heartbeat: int
    first_seen: float
    beat_at: float | None
    deployments: Mapping[str, Seen] = field(default_factory=dict)

    def fresh(self, now: float) -> bool:
        """Tell whether the gateway is known to live."""
        return self.beat_at is not None and now - self.beat_at < FRESH_SECONDS

    def may_live(self, now: float) -> bool:
        """Tell whether the gateway may still be admitting requests."""
        return self.fresh(now) or now - self.first_seen < FRESH_SECONDS


Gateways = Mapping[str, Gateway]
"""By the reports' names."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """Demand for one deployment.

    Attributes:
        known: at least one gateway is alive.
        active: requests wait or are answered now.
        activity_at: when a sign of a request was last seen, on our clock.
        acknowledged: the drain epoch that every gateway that may live has acknowledged.
        until: when this judgement may change without news, because a heartbeat grows stale.
    """

    known: bool
    active: bool
    activity_at: float | None
    acknowledged: int
    until: float | None = None


UNKNOWN = Demand(known=False, active=False, activity_at=None, acknowledged=0)


def follow(before: Gateways, name: str, report: GatewayReportSpec, now: float, *, first_look: bool) -> Gateway:
    """Return what is known of a gateway after its report was read.

    ``first_look`` is True while the operator starts: an old request in a report is then no news.
    """
    known = before.get(name)
    beat_at = known.beat_at if known else None
    if known is None and not first_look:
        beat_at = now
    if known is not None and known.heartbeat != report.heartbeat:
        beat_at = now
    deployments = {}
    for demand in report.deployments:
        old = known.deployments.get(demand.uid) if known else None
        asked = old.last_request if old is not None else ""
        news = demand.last_request != asked and (old is not None or not first_look)
        busy = demand.waiting > 0 or demand.in_flight > 0
        was_busy = old is not None and (old.waiting > 0 or old.in_flight > 0)
        deployments[demand.uid] = Seen(
            waiting=demand.waiting,
            in_flight=demand.in_flight,
            last_request=demand.last_request,
            drain_epoch=demand.drain_epoch_seen,
            # The end of a long answer is activity too: idleness is counted from there.
            activity_at=now if news or busy or was_busy else (old.activity_at if old else None),
        )
    return Gateway(
        heartbeat=report.heartbeat,
        first_seen=known.first_seen if known else now,
        beat_at=beat_at,
        deployments=deployments,
    )


def demand_for(uid: str, gateways: Gateways, now: float) -> Demand:
    """Sum up all gateways for one deployment."""
    living = [gateway for gateway in gateways.values() if gateway.may_live(now)]
    fresh = [gateway for gateway in living if gateway.fresh(now)]
    seen = [gateway.deployments.get(uid) for gateway in living]
    ends = [max(gateway.beat_at or gateway.first_seen, gateway.first_seen) + FRESH_SECONDS for gateway in living]
    activity = [
        each.activity_at
        for gateway in gateways.values()
        if (each := gateway.deployments.get(uid)) is not None and each.activity_at is not None
    ]
    return Demand(
        known=bool(fresh),
        active=any(each is not None and (each.waiting > 0 or each.in_flight > 0) for each in seen),
        activity_at=max(activity, default=None),
        # A gateway that says nothing of this deployment has acknowledged nothing.
        acknowledged=min((each.drain_epoch if each is not None else 0 for each in seen), default=0),
        until=min(ends, default=None),
    )


def changed_uids(before: Gateway | None, after: Gateway | None) -> Iterable[str]:
    """Return the deployments whose entries differ between two looks at one gateway."""
    old = before.deployments if before else {}
    new = after.deployments if after else {}
    return sorted(uid for uid in old.keys() | new.keys() if _content(old.get(uid)) != _content(new.get(uid)))


def _content(seen: Seen | None) -> tuple[int, int, str, int] | None:
    return (seen.waiting, seen.in_flight, seen.last_request, seen.drain_epoch) if seen else None
