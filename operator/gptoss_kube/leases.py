"""A Lease as what it says: who holds it, since when, and until when others must wait.

`kubernetes.aio.leaderelection` is of no use here: it can't create a Lease, goes on leading after errors, and
a process that was stopped for a while leads beside its successor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptoss_kube.client import Kube, Object
from gptoss_kube.errors import NotFound
from gptoss_kube.resources import LEASES


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """What a holder writes into a Lease.

    Attributes:
        holder: the holder's identity; "" for nobody.
        acquired: RFC 3339 time with microseconds; with the holder it names one term of office.
        renewed: the same, of the last renewal. Nobody computes with it: clocks differ. A new value is a new sign
            of life.
        seconds: how long others wait after the last sign of life.
        transitions: how often the holder has changed.
    """

    holder: str
    acquired: str
    renewed: str
    seconds: int
    transitions: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseRecord:
    """A stored Lease: the claim in it, and what guards the next write."""

    claim: Claim
    uid: str
    version: str
    metadata: Mapping[str, Any]

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "LeaseRecord":
        """Read a raw Lease. What is missing counts as nobody's; others may write Leases too."""
        spec = raw.get("spec") or {}
        metadata = {name: value for name, value in raw["metadata"].items() if name != "managedFields"}
        return cls(
            claim=Claim(
                holder=spec.get("holderIdentity") or "",
                acquired=spec.get("acquireTime") or "",
                renewed=spec.get("renewTime") or "",
                seconds=int(spec.get("leaseDurationSeconds") or 0),
                transitions=int(spec.get("leaseTransitions") or 0),
            ),
            uid=metadata["uid"],
            version=metadata["resourceVersion"],
            metadata=metadata,
        )


class LeaseObject:
    """One Lease on the server. Every method raises the errors of ``gptoss_kube.errors``; timeouts in seconds."""

    def __init__(self, kube: Kube, *, namespace: str, name: str, field_manager: str) -> None:
        self._kube = kube
        self.namespace = namespace
        self.name = name
        self._field_manager = field_manager

    async def read(self, *, timeout: float) -> LeaseRecord | None:
        """Return what is stored now, or None if there is no such Lease."""
        try:
            return LeaseRecord.parse(await self._kube.get(LEASES, self.name, namespace=self.namespace, timeout=timeout))
        except NotFound:
            return None

    async def create(self, claim: Claim, *, timeout: float) -> LeaseRecord:
        """Create it; AlreadyExists if somebody was faster."""
        body = self._body({"name": self.name, "namespace": self.namespace}, claim)
        created = await self._kube.create(body, resource=LEASES, field_manager=self._field_manager, timeout=timeout)
        return LeaseRecord.parse(created)

    async def replace(self, record: LeaseRecord, claim: Claim, *, timeout: float) -> LeaseRecord:
        """Put a claim in the place of exactly this record; Conflict if it is not what is stored any more."""
        body = self._body(record.metadata, claim)
        stored = await self._kube.replace(body, resource=LEASES, field_manager=self._field_manager, timeout=timeout)
        return LeaseRecord.parse(stored)

    @staticmethod
    def _body(metadata: Mapping[str, Any], claim: Claim) -> Object:
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": dict(metadata),
            "spec": {
                "holderIdentity": claim.holder,
                "acquireTime": claim.acquired,
                "renewTime": claim.renewed,
                "leaseDurationSeconds": claim.seconds,
                "leaseTransitions": claim.transitions,
            },
        }
