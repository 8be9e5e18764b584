"""Who may go to an engine now, who waits, and who is let go when the engine answers.

A model takes requests when its status says so, or when its engine was just seen to answer. It takes
none while it drains, and none while this gateway can't report (a model that may sleep could be put
to sleep under it). Everything between "may it go?" and "it is in flight" happens in one step of the
event loop: a drain that becomes known is acknowledged with true counts.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import aiohttp

from gptoss_gateway import prober
from gptoss_gateway.catalogue import Catalogue, ServedModel
from gptoss_gateway.demand import Claim, Ledger
from gptoss_gateway.errors import (
    ModelBusyError,
    ModelRefusedError,
    NotFoundError,
    NotWaitingError,
    RequestError,
    UnattendedError,
    WakeTimedOutError,
)
from gptoss_gateway.hold import Ticket, WaitingRoom
from gptoss_gateway.metering import Metering
from gptoss_gateway.upstream import Upstream, Upstreams

FIRST_HEARTBEAT_SECONDS = 1.0
"""A stream that waits longer gets its headers; what fails sooner still has its own status code."""
HEARTBEAT_SECONDS = 5.0
ANSWER_TRUSTED_SECONDS = 1.0
"""How long an engine's own answer counts while the status lags behind."""
RAMP_SECONDS = 0.1
"""Within it no more requests join those in flight than one replica works on at once."""
DEFAULT_RETRY_AFTER_SECONDS = 30.0
"""Told to clients of a model whose wakes were never measured."""
SOON_SECONDS = 5.0
"""Told to clients of a model that is busy, or whose wake takes longer than the last one."""
UNATTENDED_SECONDS = 30.0
"""Demand that was reported for so long without any change of the status has no operator to see it.

An operator that was killed works again within 20 s, and one that works reacts at once.
"""
_FENCE_POLL_SECONDS = 0.25


@dataclass(kw_only=True)
class Visit:
    """One request at the door. ``patience`` is how long its client will wait, in seconds, if it told.

    ``answering`` is for how many seconds engines have worked on it in vain; all other time since it arrived it waited.
    """

    uid: str
    claim: Claim
    size: int
    arrived: float
    heartbeat: Callable[[str], Awaitable[None]]
    tenant: str = ""
    priority: int = 1
    patience: float | None = None
    answering: float = 0.0

    def waited(self, now: float) -> float:
        """Return for how many seconds it has waited at a time of the event loop's clock."""
        return now - self.arrived - self.answering


