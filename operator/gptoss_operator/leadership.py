"""Who may write: the only operator there is, nobody, or the one that holds the Lease."""

import asyncio
import logging
import random
from datetime import UTC, datetime
from typing import Protocol

from gptoss_kube.client import Kube
from gptoss_kube.errors import Conflict, KubeError, NotFound
from gptoss_kube.leases import LeaseObject, LeaseRecord
from gptoss_kube.resources import LEASES
from gptoss_kube.watch import Informer
from gptoss_operator.clock import Clock
from gptoss_operator.election import Election, Look, Terms, Wait, Write

_log = logging.getLogger(__name__)
_FIELD_MANAGER = "gptoss-operator-election"


class DeposedError(Exception):
    """Another replica leads now. What this process remembers is out of date, so it ends and starts anew."""


class Leadership(Protocol):
    """Asked before every write, Ray's included."""

    def may_write(self) -> bool:
        """Tell whether a write may start now."""
        ...

    def write_seconds(self) -> float:
        """Return within how many seconds a write that starts now must be over; 0 if none may start."""
        ...

    async def in_office(self) -> None:
        """Wait until writes may start. Whoever never leads waits for nothing: it only looks."""
        ...


class AlwaysLeader:
    """The only operator there is."""

    def may_write(self) -> bool:
        """Return True."""
        return True

    def write_seconds(self) -> float:
        """Return infinity."""
        return float("inf")

    async def in_office(self) -> None:
        """Return at once."""


class ReadOnly:
    """Plans are logged and nothing is written."""

    def may_write(self) -> bool:
        """Return False."""
        return False

    def write_seconds(self) -> float:
        """Return 0."""
        return 0.0

    async def in_office(self) -> None:
        """Return at once: plans are made, to be logged."""


class Elector:
    """Stands for the Lease, keeps it, and gives it back.

    Args:
        kube: a client of its own, so that no other traffic delays a renewal and no fence holds it back.
        identity: unique per process; where a policy fences on the server, the pod's name.
    """

    def __init__(self, kube: Kube, *, namespace: str, name: str, identity: str, terms: Terms, clock: Clock) -> None:
        self._kube = kube
        self._lease = LeaseObject(kube, namespace=namespace, name=name, field_manager=_FIELD_MANAGER)
        self._terms = terms
        self._clock = clock
        self._election = Election(identity=identity, terms=terms)
        self._identity = identity
        self._news = asyncio.Event()
        self._elected = asyncio.Event()
        self._trouble = ""

    def may_write(self) -> bool:
        """Tell whether a write may start now: the last renewal is recent enough."""
        return self.write_seconds() > 0

    def write_seconds(self) -> float:
        """Return within how many seconds a write that starts now must be over; 0 if none may start."""
        return self._election.write_seconds(self._clock.now())

    async def in_office(self) -> None:
        """Wait until this process leads."""
        while not self.may_write():
            self._elected.clear()
            await self._elected.wait()

    async def forever(self) -> None:
        """Stand for the Lease and renew it.

        Raises:
            DeposedError: this process led, and another one does now.
        """
        async with Informer(
            self._kube,
            LEASES,
            namespace=self._lease.namespace,
            name=self._lease.name,
            on_change=self._seen,
            on_delete=self._gone,
        ):
            while self._election.deposed_by is None:
                await self._turn()
        raise DeposedError(
            f"the Lease {self._lease.namespace}/{self._lease.name} is held by {self._election.deposed_by} now: "
            "this process ends, and starts anew as a standby"
        )

    async def release(self) -> None:
        """Let the next one lead at once. Call it when nothing of ours writes any more; it never fails."""
        try:
            for _ in range(2):
                step = self._election.release(_wall())
                if step is None or step.replaces is None:
                    return
                try:
                    await self._lease.replace(step.replaces, step.claim, timeout=self._terms.call_seconds)
                except Conflict:  # a renewal that was cut off arrived all the same
                    self._election.saw(await self._lease.read(timeout=self._terms.call_seconds), now=self._clock.now())
                else:
                    _log.info("gave back the Lease %s", self._lease.name)
                    return
        except KubeError as error:
            _log.info("the Lease was not given back, so the next leader waits for its end: %s", error)

    async def _turn(self) -> None:
        match self._election.next_step(self._clock.now(), _wall()):
            case Wait(seconds=seconds):
                self._news.clear()
                # A little later than needed: two that wait for the same end should not meet there.
                await self._heard_within(seconds * random.uniform(1.0, 1.05))  # noqa: S311
            case Look():
                await self._look()
            case Write() as step:
                await self._write(step)

    async def _look(self) -> None:
        try:
            record = await self._lease.read(timeout=self._terms.call_seconds)
        except KubeError as error:
            await self._pause(error)
        else:
            self._election.saw(record, now=self._clock.now())

    async def _write(self, step: Write) -> None:
        sent_at, timeout, led = self._clock.now(), self._terms.call_seconds, self.may_write()
        try:
            if step.replaces is None:
                stored = await self._lease.create(step.claim, timeout=timeout)
            else:
                stored = await self._lease.replace(step.replaces, step.claim, timeout=timeout)
        except (Conflict, NotFound) as error:
            self._election.unclear()
            _log.debug("the Lease was not ours to write: %s", error)
            if isinstance(error, NotFound) and step.replaces is None:
                await self._pause(error)  # its namespace is missing
        except KubeError as error:
            self._election.unclear()
            await self._pause(error)
        else:
            self._election.won(stored, sent_at=sent_at, now=self._clock.now())
            self._trouble = ""
            if not led:
                _log.info("%s leads (Lease %s)", self._identity, self._lease.name)
            self._elected.set()

    async def _pause(self, error: KubeError) -> None:
        if str(error) != self._trouble:
            self._trouble = str(error)
            _log.warning("the Lease %s can't be reached, trying again: %s", self._lease.name, error)
        await asyncio.sleep(self._terms.retry_seconds * random.uniform(0.8, 1.2))  # noqa: S311

    async def _heard_within(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            pass

    def _seen(self, raw: dict[str, object]) -> None:
        self._election.saw(LeaseRecord.parse(raw), now=self._clock.now(), read=False)
        self._news.set()

    def _gone(self, raw: dict[str, object]) -> None:
        self._election.gone(LeaseRecord.parse(raw).uid, now=self._clock.now())
        self._news.set()


def _wall() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