class Admission:
    """The door to every engine. ``may_report`` is false while this gateway's reports do not get through.

    ``senders`` tells how many gateway processes may have requests at engines, this one included.
    """

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        ledger: Ledger,
        room: WaitingRoom,
        upstreams: Upstreams,
        session: aiohttp.ClientSession,
        metering: Metering,
        may_report: Callable[[], bool],
        senders: Callable[[], int],
    ) -> None:
        self._catalogue = catalogue
        self._ledger = ledger
        self._room = room
        self._upstreams = upstreams
        self._session = session
        self._metering = metering
        self._may_report = may_report
        self._senders = senders
        self._answered: dict[str, float] = {}
        self._asked: dict[str, float] = {}
        self._doubted: set[str] = set()
        self._wakers: dict[str, asyncio.Task[None]] = {}
        self._changes: dict[str, asyncio.Event] = {}
        self._unattended: set[str] = set()
        catalogue.listen(self._on_change)
        ledger.on_landing(self._on_landing)
        for model in catalogue.all():
            self._on_change(model.uid)

    async def admit(self, visit: Visit, *, returning: bool = False) -> Upstream:
        """Wait until the request may go; it is in flight when this returns.

        Raises:
            RequestError: it may not, or not in time.
        """
        model = self._require(visit.uid)
        upstream = self._upstreams.locate(model)
        if not returning and self._is_open(model):
            visit.claim.fly()
            return upstream
        while True:
            if not model.engine_ready:
                self._asked.setdefault(model.uid, self._now())
            ticket = self._room.enter(
                model,
                size=visit.size,
                retry_after=partial(self._retry_after, model),
                tenant=visit.tenant,
                priority=visit.priority,
                returning=returning,
            )
            visit.claim.wait()
            if visit.uid in self._unattended:
                self._room.leave(ticket)
                raise _nobody_acts(model)
            self._watch(visit.uid)
            try:
                await self._wait(ticket, visit, model)
            finally:
                self._room.leave(ticket)
            model = self._require(visit.uid)
            if self._may_pass(model):
                upstream = self._upstreams.locate(model)
                visit.claim.fly()
                return upstream
            returning = True  # called, but a drain was faster: back to the head of the queue

    def doubt(self, uid: str) -> None:
        """Note that an engine failed a request: nobody goes there before it was seen to answer."""
        self._answered.pop(uid, None)
        if self._catalogue.get(uid) is not None:
            self._doubted.add(uid)

    async def close(self) -> None:
        """End every probe."""
        wakers = tuple(self._wakers.values())
        for waker in wakers:
            waker.cancel()
        await asyncio.gather(*wakers, return_exceptions=True)

    def _require(self, uid: str) -> ServedModel:
        model = self._catalogue.get(uid)
        if model is None:
            raise _gone()
        if model.refusal is not None:
            raise _refused(model)
        return model

    def _may_pass(self, model: ServedModel) -> bool:
        return model.draining_epoch is None and (self._may_report() or not model.may_sleep)

    def _is_open(self, model: ServedModel) -> bool:
        if not self._may_pass(model) or self._room.waiting(model.uid):
            return False
        return self._answers(model) and self._free(model) > 0

    def _answers(self, model: ServedModel) -> bool:
        if model.uid in self._doubted:
            return False
        return model.engine_ready or self._now() < self._answered.get(model.uid, 0.0)

    def _free(self, model: ServedModel) -> int:
        """Return how many more requests may go to the model's replicas; who was called is as good as there.

        Up to two processes fill a model each on its own; more divide twice its capacity among them, which is
        well within what replicas take, so that questions whether an engine answers never queue behind requests.
        """
        share = min(model.capacity, max(1, 2 * model.capacity // self._senders()))
        _, in_flight = self._ledger.counts(model.uid)
        return share - in_flight - self._room.called(model.uid)

    async def _wait(self, ticket: Ticket, visit: Visit, model: ServedModel) -> None:
        allowed = model.wake_timeout_seconds
        patient = visit.patience is None or visit.patience >= allowed
        began = self._now()
        deadline = began + (allowed if patient or visit.patience is None else visit.patience) - visit.waited(began)
        beat = max(began, visit.arrived + FIRST_HEARTBEAT_SECONDS)
        try:
            while not ticket.called.done():
                await asyncio.wait({ticket.called}, timeout=max(0.0, min(deadline, beat) - self._now()))
                if ticket.called.done():
                    break
                if self._now() >= deadline:
                    known = self._catalogue.get(visit.uid) or model
                    raise self._timed_out(known) if patient else self._not_waiting(known, visit)
                if self._now() >= beat:
                    beat = self._now() + HEARTBEAT_SECONDS
                    await visit.heartbeat(self._comment(visit))
        finally:
            self._metering.held(model, self._now() - began)
        if (error := ticket.called.result()) is not None:
            raise error

    def _comment(self, visit: Visit) -> str:
        model = self._catalogue.get(visit.uid)
        waited = f"waited {visit.waited(self._now()):.0f} s"
        if model is None:
            return waited
        if self._answers(model):
            return f"queued for {model.qualified_name}, {waited}"
        parts = [f"waking {model.qualified_name}", waited]
        if model.wake_stage:
            parts.append(f"stage {model.wake_stage}")
        if model.pull_progress:
            parts.append(f"weights {model.pull_progress}")
        if model.last_wake_seconds:
            remaining = self._remaining(model)
            parts.append(f"the last wake took {model.last_wake_seconds:.0f} s")
            parts.append(f"about {remaining:.0f} s to go" if remaining > 0 else "this one takes longer")
        return ", ".join(parts)

    def _timed_out(self, model: ServedModel) -> RequestError:
        if self._answers(model):
            return ModelBusyError(
                f"{model.qualified_name!r} is awake, and its replicas had no place within "
                f"{model.wake_timeout_seconds:g} s (its spec.scaling.wakeTimeoutSeconds): try again.",
                retry_after=SOON_SECONDS,
            )
        return WakeTimedOutError(
            f"{model.qualified_name!r} did not answer within {model.wake_timeout_seconds:g} s "
            "(its spec.scaling.wakeTimeoutSeconds). It may still be starting: try again.",
            retry_after=self._retry_after(model),
        )

    def _not_waiting(self, model: ServedModel, visit: Visit) -> RequestError:
        state = "has no free place" if self._answers(model) else "is not awake yet; it was asked to wake"
        return NotWaitingError(
            f"{model.qualified_name!r} {state}, and the request's `Prefer: wait={visit.patience:.0f}` lets it wait "
            "no longer: try again.",
            retry_after=self._retry_after(model),
        )

    def _retry_after(self, model: ServedModel) -> float:
        """Return how many seconds a client should stay away: what is left of a wake as long as the last one."""
        if self._answers(model):
            return SOON_SECONDS
        if not model.last_wake_seconds:
            return DEFAULT_RETRY_AFTER_SECONDS
        return max(SOON_SECONDS, self._remaining(model))

    def _remaining(self, model: ServedModel) -> float:
        elapsed = self._now() - self._asked.get(model.uid, self._now())
        return (model.last_wake_seconds or 0.0) - elapsed

    def _watch(self, uid: str) -> None:
        waker = self._wakers.get(uid)
        if waker is None or waker.done():
            self._wakers[uid] = asyncio.create_task(self._wake(uid), name=f"wake {uid}")

    async def _wake(self, uid: str) -> None:
        """Release the requests that wait for one model, for as long as any do."""
        watchman = asyncio.create_task(self._await_operator(uid), name=f"await operator {uid}")
        began, base = -math.inf, 0
        try:
            while self._room.waiting(uid):
                model = self._catalogue.get(uid)
                if model is None:
                    self._room.refuse(uid, _gone)
                elif model.refusal is not None:
                    self._room.refuse(uid, partial(_refused, model))
                elif not self._may_pass(model) or self._free(model) <= 0:
                    await self._until_change(uid)
                elif not self._answers(model):
                    await self._until_answer(uid)
                else:
                    in_flight = self._ledger.counts(uid)[1] + self._room.called(uid)
                    if self._now() >= began + RAMP_SECONDS:
                        began, base = self._now(), in_flight
                    if (step := base + model.ramp - in_flight) > 0:
                        self._room.call(uid, min(step, self._free(model)))
                    else:
                        await asyncio.sleep(began + RAMP_SECONDS - self._now())
        finally:
            watchman.cancel()
            if self._wakers.get(uid) is asyncio.current_task():
                del self._wakers[uid]

    async def _await_operator(self, uid: str) -> None:
        """Refuse a model's requests once its demand was reported for long and nobody acted on it."""
        reported = 0.0
        seen = None
        while (model := self._catalogue.get(uid)) is not None:
            if not (model.unattended and self._may_report() and model.refusal is None and model == seen):
                reported = self._now()
            seen = model
            if self._now() - reported >= UNATTENDED_SECONDS:
                self._unattended.add(uid)
                self._room.refuse(uid, partial(_nobody_acts, model))
            await asyncio.sleep(min(1.0, UNATTENDED_SECONDS))

    async def _until_answer(self, uid: str) -> None:
        if await prober.until_answer(self._session, lambda: self._probe_target(uid)):
            self._doubted.discard(uid)
            self._asked.pop(uid, None)
            self._answered[uid] = self._now() + ANSWER_TRUSTED_SECONDS

    def _probe_target(self, uid: str) -> tuple[Upstream, str] | None:
        model = self._catalogue.get(uid)
        if model is None or model.refusal or not self._may_pass(model) or not self._room.waiting(uid):
            return None
        try:
            return self._upstreams.locate(model), model.engine_id
        except ModelRefusedError as error:
            self._room.refuse(uid, partial(ModelRefusedError, error.message, code=error.error_code))
            return None

    async def _until_change(self, uid: str) -> None:
        change = self._changes.setdefault(uid, asyncio.Event())
        change.clear()
        try:
            async with asyncio.timeout(_FENCE_POLL_SECONDS):
                await change.wait()
        except TimeoutError:
            return  # the fence lifts without an event
        finally:
            self._changes.pop(uid, None)

    def _on_change(self, uid: str) -> None:
        model = self._catalogue.get(uid)
        self._unattended.discard(uid)
        self._ledger.follow(uid, model)
        if model is None:
            self._answered.pop(uid, None)
            self._doubted.discard(uid)
            self._asked.pop(uid, None)
            self._metering.forget(uid)
        else:
            self._metering.meet(model)
            if model.engine_ready:
                self._asked.pop(uid, None)
            if model.draining_epoch is not None:
                self._answered.pop(uid, None)
        self._on_landing(uid)

    def _on_landing(self, uid: str) -> None:
        if (change := self._changes.get(uid)) is not None:
            change.set()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _gone() -> RequestError:
    return NotFoundError("The model was deleted.", code="model_not_found", param="model")


def _nobody_acts(model: ServedModel) -> RequestError:
    return UnattendedError(
        f"{model.qualified_name!r} is asleep and nobody wakes it: its demand was reported, but its status does not "
        "change. Either the operator is away, or the deployment is paused. Models that are awake are served.",
        retry_after=DEFAULT_RETRY_AFTER_SECONDS,
    )


def _refused(model: ServedModel) -> RequestError:
    assert model.refusal is not None  # noqa: S101 - callers looked
    return ModelRefusedError(
        f"{model.qualified_name!r} is not available: {model.refusal.reason}: {model.refusal.message}",
        code=model.refusal.reason,
    )
